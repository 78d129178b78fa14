"""Which channels go where time is what counts: those that lose least for each nanosecond that they save.

Time does not fall with each channel but in steps, so a removal leads from one step of a bundle to any lower one. From
the whole network on, the step is taken that loses the least importance for the time that it saves, until every limit
is met: the greedy way to fill a knapsack with several choices for each item (Kellerer et al. 2004, chapter 11), with
savings worked out anew as layers get narrower. (Shen et al. 2022, "Structural Pruning via Latency-Saliency Knapsack",
pose the same problem.) Then what the limits still allow is given back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from torchslim.costs.cost_models import PeakMeter, Shares
from torchslim.costs.width_costs import Parts, parts_of
from torchslim.coupling.coupling import Coupling
from torchslim.importance import Scores
from torchslim.latency.predictor import LatencyPredictor
from torchslim.planning.budget_notes import CLOSE
from torchslim.planning.selection import Bundle, Limit, Selection, select

Array = NDArray[np.float64]

_LEAST = 1e-5  # of the network's time: a saving below that is none
_MOST_WEIGHT = 4.0  # of time beside a budget of something else; above 1 it has to be saved where little of that is
_CLOSE_WEIGHT = 0.1  # how closely the weight is looked for


def removed(bundle: Bundle) -> Scores:
    """The importance of what is gone after each number of removals, from 0 on."""
    fewer = -np.diff(bundle.kept) * _classes_a_channel(bundle)
    return np.concatenate([[0.0], np.cumsum(bundle.losses * fewer)])


def lost(bundle: Bundle) -> Scores:
    """What a bundle loses by each number of removals: its importance times -log of the share of it that stays.

    For the first few channels that is their importance; the fewer are left, the more does each count. (Channels of
    which no removal is known, since they always stay, count like the last that can go.)
    """
    gone = removed(bundle)
    stays = float(bundle.losses[-1] * bundle.kept[-1]) * _classes_a_channel(bundle) if len(bundle.losses) else 1.0
    whole = gone[-1] + stays
    return -whole * np.log1p(-gone / whole) if whole > 0 and stays > 0 else gone


def _classes_a_channel(bundle: Bundle) -> float:
    """Tied rows go down by steps, each of several classes."""
    return len(bundle.classes) / float(bundle.kept[0]) if bundle.tied else 1.0


class Pace:
    """How far each bundle is down, and what the next steps would save of a cost."""

    def __init__(self, cost: Parts, bundles: Sequence[Bundle], classes: int, start: Sequence[int]) -> None:
        self.cost, self.bundles = cost, bundles
        self.levels = list(start)
        self.lost = [lost(bundle) for bundle in bundles]
        self.gone = self._gone(classes)
        self.widths = cost.full()
        self.least = _LEAST * cost.sum(self.widths)
        for place, level in enumerate(self.levels):
            for dim, fewer in self.gone[place].items():
                self.widths[dim] = self.widths[dim] - fewer[level]
        concerned: list[list[int]] = [[] for _ in cost.dims]
        for number, part in enumerate(cost.parts):
            for dim in set(part.dims):
                concerned[dim].append(number)
        self.parts = [sorted({number for dim in own for number in concerned[dim]}) for own in self.gone]
        self.total = cost.sum([np.rint(width) for width in self.widths])

    def _gone(self, classes: int) -> list[dict[int, Array]]:
        """For each bundle, the dimensions that it narrows and by how much at each of its levels."""
        owner = np.full(classes + 1, -1)  # the last entry: what can't be cut has classes below zero
        rank = np.zeros(classes + 1, dtype=np.int64)
        for place, bundle in enumerate(self.bundles):
            owner[bundle.classes] = place
            rank[bundle.classes] = np.arange(len(bundle.classes))
        found: list[dict[int, Array]] = [{} for _ in self.bundles]
        for dim, labels in enumerate(self.cost.dims):
            owners = owner[labels]
            for place in np.unique(owners[owners >= 0]).tolist():
                own = labels[owners == place]
                bundle = self.bundles[place]
                if bundle.tied:
                    found[place][dim] = len(own) * (1 - bundle.kept / bundle.kept[0])
                else:
                    among = np.bincount(rank[own], minlength=len(bundle.classes))
                    found[place][dim] = np.concatenate([[0], np.cumsum(among)])[bundle.kept[0] - bundle.kept]
        return found

    def times(self, place: int) -> Array:
        """What the parts that a bundle narrows take at each of its levels, the others staying as they are."""
        own, level = self.gone[place], self.levels[place]
        total = np.zeros(len(self.bundles[place].kept))
        for number in self.parts[place]:
            part = self.cost.parts[number]
            total += part([np.rint(self.widths[dim] + own[dim][level] - own[dim]) if dim in own
                           else np.full(len(total), np.rint(self.widths[dim])) for dim in part.dims])
        return total

    def next(self, place: int) -> tuple[float, float, int] | None:
        """The bundle's best step down: importance lost for each unit saved, saving (below 0), level."""
        level, times = self.levels[place], self.times(place)
        saved = times[level] - times[level + 1:]
        worth = np.flatnonzero(saved > self.least)
        if not len(worth):
            return None
        rates = (self.lost[place][level + 1:][worth] - self.lost[place][level]) / saved[worth]
        best = worth[np.lexsort((-saved[worth], rates))[0]]
        return float(rates.min()), -float(saved[best]), level + 1 + int(best)

    def move(self, place: int, level: int) -> None:
        """Bring a bundle to a level."""
        times, before = self.times(place), self.levels[place]
        self.total += float(times[level] - times[before])
        for dim, fewer in self.gone[place].items():
            self.widths[dim] = self.widths[dim] + fewer[before] - fewer[level]
        self.levels[place] = level


