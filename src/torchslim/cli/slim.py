"""`slim`: the whole pipeline in one command; `demo`: the same on data that needs no download."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli import training_options as training
from torchslim.cli.interrupts import interrupts
from torchslim.cli.options import (
    DATA_FORMS,
    Backend,
    Exclude,
    Json,
    Latency,
    Memory,
    Only,
    Seed,
    SkipBroken,
    amount,
    duration,
    fraction,
    parse_scope,
)
from torchslim.cli.output import print_table
from torchslim.cli.progress import ProgressBars, ProgressLines
from torchslim.cli.usage import flags_for_keywords
from torchslim.errors import RequestError
from torchslim.utils.launcher import requested_processes

if TYPE_CHECKING:
    from torchslim.pipeline.runner import PhaseEvent
    from torchslim.pipeline.settings import Settings
    from torchslim.report.record import Record

DEMO_MODEL, DEMO_DATA, DEMO_MACS, DEMO_RECIPE = "torchvision:resnet18", "digits", "0.4", "slimming"

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The run's folder.")]
Restart = Annotated[bool, typer.Option("--restart", help="Delete the run in this folder, and begin anew.")]
Model = Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=(
    "As elsewhere (torchvision:NAME, file.py:factory, ...); the recipe's, if there is one."))]
Data = Annotated[str | None, typer.Option("--data", metavar="DATA", show_default=False, help=(
    f"{DATA_FORMS}."))]
Recipe = Annotated[str | None, typer.Option("--recipe", metavar="NAME|FILE", show_default=False, help=(
    "A published result's settings (`torchslim recipes`); all other options override them."))]
Macs = Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help=(
    "Multiply-adds to keep: a share (0.4, 40%) or a count (700M)."))]
Budget = Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help="To keep, likewise.")]
Lr = Annotated[float | None, typer.Option(
    show_default="by the task, 0.05 for classes", help="Highest learning rate of the baseline.")]
SparsifyLr = Annotated[float | None, typer.Option(show_default="twice --lr", help="That of sparsification.")]
FinetuneLr = Annotated[float | None, typer.Option(show_default="a tenth of --lr", help="That after the cut.")]
LaterMilestones = Annotated[str | None, typer.Option(metavar="SHARE,...", show_default=False, help=(
    "Those of the phases after the baseline; default: the same."))]
Epochs = Annotated[int | None, typer.Option(min=1, show_default=False, help=(
    "Of every phase that has some, in place of the next three."))]
BaselineEpochs = Annotated[int | None, typer.Option(min=0, show_default="12", help="0 takes the model as it is.")]
SparsifyEpochs = Annotated[int | None, typer.Option(
    min=0, show_default="10 with bn_scale, else 0", help="0 leaves sparsification out.")]
FinetuneEpochs = Annotated[int | None, typer.Option(min=0, show_default="8", help="Epochs after the cut.")]
Fresh = Annotated[bool | None, typer.Option("--fresh/--no-fresh", show_default="no-fresh", help=(
    "Sparsify from fresh weights, not from the baseline's."))]
Sparsity = Annotated[float | None, typer.Option(show_default=False, help=(
    "Weight of the penalty on batch-norm scales; default: fitted to the number of steps."))]
Importance = Annotated[str | None, typer.Option(
    show_default="auto", help="What ranks the channels: auto (obs on training pictures), bn_scale, l1, l2, ...")]
Scope = Annotated[str | None, typer.Option(metavar="global|uniform|FILE", show_default="global", help=(
    "Compare scores over the whole network, keep the same share of each group, or keep what a JSON file says: layer "
    "pattern to share, as `sensitivity` writes it."))]
Compensate = Annotated[bool | None, typer.Option("--compensate/--no-compensate", show_default="compensate", help=(
    "Refit the cut network to the uncut one's outputs before it is fine-tuned."))]
Distill = Annotated[float | None, typer.Option(parser=fraction, metavar="SHARE", show_default="0.5", help=(
    "Share of distillation from the baseline in the loss after the cut; 0 for none."))]
RoundTo = Annotated[int | None, typer.Option(
    min=1, show_default="8", help="Keep multiples of this many channels, for fast kernels.")]
MinKept = Annotated[float | None, typer.Option(parser=fraction, metavar="SHARE", show_default="0", help=(
    "The least share of its channels that a group keeps; 0.1 lets none lose more than nine tenths."))]
Nearest = Annotated[bool | None, typer.Option("--nearest", show_default=False, help=(
    "Where a budget can't be met, take the nearest that can, with as little cut as gives it."))]
Export = Annotated[bool | None, typer.Option("--export/--no-export", show_default="export", help=(
    "Write ONNX files, compare and time them."))]


def slim(
    context: typer.Context, out: Out, model: Model = None, data: Data = None, recipe: Recipe = None,
    weights: training.Weights = None, new_head: training.NewHead = None, macs: Macs = None, params: Budget = None,
    channels: Budget = None, memory: Memory = None, latency: Latency = None, backend: Backend = None,
    seed: training.RunSeed = None, task: training.Task = None, size: training.Size = None,
    skip_broken: SkipBroken = None, batch_size: training.BatchSize = None, lr: Lr = None,
    sparsify_lr: SparsifyLr = None, finetune_lr: FinetuneLr = None, milestones: training.Milestones = None,
    later_milestones: LaterMilestones = None, schedule: training.Schedule = None,
    optimizer: training.Optimizer = None, momentum: training.Momentum = None,
    weight_decay: training.WeightDecay = None, label_smoothing: training.LabelSmoothing = None,
    class_weights: training.ClassWeights = None, mixup: training.Mixup = None, cutmix: training.Cutmix = None,
    precision: training.Precision = None, accumulate: training.Accumulate = None, clip: training.Clip = None,
    ema: training.Ema = None, freeze: training.Freeze = None, patience: training.Patience = None,
    keep_best: training.KeepBest = None, channels_last: training.ChannelsLast = None,
    compile: training.Compile = None, tracker: training.Tracker = None, epochs: Epochs = None,
    baseline_epochs: BaselineEpochs = None, sparsify_epochs: SparsifyEpochs = None,
    finetune_epochs: FinetuneEpochs = None, fresh: Fresh = None, sparsity: Sparsity = None,
    importance: Importance = None, scope: Scope = None, only: Only = None, exclude: Exclude = None,
    compensate: Compensate = None, distill: Distill = None, round_to: RoundTo = None, min_kept: MinKept = None,
    nearest: Nearest = None, threads: training.Threads = None, workers: training.Workers = None,
    export: Export = None, restart: Restart = False, as_json: Json = False,
) -> int:
    """Train, cut, prove, refit, fine-tune, measure, save, export and report, in one go.

    The same command continues an interrupted run, and shows the result of a finished one. Exit status 1: a latency is
    missed when measured, or the slim network is useless (at chance level, or its accuracy has collapsed).
    """
    settings = _settings(out, recipe, epochs, _given(context.params))
    with flags_for_keywords(context):
        record = _run(settings, restart)
    return _finish(record, out, as_json)


def demo(out: Out = Path("runs/demo"), seed: Seed = 0, threads: training.Threads = None, restart: Restart = False,
         as_json: Json = False) -> int:
    """Make a ResNet-18 light on scikit-learn's handwritten digits: a few minutes on two cores.

    The same as `torchslim slim torchvision:resnet18 --data digits --macs 0.4 --recipe slimming --out runs/demo`.
    """
    settings = _settings(out, DEMO_RECIPE, None, {
        "model": DEMO_MODEL, "data": DEMO_DATA, "macs": amount("--macs", DEMO_MACS), "seed": seed, "threads": threads})
    return _finish(_run(settings, restart), out, as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among the options of `slim` that were given: they have the same names."""
    texts: dict[str, Callable[[str, Any], Any]] = {
        "macs": amount, "params": amount, "channels": amount, "memory": amount, "latency": duration,
        "scope": lambda _, text: json.dumps(shares) if isinstance(shares := parse_scope(text), dict) else shares,
        "later_milestones": training.shares_of_phase}
    return training.given_settings(options, ("out", "recipe", "epochs", "restart", "as_json"), texts)


