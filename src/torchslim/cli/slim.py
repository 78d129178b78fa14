"""`slim`: the whole pipeline in one command; `demo`: the same on data that is at hand everywhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import Backend, Json, Seed, Time, amount, duration, fraction, print_table, say
from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torchslim.pipeline.runner import PhaseEvent
    from torchslim.pipeline.settings import Settings
    from torchslim.report.record import Record

DEMO_MODEL, DEMO_DATA, DEMO_MACS = "torchvision:resnet18", "digits", "0.4"
INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The run's folder.")]
Threads = Annotated[int | None, typer.Option(min=1, show_default=False, help="CPU threads; default: all cores.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away the run in this folder, and begin anew.")]
Keep = Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help="To keep, likewise.")]
Milestones = Annotated[str | None, typer.Option(metavar="SHARE,...", show_default=False, help=(
    "Shares of a phase at which its rate falls to a tenth; default: a warm-up and half a cosine."))]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(slim)
    app.command()(demo)


def slim(
    out: Out,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=(
        "As elsewhere (torchvision:NAME, file.py:factory, ...); the recipe's, if there is one."))] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", show_default=False, help=(
        "digits, folder:PATH, torchvision:NAME@ROOT, package.module:factory or file.py:factory."))] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", metavar="NAME|FILE", show_default=False, help=(
        "A published result's settings (`torchslim recipes`), which all other options change."))] = None,
    macs: Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help=(
        "Multiply-adds to keep: a share (0.4, 40%) or a count (700M)."))] = None,
    params: Keep = None,
    channels: Keep = None,
    latency: Time = None,
    backend: Backend = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Seed of every random choice.")] = None,
    size: Annotated[int | None, typer.Option(min=8, show_default=False, help=(
        "Height and width of the pictures; default: the data's own."))] = None,
    batch_size: Annotated[int | None, typer.Option(
        min=1, show_default="64", help="Pictures in a training step.")] = None,
    lr: Annotated[float | None, typer.Option(
        show_default="0.05", help="Highest learning rate of the baseline.")] = None,
    sparsify_lr: Annotated[float | None, typer.Option(
        show_default="twice --lr", help="While scales are pressed.")] = None,
    finetune_lr: Annotated[float | None, typer.Option(
        show_default="a tenth of --lr", help="After the cut.")] = None,
    milestones: Milestones = None,
    later_milestones: Annotated[str | None, typer.Option(metavar="SHARE,...", show_default=False, help=(
        "Those of the phases after the baseline; default: the same."))] = None,
    weight_decay: Annotated[float | None, typer.Option(
        show_default="0.0005", help="For all but biases and scales.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(show_default="0.1", help="Of the cross entropy.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, show_default=False, help=(
        "Of every phase that has some, in place of the next three."))] = None,
    baseline_epochs: Annotated[int | None, typer.Option(
        min=0, show_default="12", help="0 takes the model as it comes.")] = None,
    sparsify_epochs: Annotated[int | None, typer.Option(
        min=0, show_default="10", help="0 leaves sparsification out.")] = None,
    finetune_epochs: Annotated[int | None, typer.Option(min=0, show_default="8", help="Epochs after the cut.")] = None,
    fresh: Annotated[bool | None, typer.Option("--fresh/--no-fresh", show_default="no-fresh", help=(
        "Sparsify from fresh weights, not from the baseline's."))] = None,
    sparsity: Annotated[float | None, typer.Option(show_default=False, help=(
        "Weight of the penalty on batch-norm scales; default: fitted to the number of steps."))] = None,
    importance: Annotated[str | None, typer.Option(
        show_default="bn_scale", help="What ranks the channels: bn_scale, l1, l2, ...")] = None,
    round_to: Annotated[int | None, typer.Option(
        min=1, show_default="8", help="Keep multiples of this many channels, for fast kernels.")] = None,
    min_kept: Annotated[float | None, typer.Option(parser=fraction, metavar="SHARE", show_default="0", help=(
        "The least share of its channels that a group keeps; 0.1 lets none lose more than nine tenths."))] = None,
    threads: Threads = None,
    workers: Annotated[int | None, typer.Option(
        min=0, show_default="0", help="Processes that load pictures.")] = None,
    export: Annotated[bool | None, typer.Option("--export/--no-export", show_default="export", help=(
        "Write ONNX files, compare and time them."))] = None,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train, sparsify, cut, prove, fine-tune, measure, save, export and report, in one go.

    The same command goes on with a run that was interrupted, and shows the result of a finished one.
    """
    given = {
        "model": model, "data": data, "macs": amount("--macs", macs), "params": amount("--params", params),
        "channels": amount("--channels", channels), "latency": duration("--latency", latency), "backend": backend,
        "seed": seed, "size": size, "batch_size": batch_size, "lr": lr,
        "sparsify_lr": sparsify_lr, "finetune_lr": finetune_lr, "milestones": _shares("--milestones", milestones),
        "later_milestones": _shares("--later-milestones", later_milestones), "weight_decay": weight_decay,
        "label_smoothing": label_smoothing, "baseline_epochs": baseline_epochs, "sparsify_epochs": sparsify_epochs,
        "finetune_epochs": finetune_epochs, "fresh": fresh, "sparsity": sparsity, "importance": importance,
        "round_to": round_to, "min_kept": min_kept, "threads": threads, "workers": workers, "export": export}
    settings = _settings(recipe, out, epochs, {name: value for name, value in given.items() if value is not None})
    record = _run(settings, restart)
    if as_json:
        print(record.to_json())
    else:
        _show(record, out)


