"""The phases of a run, one function each.

A phase reads files of earlier ones and writes its own; its other results it returns as JSON values. No state stays in
memory between phases, so an interrupted run gives the same results as an uninterrupted one, except for plans by
measured latency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import torchslim
from torchslim.deploy.exporting import exported_form
from torchslim.deploy.runtimes import onnx_runner
from torchslim.errors import ExportError, ProofError
from torchslim.importance import criterion
from torchslim.latency.timing import Latency, measure
from torchslim.pipeline.compensation import compensated, training_pictures
from torchslim.pipeline.context import RunContext
from torchslim.pipeline.norm_statistics import with_recent_statistics
from torchslim.pipeline.outcome import HeldOut
from torchslim.pipeline.summary import histogram, record_of
from torchslim.planning.options import PlanOptions
from torchslim.planning.problem import PlanningProblem, prepare
from torchslim.planning.pruning import decide, plan_with
from torchslim.proof.verification import TOLERANCE
from torchslim.report import write
from torchslim.store.loading import build
from torchslim.surgery.plans import Plan
from torchslim.train import History, labelled
from torchslim.train.dataset import targets_of
from torchslim.train.hyperparameters import MOMENTUM, mean_learning_rate
from torchslim.utils.copying import copy_model
from torchslim.utils.files import write_text
from torchslim.utils.formatting import format_metric
from torchslim.utils.seeding import derive_seed, seeded

# Learning rates relative to the baseline's: high for sparsification, as scales must change much in few epochs; low for
# fine-tuning, to keep trained weights.
SPARSIFY_RATE, FINETUNE_RATE = 2.0, 0.1
# How far the penalty alone moves a scale, in units of the median scale: just past zero. The loss keeps important
# channels.
SCALE_TRAVEL = 1.15
SCORING_PICTURES = 512
"""Images for criteria."""

PhaseResult = dict[str, Any]


def initial_model(run: RunContext) -> nn.Module:
    """The model that the run begins with."""
    with seeded(derive_seed(run.settings.seed, 1)):
        return build(run.source)


def baseline(run: RunContext) -> PhaseResult:
    """Build the model, and train it if epochs are set."""
    model = initial_model(run)
    with seeded(0):
        targets = targets_of(run.data.test)
    held_out = HeldOut(len(targets), run.task.constant_score(targets), run.task.metric)
    history = History()
    result: PhaseResult = {"metrics": run.metrics(model)}
    if run.settings.baseline_epochs:
        start = copy_model(model)
        history = run.train(model, "baseline", 2, epochs=run.settings.baseline_epochs, lr=run.rate)
        model, result = _sound(run, model, held_out, result["metrics"], lambda: start)
    score = result["metrics"][held_out.metric]
    if held_out.is_chance(score):
        result["remark"] = "; ".join(filter(None, (result.get("remark"), held_out.describe_chance(score))))
    run.store(model, "baseline.safetensors")
    return {**result, "curve": _curve(history), "held_out": asdict(held_out)}


def sparsify(run: RunContext) -> PhaseResult:
    """Train with an L1 penalty on the scales of batch norms."""
    if run.settings.fresh:
        with seeded(derive_seed(run.settings.seed, 5)):
            model = build(run.source.without_weights())
    else:
        model = run.model("baseline.safetensors")
    rate = run.settings.sparsify_lr or SPARSIFY_RATE * run.rate
    weight, epochs = run.settings.sparsity, run.settings.pressing_epochs
    if weight is None:
        weight = sparsity_weight(model, rate * mean_learning_rate(run.milestones("sparsify")), epochs * run.steps)
    history = run.train(model, "sparsify", 3, epochs=epochs, lr=rate, sparsity=weight)
    model, result = _sound(run, model, run.held_out, run.folder.found["baseline"]["metrics"],
                           lambda: run.model("baseline.safetensors"))
    run.store(model, "sparse.safetensors")
    return {**result, "curve": _curve(history), "weight": weight}


def _sound(run: RunContext, trained: nn.Module, held_out: HeldOut, before: dict[str, float],
           model_before: Callable[[], nn.Module], plan: Plan | None = None) -> tuple[nn.Module, PhaseResult]:
    """What was trained, with recent statistics; what was there before if its score, among `before`, has collapsed."""
    model, remark = with_recent_statistics(trained, run.data, run.task, derive_seed(run.settings.seed, 6))
    now = run.metrics(model, plan)
    old, new = before[held_out.metric], now[held_out.metric]
    if held_out.has_collapsed(old, new):
        remark = (f"the {held_out.metric} collapsed from {format_metric(held_out.metric, old)} to "
                  f"{format_metric(held_out.metric, new)}, so the weights from before this phase were taken instead")
        model, now = model_before(), before
    return model, {"metrics": now, **({"remark": remark} if remark else {})}


def sparsity_weight(model: nn.Module, rate: float, steps: int) -> float:
    """The penalty weight that alone moves a median scale just past zero in so many steps.

    A step moves it by rate x weight / (1 - momentum), at the schedule's mean rate. So short and long trainings end
    equally sparse.
    """
    scales = torch.cat([m.weight.detach().abs().flatten() for m in model.modules()
                        if isinstance(m, _BatchNorm) and m.weight is not None])
    return SCALE_TRAVEL * float(scales.median()) * (1 - MOMENTUM) / (rate * steps)


def plan(run: RunContext) -> PhaseResult:
    """Choose channels by one global threshold, those on shortcuts included."""
    options, problem, decided = choose(run)
    scores = histogram(options.ranking.taken(problem.evidence), problem.evidence, decided)
    write_text(run.folder.file("plan.json"), decided.to_json())
    return {"scores": scores}


def choose(run: RunContext) -> tuple[PlanOptions, PlanningProblem, Plan]:
    """The plan for the uncut model, with what it was decided on."""
    options = _plan_options(run)
    problem = prepare(run.model(_uncut_file(run)), run.inputs, options, **_scoring_data(run))
    return options, problem, decide(problem, options)


def cut(run: RunContext) -> PhaseResult:
    """Cut a copy, and verify that it equals silencing."""
    model, decided = run.model(_uncut_file(run)), run.plan()
    slim = torchslim.apply(model, decided)
    error = torchslim.verify(model, slim, decided, run.inputs)
    if not error <= TOLERANCE:
        raise ProofError(f"{run.settings.model}: the slim network differs from its silenced original by {error:.1e} "
                         f"(relative), at most {TOLERANCE:.0e} is accepted; nothing is kept of it")
    run.store(slim, "cut.safetensors", decided)
    return {"error": error, "metrics": run.metrics(slim, decided)}


def compensate(run: RunContext) -> PhaseResult:
    """Refit the cut network to the uncut one's outputs, if that lowers its loss on other training pictures."""
    slim, remark = compensated(run.model(_uncut_file(run)), run.model("cut.safetensors"), run.plan(), run.data,
                               run.task, run.settings.seed)
    run.store(slim, "compensated.safetensors", run.plan())
    return {"metrics": run.metrics(slim, run.plan()), "remark": remark}


