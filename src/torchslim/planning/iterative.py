"""Cut in steps, with training of the caller's in between: less is lost at once, and what is left is scored anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from torchslim.errors import RequestError
from torchslim.planning.pruning import plan, prune
from torchslim.planning.schedules import shares
from torchslim.surgery.plans import Plan
from torchslim.utils.inputs import Inputs, unwrap

Request = dict[str, Any]


def schedule(model: nn.Module, inputs: Inputs, *, steps: int = 5, curve: str = "cubic",
             compensate: bool = False, **options: Any) -> Iterator[tuple[nn.Module, Plan]]:
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
        compensate: refit what is left after each step, on `data=` (see `prune`).
        options: those of `plan`: the budgets, of which one at least or a scope by pattern is wanted, importance, ...

    Returns:
        An iterator over the steps: the slim network, and the plan that leads to it from the network before.

    Raises:
        RequestError: at once, before anything is trained: a plan of the whole cut was refused.
        ProofError: a step's network does not equal its silenced original.
    """
    model = unwrap(model)
    if compensate and options.get("data") is None:
        raise RequestError("schedule: compensate=True asks for data=, batches of what the model is called with")
    found = requests(model, inputs, steps, curve, options)
    return _steps(model, inputs, [{**request, "compensate": compensate} for request in found])


def requests(model: nn.Module, inputs: Inputs, steps: int, curve: str, options: Mapping[str, Any]) -> list[Request]:
    """What each step asks of `plan`, beside `original=`: the options, and its own budgets and shares by pattern.

    Raises:
        RequestError: see `schedule`.
    """
    options = {**options, "data": _kept(options.get("data"))}
    if "original" in options:
        raise RequestError("schedule: original= is the model itself here; leave it out")
    ends = shares(steps, 1.0, curve)  # nothing is cut by these: they refuse what is no number of steps and no curve
    whole = plan(model, inputs, **options)
    found: list[Request] = [{} for _ in ends]
    for budget in whole.budgets:
        final = min(1.0, budget.asked / budget.before)
        for request, share in zip(found, shares(steps, final, curve), strict=True):
            request[budget.resource] = max(1, int(share * budget.before))
        found[-1][budget.resource] = budget.asked
    if isinstance(options.get("scope"), Mapping):
        by_pattern = {pattern: shares(steps, share, curve) for pattern, share in options["scope"].items()}
        for place, request in enumerate(found):
            request["scope"] = {pattern: parts[place] for pattern, parts in by_pattern.items()}
    return [{**options, **request} for request in found]


def _steps(model: nn.Module, inputs: Inputs, requests: list[Request]) -> Iterator[tuple[nn.Module, Plan]]:
    network = model
    for request in requests:
        network, decided = prune(network, inputs, original=model, **request)
        yield network, decided


def _kept(data: Any) -> Any:
    """Batches that can be gone through at each step."""
    return list(data) if isinstance(data, Iterator) else data