def _settings(out: Path, recipe_name: str | None, epochs: int | None, given: dict[str, Any]) -> Settings:
    """Given options override the recipe's settings, and these the defaults."""
    from torchslim.pipeline import recipes

    recipe = recipes.Recipe("", "", "", "", {}, (), {}) if recipe_name is None else recipes.read(recipe_name)
    from torchslim.pipeline.settings import BUDGETS as budgets  # noqa: N811

    if not given.keys().isdisjoint(budgets):  # a given budget replaces the recipe's, of whatever kind
        given = {**dict.fromkeys(budgets), **given}
    missing = [name for name in ("model", "data") if name not in given and name not in recipe.settings]
    if missing:
        what = {"model": "MODEL, such as torchvision:resnet18", "data": "--data, such as --data digits"}[missing[0]]
        raise RequestError(f"slim: no {missing[0]}; give {what}, or a --recipe with one")
    return recipe.run(out, epochs, **given)


def _run(settings: Settings, restart: bool) -> Record:
    # Waiting threads sleep instead of spinning: on busy cores this trains several times faster. Torch reads this
    # when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from torchslim.pipeline.runner import run_slim

    several = requested_processes() > 1
    interrupts.remedy = "the same command goes on" if several else f"go on with: {settings.command()}"
    watch: Callable[[PhaseEvent], None]
    with ProgressBars() if sys.stderr.isatty() else nullcontext(ProgressLines()) as watch:

        def progress(event: PhaseEvent) -> None:
            interrupts.check()
            watch(event)

        return run_slim(settings, progress, restart=restart)


