"""Selection by time saved, on a clock that is a formula: the state against a fresh sum, exchange steps, lost levels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslim.costs.cost_models import CostModel
from torchslim.latency.predictor import LatencyPredictor
from torchslim.planning import greedy
from torchslim.planning.budgets import Limit
from torchslim.planning.greedy import (
    GreedyState,
    drop_levels_without_speedup,
    select_by_time,
    units_without_speedup,
)
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit


def unit(first: int, width: int, losses: list[float]) -> PrunableUnit:
    return PrunableUnit(f"unit {first}", np.arange(first, first + width), np.arange(width, width - len(losses) - 1, -1),
                        np.array(losses), False, width - len(losses))


class Clock(LatencyPredictor):
    """A predictor whose times are given: `block` channels of each unit are as slow as one of them."""

    def __init__(self, units: list[PrunableUnit], weights: list[float], block: int = 1) -> None:
        CostModel.__init__(self)
        for each, weight in zip(units, weights, strict=True):
            self.add(weight, [each.classes], lambda width: np.asarray(np.ceil(width / block) * block))
        self.full_cost = self.at_widths(self.full_widths())
        self.baseline_ns, self.correction = self.full_cost, 1.0


A, B = unit(0, 8, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]), unit(8, 8, [0.5, 0.5, 4.0, 4.0, 5.0, 5.0])


@pytest.mark.parametrize("moves", [[(0, 3)], [(0, 6), (1, 2)], [(0, 4), (1, 6), (0, 1)]])
def test_the_state_holds_what_a_fresh_sum_gives(moves: list[tuple[int, int]]) -> None:
    cost = CostModel()
    cost.add(3.0, [A.classes, B.classes], lambda a, b: np.asarray(a * b))
    cost.add(2.0, [A.classes], lambda a: np.asarray(a**1.5))
    state = GreedyState(cost, [A, B], 16, [0, 0])
    levels = [0, 0]
    for index, level in moves:
        state.move(index, level)
        levels[index] = level
    shares = Selection((A, B), tuple(levels)).shares(16)
    assert state.total == pytest.approx(cost.at_shares(shares))
    for level, total in enumerate(state.costs(0)):
        others = Selection((A, B), (level, levels[1])).shares(16)
        assert total == pytest.approx(cost.at_shares(others))  # every term depends on the first unit


def test_the_best_step_loses_least_for_what_it_saves() -> None:
    state = GreedyState(Clock([A, B], [1.0, 1.0], block=4), [A, B], 16, [0, 0])
    rate, saving, level = state.best_step(1) or (0.0, 0.0, 0)
    assert (saving, level) == (-4.0, 4)  # fewer than four channels save nothing
    assert rate == pytest.approx(B.log_damped_score()[4] / 4)
    state.move(1, 4)
    assert state.best_step(1) is None  # what is left is one block


def test_levels_that_are_no_faster_are_dropped_and_units_without_any_are_named() -> None:
    units = [A, unit(8, 4, [1.0, 1.0])]
    clock = Clock(units, [1.0, 1.0], block=4)
    fewer = drop_levels_without_speedup(clock, units, 12)
    assert [each.widths.tolist() for each in fewer] == [[8, 4], [4]]
    assert fewer[0].cumulative_score().tolist() == [0.0, A.cumulative_score()[4]]
    assert units_without_speedup(clock, Selection(tuple(fewer), (1, 0)), units, 12) == [1]


def test_an_exchange_undoes_a_step_that_overshoots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of the second unit saves far more than was wanting; one of the third does for less."""
    coarse, fine = unit(0, 16, [1.0] * 14), unit(16, 4, [40.0, 41.0])
    clock = Clock([coarse, fine], [1.0, 1.0], block=1)
    coarse = PrunableUnit(coarse.name, coarse.classes, np.array([16, 6]), np.array([9.0]), False, 2)
    limits = [Limit("latency", clock, 19)]
    exchanged = select_by_time(20, [coarse, fine], limits, clock)
    monkeypatch.setattr(greedy, "_exchange", lambda *_: [])
    plain = select_by_time(20, [coarse, fine], limits, clock)
    assert plain.levels == (1, 0)
    assert exchanged.levels == (0, 1)


@given(st.data())
def test_budgets_of_time_are_met_and_an_exchange_loses_no_more(data: st.DataObject) -> None:
    units, first = [], 0
    for _ in range(data.draw(st.integers(1, 3))):
        width = data.draw(st.integers(3, 9))
        losses = sorted(data.draw(st.lists(st.floats(0.1, 9), min_size=width - 2, max_size=width - 2)))
        units.append(unit(first, width, losses))
        first += width
    weights = [float(data.draw(st.integers(1, 9))) for _ in units]
    clock = Clock(units, weights, block=data.draw(st.integers(1, 3)))
    budget = data.draw(st.integers(1, int(clock.full_cost)))
    selection = select_by_time(first, units, [Limit("latency", clock, budget)], clock)
    times = {levels: clock(Selection(tuple(units), levels).shares(first))
             for levels in product(*(range(len(each.widths)) for each in units))}
    assert times[selection.levels] <= max(budget, min(times.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "_exchange", lambda *_: [])
        plain = select_by_time(first, units, [Limit("latency", clock, budget)], clock)

    def loss(levels: tuple[int, ...]) -> float:
        return sum(float(each.log_damped_score()[level]) for each, level in zip(units, levels, strict=True))

    assert loss(selection.levels) <= loss(plain.levels) + 1e-9
    if min(times.values()) <= budget:
        for index, level in enumerate(selection.levels):
            if level:
                wider = (*selection.levels[:index], level - 1, *selection.levels[index + 1:])
                assert times[wider] > budget
