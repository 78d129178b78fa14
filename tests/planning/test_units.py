"""Units of channels: their levels, losses and shares, by hand-made groups and rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslim.coupling.groups import ChannelGroup
from torchslim.planning.units import PrunableUnit, free_unit, tied_unit
from torchslim.rules.declarations import EqualCountConstraint


def group(channels: int) -> ChannelGroup:
    return ChannelGroup("conv", channels, members=(), shortcut=False, frozen="", classes=np.arange(channels))


def free(scores: list[float], round_to: int = 1, min_channels: int = 1, needed: tuple[int, ...] = ()) -> PrunableUnit:
    stays = np.zeros(len(scores), dtype=bool)
    stays[list(needed)] = True
    return free_unit(group(len(scores)), np.array(scores), round_to, min_channels, stays)


def test_channels_go_from_the_least_important_on_and_two_stay() -> None:
    unit = free([3.0, 1.0, 2.0, 5.0])
    assert unit.classes.tolist() == [1, 2, 0, 3]
    assert unit.widths.tolist() == [4, 3, 2]
    assert unit.losses.tolist() == [1.0, 2.0]
    assert unit.shares(1)[unit.classes == 1] == 0
    assert unit.shares(2).tolist() == [0, 0, 1, 1]


def test_equal_scores_go_by_position() -> None:
    assert free([1.0] * 5).classes.tolist() == [0, 1, 2, 3, 4]


def test_needed_channels_stay_whatever_their_score() -> None:
    unit = free([0.0, 0.5, 3.0, 4.0, 5.0], needed=(0, 1, 2))
    assert unit.widths.tolist() == [5, 4, 3]
    assert set(unit.classes[:2].tolist()) == {3, 4}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=24), st.integers(1, 8), st.integers(1, 12))
def test_widths_are_multiples_above_the_least_and_losses_do_not_fall(scores: list[float], round_to: int,
                                                                     min_channels: int) -> None:
    unit = free(scores, round_to, min_channels)
    assert unit.widths[0] == len(scores)
    assert all(width % round_to == 0 and width >= max(min_channels, 2) for width in unit.widths[1:].tolist())
    assert (np.diff(unit.widths) < 0).all()
    assert (np.diff(unit.losses) >= 0).all()
    assert len(unit.losses) == len(unit.widths) - 1
    for level, width in enumerate(unit.widths.tolist()):
        assert unit.shares(level).sum() == width


def test_a_step_of_several_channels_loses_their_mean() -> None:
    unit = free([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], round_to=4)
    assert unit.widths.tolist() == [8, 4]
    assert unit.losses.tolist() == [2.5]
    assert unit.cumulative_score().tolist() == [0, 10]


def test_the_damped_score_begins_like_the_sum_and_grows_without_bound() -> None:
    unit = free([1.0] * 100)
    damped, plain = unit.log_damped_score(), unit.cumulative_score()
    assert damped[1] == pytest.approx(plain[1], rel=0.01)
    assert damped[-1] > 3 * plain[-1]
    assert (np.diff(damped, 2) > 0).all()


def rows(*labels: list[int], min_kept: int = 1) -> EqualCountConstraint:
    return EqualCountConstraint(np.array(labels), min_kept, index=0)


def test_tied_rows_lose_one_of_each_at_a_time() -> None:
    unit = tied_unit("rows", [rows([0, 1, 2], [3, 4, 5])], [6], np.array([5.0, 1.0, 3.0, 2.0, 6.0, 4.0]), 1, 1)
    assert unit.tied
    assert unit.widths.tolist() == [3, 2, 1]
    assert unit.losses.tolist() == [1.5, 3.5]  # the least of each row, then the next
    assert unit.shares(1).tolist() == pytest.approx([2 / 3] * 6)


def test_tied_rows_of_several_lengths_go_in_common_steps() -> None:
    unit = tied_unit("rows", [rows([0, 1, 2, 3]), rows([4, 5, 6, 7, 8, 9])], [10], np.arange(10.0), 1, 1)
    assert unit.widths.tolist() == [2, 1]  # halves: the greatest common divisor of 4 and 6


def test_tied_rows_are_rounded_by_what_layers_make_and_keep_their_least() -> None:
    labels = np.arange(16).reshape(2, 8)
    unit = tied_unit("rows", [EqualCountConstraint(labels, 2, index=0)], [16], np.ones(16), 4, 1)
    assert unit.widths.tolist() == [8, 6, 4, 2]
    assert unit.min_width == 2
    assert tied_unit("rows", [EqualCountConstraint(labels, 2, index=0)], [16], np.ones(16), 1, 12).widths.tolist() == [
        8, 7, 6]


def test_a_least_width_drops_the_levels_below_it() -> None:
    unit = free([1.0] * 30)
    assert unit.at_least(0.1 * 30).widths.min() == 3
    assert unit.at_least(29.5).widths.tolist() == [30]
    assert unit.at_least(99).min_width == 30


def test_uniform_losses_are_the_share_of_the_original_width_that_is_gone() -> None:
    assert free([9.0, 8.0, 7.0, 1.0]).with_uniform_losses(8.0).losses.tolist() == [1 - 3 / 8, 1 - 2 / 8]
