"""Cutting while training goes on: a little at a time, by schedule, the optimizer's state carried through each cut."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchslim.errors import CheckpointError, PlanError, RequestError
from torchslim.importance import criterion
from torchslim.planning.iterative import Request, requests
from torchslim.planning.pruning import plan, prune
from torchslim.surgery.cutting import apply
from torchslim.surgery.optimizers import carry_optimizer
from torchslim.surgery.plans import Plan
from torchslim.train.checkpoint import TrainingState, load_checkpoint, read_plans
from torchslim.train.loop import History, Job, fit, job_of
from torchslim.train.sparsity import Slimming
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, map_tensors, unwrap
from torchslim.utils.modules import named_modules


@dataclass(frozen=True)
class Gradual:
    """What a gradual training made.

    Attributes:
        model: the slim network, trained.
        plans: the cuts that lead to it from the original, in order: `torchslim.save(model, path, plan=plans,
            source=...)` keeps them.
        history: of all epochs.
    """

    model: nn.Module
    plans: tuple[Plan, ...]
    history: History


def fit_gradually(model: nn.Module, data: Any, inputs: Inputs, *, macs: float | None = None,
                  params: float | None = None, channels: float | None = None, memory: float | None = None,
                  steps: int = 5, curve: str = "cubic", begin: int = 1, every: int = 1,
                  cutting: Mapping[str, Any] | None = None, **training: Any) -> Gradual:
    """Train, and cut a step further every few epochs: what is left learns to do without before more goes.

    Gradual pruning (Zhu & Gupta 2017), of channels: at each step a new plan takes the network, as it then is, down to
    the schedule's share of the *original's* cost (`torchslim.schedule`); it is cut and proven, and the optimizer's
    momenta of the channels that stay go on. The last `epochs - begin - (steps - 1) * every` epochs train the network at
    its final size. Whole blocks are never removed: each layer keeps two channels at the least.

    Args:
        model: the original; it is left as it was.
        data: see `fit`.
        inputs: what the model is called with (see `torchslim.plan`).
        macs, params, channels, memory: what is kept in the end, alone or together (see `torchslim.plan`).
        steps: how many cuts.
        curve: "cubic", "linear" or "geometric": how the shares go down (`torchslim.planning.schedules.shares`).
        begin: epochs before the first cut.
        every: epochs from one cut to the next.
        cutting: further options of `torchslim.plan`: importance, round_to, scope, only, data and loss, ...; all shares
            are of the original.
        training: the options of `fit`. The learning rate goes by one schedule over all epochs. `checkpoint` holds the
            cuts made so far, too: training goes on from it, and ends with the same weights, to the bit. `sparsity` is
            a weight here, as scales come and go.

    Returns:
        The slim network, in the modes and on the device of the model, the list of its cuts, and the history.

    Raises:
        RequestError: no budget, a schedule that does not fit into the epochs, options that make no sense.
        ProofError: a cut network does not equal its silenced original.
        CheckpointError, TrainingError, MissingExtra: see `fit`.
    """
    model = unwrap(model)
    if isinstance(training.get("sparsity"), Slimming):
        raise RequestError("fit_gradually: sparsity is a Slimming of a network that is about to be cut; give its "
                           "weight, such as sparsity=1e-4")
    budgets = {"macs": macs, "params": params, "channels": channels, "memory": memory}
    _check({} if cutting is None else cutting, budgets)
    bound = inspect.signature(fit).bind(copy_model(model), data, **training)
    bound.apply_defaults()
    job = job_of(**bound.arguments)
    asked = requests(model, inputs, steps, curve, {**budgets, **(cutting or {})})
    cuts = dict(zip(_cuts(begin, every, steps, job.recipe.epochs), asked, strict=True))
    job = replace(job, also={"gradual": {str(at): _plain(request) for at, request in cuts.items()}})
    with job.placed(job.model):
        job, state = _run(job, _moved(inputs, job.model), cuts)
    first = next(model.parameters(), None)
    modes = dict(named_modules(model))
    slim = job.model.to("cpu" if first is None else first.device)
    for name, module in named_modules(slim):
        module.training = modes[name].training
    return Gradual(slim, state.plans, History(state.loss, state.accuracy))


def _check(cutting: Mapping[str, Any], budgets: Collection[str]) -> None:
    """Refuse options that are none of a plan's, or have a place of their own."""
    own = {"model", "inputs", "original", *budgets}
    known = [name for name in inspect.signature(plan).parameters if name not in own]
    if not isinstance(cutting, Mapping):
        raise RequestError(f"fit_gradually: cutting={cutting!r} found, a dict of options of torchslim.plan wanted; try "
                           "{'round_to': 8}")
    odd = next((name for name in cutting if name not in known), None)
    if odd in budgets:
        raise RequestError("fit_gradually: a budget in cutting=; give it by itself, such as macs=0.5")
    if odd is not None:
        raise RequestError(f"fit_gradually: {odd!r} found in cutting=, options of torchslim.plan wanted: "
                           f"{', '.join(known)}")


