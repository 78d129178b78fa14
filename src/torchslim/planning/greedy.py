"""Selection where time is what counts: the removals that lose least importance for each nanosecond that they save.

Time does not fall with each channel but in steps, so a removal leads from one level of a unit to any lower one. From
the uncut network on, the step is taken that loses the least importance for the time that it saves, until every limit
is met: the greedy way to fill a knapsack with several choices for each item (Kellerer et al. 2004, chapter 11), with
savings computed anew as layers get narrower. (Shen et al. 2022, "Structural Pruning via Latency-Saliency Knapsack",
pose the same problem.) Then what the limits still allow is given back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np

from torchslim.costs.cost_models import Array, CostModel, PeakMemory, Shares
from torchslim.latency.predictor import LatencyPredictor
from torchslim.planning.budget_notes import CLOSE
from torchslim.planning.budgets import Limit, is_met
from torchslim.planning.selection import REACH, Selection, reachable_limits, restore, select_by_score
from torchslim.planning.units import PrunableUnit

_MIN_SAVING = 1e-5
"""Savings below this share of the network's cost count as none."""
_MAX_TIME_WEIGHT = 4.0
"""Upper bound of the time weight; above 1, MACs may be spent to save time."""
_WEIGHT_PRECISION = 0.1
"""The time weight is found to within this."""


class GreedyState:
    """The level of each unit, the widths that follow, and what further steps would save of a cost."""

    def __init__(self, cost: CostModel, units: Sequence[PrunableUnit], classes: int, start: Sequence[int]) -> None:
        self.cost, self.units = cost, units
        self.terms = cost.terms
        self.levels = list(start)
        self.scores = [unit.log_damped_score() for unit in units]
        self.narrowing = self._narrowing(classes)
        self.widths = cost.full_widths()
        self.min_saving = _MIN_SAVING * cost.at_widths(self.widths)
        for index, level in enumerate(self.levels):
            for dim, narrower in self.narrowing[index].items():
                self.widths[dim] = self.widths[dim] - narrower[level]
        terms_of_dim: list[list[int]] = [[] for _ in cost.dims]
        for number, term in enumerate(self.terms):
            for dim in set(term.dims):
                terms_of_dim[dim].append(number)
        self.terms_of_unit = [sorted({number for dim in dims for number in terms_of_dim[dim]})
                              for dims in self.narrowing]
        self.total = cost.at_widths([np.rint(width) for width in self.widths])

    def _narrowing(self, classes: int) -> list[dict[int, Array]]:
        """For each unit, the dimensions that it narrows and by how much at each of its levels."""
        owner = np.full(classes + 1, -1)  # the last entry stands for `STAYS`
        rank = np.zeros(classes + 1, dtype=np.int64)
        for index, unit in enumerate(self.units):
            owner[unit.classes] = index
            rank[unit.classes] = np.arange(len(unit.classes))
        narrowing: list[dict[int, Array]] = [{} for _ in self.units]
        for dim, labels in enumerate(self.cost.dims):
            owners = owner[labels]
            for index in np.unique(owners[owners >= 0]).tolist():
                unit_labels, unit = labels[owners == index], self.units[index]
                if unit.tied:
                    narrowing[index][dim] = len(unit_labels) * (1 - unit.widths / unit.widths[0])
                else:
                    counts = np.bincount(rank[unit_labels], minlength=len(unit.classes))
                    narrowing[index][dim] = np.concatenate([[0], np.cumsum(counts)])[unit.widths[0] - unit.widths]
        return narrowing

    def costs(self, index: int) -> Array:
        """The sum of the terms that a unit narrows at each of its levels, the other units staying as they are."""
        narrowing, level = self.narrowing[index], self.levels[index]
        total = np.zeros(len(self.units[index].widths))
        for number in self.terms_of_unit[index]:
            term = self.terms[number]
            total += term([np.rint(self.widths[dim] + narrowing[dim][level] - narrowing[dim]) if dim in narrowing
                           else np.full(len(total), np.rint(self.widths[dim])) for dim in term.dims])
        return total

    def best_step(self, index: int) -> tuple[float, float, int] | None:
        """A unit's best step: importance lost for each unit saved, minus the saving, and the level it leads to."""
        level, costs = self.levels[index], self.costs(index)
        saved = costs[level] - costs[level + 1:]
        useful = np.flatnonzero(saved > self.min_saving)
        if not len(useful):
            return None
        rates = (self.scores[index][level + 1:][useful] - self.scores[index][level]) / saved[useful]
        best = useful[np.lexsort((-saved[useful], rates))[0]]
        return float(rates.min()), -float(saved[best]), level + 1 + int(best)

    def move(self, index: int, level: int) -> None:
        """Bring a unit to a level."""
        costs, before = self.costs(index), self.levels[index]
        self.total += float(costs[level] - costs[before])
        for dim, narrower in self.narrowing[index].items():
            self.widths[dim] = self.widths[dim] + narrower[before] - narrower[level]
        self.levels[index] = level


