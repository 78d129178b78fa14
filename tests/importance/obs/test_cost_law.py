"""Power laws through trials, against numpy's own least squares and by their meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslim.importance.obs.cost_law import MAX_POWER, PowerLaw, Trial

POSITIVE = st.floats(1e-9, 1e9)
PRICES = st.lists(st.floats(0, 1e12), min_size=1, max_size=40).map(np.array)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=8, unique_by=lambda one: one[0]))
def test_it_is_numpys_line_through_logarithms_where_that_rises_neither_too_little_nor_too_much(points) -> None:  # type: ignore[no-untyped-def]
    law = PowerLaw.through([Trial(*one) for one in points])
    x, y = np.log(np.array(points)).T
    if np.ptp(x) < 1e-3:
        return
    slope, scale = np.polyfit(x, y, 1)
    assert law.power == pytest.approx(np.clip(slope, 1, MAX_POWER), rel=1e-6, abs=1e-6)
    if 1 < slope < MAX_POWER:
        assert law.scale == pytest.approx(scale, rel=1e-5, abs=1e-4)
    else:  # the best of that power: errors of logarithms that are nought on average
        assert np.mean(y - law.power * x - law.scale) == pytest.approx(0, abs=1e-6)


def test_a_single_trial_scales_prices() -> None:
    law = PowerLaw.through([Trial(4.0, 2.0), Trial(4.0, 0.5)])
    assert law.power == 1
    np.testing.assert_allclose(law.costs(np.array([3.0, 1.0])), [0.75, 0.25])


@given(PRICES, st.floats(-50, 50), st.floats(1, MAX_POWER))
def test_costs_keep_the_order_of_prices_and_sum_to_the_law(prices, scale: float, power: float) -> None:  # type: ignore[no-untyped-def]
    costs, total = PowerLaw(scale, power).costs(prices), prices.sum()
    assert (costs >= 0).all()
    np.testing.assert_array_equal(costs[np.argsort(prices, kind="stable")], np.sort(costs))
    if total > 1e-100:
        wanted = np.exp(scale + power * np.log(total))
        assert costs.sum() == pytest.approx(wanted, rel=1e-6)


@given(st.floats(1e-9, 1e9), st.lists(POSITIVE, min_size=1, max_size=8))
def test_trials_of_one_price_tell_no_power(price: float, costs: list[float]) -> None:
    law = PowerLaw.through([Trial(price, cost) for cost in costs])
    assert law.power == 1
    assert law.scale == pytest.approx(np.log(costs).mean() - np.log(price), abs=1e-9)


def test_the_last_channels_are_dearer_than_their_prices_say() -> None:
    prices = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(PowerLaw(0.0, 2.0).costs(prices), [1, 3**2 - 1, 6**2 - 3**2, 10**2 - 6**2])


def test_dead_channels_cost_nothing_and_tell_nothing_of_the_others() -> None:
    np.testing.assert_allclose(PowerLaw(1.0, 1.5).costs(np.array([0.0, 2.0, 0.0])), [0, np.e * 2**1.5, 0])


def test_costs_that_no_number_holds_are_large_and_in_order() -> None:
    costs = PowerLaw(900.0, 1.0).costs(np.array([3.0, 1.0, 2.0]))
    assert np.isfinite(costs).all()
    np.testing.assert_array_equal(np.argsort(costs, kind="stable"), [1, 2, 0])


def test_equal_prices_go_by_their_places() -> None:
    costs = PowerLaw(0.0, 1.0).costs(np.full(50, 0.1))
    np.testing.assert_allclose(costs, 0.1)
    np.testing.assert_array_equal(np.argsort(costs, kind="stable"), np.arange(50))
