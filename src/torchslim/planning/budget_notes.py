"""What keeps a cut from its budgets, and the nearest budget that can be met: scores, costs and limits -> sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np

from torchslim.costs.cost_models import Shares
from torchslim.planning.selection import Limit, Selection
from torchslim.surgery.plans import Budget

CLOSE = 0.01
"""How far below its budget, as a share of the whole network's cost, a cut may be without a remark."""


def remarks(limits: Sequence[Limit], budgets: Sequence[Budget], selection: Selection, classes: int,
            wholes: Mapping[str, int]) -> list[str]:
    """What keeps a cut from meeting its budgets, or from coming close to the tightest; mostly nothing.

    Args:
        limits: what was asked.
        budgets: what became of each of them.
        selection: what was cut for them.
        classes: how many classes of channels the network has.
        wholes: by resource, what budgets are shares of, where that is not the network's own cost.
    """
    pairs = list(zip(limits, budgets, strict=True))
    beyond = [_beyond(limit, budget, selection, classes, wholes.get(budget.resource, budget.before))
              for limit, budget in pairs if budget.met > budget.asked]
    return beyond or _below(pairs, selection, wholes)


def _beyond(limit: Limit, budget: Budget, selection: Selection, classes: int, whole: int) -> str:
    """Why a budget is out of reach: what stays in any case, how narrow groups may get, or the steps they go in."""
    alone, narrow = np.ones(classes), np.ones(classes)
    for bundle in selection.bundles:
        alone[bundle.classes] = 0.0
        if bundle.tied:
            narrow[bundle.classes] = bundle.least / bundle.kept[0]
        else:
            narrow[bundle.classes[: bundle.kept[0] - bundle.least]] = 0.0
    protected, least = limit.meter(alone), limit.meter(narrow)
    if protected > budget.asked:
        why = f"the protected channels, those that are left alone, cost {budget.spoken(protected)} by themselves"
    elif least > budget.asked:
        why = ("the minimum width of the groups (2 channels, min_channels=, min_kept= or a share by pattern) allows "
               "no less")
    else:
        why = ("rounding (round_to=, or rows that lose equally many) stops it, single channels would leave "
               f"{budget.spoken(least)}")
    return (f"{budget.resource}: asked for at most {budget.spoken(budget.asked)}, and the nearest feasible budget is "
            f"{_both(budget, budget.met, whole)}: {why}")


def _below(pairs: Sequence[tuple[Limit, Budget]], selection: Selection, wholes: Mapping[str, int]) -> list[str]:
    """Why all budgets are met, but none of those that ask for a further removal closely."""
    looser = selection.looser
    if looser is None or selection.last is None:
        return []
    broken = [(limit, budget) for limit, budget in pairs if limit.meter(looser) > limit.most]
    if not broken:
        return []
    limit, tight = max(broken, key=lambda pair: pair[1].met / pair[1].asked)
    below = (tight.asked - tight.met) / tight.before
    if below <= CLOSE:
        return []
    bundle = selection.bundles[selection.last]
    if bundle.tied:
        why = f"the rows of `{bundle.name}` lose equally many"
    elif tight.resource == "latency":
        why = f"time falls in steps, and `{bundle.name}` loses {_step(selection, looser)} channels at once"
    elif _step(selection, looser) > 1:
        why = f"rounding, by which `{bundle.name}` loses {_step(selection, looser)} channels at once"
    else:
        why = f"a single channel of `{bundle.name}`"
    above = _both(tight, limit.meter(looser), wholes.get(tight.resource, tight.before))
    return [f"{tight.resource}: {tight.spoken(tight.met)} is {below:.1%} of the whole below what was asked; the next "
            f"step is larger ({why}), and the nearest feasible budget above is {above}"]


def _step(selection: Selection, looser: Shares) -> int:
    """How many channels the last removal takes."""
    assert selection.last is not None
    bundle = selection.bundles[selection.last]
    before = round(float(looser[bundle.classes].sum()))
    return before - int(bundle.kept[bundle.kept < before].max())


def _both(budget: Budget, count: int, whole: int) -> str:
    """A count, and the share with four digits that asks for no less."""
    share = ceil(count / whole * 1e4) / 1e4
    if int(whole * share) < count:
        share += 1e-4
    return f"{budget.spoken(count)}, a share of {share:.4f}"
