"""What planning excludes after a failure: widths, then free order within rows, then the channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from torchslim.planning.channel_matching import Failure
from torchslim.planning.failures import MAX_WIDTHS_TRIED, FailureLog
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit
from torchslim.rules.declarations import EqualCountConstraint, LabeledDim


def unit(first: int) -> PrunableUnit:
    return PrunableUnit(f"unit {first}", np.arange(first, first + 4), np.array([4, 3, 2]), np.ones(2), False, 2)


def coupling(*dims: LabeledDim, rows: tuple[EqualCountConstraint, ...] = ()) -> Any:
    modules = {dim.name.rpartition(".")[0]: dim.name[0] for dim in dims}  # a0 and a1 are of one class
    return SimpleNamespace(num_classes=16, whole_heads={}, labeled_dims=dims, constraints=rows,
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
    rows = tuple(EqualCountConstraint(np.arange(4 * n, 4 * n + 4).reshape(2, 2), 1, index=(n, 0)) for n in range(2))
    sisters = tuple(PrunableUnit("rows", np.arange(4 * n, 4 * n + 4), np.arange(8, 1, -1), np.ones(6), tied=True,
                                 min_width=2) for n in range(2))
    whole, log = coupling(*DIMS[:2], rows=rows), FailureLog()
    for level in range(1, MAX_WIDTHS_TRIED + 1):
        log = log.record(whole, Selection(sisters, (level, level)), [0, 1], FAILURE)
        assert len(log.infeasible_widths) == 2 * level
    assert (log.ties, log.stays) == (frozenset(), ())
    log = log.record(whole, Selection(sisters, (5, 5)), [0, 1], FAILURE)
    assert (log.ties, log.stays) == ({(0, 0), (1, 0)}, ())


def test_a_sister_that_is_not_cut_is_left_as_it_is() -> None:
    log = FailureLog().record(coupling(*DIMS), Selection((unit(0), unit(4)), (1, 0)), [0], FAILURE)
    assert log.protected(coupling(*DIMS)) == dict.fromkeys(range(4), "remembers a width")


def test_rows_try_other_widths_then_are_tied_then_stay() -> None:
    rows = (EqualCountConstraint(np.arange(4).reshape(2, 2), 1, index=(7, 0)),)
    wide = PrunableUnit("rows", np.arange(4), np.arange(8, 1, -1), np.ones(6), tied=True, min_width=2)
    whole, log = coupling(DIMS[0], rows=rows), FailureLog()
    for level in range(1, MAX_WIDTHS_TRIED + 1):
        before, log = log, log.record(whole, Selection((wide,), (level,)), [0], FAILURE)
        assert before.infeasible_widths.keys() < log.infeasible_widths.keys()
    assert log.without_infeasible_widths(wide).widths.tolist() == [8, 3, 2]
    assert (wide.failure, log.without_infeasible_widths(wide).failure) == ("", "remembers a width")
    assert log.ties == frozenset()
    log = log.record(whole, Selection((wide,), (5,)), [0], FAILURE)
    assert log.ties == {(7, 0)}
    assert (log.infeasible_widths, log.culprits) == ({}, {})  # classes are numbered anew
    for level in range(1, MAX_WIDTHS_TRIED + 2):
        log = log.record(whole, Selection((wide,), (level,)), [0], FAILURE)
    assert log.protected(whole) == dict.fromkeys(range(4), "remembers a width")


def test_rows_whose_number_shapes_other_channels_stay_at_once() -> None:
    rows = (EqualCountConstraint(np.arange(4).reshape(2, 2), 1, index=(7, 0)),)
    wide = PrunableUnit("rows", np.arange(4), np.arange(8, 1, -1), np.ones(6), tied=True, min_width=2)
    whole = coupling(DIMS[0], rows=rows)
    shaped = Failure("remembers a width", "`view`", frozenset({9}), frozenset(range(4)))
    log = FailureLog().record(whole, Selection((wide,), (1,)), [0], shaped)
    assert log.protected(whole) == dict.fromkeys(range(4), "remembers a width")
    met = Failure("remembers a width", "`view`", frozenset({2}), frozenset(range(4)))
    assert FailureLog().record(whole, Selection((wide,), (1,)), [0], met).infeasible_widths.keys() == {(0, 7)}
