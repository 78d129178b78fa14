"""What can be removed: units of channels that are removed by one rule, at each of the widths that they may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

from torchslim.costs.cost_models import Shares
from torchslim.coupling.groups import ChannelGroup
from torchslim.coupling.labeled_graph import Index
from torchslim.importance import Scores
from torchslim.rules.declarations import EqualCountConstraint

TINY = 1e-9
"""Less than any share of channels: 0.1 of 30 is 3, whatever the product of floats says."""


@dataclass(frozen=True, eq=False)
class PrunableUnit:
    """Channels that are removed by one rule: a free group one by one, tied rows level by level.

    Level n is the unit after n removals.

    Attributes:
        name: the group, for messages.
        classes: its classes of channels, least important first.
        widths: how many channels (of tied rows: steps) stay at each level; the first entry is all of them.
        losses: the importance that each removal takes per channel, not decreasing.
        tied: the rows lose equally many; which channels go is chosen once their numbers are known.
        min_width: the least width if it did not go in steps.
        failure: why the network did not run at widths that are left out; empty if none are.
    """

    name: str
    classes: Index
    widths: Index
    losses: Scores
    tied: bool
    min_width: int
    failure: str = ""

    def shares(self, level: int) -> Shares:
        """Kept share of each class at a level: 1 or 0, or the share of each row."""
        if self.tied:
            return np.full(len(self.classes), self.widths[level] / self.widths[0])
        shares = np.ones(len(self.classes))
        shares[: self.widths[0] - self.widths[level]] = 0.0
        return shares

    @property
    def classes_per_channel(self) -> float:
        """Of tied rows a step is several classes."""
        return len(self.classes) / float(self.widths[0]) if self.tied else 1.0

    def cumulative_score(self) -> Scores:
        """The importance of what is gone at each level, from 0 on."""
        removed = -np.diff(self.widths) * self.classes_per_channel
        return np.concatenate([[0.0], np.cumsum(self.losses * removed)])

    def log_damped_score(self) -> Scores:
        """The unit's importance times -log of the share of it that stays, at each level.

        For the first few channels that is their importance; the fewer are left, the more does each count. Channels
        that always stay count like the last that can go.
        """
        gone = self.cumulative_score()
        stays = float(self.losses[-1] * self.widths[-1]) * self.classes_per_channel if len(self.losses) else 1.0
        total = gone[-1] + stays
        return -total * np.log1p(-gone / total) if total > 0 and stays > 0 else gone

    def at_least(self, width: float) -> PrunableUnit:
        """The unit without the levels below a width."""
        levels = max(1, int((self.widths >= width - TINY).sum()))
        return replace(self, widths=self.widths[:levels], losses=self.losses[:levels - 1],
                       min_width=min(max(self.min_width, ceil(width - TINY)), int(self.widths[0])))

    def with_uniform_losses(self, original_width: float) -> PrunableUnit:
        """The unit with each removal priced by the share of the original width that is then gone."""
        return replace(self, losses=1 - self.widths[1:] / original_width)


def free_unit(group: ChannelGroup, scores: Scores, round_to: int, min_channels: int,
              needed: NDArray[np.bool_]) -> PrunableUnit:
    """A group whose channels are removed one by one, or in steps that leave multiples of `round_to`.

    Two channels stay at the least: a dimension of size 1 broadcasts, and its channel could not be told from none. The
    `needed` ones stay too. Where a channel of the group is several of a layer's (a group of a norm), these are rounded.
    """
    made = gcd(*(m.indices.shape[1] for m in group.members if m.role == "makes")) or 1
    min_width = max(ceil(min_channels / made), 2, int(needed.sum()))
    fewer = np.arange(group.channels - 1, min_width - 1, -1)
    widths = np.concatenate([[group.channels], fewer[fewer * made % round_to == 0]])
    order = np.lexsort((scores, needed))
    ranked = scores[order]
    gone = group.channels - widths
    losses = np.add.reduceat(ranked[: gone[-1]], gone[:-1]) / np.diff(gone) if len(widths) > 1 else np.zeros(0)
    return PrunableUnit(group.name, group.classes[order], widths, np.maximum.accumulate(losses), tied=False,
                        min_width=min(min_width, group.channels))


def tied_unit(name: str, matrices: Sequence[EqualCountConstraint], layer_widths: Sequence[int], scores: Scores,
              round_to: int, min_channels: int) -> PrunableUnit:
    """Rows that lose equally many, whichever of their channels these are.

    Args:
        name: for messages.
        matrices: the rows.
        layer_widths: of the layers that make the channels; these are rounded.
        scores: by class.
        round_to, min_channels: as in `free_unit`.
    """
    blocks = [block for matrix in matrices for block in _without_repetitions(matrix.labels)]
    steps = gcd(*(block.shape[1] for block in blocks))

    def is_wide_enough(k: int) -> bool:
        return all(matrix.labels.shape[1] * k // steps >= matrix.min_kept for matrix in matrices) and all(
            width * k // steps >= min_channels for width in layer_widths)

    possible = [k for k in range(1, steps) if is_wide_enough(k)]
    rounded = [k for k in possible if all(width * k // steps % round_to == 0 for width in layer_widths)]
    widths = np.array([steps, *reversed(rounded)])
    ranked = [np.sort(scores[block], axis=1) for block in blocks]
    losses = []
    for before, after in pairwise(widths.tolist()):
        removed = [block[:, (steps - before) * block.shape[1] // steps:(steps - after) * block.shape[1] // steps]
                   for block in ranked]
        losses.append(float(np.mean(np.concatenate([part.ravel() for part in removed]))))
    classes = np.unique(np.concatenate([block.ravel() for block in blocks]))
    return PrunableUnit(name, classes, widths, np.maximum.accumulate(np.array(losses)), tied=True,
                        min_width=min(possible, default=steps))


def _without_repetitions(rows: Index) -> list[Index]:
    """The rows as one matrix where no row has a class twice, else each by itself."""
    ordered = np.sort(rows, axis=1)
    if (np.diff(ordered, axis=1) > 0).all():
        return [ordered]
    return [np.unique(row)[None] for row in rows]
