"""Selection by hand-made units and costs: against every possibility, without a network."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslim.costs.cost_models import CostModel
from torchslim.errors import RequestError
from torchslim.planning.budgets import Limit, as_count
from torchslim.planning.selection import restore, select_by_score
from torchslim.planning.units import PrunableUnit
from torchslim.rules.declarations import CostTerm


def unit(first: int, widths: list[int], losses: list[float], tied: bool = False) -> PrunableUnit:
    """A unit whose channels are the classes from `first` on."""
    classes = np.arange(first, first + widths[0])
    return PrunableUnit(f"unit {first}", classes, np.array(widths), np.array(losses), tied, min(widths))


def cost(*terms: tuple[int, list[np.ndarray]]) -> CostModel:
    return CostModel([CostTerm(amount, tuple(along)) for amount, along in terms])


A, B = unit(0, [4, 3, 2], [1.0, 4.0]), unit(4, [4, 3, 2], [2.0, 3.0])
CHAIN = cost((40, [A.classes]), (160, [A.classes, B.classes]), (40, [B.classes]))


def test_removals_go_by_their_loss_until_the_limit_is_met() -> None:
    levels = {maximum: select_by_score(8, [A, B], [Limit("macs", CHAIN, maximum)]).levels
              for maximum in (240, 239, 199, 160, 110, 100)}
    assert levels == {240: (0, 0), 239: (1, 0), 199: (1, 0), 160: (1, 1), 110: (1, 2), 100: (2, 2)}
    assert CHAIN(select_by_score(8, [A, B], [Limit("macs", CHAIN, 100)]).shares(8)) <= 100


def test_equal_losses_go_by_position() -> None:
    first, second = unit(0, [4, 3], [1.0]), unit(4, [4, 3], [1.0])
    both = cost((10, [first.classes]), (10, [second.classes]))
    assert select_by_score(8, [first, second], [Limit("macs", both, 19)]).levels == (1, 0)


def test_what_the_last_removal_saves_too_much_is_given_back() -> None:
    """The cheap removal is of no use once the expensive one was made."""
    cheap, large = unit(0, [10, 9], [1.0]), unit(10, [10, 2], [2.0])
    both = cost((10, [cheap.classes]), (100, [large.classes]))
    selection = select_by_score(20, [cheap, large], [Limit("macs", both, 60)])
    assert selection.levels == (0, 1)
    assert selection.last_unit == 1
    assert both(selection.shares_before_last_step) == 109


def test_a_limit_out_of_reach_asks_for_the_least_there_is() -> None:
    idle = unit(8, [4, 2], [0.5])  # no cost depends on it
    selection = select_by_score(12, [A, B, idle], [Limit("macs", CHAIN, 1)])
    assert selection.levels == (2, 2, 0)


def test_levels_asked_for_are_made_in_any_case() -> None:
    assert select_by_score(8, [A, B], [Limit("macs", CHAIN, 240)], {1: 2}).levels == (0, 2)
    assert select_by_score(8, [A, B], [], {0: 1}).levels == (1, 0)


def test_a_uniform_selection_gives_back_one_level_at_the_most() -> None:
    fine, large = unit(0, [10, *range(9, 1, -1)], [i / 10 for i in range(1, 9)]), unit(10, [10, 2], [0.8])
    both = cost((100, [fine.classes]), (100, [large.classes]))
    limits = [Limit("macs", both, 100)]
    assert select_by_score(20, [fine, large], limits, uniform=True).levels == (7, 1)
    assert select_by_score(20, [fine, large], limits).levels == (2, 1)


@given(st.data())
def test_limits_are_met_and_nothing_more_can_be_given_back(data: st.DataObject) -> None:
    units, first = [], 0
    for _ in range(data.draw(st.integers(1, 4))):
        width = data.draw(st.integers(2, 6))
        losses = sorted(data.draw(st.lists(st.floats(0, 9), min_size=width - 2, max_size=width - 2)))
        tied = data.draw(st.booleans())
        units.append(unit(first, list(range(width, 1, -1)), losses, tied))
        first += width
    terms = [(data.draw(st.integers(1, 99)), [u.classes for u in data.draw(st.permutations(units))[:2]])
             for _ in range(3)]
    model = cost(*terms)
    maximum = data.draw(st.integers(1, model.total))
    selection = select_by_score(first, units, [Limit("macs", model, maximum)])
    smallest = min(model(_shares(units, levels, first)) for levels in product(*(range(len(u.widths)) for u in units)))
    reachable = maximum if maximum >= smallest else max(smallest, int(1.01 * smallest))
    assert model(selection.shares(first)) <= reachable
    for index, level in enumerate(selection.levels):
        if level:
            wider = (*selection.levels[:index], level - 1, *selection.levels[index + 1:])
            assert model(_shares(units, wider, first)) > reachable


def _shares(units: list[PrunableUnit], levels: tuple[int, ...], classes: int) -> np.ndarray:
    shares = np.ones(classes)
    for each, level in zip(units, levels, strict=True):
        for position, label in enumerate(each.classes.tolist()):
            gone = position < each.widths[0] - each.widths[level]
            shares[label] = each.widths[level] / each.widths[0] if each.tied else float(not gone)
    return shares


def test_restoring_finds_the_lowest_level_that_meets_the_limits() -> None:
    levels = [5, 3]
    restore([1, 0], levels, lambda index: 1, levels.__setitem__, lambda: levels[0] + levels[1] >= 5)
    assert levels == [4, 1]


def test_a_unit_keeps_what_is_asked_of_it() -> None:
    assert A.at_least(3).widths.tolist() == [4, 3]
    assert A.at_least(9).widths.tolist() == [4]
    assert A.at_least(2.5).min_width == 3
    assert A.with_uniform_losses(8.0).losses.tolist() == [1 - 3 / 8, 1 - 2 / 8]
    assert A.cumulative_score().tolist() == [0.0, 1.0, 5.0]
    damped = A.log_damped_score()  # of 13: 1 + 4 removed, and 8 that stay
    assert damped == pytest.approx([0.0, -13 * np.log(12 / 13), -13 * np.log(8 / 13)])


@pytest.mark.parametrize("requested", [0, -1, 0.0, 1.5, True, "half", None])
def test_what_is_no_budget_is_refused(requested: object) -> None:
    with pytest.raises(RequestError, match="macs"):
        as_count(requested, 100, "macs")