def drop_levels_without_speedup(predictor: LatencyPredictor, units: Sequence[PrunableUnit],
                                classes: int) -> list[PrunableUnit]:
    """The units with only those levels at which the network is faster than at any wider one."""
    state = GreedyState(predictor, units, classes, [0] * len(units))
    reduced = []
    for index, unit in enumerate(units):
        costs = state.costs(index)
        fastest = np.minimum.accumulate(costs)
        keep = np.concatenate([[True], costs[1:] < fastest[:-1] - state.min_saving])
        removed = -np.diff(unit.widths[keep]) * unit.classes_per_channel
        losses = np.diff(unit.cumulative_score()[keep]) / removed
        reduced.append(replace(unit, widths=unit.widths[keep], losses=losses))
    return reduced


def units_without_speedup(predictor: LatencyPredictor, selection: Selection, all_levels: Sequence[PrunableUnit],
                          classes: int) -> list[int]:
    """Indices of the units that stay whole because to cut them would save no time.

    Args:
        predictor: of time.
        selection: what goes, of units whose levels without speedup were dropped.
        all_levels: the units with all their levels.
        classes: how many classes of channels the network has.
    """
    state = GreedyState(predictor, selection.units, classes, selection.levels)
    return [index for index, level in enumerate(selection.levels)
            if not level and len(all_levels[index].widths) > 1 and state.best_step(index) is None]


def select_by_time(classes: int, units: Sequence[PrunableUnit], limits: Sequence[Limit], predictor: LatencyPredictor,
                   min_levels: Mapping[int, int] | None = None) -> Selection:
    """The removals that meet every limit, or come near it, and lose little importance for the time that they save.

    Where no limit is one of time, the cut is to be as fast as it is light: of what is asked for and of time the same
    share is to stay. So a removal is judged by what it saves of both, and time is given the least weight with which
    this is reached.

    Args:
        classes: how many classes of channels the network has.
        units: what can be removed.
        limits: the budgets, of time or of anything else.
        predictor: of time.
        min_levels: removals that are made in any case, by index of the unit.
    """
    smallest = Selection(tuple(units), tuple(len(unit.losses) for unit in units)).shares(classes)
    timed = [limit for limit in limits if limit.cost is predictor]
    counted = reachable_limits([limit for limit in limits if limit.cost is not predictor], smallest)
    start = [(min_levels or {}).get(index, 0) for index in range(len(units))]
    selection = _select(classes, units, [*counted, *timed], predictor, start)
    fastest = predictor(selection.shares(classes))
    if all(fastest <= limit.maximum for limit in timed):
        return selection
    timed = [replace(limit, maximum=max(limit.maximum, int(REACH * fastest))) for limit in timed]
    return _select(classes, units, [*counted, *timed], predictor, start)


def _select(classes: int, units: Sequence[PrunableUnit], limits: Sequence[Limit], predictor: LatencyPredictor,
            start: Sequence[int]) -> Selection:
    """As `select_by_time`, where the limits can be met."""
    descend = partial(_descend, classes, units, limits, predictor, start=start)
    counted = [limit for limit in limits if not isinstance(limit.cost, LatencyPredictor | PeakMemory)]
    if not counted or any(limit.cost is predictor for limit in limits):
        return descend(predictor)
    share = max(limit.maximum / limit.cost.total for limit in counted)

    def weighted(time_weight: float) -> tuple[Selection, bool]:
        cost = CostModel()
        cost.include(predictor, time_weight / predictor.full_cost)
        for limit in counted:
            cost.include(limit.cost, (1 - time_weight) / limit.cost.total / len(counted))
        selection = descend(cost)
        return selection, predictor(selection.shares(classes)) <= share * predictor.baseline_ns

    best, fast = weighted(0.0)
    if fast:
        return best
    best, fast = weighted(_MAX_TIME_WEIGHT)
    low, high = 0.0, _MAX_TIME_WEIGHT if fast else 0.0
    while high - low > _WEIGHT_PRECISION:
        middle = (low + high) / 2
        selection, fast = weighted(middle)
        if fast:
            best, high = selection, middle
        else:
            low = middle
    return best