def finetune(run: RunContext) -> PhaseResult:
    """Fine-tune the slim model, with the baseline as its teacher."""
    phase, name = ("compensate", "compensated.safetensors") if run.settings.compensate else ("cut", "cut.safetensors")
    slim, before = run.model(name), run.folder.found[phase]["metrics"]
    history = History()
    result: PhaseResult = {"metrics": before}
    if run.settings.finetune_epochs:
        history = run.train(slim, "finetune", 4, run.plan(), epochs=run.settings.finetune_epochs,
                            lr=run.settings.finetune_lr or FINETUNE_RATE * run.rate, **_distillation(run))
        slim, result = _sound(run, slim, run.held_out, before, lambda: run.model(name), run.plan())
    run.store(slim, "finetuned.safetensors", run.plan())
    return {**result, "curve": _curve(history)}


def _distillation(run: RunContext) -> dict[str, Any]:
    """The teacher and its share of the loss; none at chance level, or of models that are trained without answers."""
    knows = not run.held_out.is_chance(run.folder.found["baseline"]["metrics"][run.held_out.metric])
    if not (run.settings.distill and knows) or run.task.returns_losses:
        return {}
    return {"teacher": run.model("baseline.safetensors"), "alpha": run.settings.distill}


def measure_latency(run: RunContext) -> PhaseResult:
    """Time both networks on one image, in turns."""
    models = {"before": run.model("baseline.safetensors"), "after": run.model("finetuned.safetensors")}
    times = measure(models, run.inputs, rounds=30, threads=run.threads)
    return {name: _timing(taken) for name, taken in times.items()}


