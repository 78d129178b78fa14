"""`slim`: the whole pipeline in one command; `demo`: the same on data that needs no download."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.options import Backend, Json, Latency, Seed, amount, duration, fraction, fractions
from torchslim.cli.output import print_table, say
from torchslim.cli.progress import ProgressBars, ProgressLines
from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torchslim.pipeline.runner import PhaseEvent
    from torchslim.pipeline.settings import Settings
    from torchslim.report.record import Record

DEMO_MODEL, DEMO_DATA, DEMO_MACS = "torchvision:resnet18", "digits", "0.4"
INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The run's folder.")]
Threads = Annotated[int | None, typer.Option(min=1, show_default=False, help="CPU threads; default: all cores.")]
Restart = Annotated[bool, typer.Option("--restart", help="Delete the run in this folder, and begin anew.")]
Model = Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=(
    "As elsewhere (torchvision:NAME, file.py:factory, ...); the recipe's, if there is one."))]
Data = Annotated[str | None, typer.Option("--data", metavar="DATA", show_default=False, help=(
    "digits, folder:PATH, torchvision:NAME@ROOT, package.module:factory or file.py:factory."))]
Recipe = Annotated[str | None, typer.Option("--recipe", metavar="NAME|FILE", show_default=False, help=(
    "A published result's settings (`torchslim recipes`); all other options override them."))]
Macs = Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help=(
    "Multiply-adds to keep: a share (0.4, 40%) or a count (700M)."))]
Budget = Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help="To keep, likewise.")]
RunSeed = Annotated[int | None, typer.Option("--seed", show_default="0", help="Seed of every random choice.")]
Size = Annotated[int | None, typer.Option(min=8, show_default=False, help=(
    "Height and width of the pictures; default: the data's own."))]
BatchSize = Annotated[int | None, typer.Option(min=1, show_default="64", help="Pictures in a training step.")]
Lr = Annotated[float | None, typer.Option(show_default="0.05", help="Highest learning rate of the baseline.")]
SparsifyLr = Annotated[float | None, typer.Option(show_default="twice --lr", help="That of sparsification.")]
FinetuneLr = Annotated[float | None, typer.Option(show_default="a tenth of --lr", help="That after the cut.")]
Milestones = Annotated[str | None, typer.Option(metavar="SHARE,...", show_default=False, help=(
    "Shares of a phase at which its rate falls to a tenth; default: a warm-up and half a cosine."))]
LaterMilestones = Annotated[str | None, typer.Option(metavar="SHARE,...", show_default=False, help=(
    "Those of the phases after the baseline; default: the same."))]
WeightDecay = Annotated[float | None, typer.Option(show_default="0.0005", help="For all but biases and scales.")]
LabelSmoothing = Annotated[float | None, typer.Option(show_default="0.1", help="Of the cross entropy.")]
Epochs = Annotated[int | None, typer.Option(min=1, show_default=False, help=(
    "Of every phase that has some, in place of the next three."))]
BaselineEpochs = Annotated[int | None, typer.Option(min=0, show_default="12", help="0 takes the model as it is.")]
SparsifyEpochs = Annotated[int | None, typer.Option(min=0, show_default="10", help="0 leaves sparsification out.")]
FinetuneEpochs = Annotated[int | None, typer.Option(min=0, show_default="8", help="Epochs after the cut.")]
Fresh = Annotated[bool | None, typer.Option("--fresh/--no-fresh", show_default="no-fresh", help=(
    "Sparsify from fresh weights, not from the baseline's."))]
Sparsity = Annotated[float | None, typer.Option(show_default=False, help=(
    "Weight of the penalty on batch-norm scales; default: fitted to the number of steps."))]
Importance = Annotated[str | None, typer.Option(
    show_default="bn_scale", help="What ranks the channels: bn_scale, l1, l2, ...")]
RoundTo = Annotated[int | None, typer.Option(
    min=1, show_default="8", help="Keep multiples of this many channels, for fast kernels.")]
MinKept = Annotated[float | None, typer.Option(parser=fraction, metavar="SHARE", show_default="0", help=(
    "The least share of its channels that a group keeps; 0.1 lets none lose more than nine tenths."))]
Nearest = Annotated[bool | None, typer.Option("--nearest", show_default=False, help=(
    "Where a budget can't be met, take the nearest that can, with as little cut as gives it."))]
Workers = Annotated[int | None, typer.Option(min=0, show_default="0", help="Processes that load pictures.")]
Export = Annotated[bool | None, typer.Option("--export/--no-export", show_default="export", help=(
    "Write ONNX files, compare and time them."))]


def slim(
    context: typer.Context,
    out: Out,
    model: Model = None,
    data: Data = None,
    recipe: Recipe = None,
    macs: Macs = None,
    params: Budget = None,
    channels: Budget = None,
    latency: Latency = None,
    backend: Backend = None,
    seed: RunSeed = None,
    size: Size = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    sparsify_lr: SparsifyLr = None,
    finetune_lr: FinetuneLr = None,
    milestones: Milestones = None,
    later_milestones: LaterMilestones = None,
    weight_decay: WeightDecay = None,
    label_smoothing: LabelSmoothing = None,
    epochs: Epochs = None,
    baseline_epochs: BaselineEpochs = None,
    sparsify_epochs: SparsifyEpochs = None,
    finetune_epochs: FinetuneEpochs = None,
    fresh: Fresh = None,
    sparsity: Sparsity = None,
    importance: Importance = None,
    round_to: RoundTo = None,
    min_kept: MinKept = None,
    nearest: Nearest = None,
    threads: Threads = None,
    workers: Workers = None,
    export: Export = None,
    restart: Restart = False,
    as_json: Json = False,
) -> int:
    """Train, sparsify, cut, prove, fine-tune, measure, save, export and report, in one go.

    The same command continues an interrupted run, and shows the result of a finished one. Exit status 1: a latency is
    missed when measured.
    """
    record = _run(_settings(out, recipe, epochs, _given(context.params)), restart)
    return _print(record, out, as_json)


def demo(out: Out = Path("runs/demo"), seed: Seed = 0, threads: Threads = None, restart: Restart = False,
         as_json: Json = False) -> int:
    """Make a ResNet-18 light on scikit-learn's handwritten digits: a few minutes on two cores.

    The same as `torchslim slim torchvision:resnet18 --data digits --macs 0.4 --out runs/demo`.
    """
    from torchslim.pipeline.settings import Settings

    settings = Settings(model=DEMO_MODEL, data=DEMO_DATA, out=out, macs=amount("--macs", DEMO_MACS), seed=seed,
                        threads=threads)
    return _print(_run(settings, restart), out, as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among the options of `slim` that were given: they have the same names."""
    texts: dict[str, Callable[[str, str], Any]] = {
        "macs": amount, "params": amount, "channels": amount, "latency": duration, "milestones": _shares_of_phase,
        "later_milestones": _shares_of_phase}
    given = {name: value for name, value in options.items()
             if value is not None and name not in ("out", "recipe", "epochs", "restart", "as_json")}
    return {name: texts[name]("--" + name.replace("_", "-"), value) if name in texts else value
            for name, value in given.items()}