def _plain(request: Request) -> dict[str, Any]:
    """What a step asks, as JSON values; data and functions are not among them."""
    found = {name: value for name, value in request.items() if value is not None and name not in ("data", "loss")}
    return {**found, **({"importance": str(criterion(found["importance"]))} if "importance" in found else {})}


def _cuts(begin: int, every: int, steps: int, epochs: int) -> list[int]:
    """After how many epochs each cut is made."""
    for name, value, least in (("begin", begin, 0), ("every", every, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RequestError(f"fit_gradually: {name}={value!r} found, an int of at least {least} wanted; try 1")
    last = begin + (steps - 1) * every
    if last >= epochs:
        raise RequestError(f"fit_gradually: the last of {steps} cuts is due after {last} epochs, and there are "
                           f"{epochs}; give epochs={last + 1} or more, or fewer steps")
    return [begin + step * every for step in range(steps)]


def _run(job: Job, inputs: Inputs, cuts: Mapping[int, Request]) -> tuple[Job, TrainingState]:
    """Train from cut to cut, from the checkpoint on if there is one."""
    state, original = TrainingState(), job.model  # of the original the widths count, whatever its weights
    begun = job.checkpoint if job.checkpoint is not None and job.checkpoint.exists() else None
    if begun is not None:
        job = _cut_as_before(job, begun)
    optimizer = job.recipe.build_optimizer(job.model)
    if begun is not None:
        state = load_checkpoint(begun, job.model, optimizer, job.identity())
    order = [*cuts, job.recipe.epochs]
    for place, until in enumerate(order):
        state = job.train(optimizer, state, until) if state.epochs < until else state
        if until in cuts and len(state.plans) == place:
            slim, step = _agreed(job, *prune(job.model, inputs, original=original, **cuts[until]))
            optimizer = carry_optimizer(optimizer, job.model, slim, step)
            job, state = _on(job, slim), replace(state, plans=(*state.plans, step))
    return job, state


def _agreed(job: Job, slim: nn.Module, step: Plan) -> tuple[nn.Module, Plan]:
    """The cut of the first process for all: criteria that run the network see each process's own batch statistics."""
    if job.accelerator.num_processes == 1:
        return slim, step
    from accelerate.utils import broadcast_object_list

    (text,) = broadcast_object_list([step.to_json()])
    step = Plan.from_json(text)
    return apply(job.model, step), step


def _cut_as_before(job: Job, path: Path) -> Job:
    """The training of the network that a checkpoint is of."""
    for step in read_plans(path, job.identity()):
        try:
            job = _on(job, apply(job.model, step))
        except PlanError as error:
            raise CheckpointError(f"{path}: made by a training of another model: {error}") from error
    return job


def _on(job: Job, model: nn.Module) -> Job:
    """The same training, of another network."""
    return replace(job, model=model, press=None if job.press is None else Slimming(model, weight=job.press.weight))


def _moved(inputs: Inputs, model: nn.Module) -> Inputs:
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    moved: Inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
    return moved
