"""The phases of a run, one function each.

A phase reads files of earlier ones and writes its own; its other results it returns as JSON values. No state stays in
memory between phases, so an interrupted run gives the same results as an uninterrupted one, except for plans by
measured latency.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import torchslim
from torchslim.deploy.runtimes import onnx_runner
from torchslim.errors import ProofError, RequestError
from torchslim.importance import Evidence, criterion
from torchslim.latency.timing import Latency, measure
from torchslim.pipeline.context import RunContext
from torchslim.pipeline.summary import histogram, record_of
from torchslim.planning.options import PlanOptions
from torchslim.planning.pruning import plan_with
from torchslim.proof.verification import TOLERANCE
from torchslim.report import write
from torchslim.store.loading import build
from torchslim.surgery.plans import Plan
from torchslim.train import History, evaluate, labelled
from torchslim.train.hyperparameters import MOMENTUM, mean_learning_rate
from torchslim.train.losses import cross_entropy, logits
from torchslim.utils.files import write_text
from torchslim.utils.seeding import derive_seed, seeded
from torchslim.utils.text import describe_error, format_shape

# Learning rates relative to the baseline's: high for sparsification, as scales must change much in few epochs; low for
# fine-tuning, to keep trained weights.
SPARSIFY_RATE, FINETUNE_RATE = 2.0, 0.1
# How far the penalty alone moves a scale, in units of the median scale: just past zero. The loss keeps important
# channels.
SCALE_TRAVEL = 1.15
SCORING_PICTURES = 512
"""Images for criteria."""

PhaseResult = dict[str, Any]


def baseline(run: RunContext) -> PhaseResult:
    """Build the model, and train it if epochs are set."""
    with seeded(derive_seed(run.settings.seed, 1)):
        model = build(run.source)
    _check_model(run, model)
    history = History()
    if run.settings.baseline_epochs:
        history = run.train(model, "baseline", 2, epochs=run.settings.baseline_epochs, lr=run.settings.lr)
    run.store(model, "baseline.safetensors")
    return {"accuracy": evaluate(model, run.data), "curve": _curve(history)}


def sparsify(run: RunContext) -> PhaseResult:
    """Train with an L1 penalty on the scales of batch norms."""
    if run.settings.fresh:
        with seeded(derive_seed(run.settings.seed, 5)):
            model = build(run.source.without_weights())
    else:
        model = run.model("baseline.safetensors")
    rate = run.settings.sparsify_lr or SPARSIFY_RATE * run.settings.lr
    weight = run.settings.sparsity
    if weight is None:
        mean = rate * mean_learning_rate(run.milestones("sparsify"))
        weight = sparsity_weight(model, mean, run.settings.sparsify_epochs * run.steps)
    history = run.train(model, "sparsify", 3, epochs=run.settings.sparsify_epochs, lr=rate, sparsity=weight)
    run.store(model, "sparse.safetensors")
    return {"accuracy": evaluate(model, run.data), "curve": _curve(history), "weight": weight}


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
    model = run.model(_uncut_file(run))
    decided = _plan(run, model)
    evidence = Evidence(model, run.inputs, seed=run.settings.seed, **_scoring_data(run))
    scores = histogram(criterion(run.settings.importance), evidence, decided)
    write_text(run.folder.file("plan.json"), decided.to_json())
    return {"scores": scores}


def cut(run: RunContext) -> PhaseResult:
    """Cut a copy, and verify that it equals silencing."""
    model, decided = run.model(_uncut_file(run)), run.plan()
    slim = torchslim.apply(model, decided)
    error = torchslim.verify(model, slim, decided, run.inputs)
    if not error <= TOLERANCE:
        raise ProofError(f"{run.settings.model}: the slim network differs from its silenced original by {error:.1e} "
                         f"(relative), at most {TOLERANCE:.0e} is accepted; nothing is kept of it")
    run.store(slim, "cut.safetensors", decided)
    return {"error": error, "accuracy": evaluate(slim, run.data)}


def finetune(run: RunContext) -> PhaseResult:
    """Fine-tune the slim model."""
    slim = run.model("cut.safetensors")
    history = History()
    if run.settings.finetune_epochs:
        history = run.train(slim, "finetune", 4, epochs=run.settings.finetune_epochs,
                            lr=run.settings.finetune_lr or FINETUNE_RATE * run.settings.lr)
    run.store(slim, "finetuned.safetensors", run.plan())
    return {"accuracy": evaluate(slim, run.data), "curve": _curve(history)}


def measure_latency(run: RunContext) -> PhaseResult:
    """Time both networks on one image, in turns."""
    models = {"before": run.model("baseline.safetensors"), "after": run.model("finetuned.safetensors")}
    times = measure(models, run.inputs, rounds=30, threads=run.threads)
    return {name: _timing(taken) for name, taken in times.items()}


def save_slim(run: RunContext) -> PhaseResult:
    """Save the slim network with its plan and its source, and evaluate it after loading it again."""
    slim = run.model("finetuned.safetensors")
    run.store(slim, "slim.safetensors", run.plan())
    return {"accuracy": evaluate(run.model("slim.safetensors"), run.data)}


def export(run: RunContext) -> PhaseResult:
    """Write both networks as ONNX, compare them with the eager ones in ONNX Runtime, and time them in turns."""
    names = {"before": "baseline", "after": "slim"}
    errors, runners = {}, {}
    for name, stem in names.items():
        path = run.folder.file(f"{stem}.onnx")
        model = run.model(f"{stem}.safetensors")
        errors[name] = torchslim.export(model, run.inputs, path).error
        runners[name] = onnx_runner(path, run.inputs, run.threads)
    times = measure(runners, run.inputs, rounds=30, threads=run.threads)
    return {"error": max(errors.values()), **{name: _timing(taken) for name, taken in times.items()}}


def report(run: RunContext) -> PhaseResult:
    """Write the record as JSON and as an HTML page."""
    record = record_of(run)
    write(record, run.folder.file("report.html"))
    write_text(run.folder.file("record.json"), record.to_json())
    return {}


def _plan(run: RunContext, model: nn.Module) -> Plan:
    settings = run.settings
    options = PlanOptions(macs=settings.macs, params=settings.params, channels=settings.channels,
                          latency=settings.latency, backend=settings.backend, importance=settings.importance,
                          round_to=settings.round_to, min_kept=settings.min_kept, seed=settings.seed,
                          strict=not settings.nearest)
    return plan_with(options, model, run.inputs, **_scoring_data(run))


def _scoring_data(run: RunContext) -> dict[str, Any]:
    """Labelled images and their loss, for criteria that need data."""
    if not criterion(run.settings.importance).needs_data:
        return {}
    return {"data": labelled(run.data, SCORING_PICTURES, run.settings.seed), "loss": cross_entropy()}


def _uncut_file(run: RunContext) -> str:
    return "sparse.safetensors" if run.settings.sparsify_epochs else "baseline.safetensors"


def _check_model(run: RunContext, model: nn.Module) -> None:
    """Raise before training what would fail after it."""
    try:
        with torch.no_grad():
            scores = logits(model.eval()(run.inputs))
    except Exception as error:
        raise RequestError(f"{run.settings.model}: fails on a picture of {format_shape(run.inputs.shape)}: "
                           f"{describe_error(error)}; try another --size") from error
    if scores.ndim != 2 or scores.shape[1] < len(run.data.classes):
        raise RequestError(f"{run.settings.model}: gives scores of shape {format_shape(scores.shape)} for a picture, "
                           f"{run.settings.data} has {len(run.data.classes)} classes; "
                           "give a model of as many")
    scaled = any(isinstance(m, _BatchNorm) and m.weight is not None for m in model.modules())
    if not scaled and run.settings.sparsify_epochs:
        raise RequestError(f"{run.settings.model}: no batch norm with a scale to press; "
                           "leave that out with --sparsify-epochs 0 --importance l2")
    _plan(run, model)  # a budget that no plan meets, or a layer that can't be scored


def _curve(history: History) -> PhaseResult:
    return {"loss": list(history.loss), "accuracy": list(history.accuracy)}


def _timing(taken: Latency) -> PhaseResult:
    return {"median_ms": taken.median_ms, "p10_ms": taken.p10_ms, "p90_ms": taken.p90_ms}
