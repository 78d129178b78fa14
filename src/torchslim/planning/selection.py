"""How far each unit goes down: units + costs + limits -> a selection.

Removals are put in one order, and as few of them are made as meet every limit. Where the cost is counted, the order is
that of importance. Where time is what counts, it is that of importance lost for each unit saved (`greedy.py`). Costs
are exact sums over the coupling, so that a limit is met by arithmetic and not by cutting and measuring. What the last
removal saves beyond the limits is given back.

A limit below the least cost that can be had is replaced by one a little above that (`REACH`): the last hundredth of it
would take nearly all channels of layers that hardly count (`nearest.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchslim.costs.cost_models import PeakMemory, Shares
from torchslim.planning.budgets import Limit, is_met
from torchslim.planning.units import PrunableUnit

REACH = 1.01
"""A budget that is out of reach counts as met at this times the least cost that can be had."""
MAX_RESTORED_UNITS = 32
"""How many units may take back removals that a limit leaves room for. No bound where a limit asks for a peak, which
most channels have no part in."""


@dataclass(frozen=True, eq=False)
class Selection:
    """How far each unit goes down.

    Attributes:
        units: what can be removed.
        levels: of each unit, how many removals are made.
        last_unit: the index of the unit whose removal made the selection meet the limits; None where nothing need go.
        shares_before_last_step: the shares without this removal, which do not meet them.
    """

    units: tuple[PrunableUnit, ...]
    levels: tuple[int, ...]
    last_unit: int | None = None
    shares_before_last_step: Shares | None = None

    def shares(self, classes: int) -> Shares:
        """Kept share of every class of channels of the network."""
        shares = np.ones(classes)
        for unit, level in zip(self.units, self.levels, strict=True):
            shares[unit.classes] = unit.shares(level)
        return shares


def select_by_score(classes: int, units: Sequence[PrunableUnit], limits: Sequence[Limit],
                    min_levels: Mapping[int, int] | None = None, uniform: bool = False) -> Selection:
    """The fewest and least important removals that meet every limit, or come as near to it as can be.

    Args:
        classes: how many classes of channels the network has.
        units: what can be removed.
        limits: the budgets.
        min_levels: removals that are made in any case, by index of the unit.
        uniform: all units go down together, so that none takes back more than its last removal.
    """
    start = [(min_levels or {}).get(index, 0) for index in range(len(units))]
    order = _RemovalOrder(units, start, classes)
    low, high = 0, len(order.owners)
    smallest = order.shares(high)
    limits = reachable_limits(limits, smallest)
    while low < high:
        middle = (low + high) // 2
        if is_met(limits, order.shares(middle)):
            high = middle
        else:
            low = middle + 1
    levels, shares = order.levels(low), order.shares(low)

    def set_level(index: int, level: int) -> None:
        levels[index] = level
        shares[units[index].classes] = units[index].shares(level)

    latest_first = list(dict.fromkeys(order.owners[:low][::-1].tolist()))
    if not any(isinstance(limit.cost, PeakMemory) for limit in limits):
        latest_first = latest_first[:MAX_RESTORED_UNITS]
    restore(latest_first, levels, lambda index: max(start[index], levels[index] - 1) if uniform else start[index],
            set_level, lambda: is_met(limits, shares))
    if not low:
        return Selection(tuple(units), tuple(levels))
    return Selection(tuple(units), tuple(levels), int(order.owners[low - 1]), order.shares(low - 1))


def nearest_count(limit: Limit, smallest: Shares) -> int:
    """The most that counts as the least cost, that of the smallest shares."""
    return min(int(REACH * limit.cost(smallest)), limit.cost.total)


def reachable_limits(limits: Iterable[Limit], smallest: Shares) -> list[Limit]:
    """The limits, with those that not even the smallest shares meet replaced by the nearest that can be met."""
    return [limit if limit.cost(smallest) <= limit.maximum else replace(limit, maximum=nearest_count(limit, smallest))
            for limit in limits]


def restore(latest_first: Iterable[int], levels: Sequence[int], lowest: Callable[[int], int],
            set_level: Callable[[int, int], None], met: Callable[[], bool]) -> None:
    """Take back what the limits leave room for, the latest removals, which are the most important, first.

    The last removal may have been a large one. Each unit goes to its lowest level that still meets the limits, by
    bisection: a cost does not fall as channels come back.

    Args:
        latest_first: indices of units.
        levels: of every unit now.
        lowest: the level to which a unit may go back.
        set_level: brings a unit to a level.
        met: whether the limits are met as the levels now are.
    """
    for index in latest_first:
        low, high = lowest(index), levels[index]
        while low < high:
            middle = (low + high) // 2
            set_level(index, middle)
            low, high = (low, middle) if met() else (middle + 1, high)
        set_level(index, high)


class _RemovalOrder:
    """Every removal in the order of what it loses, and the shares that are left after the first few.

    Ties between equal losses break by position.
    """

    def __init__(self, units: Sequence[PrunableUnit], start: Sequence[int], classes: int) -> None:
        self.units, self.start = units, start
        counts = [len(unit.losses) - first for unit, first in zip(units, start, strict=True)]
        owners = np.repeat(np.arange(len(units)), counts)
        losses = np.concatenate([np.zeros(0), *(u.losses[first:] for u, first in zip(units, start, strict=True))])
        order = np.argsort(losses, kind="stable")
        self.owners = owners[order]
        # The number of removals after which each class is gone; the shares of tied rows are set unit by unit.
        self.gone_after = np.full(classes, len(order) + 1)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        ends = np.cumsum([0, *counts])
        for index, unit in enumerate(units):
            if not unit.tied:
                ranks = np.concatenate([np.zeros(start[index], dtype=np.int64), rank[ends[index]:ends[index + 1]]])
                removed = -np.diff(unit.widths)
                self.gone_after[unit.classes[: removed.sum()]] = np.repeat(ranks, removed)
        self.tied = [(index, unit) for index, unit in enumerate(units) if unit.tied]

    def levels(self, count: int) -> list[int]:
        """How far each unit goes down with the first `count` removals."""
        counts = np.bincount(self.owners[:count], minlength=len(self.units))
        return [first + int(more) for first, more in zip(self.start, counts, strict=True)]

    def shares(self, count: int) -> Shares:
        """Kept share of every class after the first `count` removals."""
        shares = (self.gone_after > count).astype(np.float64)
        levels = self.levels(count) if self.tied else ()
        for index, unit in self.tied:
            shares[unit.classes] = unit.shares(levels[index])
        return shares
