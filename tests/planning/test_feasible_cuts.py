"""How the units to blame for a failure are found: with units by hand and runs that are predicates."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from torchslim.errors import PlanError
from torchslim.planning import feasible_cuts
from torchslim.planning.channel_matching import Cut, Failure
from torchslim.planning.feasible_cuts import bisect_failing_units
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit


def unit(first: int, tied: bool = False) -> PrunableUnit:
    return PrunableUnit(f"unit {first}", np.arange(first, first + 4), np.array([4, 3, 2]), np.ones(2), tied, 2)


UNITS = tuple(unit(4 * index) for index in range(8))
ALL = Selection(UNITS, (1,) * 8)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The units that are cut in each try."""
    return []


def find(monkeypatch: pytest.MonkeyPatch, runs: list[Any], *culprits: set[int], blamed: tuple[int, ...] = (),
         known: tuple[int, ...] = (), where: str = "", numbers: tuple[int, ...] = (),
         progress: tuple[int, int] | None = None) -> list[int]:
    def works(selection: Selection) -> bool:
        cut = {index for index, level in enumerate(selection.levels) if level}
        runs.append(tuple(sorted(cut)))
        return not any(group <= cut for group in culprits)

    def resolve(_model: Any, _inputs: Any, _coupling: Any, selection: Selection, *_: Any) -> Cut | Failure:
        return Cut(np.ones(1, bool), {}, {}, (), ()) if works(selection) else Failure("it fails", where, frozenset())

    monkeypatch.setattr(feasible_cuts, "resolve_cut", resolve if progress is None else None)
    monkeypatch.setattr(feasible_cuts, "runs_beyond",
                        lambda failure, *rest: failure.progress == progress and works(rest[-1]))
    classes, sized = (frozenset(int(label) for index in indices for label in UNITS[index].classes)
                      for indices in (blamed, numbers))
    failure = Failure("it fails", where, classes, sized, progress)
    problem: Any = SimpleNamespace(model=None, inputs=None)
    coupling: Any = None
    return bisect_failing_units(problem, coupling, ALL, np.zeros(32), failure, known)


def test_one_culprit_is_found_by_halving(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {5}) == [5]
    assert len(runs) <= 8


def test_several_culprits_are_found(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {1}, {6}) == [1, 6]


@pytest.mark.parametrize("culprits", [
    [{4, 5}], [{1, 6}], [{3, 4}], [{0, 7}], [{0, 2, 4}], [{1, 6}, {3}], [{1, 2}, {3, 4}], [{0, 3}, {3, 7}]])
def test_units_that_fail_together_only_are_found_as_such(monkeypatch: pytest.MonkeyPatch, runs: list[Any],
                                                         culprits: list[set[int]]) -> None:
    found = set(find(monkeypatch, runs, *culprits))
    assert found <= set.union(*culprits)
    assert all(found & together for together in culprits)  # without them nothing is left that fails


def test_any_units_that_fail_are_found_in_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2):
        for culprits in combinations(range(len(UNITS)), size):
            runs: list[Any] = []
            assert find(monkeypatch, runs, set(culprits)) == list(culprits)
            assert len(runs) <= 8 * size


def test_a_single_unit_that_is_blamed_is_taken_at_once(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {5}, blamed=(5,)) == [5]
    assert runs == []


def test_units_whose_width_is_an_argument_are_tried_first(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {5}, numbers=(5,)) == [5]
    assert runs == [(5,)]
    assert find(monkeypatch, runs, {5}, blamed=(1,), numbers=(5,)) == [5]
    assert find(monkeypatch, runs, {5}, numbers=(2,)) == [5]


def test_where_an_operation_failed_runs_beyond_it_are_enough(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {3}, {6}, progress=(0, 17)) == [3, 6]


def test_units_that_are_blamed_wrongly_are_not_excluded(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {5}, blamed=(0, 1)) == [5]


def test_units_known_from_before_are_verified_where_no_operation_fails(monkeypatch: pytest.MonkeyPatch,
                                                                       runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {5}, known=(5,)) == [5]
    assert runs == [(0, 1, 2, 3, 4, 6, 7)]
    assert find(monkeypatch, runs, {5}, known=(2,)) == [5]


def test_units_known_of_an_operation_are_taken_at_once(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    assert find(monkeypatch, runs, {5}, known=(5,), where="`view`") == [5]
    assert runs == []


def test_where_nothing_fails_a_second_time_it_is_said(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    with pytest.raises(PlanError, match="does not run at its own widths a second time"):
        find(monkeypatch, runs)