def _shares_of_phase(option: str, text: str) -> tuple[float, ...]:
    shares = text.strip(",")
    return fractions(option, shares, "shares of a phase, such as 0.5,0.75") if shares else ()


def _settings(out: Path, recipe_name: str | None, epochs: int | None, given: dict[str, Any]) -> Settings:
    """Given options override the recipe's settings, and these the defaults."""
    from torchslim.pipeline import recipes

    recipe = recipes.Recipe("", "", "", "", {}, (), {}) if recipe_name is None else recipes.read(recipe_name)
    budgets = ("macs", "params", "channels", "latency")
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

    progress: Callable[[PhaseEvent], None]
    try:
        if sys.stderr.isatty():
            with ProgressBars() as progress:
                return run_slim(settings, progress, restart=restart)
        return run_slim(settings, ProgressLines(), restart=restart)
    except KeyboardInterrupt:
        say(f"interrupted; go on with: {settings.command()}")
        raise SystemExit(INTERRUPTED) from None


def _print(record: Record, out: Path, as_json: bool) -> int:
    """Print the table and where the files are, or the record as JSON; the exit status."""
    from torchslim.surgery.plans import Plan

    plan = Plan.from_json((out / "plan.json").read_bytes())
    unmet = not all(budget.is_met for budget in plan.budgets)
    status = int(unmet and not record.settings.get("nearest"))
    if as_json:
        print(record.to_json())
        return status
    from torchslim.utils.formatting import (
        format_bytes,
        format_change,
        format_count,
        format_error,
        milliseconds,
        percent,
    )

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
    if before.accuracy is not None and after.accuracy is not None:
        rows.append(("accuracy", percent(before.accuracy), percent(after.accuracy),
                     f"{100 * (after.accuracy - before.accuracy):+.1f} points"))
    print_table(("", "before", "after", "change"), rows)
    print(f"Proof: the cut network differs from its silenced original by {format_error(record.proof_error)}")
    if record.onnx_error is not None:
        print(f"ONNX: differs from PyTorch by {format_error(record.onnx_error)}")
    for note in plan.notes[unmet:]:
        print(f"Plan: {note}")
    print(f"Model: {out / 'slim.safetensors'}")
    print(f"Report: {out / 'report.html'}")
    return status
