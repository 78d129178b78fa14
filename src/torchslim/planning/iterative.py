"""Cut in steps, with training of the caller's in between: less is lost at once, and what is left is scored anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch import nn

from torchslim.errors import RequestError
from torchslim.importance.gradients import Loss
from torchslim.planning.options import PlanKeywords, PlanOptions, split_keywords
from torchslim.planning.pruning import plan_with, prune_with
from torchslim.planning.schedules import shares
from torchslim.surgery.plans import Plan
from torchslim.utils.inputs import Inputs, unwrap


def schedule(model: nn.Module, inputs: Inputs, *, steps: int = 5, curve: str = "cubic",
             compensate: bool | None = None, **options: Unpack[PlanKeywords]) -> Iterator[tuple[nn.Module, Plan]]:
    """Cut a network to its budget in steps; train what each gives before asking for the next.

        for slim, plan in ts.schedule(model, inputs, macs=0.25, steps=4):
            train(slim)
            plans.append(plan)
        ts.save(slim, "slim.safetensors", plan=plans, source=...)

    Each step scores the network as training has left it, and cuts it to the step's share of the *original's* cost;
    likewise the shares by pattern. Networks come proven, as from `prune`. Train the very module that was given, in
    place and on its device: the next step goes on from it.

    Args:
        model: the network; it is left as it was.
        inputs: what it is called with.
        steps: how many there are.
        curve: how the shares go down (`torchslim.planning.schedules.shares`).
        compensate: refit what is left after each step, on `data=`; None as in `prune`.
        options: those of `plan`: the budgets, of which one at least or a scope by pattern is wanted, importance, ...

    Returns:
        An iterator over the steps: the slim network, and the plan that leads to it from the network before.

    Raises:
        RequestError, BudgetError: at once, before anything is trained: a plan of the whole cut was refused. The steps
            themselves come as near to their budgets as they can.
        ProofError: a step's network does not equal its silenced original.
    """
    if "original" in options:
        raise RequestError("schedule: original= is the model itself here; leave it out")
    requested, given_data, loss = split_keywords(options)
    model, data = unwrap(model), as_batches(given_data)
    if compensate and data is None:
        raise RequestError("schedule: compensate=True asks for data=, batches of what the model is called with")
    steps_of = options_of_steps(requested, model, inputs, steps, curve, data, loss)
    return _cuts(steps_of, model, inputs, data, loss, compensate)


def options_of_steps(options: PlanOptions, model: nn.Module, inputs: Inputs, steps: int, curve: str,
                     data: Iterable[Any] | None, loss: Loss | None) -> list[PlanOptions]:
    """The options of each step's plan: its own budgets and shares by pattern, all of the original's.

    Raises:
        RequestError, BudgetError: see `schedule`.
    """
    ends = shares(steps, 1.0, curve)  # nothing is cut by these: they refuse what is no number of steps and no curve
    whole_cut = plan_with(options, model, inputs, data, loss)
    changes: list[dict[str, Any]] = [{} for _ in ends]
    for budget in whole_cut.budgets:
        count = max(budget.asked, whole_cut.predicted["latency"] if budget.resource == "latency" else budget.met)
        final = min(1.0, count / budget.before)
        for change, share in zip(changes, shares(steps, final, curve), strict=True):
            change[budget.resource] = max(1, int(share * budget.before))
        changes[-1][budget.resource] = count
    if options.shares:
        by_pattern = {pattern: shares(steps, share, curve) for pattern, share in options.shares.items()}
        for index, change in enumerate(changes):
            change["scope"] = {pattern: of_steps[index] for pattern, of_steps in by_pattern.items()}
    return [replace(options, strict=False, **change) for change in changes]


def _cuts(steps: Sequence[PlanOptions], model: nn.Module, inputs: Inputs, data: Iterable[Any] | None,
          loss: Loss | None, compensate: bool | None) -> Iterator[tuple[nn.Module, Plan]]:
    network = model
    for options in steps:
        network, step = prune_with(options, network, inputs, data, loss, model, compensate)
        yield network, step


def as_batches(data: Iterable[Any] | None) -> Iterable[Any] | None:
    """Batches that can be gone through at each step."""
    return list(data) if isinstance(data, Iterator) else data
