"""What keeps a cut from its budgets, and the nearest budget that can be met: scores, costs and limits -> sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, nextafter

import numpy as np

from torchslim.costs.cost_models import Shares
from torchslim.planning.budgets import Limit
from torchslim.planning.selection import Selection
from torchslim.surgery.plans import Budget, LeftAlone

CLOSE = 0.01
"""How far below its budget, as a share of the uncut network's cost, a cut may be without a remark."""
OUT_OF_REACH = "which can't be met"
MAX_REASONS = 3
"""How many reasons for leaving channels alone an error gives."""


def budget_notes(limits: Sequence[Limit], budgets: Sequence[Budget], selection: Selection, classes: int,
                 totals: Mapping[str, int]) -> list[str]:
    """What keeps a cut from meeting its budgets, or from coming close to the tightest; mostly nothing.

    Args:
        limits: what was asked.
        budgets: what became of each of them.
        selection: what was cut for them.
        classes: how many classes of channels the network has.
        totals: by resource, what budgets are shares of, where that is not the network's own cost.
    """
    pairs = list(zip(limits, budgets, strict=True))
    beyond = [_why_exceeded(limit, budget, selection, classes, totals.get(budget.resource, budget.before))
              for limit, budget in pairs if budget.met > budget.asked]
    return beyond or _why_far_below(pairs, selection, totals)


def _why_exceeded(limit: Limit, budget: Budget, selection: Selection, classes: int, total: int) -> str:
    """Why a budget is out of reach: what stays in any case, how narrow groups may get, or the steps they go in."""
    alone, narrow = np.ones(classes), np.ones(classes)
    for unit in selection.units:
        alone[unit.classes] = 0.0
        if unit.tied:
            narrow[unit.classes] = unit.min_width / unit.widths[0]
        else:
            narrow[unit.classes[: unit.widths[0] - unit.min_width]] = 0.0
    protected, least = limit.cost(alone), limit.cost(narrow)
    if least <= budget.asked:
        why = ("rounding (round_to=, or rows that lose equally many) stops it, single channels would leave "
               f"{budget.format_count(least)}")
    elif all(len(unit.widths) == 1 for unit in selection.units):
        why = "no channel can be cut"
    elif budget.met == budget.before:
        why = f"all that can be cut saves {1 - least / budget.before:.2%} of it"
    elif protected > budget.asked:
        why = f"the protected channels, those that are left alone, cost {budget.format_count(protected)} by themselves"
    else:
        why = ("the minimum width of the groups (2 channels, min_channels=, min_kept= or a share by pattern) allows "
               "no less")
    return (f"{budget.resource}: asked for at most {budget.format_count(budget.asked)}, {OUT_OF_REACH}; the nearest "
            f"feasible budget is {_count_and_share(budget, budget.met, total)}: {why}")


def reasons_in_short(left_alone: Sequence[LeftAlone]) -> list[str]:
    """The reasons for which most channels are left alone, in one phrase; nothing where there are none."""
    groups: dict[str, list[LeftAlone]] = {}
    for entry in left_alone:
        groups.setdefault(entry.reason, []).append(entry)
    ranked = sorted(groups.items(), key=lambda item: -sum(entry.channels for entry in item[1]))
    said = [f"`{entries[0].name}`{f' and {len(entries) - 1} more' if len(entries) > 1 else ''} ({reason})"
            for reason, entries in ranked[:MAX_REASONS]]
    if len(ranked) > MAX_REASONS:
        said.append(f"{sum(len(entries) for _, entries in ranked[MAX_REASONS:])} for other reasons")
    return [f"left alone: {', '.join(said)}"] if said else []


def nearest_share(count: int, total: int) -> float:
    """The least share that, as a budget, allows a count."""
    share = count / total if count and total else nextafter(0.0, 1.0)
    while int(total * share) < count:
        share = nextafter(share, 2.0)
    return share


def _why_far_below(pairs: Sequence[tuple[Limit, Budget]], selection: Selection, totals: Mapping[str, int]) -> list[str]:
    """Why all budgets are met, but none of those that ask for a further removal closely."""
    before_last = selection.shares_before_last_step
    if before_last is None or selection.last_unit is None:
        return []
    broken = [(limit, budget) for limit, budget in pairs if limit.cost(before_last) > limit.maximum]
    if not broken:
        return []
    limit, tight = max(broken, key=lambda pair: pair[1].met / pair[1].asked)
    below = (tight.asked - tight.met) / tight.before
    if below <= CLOSE:
        return []
    unit = selection.units[selection.last_unit]
    if unit.tied:
        why = f"the rows of `{unit.name}` lose equally many"
    elif tight.resource == "latency":
        why = f"time falls in steps, and `{unit.name}` loses {_step(selection, before_last)} channels at once"
    elif _step(selection, before_last) > 1:
        why = f"rounding, by which `{unit.name}` loses {_step(selection, before_last)} channels at once"
    else:
        why = f"a single channel of `{unit.name}`"
    above = _count_and_share(tight, limit.cost(before_last), totals.get(tight.resource, tight.before))
    return [f"{tight.resource}: {tight.format_count(tight.met)} is {below:.1%} of the whole below what was asked; the "
            f"next step is larger ({why}), and the nearest feasible budget above is {above}"]


def _step(selection: Selection, before_last: Shares) -> int:
    """How many channels the last removal takes."""
    assert selection.last_unit is not None
    unit = selection.units[selection.last_unit]
    before = round(float(before_last[unit.classes].sum()))
    return before - int(unit.widths[unit.widths < before].max())


def _count_and_share(budget: Budget, count: int, total: int) -> str:
    """A count, and the share with four digits that asks for no less."""
    return f"{budget.format_count(count)}, a share of {rounded_share(count, total):.4f}"


def rounded_share(count: int, total: int) -> float:
    """The share of four digits that asks for no less than a count."""
    share = ceil(count / max(1, total) * 1e4) / 1e4
    return share if int(total * share) >= count else share + 1e-4