def save_slim(run: RunContext) -> PhaseResult:
    """Save the slim network with its plan and its source, and evaluate it after loading it again."""
    slim = run.model("finetuned.safetensors")
    run.store(slim, "slim.safetensors", run.plan())
    return {"metrics": run.metrics(run.model("slim.safetensors"), run.plan())}


def export(run: RunContext) -> PhaseResult:
    """Write both networks as ONNX, compare them with the eager ones in ONNX Runtime, and time them in turns.

    A network that can't be written, as one whose operations depend on what it finds, has no such files, and the result
    says why.
    """
    paths = {name: run.folder.file(f"{stem}.onnx") for name, stem in (("before", "baseline"), ("after", "slim"))}
    errors, runners = {}, {}
    for name, path in paths.items():
        model = run.model(f"{path.stem}.safetensors")
        try:
            errors[name] = torchslim.export(model, run.inputs, path).error
        except ExportError as error:
            for each in paths.values():
                each.unlink(missing_ok=True)
            return {"problem": str(error), "remark": f"nothing is exported: {error}"}
        runners[name] = onnx_runner(path, exported_form(model, run.inputs)[1], run.threads)
    times = measure(runners, run.inputs, rounds=30, threads=run.threads)
    return {"error": max(errors.values()), **{name: _timing(taken) for name, taken in times.items()}}


def report(run: RunContext) -> PhaseResult:
    """Write the record as JSON and as an HTML page."""
    record = record_of(run)
    write(record, run.folder.file("report.html"))
    write_text(run.folder.file("record.json"), record.to_json())
    return {}


def plan_for(run: RunContext, model: nn.Module) -> Plan:
    """The plan of a run's settings for a model, on data only if the criterion can't do without."""
    options = _plan_options(run)
    return plan_with(options, model, run.inputs, **(_scoring_data(run) if options.ranking.needs_data else {}))


def _plan_options(run: RunContext) -> PlanOptions:
    settings = run.settings
    return PlanOptions(macs=settings.macs, params=settings.params, channels=settings.channels, memory=settings.memory,
                       latency=settings.latency, backend=settings.backend, importance=settings.importance,
                       scope=settings.plan_scope, only=settings.only, exclude=settings.exclude,
                       round_to=settings.round_to, min_kept=settings.min_kept, seed=settings.seed,
                       strict=not settings.nearest)


def _scoring_data(run: RunContext) -> dict[str, Any]:
    """Pictures for criteria that look at them; those that ask for labels get these, and a loss."""
    ranking = criterion(run.settings.importance)
    if ranking.needs_data:
        return {"data": labelled(run.data, SCORING_PICTURES, run.settings.seed), "loss": run.task.loss}
    if ranking.looks_at_data:
        return {"data": [pictures for pictures, _ in training_pictures(run.data, run.settings.seed)]}
    return {}


def _uncut_file(run: RunContext) -> str:
    return "sparse.safetensors" if run.settings.pressing_epochs else "baseline.safetensors"


def _curve(history: History) -> PhaseResult:
    return {"loss": list(history.loss), "score": list(history.score)}


def _timing(taken: Latency) -> PhaseResult:
    return {"median_ms": taken.median_ms, "p10_ms": taken.p10_ms, "p90_ms": taken.p90_ms}