def stairs(meter: LatencyPredictor, bundles: Sequence[Bundle], classes: int) -> list[Bundle]:
    """The bundles with only those levels at which the network is faster than with any more channels."""
    pace = Pace(meter.cost, bundles, classes, [0] * len(bundles))
    found = []
    for place, bundle in enumerate(bundles):
        times = pace.times(place)
        best = np.minimum.accumulate(times)
        keep = np.concatenate([[True], times[1:] < best[:-1] - pace.least])
        fewer = -np.diff(bundle.kept[keep]) * _classes_a_channel(bundle)
        losses = np.diff(removed(bundle)[keep]) / fewer
        found.append(replace(bundle, kept=bundle.kept[keep], losses=losses))
    return found


def select_by_time(coupling: Coupling, bundles: Sequence[Bundle], limits: Sequence[Limit], meter: LatencyPredictor,
                   floor: Mapping[int, int] | None = None) -> Selection:
    """The removals that meet every limit and lose little importance for the time that they save.

    Where no limit is one of time, the cut is to be as fast as it is light: of what is asked for and of time the same
    share is to stay. So a removal is judged by what it saves of both, and time is given the least weight with which
    this is reached.

    Args:
        coupling: the network's.
        bundles: what can be removed.
        limits: the budgets, of time or of anything else.
        meter: of time.
        floor: removals that are made in any case, by place of the bundle.
    """
    start = [0 if floor is None else floor.get(place, 0) for place in range(len(bundles))]
    counted = [limit for limit in limits if not isinstance(limit.meter, LatencyPredictor | PeakMeter)]
    if not counted or any(limit.meter is meter for limit in limits):
        return _descent(coupling, bundles, limits, meter, meter.cost, start)
    share = max(limit.most / limit.meter.total for limit in counted)
    resources = [(parts_of(limit.meter), limit.meter.total) for limit in counted]

    def weighing(time: float) -> tuple[Selection, bool]:
        cost = Parts()
        cost.include(meter.cost, time / meter.full_cost)
        for parts, total in resources:
            cost.include(parts, (1 - time) / total / len(resources))
        found = _descent(coupling, bundles, limits, meter, cost, start)
        return found, meter(found.shares(coupling.classes)) <= share * meter.baseline_ns

    best, fast = weighing(0.0)
    if fast:
        return best
    best, fast = weighing(_MOST_WEIGHT)
    low, high = 0.0, _MOST_WEIGHT if fast else 0.0
    while high - low > _CLOSE_WEIGHT:
        middle = (low + high) / 2
        found, reached = weighing(middle)
        if reached:
            best, high = found, middle
        else:
            low = middle
    return best


