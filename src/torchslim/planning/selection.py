"""How many channels each group keeps: scores + costs + limits -> a selection.

Channels are removed from the least to the most important, as few as meet every limit. Costs are exact sums over the
coupling, so that a limit is met by arithmetic and not by cutting and measuring. Groups whose rows must lose equally
many (the groups of a convolution, the halves of a channel split) go down together, level by level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from torchslim.costs.cost_models import Meter, PeakMeter, Shares
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.groups import ChannelGroup
from torchslim.coupling.tape import Index
from torchslim.errors import RequestError
from torchslim.importance import Scores
from torchslim.rules.labels import EqualCountConstraint


@dataclass(frozen=True, eq=False)
class Bundle:
    """Channels that are removed by one rule: a free group one by one, tied rows level by level.

    Attributes:
        name: the group, for messages.
        classes: its classes of channels, least important first.
        kept: how many stay after each number of removals; the first entry is all of them.
        losses: what each removal loses, not decreasing.
        tied: the rows lose equally many; which channels go is chosen once their numbers are known.
        least: how many would stay at the least if they did not go in steps.
    """

    name: str
    classes: Index
    kept: Index
    losses: Scores
    tied: bool
    least: int

    def shares(self, level: int) -> Shares:
        """Kept share of each class after so many removals: 1 or 0, or the share of each row."""
        if self.tied:
            return np.full(len(self.classes), self.kept[level] / self.kept[0])
        shares = np.ones(len(self.classes))
        shares[: self.kept[0] - self.kept[level]] = 0.0
        return shares


def free_bundle(group: ChannelGroup, scores: Scores, round_to: int, least: int,
                needed: NDArray[np.bool_]) -> Bundle:
    """A group whose channels are removed one by one, or in steps that leave multiples of `round_to`.

    Two channels stay at the least: a dimension of size 1 broadcasts, and its channel could not be told from none. The
    `needed` ones stay too.
    """
    least = max(least, 2, int(needed.sum()))
    fewer = np.arange(group.channels - 1, least - 1, -1)
    kept = np.concatenate([[group.channels], fewer[fewer % round_to == 0]])
    order = np.lexsort((scores, needed))
    ranked = scores[order]
    gone = group.channels - kept
    losses = np.add.reduceat(ranked[: gone[-1]], gone[:-1]) / np.diff(gone) if len(kept) > 1 else np.zeros(0)
    return Bundle(group.name, group.classes[order], kept, np.maximum.accumulate(losses), tied=False,
                  least=min(least, group.channels))


def row_bundle(name: str, matrices: Sequence[EqualCountConstraint], widths: Sequence[int], scores: Scores,
               round_to: int, least: int) -> Bundle:
    """Rows that lose equally many, whichever of their channels these are.

    Args:
        name: for messages.
        matrices: the rows.
        widths: of the layers that make the channels; these are rounded.
        scores: by class.
        round_to, least: as in `free_bundle`.
    """
    blocks = [block for matrix in matrices for block in _distinct(matrix.labels)]
    steps = gcd(*(block.shape[1] for block in blocks))

    def wide(k: int) -> bool:
        return all(matrix.labels.shape[1] * k // steps >= matrix.min_kept for matrix in matrices) and all(
            width * k // steps >= least for width in widths)

    able = [k for k in range(1, steps) if wide(k)]
    rounded = [k for k in able if all(width * k // steps % round_to == 0 for width in widths)]
    kept = np.array([steps, *reversed(rounded)])
    ranked = [np.sort(scores[block], axis=1) for block in blocks]
    losses = []
    for before, after in pairwise(kept.tolist()):
        parts = [block[:, (steps - before) * block.shape[1] // steps:(steps - after) * block.shape[1] // steps]
                 for block in ranked]
        losses.append(float(np.mean(np.concatenate([part.ravel() for part in parts]))))
    classes = np.unique(np.concatenate([block.ravel() for block in blocks]))
    return Bundle(name, classes, kept, np.maximum.accumulate(np.array(losses)), tied=True,
                  least=min(able, default=steps))


def _distinct(rows: Index) -> list[Index]:
    """The rows without repetitions: as one matrix where there are none, else each by itself."""
    ordered = np.sort(rows, axis=1)
    if (np.diff(ordered, axis=1) > 0).all():
        return [ordered]
    return [np.unique(row)[None] for row in rows]


@dataclass(frozen=True, eq=False)
class Limit:
    """One budget: a meter and the most that it may show."""

    resource: str
    meter: Meter
    most: int


@dataclass(frozen=True, eq=False)
class Selection:
    """How far each bundle goes down.

    Attributes:
        bundles: what can be removed.
        removals: of each bundle.
        last: the place of the bundle whose removal made the selection meet the limits; None where nothing need go.
        looser: the shares without this removal, which do not meet them.
    """

    bundles: tuple[Bundle, ...]
    removals: tuple[int, ...]
    last: int | None = None
    looser: Shares | None = None

    def shares(self, classes: int) -> Shares:
        """Kept share of every class of channels of the network."""
        shares = np.ones(classes)
        for bundle, level in zip(self.bundles, self.removals, strict=True):
            shares[bundle.classes] = bundle.shares(level)
        return shares


class _Order:
    """Every removal in the order of what it loses, and the shares that are left after the first few.

    Ties between equal losses break by position.
    """

    def __init__(self, bundles: Sequence[Bundle], start: Sequence[int], classes: int) -> None:
        self.bundles, self.start, self.classes = bundles, start, classes
        counts = [len(bundle.losses) - first for bundle, first in zip(bundles, start, strict=True)]
        places = np.repeat(np.arange(len(bundles)), counts)
        losses = np.concatenate([np.zeros(0), *(b.losses[first:] for b, first in zip(bundles, start, strict=True))])
        order = np.argsort(losses, kind="stable")
        self.owners = places[order]
        # The number of removals after which each class is gone; those of tied rows fade, and are seen to apart.
        self.gone_after = np.full(classes, len(order) + 1)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        ends = np.cumsum([0, *counts])
        for place, bundle in enumerate(bundles):
            if not bundle.tied:
                ranks = np.concatenate([np.zeros(start[place], dtype=np.int64), rank[ends[place]:ends[place + 1]]])
                lost = -np.diff(bundle.kept)
                self.gone_after[bundle.classes[: lost.sum()]] = np.repeat(ranks, lost)
        self.tied = [(place, bundle) for place, bundle in enumerate(bundles) if bundle.tied]

    def first(self, count: int) -> list[int]:
        """How far each bundle goes down with the first `count` removals."""
        counts = np.bincount(self.owners[:count], minlength=len(self.bundles))
        return [first + int(more) for first, more in zip(self.start, counts, strict=True)]

    def shares(self, count: int) -> Shares:
        """Kept share of every class after the first `count` removals."""
        shares = (self.gone_after > count).astype(np.float64)
        removals = self.first(count) if self.tied else ()
        for place, bundle in self.tied:
            shares[bundle.classes] = bundle.shares(removals[place])
        return shares


def select(coupling: Coupling, bundles: Sequence[Bundle], limits: Sequence[Limit],
           floor: Mapping[int, int] | None = None, evenly: bool = False) -> Selection:
    """The fewest and least important removals that meet every limit, or come as near to it as can be.

    Args:
        coupling: the network's.
        bundles: what can be removed.
        limits: the budgets.
        floor: removals that are made in any case, by place of the bundle.
        evenly: all bundles go down together, so that none takes back more than its last removal.
    """
    start = [0 if floor is None else floor.get(place, 0) for place in range(len(bundles))]
    order = _Order(bundles, start, coupling.classes)
    low, high = 0, len(order.owners)
    least = order.shares(high)
    # What is out of reach asks for the least that there is, so that nothing goes that is of no use to it.
    limits = [replace(limit, most=max(limit.most, limit.meter(least))) for limit in limits]

    def met(shares: Shares) -> bool:
        return all(limit.meter(shares) <= limit.most for limit in limits)

    while low < high:
        middle = (low + high) // 2
        if met(order.shares(middle)):
            high = middle
        else:
            low = middle + 1
    removals = order.first(low)
    peaks = any(isinstance(limit.meter, PeakMeter) for limit in limits)
    _give_back(removals, order.shares(low), order, low, met, evenly, None if peaks else GIVING_BACK)
    if not low:
        return Selection(tuple(bundles), tuple(removals))
    return Selection(tuple(bundles), tuple(removals), int(order.owners[low - 1]), order.shares(low - 1))


GIVING_BACK = 32
"""How many bundles may take back removals that a limit leaves room for: more where a limit asks for a peak, which
most channels have no part in."""


def _give_back(removals: list[int], shares: Shares, order: _Order, count: int, met: Callable[[Shares], bool],
               evenly: bool, most: int | None) -> None:
    """The last removal may have been a large one: take back what the limits still allow, most important first."""
    for place in list(dict.fromkeys(order.owners[:count][::-1].tolist()))[:most]:
        bundle, now = order.bundles[place], removals[place]
        # The lowest level that still meets the limits, by bisection: a cost does not fall as channels come back.
        low, high = max(order.start[place], now - 1) if evenly else order.start[place], now
        while low < high:
            middle = (low + high) // 2
            shares[bundle.classes] = bundle.shares(middle)
            if met(shares):
                high = middle
            else:
                low = middle + 1
        removals[place] = high
        shares[bundle.classes] = bundle.shares(high)


def as_count(asked: float, total: int, resource: str) -> int:
    """A budget as a count: a float in (0, 1] is a share of today, an int a count.

    Raises:
        RequestError: neither.
    """
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        raise RequestError(f"{resource}: got {asked!r}, wanted a share in (0, 1] or a count")
    if isinstance(asked, int) and asked >= 1:
        return asked
    if isinstance(asked, float) and 0 < asked <= 1:
        return int(total * asked)
    raise RequestError(f"{resource}={asked!r}: wanted a float in (0, 1], the share kept of {total:,}, "
                       "or an int of at least 1, the count kept")
