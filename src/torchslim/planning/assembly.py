"""A feasible cut as a `Plan`: what stays, budgets, what is left alone and why, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchslim.costs.cost_models import CostModel
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.unreached import notes_on_unreached_layers
from torchslim.errors import BudgetError
from torchslim.importance import Evidence
from torchslim.planning.budget_notes import OUT_OF_REACH, budget_notes, nearest_share, reasons_in_short, rounded_share
from torchslim.planning.budgets import counted_limits
from torchslim.planning.candidates import at_minimum, partly_scoped
from torchslim.planning.feasible_cuts import FeasibleCut
from torchslim.planning.greedy import units_without_speedup
from torchslim.planning.options import PlanOptions
from torchslim.surgery.plans import Budget, LeftAlone, Plan


def assemble_plan(feasible: FeasibleCut, options: PlanOptions, evidence: Evidence, original: Coupling | None) -> Plan:
    """The plan of a cut.

    Args:
        feasible: the cut.
        options: what was asked for.
        evidence: what the channels were ranked on.
        original: the network that shares are of, where it is another one.
    """
    cut, coupling, limits = feasible.cut, feasible.coupling, feasible.limits
    shares = cut.stays.astype(np.float64)
    budgets = tuple(Budget(limit.resource, limit.cost.total, limit.maximum, limit.cost(shares)) for limit in limits)
    totals = _totals(budgets, original)
    approximate = list(dict.fromkeys(m.reason for m in coupling.mixed if (shares[m.labels] == 0).any()))
    notes = [
        *budget_notes(limits, budgets, feasible.selection, coupling.num_classes, totals),
        *(f"approximate: {reason}" for reason in approximate),
        *notes_on_unreached_layers(coupling.graphs),
        *(f"no rule for {name}: what it reads stays" for name in coupling.unknown),
        *options.ranking.notes(evidence),
    ]
    predicted = {"macs": CostModel(coupling.macs)(shares), "params": CostModel(coupling.params)(shares)}
    if feasible.predictor is not None:
        predicted["latency"] = feasible.predictor(shares)
    return Plan(kept=cut.kept, readers=cut.readers, grouped=cut.grouped,
                attribute_updates=cut.attribute_updates, budgets=budgets, predicted=predicted,
                left_alone=left_alone(coupling, _reasons(feasible, options)), notes=tuple(notes),
                settings=_settings(options, evidence, bool(approximate), original),
                ignored_outputs=tuple(sorted(coupling.graphs[0].ignored_outputs)))


def budget_error(plan: Plan, original: Coupling | None) -> BudgetError:
    """What there is to say of a plan's budgets out of reach: the nearest, what stands in the way, what to try."""
    totals = _totals(plan.budgets, original)
    counts = {budget.resource: max(budget.asked, budget.met) for budget in plan.budgets}
    nearest = {budget.resource: nearest_share(counts[budget.resource], totals.get(budget.resource, budget.before))
               for budget in plan.budgets}
    unmet = [budget for budget in plan.budgets if not budget.is_met]
    said = [note for note in plan.notes if OUT_OF_REACH in note]
    less = all(budget.met < budget.before for budget in unmet)
    wanted = [f"{budget.resource}={rounded_share(budget.met, totals.get(budget.resource, budget.before)):.4f}"
              for budget in unmet]
    remedy = (f"ask for {', '.join(wanted)}, or take the nearest with strict=False (--nearest)" if less else
              "let more be cut, or leave the network as it is")
    return BudgetError("; ".join([*said, *reasons_in_short(plan.left_alone), remedy]), nearest, counts)


def _totals(budgets: Sequence[Budget], original: Coupling | None) -> dict[str, int]:
    """By resource that is counted, what shares are of where that is another network."""
    if original is None:
        return {}
    counted = {budget.resource: 1 for budget in budgets if budget.resource != "latency"}
    return {limit.resource: limit.cost.total for limit in counted_limits(original, counted)}


def _settings(options: PlanOptions, evidence: Evidence, approximate: bool,
              original: Coupling | None) -> dict[str, Any]:
    taken = options.ranking.taken(evidence)
    return {"importance": str(options.importance),
            **({} if taken is options.ranking else {"ranked_by": str(taken)}),
            "scope": options.scope if isinstance(options.scope, str) else dict(options.scope),
            "shortcuts": options.shortcuts, "round_to": options.round_to, "min_channels": options.min_channels,
            "min_kept": options.min_kept, "only": list(options.only), "exclude": list(options.exclude),
            "allow_approximate": approximate, "whole_groups": options.whole_groups, "seed": options.seed,
            "shares_of": "today" if original is None else "original"}


def _reasons(feasible: FeasibleCut, options: PlanOptions) -> dict[int, str]:
    """Class of channels -> why it stays."""
    coupling, selection = feasible.coupling, feasible.selection
    slow = () if feasible.predictor is None else units_without_speedup(
        feasible.predictor, selection, feasible.units, coupling.num_classes)
    return {**partly_scoped(coupling, selection, options), **at_minimum(selection.units, options),
            **{label: "a cut here would not make it faster" for index in slow
               for label in feasible.units[index].classes.tolist()},
            **feasible.protected}


def left_alone(coupling: Coupling, reasons: Mapping[int, str]) -> tuple[LeftAlone, ...]:
    """What stays, by group and reason; positions and other constants that no parameter shares are no channels."""
    parameters = {name for name, value in coupling.graphs[0].state.items() if value.source == "parameter"}
    counts = Counter((group.name, reasons[label]) for group in coupling.groups
                     if not parameters.isdisjoint(member.name for member in group.members)
                     for label in group.classes.tolist() if label in reasons)
    return tuple(LeftAlone(name, count, reason) for (name, reason), count in counts.items())
