"""Gradual pruning: several cuts by schedule during training; the optimizer's state is carried through each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from torchslim.errors import CheckpointError, PlanError, RequestError
from torchslim.importance.gradients import Loss
from torchslim.planning.iterative import as_batches, options_of_steps
from torchslim.planning.options import BUDGETS, PlanOptions, split_keywords
from torchslim.planning.pruning import plan, prune_with
from torchslim.surgery.cutting import apply
from torchslim.surgery.optimizers import carry_optimizer
from torchslim.surgery.plans import Plan
from torchslim.train.checkpoint import TrainingState, read_plans
from torchslim.train.hyperparameters import Hyperparameters
from torchslim.train.loop import build_trainer, fit, together
from torchslim.train.progress import History
from torchslim.train.sparsity import Slimming
from torchslim.train.trainer import Trainer
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, map_tensors, unwrap
from torchslim.utils.modules import device_of, named_modules


@dataclass(frozen=True)
class GradualResult:
    """Result of gradual pruning.

    Attributes:
        model: the slim network, trained.
        plans: its cuts, starting from the original, in order, for `torchslim.save(model, path, plan=plans,
            source=...)`.
        history: of all epochs.
    """

    model: nn.Module
    plans: tuple[Plan, ...]
    history: History


def fit_gradually(model: nn.Module, data: Any, inputs: Inputs, *, macs: float | None = None,
                  params: float | None = None, channels: float | None = None, memory: float | None = None,
                  steps: int = 5, curve: str = "cubic", begin: int = 1, every: int = 1,
                  cutting: Mapping[str, Any] | None = None, **training: Any) -> GradualResult:
    """Train, with a cut every few epochs, so that the network recovers between cuts.

    Gradual pruning (Zhu & Gupta 2017), of channels: at each step a new plan cuts the current network down to the
    schedule's share of the *original's* cost (`torchslim.schedule`); the cut is verified, and the optimizer keeps its
    momenta of the remaining channels. The last `epochs - begin - (steps - 1) * every` epochs train the network at its
    final size. Whole blocks are never removed: each layer keeps at least two channels.

    Args:
        model: the original; not changed.
        data: see `fit`.
        inputs: example inputs (see `torchslim.plan`).
        macs, params, channels, memory: final budgets, alone or together (see `torchslim.plan`).
        steps: number of cuts.
        curve: "cubic", "linear" or "geometric": decrease of the shares (`torchslim.planning.schedules.shares`).
        begin: epochs before the first cut.
        every: epochs from one cut to the next.
        cutting: further options of `torchslim.plan`: importance, round_to, scope, only, data and loss, ...; all shares
            are of the original.
        training: the options of `fit`. One learning-rate schedule covers all epochs. `checkpoint` also holds the cuts
            made so far: a resumed training ends with the same weights, to the bit. `sparsity` must be a weight, since
            the scales change.

    Returns:
        The slim network, in the modes and on the device of the model, its cuts, and the history.

    Raises:
        BudgetError: a final budget can't be met; before anything is trained.
        RequestError: no budget, a schedule that does not fit into the epochs, invalid options.
        ProofError: a cut network does not equal its silenced original.
        CheckpointError, TrainingError, MissingExtra: see `fit`.
    """
    model = unwrap(model)
    if not isinstance(training.get("sparsity", 0.0), int | float):
        raise RequestError("fit_gradually: sparsity is a penalty of a network that is about to be cut; give its "
                           "weight, such as sparsity=1e-4")
    budgets = {"macs": macs, "params": params, "channels": channels, "memory": memory}
    _check({} if cutting is None else cutting, budgets)
    bound = inspect.signature(fit).bind(copy_model(model), data, **training)
    bound.apply_defaults()
    with together() as processes:
        trainer = build_trainer(processes=processes, **bound.arguments)
        with processes.agreed():
            _check_training(trainer.hyperparameters)
            options, given_data, scoring_loss = split_keywords(
                {**budgets, **(cutting or {})})  # type: ignore[typeddict-item]
            scoring = as_batches(given_data)
            of_steps = options_of_steps(options, model, inputs, steps, curve, scoring, scoring_loss)
            cuts = dict(zip(_cut_epochs(begin, every, steps, trainer.hyperparameters.epochs), of_steps, strict=True))
        described = {str(epoch): _describe_options(step) for epoch, step in cuts.items()}
        trainer = replace(trainer, extra_identity={"gradual": described})
        with trainer.on_device(trainer.model):
            trainer, state = _run(trainer, _to_device(inputs, trainer.model), cuts, scoring, scoring_loss)
    history = History(state.loss, state.score, trainer.task.metric)
    return GradualResult(_as_before(model, trainer.model), state.plans, history)


def _as_before(model: nn.Module, slim: nn.Module) -> nn.Module:
    """The slim network, in the modes and on the device of the model."""
    modes = dict(named_modules(model))
    for name, module in named_modules(slim):
        module.training = modes[name].training
    return slim.to(device_of(model))


def _check(cutting: Mapping[str, Any], budgets: Collection[str]) -> None:
    """Reject options that `plan` does not have, or that are keywords of `fit_gradually`."""
    reserved = {"model", "inputs", "original", *budgets}
    known = [name for name in inspect.signature(plan).parameters if name not in reserved]
    if not isinstance(cutting, Mapping):
        raise RequestError(f"fit_gradually: cutting={cutting!r} found, a dict of options of torchslim.plan wanted; try "
                           "{'round_to': 8}")
    unknown = next((name for name in cutting if name not in known), None)
    if unknown in budgets:
        raise RequestError("fit_gradually: a budget in cutting=; give it by itself, such as macs=0.5")
    if unknown is not None:
        raise RequestError(f"fit_gradually: {unknown!r} found in cutting=, options of torchslim.plan wanted: "
                           f"{', '.join(known)}")


def _check_training(hyperparameters: Hyperparameters) -> None:
    """Reject what holds on to one network's weights, which the next cut would change."""
    values = hyperparameters.flat()
    wrong = next((name for name in ("ema", "keep_best", "patience", "freeze") if values[name]), None)
    if wrong is not None:
        raise RequestError(f"fit_gradually: {wrong}={values[wrong]!r} found, which is for a network that stays as it "
                           "is; train the result further by torchslim.train.fit with it")