def _descent(coupling: Coupling, bundles: Sequence[Bundle], limits: Sequence[Limit], meter: LatencyPredictor,
             cost: Parts, start: Sequence[int]) -> Selection:
    """The removals that meet every limit and lose little importance for what they save of a cost."""
    pace = Pace(cost, bundles, coupling.classes, start)
    shares = Selection(tuple(bundles), tuple(start)).shares(coupling.classes)
    others = [limit for limit in limits if limit.meter is not meter]
    most = min([limit.most for limit in limits if limit.meter is meter], default=None)

    def met() -> bool:
        return ((most is None or round(meter.to_nanoseconds(pace.total)) <= most)
                and all(limit.meter(shares) <= limit.most for limit in others))

    def move(place: int, level: int) -> None:
        pace.move(place, level)
        shares[bundles[place].classes] = bundles[place].shares(level)

    looser, taken = _descend(pace, met, move, shares)
    if not met() and others:
        rest = select(coupling, bundles, limits, dict(enumerate(pace.levels)))
        return replace(rest, last=taken[-1], looser=looser) if taken else rest
    if met():
        _give_back(pace, taken, start, met, move)
        if most is not None and meter.to_nanoseconds(pace.total) < most - CLOSE * meter.baseline_ns:
            _exchange(pace, taken, start, meter.to_cost(most), met, move)
            _give_back(pace, taken, start, met, move)
    return Selection(tuple(bundles), tuple(pace.levels), taken[-1] if taken else None, looser)


def _descend(pace: Pace, met: Callable[[], bool], move: Callable[[int, int], None],
             shares: Shares) -> tuple[Shares | None, list[int]]:
    """Take the best steps until the limits are met: the shares before the last, and the places in order.

    A step is looked at again only when its turn comes: what the steps of others change in it is mostly for the worse.
    """
    looser: Shares | None = None
    taken: list[int] = []
    ticket = count()
    queue: list[tuple[float, float, int, int, int]] = []

    def offer(place: int) -> None:
        step = pace.next(place)
        if step is not None:
            heapq.heappush(queue, (step[0], step[1], place, step[2], next(ticket)))

    for place in range(len(pace.bundles)):
        offer(place)
    while queue and not met():
        rate, saved, place = heapq.heappop(queue)[:3]
        step = pace.next(place)
        if step is None:
            continue
        if queue and step[:2] > (rate, saved) and (*step[:2], place) > queue[0][:3]:
            offer(place)
            continue
        looser = shares.copy()
        move(place, step[2])
        taken.append(place)
        offer(place)
    return looser, taken


def _give_back(pace: Pace, taken: Sequence[int], start: Sequence[int], met: Callable[[], bool],
               move: Callable[[int, int], None]) -> None:
    """The last step may have been a large one: take back what the limits still allow, the most important first."""
    for place in dict.fromkeys(reversed(taken)):
        low, high = start[place], pace.levels[place]
        while low < high:
            middle = (low + high) // 2
            move(place, middle)
            low, high = (low, middle) if met() else (middle + 1, high)
        move(place, high)


def _exchange(pace: Pace, taken: Sequence[int], start: Sequence[int], allowed: float, met: Callable[[], bool],
              move: Callable[[int, int], None]) -> None:
    """Where steps are large the last ones overshoot: undo each by one level if some other step does for less."""
    for place in dict.fromkeys(reversed(taken)):
        now = pace.levels[place]
        if now == start[place]:
            continue
        move(place, now - 1)
        gained = float(pace.lost[place][now] - pace.lost[place][now - 1])
        cheapest, instead = gained, (place, now)
        for other in range(len(pace.bundles)):
            level, times = pace.levels[other], pace.times(other)
            enough = np.flatnonzero(times[level] - times[level + 1:] >= pace.total - allowed)
            if other != place and len(enough):
                to = level + 1 + int(enough[0])
                loss = float(pace.lost[other][to] - pace.lost[other][level])
                if loss < cheapest:
                    cheapest, instead = loss, (other, to)
        before = pace.levels[instead[0]]
        move(*instead)
        if not met():
            move(instead[0], before)
            move(place, now)


def idle(meter: LatencyPredictor, selection: Selection, before: Sequence[Bundle], classes: int) -> list[int]:
    """Places of the bundles that stay whole because to cut them would save no time.

    Args:
        meter: of time.
        selection: what goes, of bundles with stairs alone.
        before: the bundles with all their levels.
        classes: the network's.
    """
    pace = Pace(meter.cost, selection.bundles, classes, selection.removals)
    return [place for place, level in enumerate(selection.removals)
            if not level and len(before[place].kept) > 1 and pace.next(place) is None]