def _settings(recipe: str | None, out: Path, epochs: int | None, given: dict[str, Any]) -> Settings:
    """What was asked, in place of what the recipe says, in place of what is usual."""
    from torchslim.pipeline import recipes

    said = recipes.Recipe("", "", "", "", {}, (), {}) if recipe is None else recipes.read(recipe)
    budgets = ("macs", "params", "channels", "latency")
    if not given.keys().isdisjoint(budgets):  # a budget of one's own, and not both
        given = {**dict.fromkeys(budgets), **given}
    missing = [name for name in ("model", "data") if name not in given and name not in said.settings]
    if missing:
        what = {"model": "MODEL, such as torchvision:resnet18", "data": "--data, such as --data digits"}[missing[0]]
        raise RequestError(f"slim: no {missing[0]}; give {what}, or a --recipe with one")
    return said.run(out, epochs, **given)


def _shares(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(fraction(part) for part in text.split(",") if part)
    except typer.BadParameter:
        raise RequestError(f"{option} {text}: wanted shares of a phase, such as 0.5,0.75") from None


def demo(out: Out = Path("runs/demo"), seed: Seed = 0, threads: Threads = None, restart: Restart = False,
         as_json: Json = False) -> None:
    """Make a ResNet-18 light on scikit-learn's handwritten digits: a few minutes on two cores.

    The same as `torchslim slim torchvision:resnet18 --data digits --macs 0.4 --out runs/demo`.
    """
    from torchslim.pipeline.settings import Settings

    record = _run(Settings(model=DEMO_MODEL, data=DEMO_DATA, out=out, macs=amount("--macs", DEMO_MACS), seed=seed,
                           threads=threads), restart)
    if as_json:
        print(record.to_json())
    else:
        _show(record, out)


def _run(settings: Settings, restart: bool) -> Record:
    # Threads that wait for others sleep instead of spinning: on busy cores this trains several times faster. Read
    # when torch is loaded, hence before.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from torchslim.pipeline.runner import run_slim

    watch: Callable[[PhaseEvent], None]
    try:
        if sys.stderr.isatty():
            with Bars() as watch:
                return run_slim(settings, watch, restart=restart)
        return run_slim(settings, Lines(), restart=restart)
    except KeyboardInterrupt:
        say(f"interrupted; go on with: {settings.command()}")
        raise SystemExit(INTERRUPTED) from None


def _show(record: Record, out: Path) -> None:
    """The table and where the files are."""
    from torchslim.utils import formatting as units

    before, after = record.before, record.after
    rows = [
        ("parameters", units.format_count(before.params, " "), units.format_count(after.params, " "),
         units.format_change(before.params, after.params)),
        ("MACs", units.format_count(before.macs, " "), units.format_count(after.macs, " "),
         units.format_change(before.macs, after.macs)),
        ("file size", units.format_bytes(before.file_bytes), units.format_bytes(after.file_bytes),
         units.format_change(before.file_bytes, after.file_bytes)),
    ]
    for name in before.latency:
        old, new = before.latency[name].median_ms, after.latency[name].median_ms
        rows.append((f"latency, {name}", units.milliseconds(old), units.milliseconds(new),
                     units.format_change(old, new)))
    if before.accuracy is not None and after.accuracy is not None:
        rows.append(("accuracy", units.percent(before.accuracy), units.percent(after.accuracy),
                     f"{100 * (after.accuracy - before.accuracy):+.1f} points"))
    print_table(("", "before", "after", "change"), rows)
    print(f"Proof: the cut network differs from its silenced original by {units.format_error(record.proof_error)}")
    if record.onnx_error is not None:
        print(f"ONNX: differs from PyTorch by {units.format_error(record.onnx_error)}")
    for note in json.loads((out / "plan.json").read_text(encoding="utf-8"))["notes"]:
        print(f"Plan: {note}")
    print(f"Model: {out / 'slim.safetensors'}")
    print(f"Report: {out / 'report.html'}")


class Lines:
    """Progress for files and pipes: a line when a phase begins or ends, and one for each epoch."""

    def __init__(self) -> None:
        self._began = 0.0

    def __call__(self, event: PhaseEvent) -> None:
        """Say what happened."""
        head = f"[{event.number}/{event.phases}] {event.phase.name}"
        if event.kind == "begin":
            self._began = time.monotonic()
            say(f"{head}: {event.phase.title}")
        elif event.kind == "skip":
            say(f"{head}: done before")
        elif event.kind == "epoch":
            say(f"{head}: {event.text}{self._left(event.done)}")
        elif event.kind == "end":
            taken = f"{time.monotonic() - self._began:.1f} s"
            say(f"{head}: {', '.join(filter(None, (event.text, taken)))}")

    def _left(self, done: float) -> str:
        if not 0 < done < 1:
            return ""
        return f", {(time.monotonic() - self._began) * (1 - done) / done:.0f} s left"


class Bars:
    """Progress on a terminal: a bar for each phase, with the time that remains."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:<12}"), BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[text]}", markup=False), console=Console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[PhaseEvent], None]:
        self._progress.start()
        return self._watch

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _watch(self, event: PhaseEvent) -> None:
        name = event.phase.name
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{event.number}/{event.phases} {name}", total=1.0, text="")
        text = "done before" if event.kind == "skip" else event.text or event.phase.title
        self._progress.update(self._tasks[name], completed=event.done, text=text)
