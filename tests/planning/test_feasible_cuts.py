"""Failures and how the units to blame are found: with units by hand and runs that are predicates."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from torchslim.errors import PlanError
from torchslim.planning import feasible_cuts
from torchslim.planning.channel_matching import Cut, Failure
from torchslim.planning.failures import MAX_WIDTHS_TRIED, FailureLog
from torchslim.planning.feasible_cuts import bisect_failing_units
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit
from torchslim.rules.labels import EqualCountConstraint, LabeledDim


def unit(first: int, tied: bool = False) -> PrunableUnit:
    return PrunableUnit(f"unit {first}", np.arange(first, first + 4), np.array([4, 3, 2]), np.ones(2), tied, 2)


UNITS = tuple(unit(4 * index) for index in range(8))
ALL = Selection(UNITS, (1,) * 8)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The units that are cut in each try."""
    return []


def find(monkeypatch: pytest.MonkeyPatch, runs: list[Any], *culprits: set[int], blamed: tuple[int, ...] = (),
         known: tuple[int, ...] = (), where: str = "") -> list[int]:
    def resolve(_model: Any, _inputs: Any, _coupling: Any, selection: Selection, _scores: Any) -> Cut | Failure:
        cut = {index for index, level in enumerate(selection.levels) if level}
        runs.append(tuple(sorted(cut)))
        failed = any(group <= cut for group in culprits)
        return Failure("it fails", where, frozenset()) if failed else Cut(np.ones(1, bool), {}, {}, (), ())

    monkeypatch.setattr(feasible_cuts, "resolve_cut", resolve)
    classes = frozenset(int(label) for index in blamed for label in UNITS[index].classes)
    problem: Any = SimpleNamespace(model=None, inputs=None)
    coupling: Any = None
    return bisect_failing_units(problem, coupling, ALL, np.zeros(32), Failure("it fails", where, classes), known)


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


# --- what is excluded after a failure ---------------------------------------------------------------------------------

def coupling(*dims: LabeledDim, rows: tuple[EqualCountConstraint, ...] = ()) -> Any:
    modules = {dim.name.rpartition(".")[0]: dim.name[0] for dim in dims}  # a0 and a1 are of one class
    return SimpleNamespace(num_classes=16, labeled_dims=dims, constraints=rows,
                           graphs=(SimpleNamespace(modules=modules),),
                           by_dimension={(dim.name, dim.dim): dim for dim in dims})


DIMS = tuple(LabeledDim(name, 0, np.arange(4 * place, 4 * place + 4))
             for place, name in enumerate(("a0.weight", "a1.weight", "b.weight")))
FAILURE = Failure("remembers a width", "`view`", frozenset())


def test_free_channels_stay_and_sister_modules_share_the_verdict() -> None:
    selection = Selection((unit(0), unit(4), unit(8)), (1, 2, 1))
    log = FailureLog().record(coupling(*DIMS), selection, [0], FAILURE)
    assert log.protected(coupling(*DIMS)) == dict.fromkeys(range(8), "remembers a width")
    assert log.known_culprits(selection, FAILURE) == [0]
    assert log.known_culprits(Selection(selection.units, (0, 2, 1)), FAILURE) == []


def test_sisters_that_are_blamed_together_are_recorded_once() -> None:
    rows = tuple(EqualCountConstraint(np.arange(4 * n, 4 * n + 4).reshape(2, 2), 1, index=n) for n in range(2))
    sisters = tuple(PrunableUnit("rows", np.arange(4 * n, 4 * n + 4), np.arange(8, 1, -1), np.ones(6), tied=True,
                                 min_width=2) for n in range(2))
    whole, log = coupling(*DIMS[:2], rows=rows), FailureLog()
    for level in range(1, MAX_WIDTHS_TRIED + 1):
        log = log.record(whole, Selection(sisters, (level, level)), [0, 1], FAILURE)
        assert len(log.infeasible_widths) == 2 * level
    assert (log.ties, log.stays) == (frozenset(), ())
    log = log.record(whole, Selection(sisters, (5, 5)), [0, 1], FAILURE)
    assert (log.ties, log.stays) == ({0, 1}, ())


def test_a_sister_that_is_not_cut_is_left_as_it_is() -> None:
    log = FailureLog().record(coupling(*DIMS), Selection((unit(0), unit(4)), (1, 0)), [0], FAILURE)
    assert log.protected(coupling(*DIMS)) == dict.fromkeys(range(4), "remembers a width")


def test_rows_try_other_widths_then_are_tied_then_stay() -> None:
    rows = (EqualCountConstraint(np.arange(4).reshape(2, 2), 1, index=7),)
    wide = PrunableUnit("rows", np.arange(4), np.arange(8, 1, -1), np.ones(6), tied=True, min_width=2)
    whole, log = coupling(DIMS[0], rows=rows), FailureLog()
    for level in range(1, MAX_WIDTHS_TRIED + 1):
        before, log = log, log.record(whole, Selection((wide,), (level,)), [0], FAILURE)
        assert before.infeasible_widths < log.infeasible_widths
    assert log.without_infeasible_widths(wide).widths.tolist() == [8, 3, 2]
    assert log.ties == frozenset()
    log = log.record(whole, Selection((wide,), (5,)), [0], FAILURE)
    assert log.ties == {7}
    assert (log.infeasible_widths, log.culprits) == (frozenset(), {})  # classes are numbered anew
    for level in range(1, MAX_WIDTHS_TRIED + 2):
        log = log.record(whole, Selection((wide,), (level,)), [0], FAILURE)
    assert log.protected(whole) == dict.fromkeys(range(4), "remembers a width")