def _descend(classes: int, units: Sequence[PrunableUnit], limits: Sequence[Limit], predictor: LatencyPredictor,
             cost: CostModel, start: Sequence[int]) -> Selection:
    """The removals that meet every limit and lose little importance for what they save of a cost."""
    state = GreedyState(cost, units, classes, start)
    shares = Selection(tuple(units), tuple(start)).shares(classes)
    others = [limit for limit in limits if limit.cost is not predictor]
    budget_ns = min([limit.maximum for limit in limits if limit.cost is predictor], default=None)

    def met() -> bool:
        in_time = budget_ns is None or round(predictor.to_nanoseconds(state.total)) <= budget_ns
        return in_time and is_met(others, shares)

    def move(index: int, level: int) -> None:
        state.move(index, level)
        shares[units[index].classes] = units[index].shares(level)

    before_last, taken = _take_steps(state, met, move, shares)
    if not met() and others:
        rest = select_by_score(classes, units, limits, dict(enumerate(state.levels)))
        return replace(rest, last_unit=taken[-1], shares_before_last_step=before_last) if taken else rest
    if met():
        latest_first = list(dict.fromkeys(reversed(taken)))
        restore(latest_first, state.levels, start.__getitem__, move, met)
        if budget_ns is not None and (
                predictor.to_nanoseconds(state.total) < budget_ns - CLOSE * predictor.baseline_ns):
            for index, before in _exchange(state, latest_first, start, predictor.to_cost(budget_ns), met, move, shares):
                taken.append(index)
                before_last = before
            restore(dict.fromkeys(reversed(taken)), state.levels, start.__getitem__, move, met)
    return Selection(tuple(units), tuple(state.levels), taken[-1] if taken else None, before_last)


def _take_steps(state: GreedyState, met: Callable[[], bool], move: Callable[[int, int], None],
                shares: Shares) -> tuple[Shares | None, list[int]]:
    """Take the best steps until the limits are met: the shares before the last, and the units' indices in order.

    A step is computed again only when its turn comes: what the steps of others change in it is mostly for the worse.
    """
    before_last: Shares | None = None
    taken: list[int] = []
    ticket = count()
    queue: list[tuple[float, float, int, int, int]] = []

    def offer(index: int) -> None:
        step = state.best_step(index)
        if step is not None:
            heapq.heappush(queue, (step[0], step[1], index, step[2], next(ticket)))

    for index in range(len(state.units)):
        offer(index)
    while queue and not met():
        rate, saved, index = heapq.heappop(queue)[:3]
        step = state.best_step(index)
        if step is None:
            continue
        if queue and step[:2] > (rate, saved) and (*step[:2], index) > queue[0][:3]:
            offer(index)
            continue
        before_last = shares.copy()
        move(index, step[2])
        taken.append(index)
        offer(index)
    return before_last, taken


def _exchange(state: GreedyState, latest_first: Sequence[int], start: Sequence[int], maximum: float,
              met: Callable[[], bool], move: Callable[[int, int], None], shares: Shares) -> list[tuple[int, Shares]]:
    """Where steps are large the last ones overshoot: undo each by one level if some other step does for less.

    Returns:
        Of each step taken instead its unit and the shares before it.
    """
    taken = []
    for index in latest_first:
        level = state.levels[index]
        if level == start[index]:
            continue
        move(index, level - 1)
        cheapest = float(state.scores[index][level] - state.scores[index][level - 1])
        replacement = (index, level)
        for other in range(len(state.units)):
            other_level, costs = state.levels[other], state.costs(other)
            enough = np.flatnonzero(costs[other_level] - costs[other_level + 1:] >= state.total - maximum)
            if other != index and len(enough):
                lower = other_level + 1 + int(enough[0])
                loss = float(state.scores[other][lower] - state.scores[other][other_level])
                if loss < cheapest:
                    cheapest, replacement = loss, (other, lower)
        before, shares_before = state.levels[replacement[0]], shares.copy()
        move(*replacement)
        if not met():
            move(replacement[0], before)
            move(index, level)
        elif replacement[0] != index:
            taken.append((replacement[0], shares_before))
    return taken