def _finish(record: Record, out: Path, as_json: bool) -> int:
    """Print the result, in the first of several processes, and end all with the same exit status."""
    if requested_processes() == 1:
        return _print(record, out, as_json)
    from torchslim.train.processes import current_processes

    processes = current_processes()
    status: int = processes.broadcast(_print(record, out, as_json) if processes.is_first else None)
    return status


def _print(record: Record, out: Path, as_json: bool) -> int:
    """Print the table and where the files are, or the record as JSON; the exit status."""
    from torchslim.surgery.plans import Plan

    plan = Plan.from_json((out / "plan.json").read_bytes())
    unmet = not plan.is_met
    status = int(record.useless or (unmet and not record.settings.get("nearest")))
    if as_json:
        print(record.to_json())
        return status
    from torchslim.utils.formatting import (
        format_bytes,
        format_change,
        format_count,
        format_error,
        format_metric,
        format_metric_change,
        milliseconds,
    )

    if record.outcome:
        print(record.outcome)
    if unmet:
        print(f"Plan: {plan.notes[0]}")
    before, after = record.before, record.after
    costs: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("parameters", before.params, after.params, lambda n: format_count(n, " ")),
        ("MACs", before.macs, after.macs, lambda n: format_count(n, " ")),
        ("file size", before.file_bytes, after.file_bytes, format_bytes),
        *((f"latency, {name}", before.latency[name].median_ms, after.latency[name].median_ms, milliseconds)
          for name in before.latency)]
    rows = [(name, text(old), text(new), format_change(old, new)) for name, old, new, text in costs]
    rows += [(name, format_metric(name, old), format_metric(name, new), format_metric_change(name, old, new))
             for (name, old), new in zip(before.metrics.items(), after.metrics.values(), strict=True)]
    print_table(("", "before", "after", "change"), rows)
    print(f"Proof: the cut network differs from its silenced original by {format_error(record.proof_error)}")
    if record.onnx_problem:
        print(f"ONNX: not written: {record.onnx_problem}")
    if record.onnx_error is not None:
        print(f"ONNX: differs from PyTorch by {format_error(record.onnx_error)}")
    for note in plan.notes[unmet:]:
        print(f"Plan: {note}")
    print(f"Model: {out / 'slim.safetensors'}")
    print(f"Report: {out / 'report.html'}")
    return status