def _describe_options(options: PlanOptions) -> dict[str, Any]:
    """The non-default options of a step's plan, as JSON values."""
    given = {each.name: getattr(options, each.name) for each in fields(options)
             if getattr(options, each.name) != each.default}
    return {name: value if name == "scope" or name in BUDGETS or isinstance(value, int | float) else str(value)
            for name, value in given.items()}


def _cut_epochs(begin: int, every: int, steps: int, epochs: int) -> list[int]:
    """The number of epochs before each cut."""
    for name, value, least in (("begin", begin, 0), ("every", every, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RequestError(f"fit_gradually: {name}={value!r} found, an int of at least {least} wanted; try 1")
    last = begin + (steps - 1) * every
    if last >= epochs:
        raise RequestError(f"fit_gradually: the last of {steps} cuts is due after {last} epochs, and there are "
                           f"{epochs}; give epochs={last + 1} or more, or fewer steps")
    return [begin + step * every for step in range(steps)]


def _run(trainer: Trainer, inputs: Inputs, cuts: Mapping[int, PlanOptions], scoring: Iterable[Any] | None,
         loss: Loss | None) -> tuple[Trainer, TrainingState]:
    """Train from cut to cut, from the checkpoint if there is one."""
    original = trainer.model  # shares of the original's cost depend on its widths only
    with trainer.processes.file_of_first(trainer.checkpoint) as path, trainer.processes.agreed():
        if path is not None:
            trainer = _replay_cuts(trainer, path)
    optimizer = trainer.build_optimizer()
    state = trainer.resumed(optimizer)
    for index, until in enumerate([*cuts, trainer.hyperparameters.epochs]):
        state = trainer.train(optimizer, state, until) if state.epochs < until else state
        if state.epochs < until:  # the callback asked for the end
            break
        if until in cuts and len(state.plans) == index:
            slim, step = _cut(trainer, partial(prune_with, cuts[until], trainer.model, inputs, scoring, loss,
                                                original))
            optimizer = carry_optimizer(optimizer, trainer.model, slim, step)
            trainer, state = _with_model(trainer, slim), replace(state, plans=(*state.plans, step))
    return trainer, state


def _cut(trainer: Trainer, pruned: Callable[[], tuple[nn.Module, Plan]]) -> tuple[nn.Module, Plan]:
    """The first process's cut, in all: it alone plans and proves, the others apply its plan."""
    made: list[tuple[nn.Module, Plan]] = []
    processes = trainer.processes
    with processes.agreed():
        if processes.is_first:
            made.append(pruned())
    text = processes.broadcast(made[0][1].to_json() if made else None)
    if made:
        return made[0]
    step = Plan.from_json(text)
    return apply(trainer.model, step), step


def _replay_cuts(trainer: Trainer, path: Path) -> Trainer:
    """The trainer of the checkpoint's network: the original, cut by the checkpoint's plans."""
    for step in read_plans(path, trainer.identity()):
        try:
            trainer = _with_model(trainer, apply(trainer.model, step))
        except PlanError as error:
            raise CheckpointError(f"{path}: made by a training of another model: {error}") from error
    return trainer


def _with_model(trainer: Trainer, model: nn.Module) -> Trainer:
    """The same trainer for another network."""
    penalty = None if trainer.penalty is None else Slimming(model, weight=trainer.penalty.weight)
    return replace(trainer, model=model, penalty=penalty)


def _to_device(inputs: Inputs, model: nn.Module) -> Inputs:
    device = device_of(model)
    moved: Inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
    return moved
