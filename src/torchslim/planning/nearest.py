"""Budgets at the limit of what can be reached: as little goes as comes within a hundredth of the least cost.

By importance alone whatever ranks low would go first, however little it saves, down to the least width: half of an
autoencoder's latent for a two-hundredth of its multiply-adds. So near the least cost every unit stays as wide as costs
no more than an allowance, the same for all; the largest with which the limits are met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torchslim.costs.cost_models import PeakMemory
from torchslim.planning.budgets import Limit, is_met
from torchslim.planning.greedy import GreedyState
from torchslim.planning.selection import Selection, nearest_count, reachable_limits
from torchslim.planning.units import PrunableUnit


def nearest_levels(classes: int, units: Sequence[PrunableUnit], limits: Sequence[Limit],
                   min_levels: Mapping[int, int]) -> dict[int, int]:
    """By index of the unit, the removals that limits ask for which are hardly or not within reach.

    A peak of memory is no sum over units; what it asks for is left to the selection.

    Args:
        classes: how many classes of channels the network has.
        units: what can be removed.
        limits: the budgets.
        min_levels: removals that are made in any case.
    """
    lowest = [len(unit.losses) for unit in units]
    smallest = Selection(tuple(units), tuple(lowest)).shares(classes)
    tight = [limit for limit in limits if not isinstance(limit.cost, PeakMemory)
             and limit.maximum <= nearest_count(limit, smallest)]
    if not tight or not units:
        return dict(min_levels)
    above_least = [np.zeros(level + 1) for level in lowest]
    for limit in tight:
        state = GreedyState(limit.cost, units, classes, lowest)
        for index, above in enumerate(above_least):
            costs = state.costs(index)
            np.maximum(above, (costs - costs[-1]) / max(1, limit.cost(smallest)), out=above)
    limits = reachable_limits(tight, smallest)
    allowances = np.unique(np.concatenate(above_least))

    def levels(allowance: float) -> list[int]:
        return [max(min_levels.get(index, 0), int(np.argmax(above <= allowance)))
                for index, above in enumerate(above_least)]

    low, high, found = 0, len(allowances), lowest
    while low < high:
        middle = (low + high) // 2
        tried = levels(allowances[middle])
        if is_met(limits, Selection(tuple(units), tuple(tried)).shares(classes)):
            low, found = middle + 1, tried
        else:
            high = middle
    return dict(enumerate(found))
