"""`slim`: the whole pipeline in one command; `demo`: the same on data that is at hand everywhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import Json, Model, Seed, amount, print_table, say

if TYPE_CHECKING:
    from torchslim.pipeline.settings import Settings
    from torchslim.pipeline.slim import Event
    from torchslim.report.record import Record

DEMO_MODEL, DEMO_DATA, DEMO_MACS = "torchvision:resnet18", "digits", "0.4"
INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The run's folder.")]
Threads = Annotated[int | None, typer.Option(min=1, show_default=False, help="CPU threads; default: all cores.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away the run in this folder, and begin anew.")]
Epochs = Annotated[int, typer.Option(min=0)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(slim)
    app.command()(demo)


def slim(
    model: Model,
    data: Annotated[str, typer.Option("--data", metavar="DATA", show_default=False, help=(
        "digits, folder:PATH, torchvision:NAME@ROOT, package.module:factory or file.py:factory."))],
    out: Out,
    macs: Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help=(
        "Multiply-adds to keep: a share (0.4, 40%) or a count (700M)."))] = None,
    params: Annotated[str | None, typer.Option(metavar="AMOUNT", show_default=False, help=(
        "Parameters to keep, likewise."))] = None,
    seed: Seed = 0,
    size: Annotated[int | None, typer.Option(min=8, show_default=False, help=(
        "Height and width of the pictures; default: the data's own."))] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a training step.")] = 64,
    lr: Annotated[float, typer.Option(help="Highest learning rate; later phases take theirs from it.")] = 0.05,
    baseline_epochs: Annotated[int, typer.Option(min=0, help="0 takes the model as it comes.")] = 12,
    sparsify_epochs: Annotated[int, typer.Option(min=0, help="0 leaves sparsification out.")] = 10,
    finetune_epochs: Annotated[int, typer.Option(min=0, help="Epochs after the cut.")] = 8,
    sparsity: Annotated[float | None, typer.Option(show_default=False, help=(
        "Weight of the penalty on batch-norm scales; default: fitted to the number of steps."))] = None,
    importance: Annotated[str, typer.Option(help="What ranks the channels: bn_scale, l1, l2, ...")] = "bn_scale",
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of this many channels, for fast kernels.")] = 8,
    threads: Threads = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load pictures.")] = 0,
    export: Annotated[bool, typer.Option(help="Write ONNX files, compare and time them.")] = True,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train, sparsify, cut, prove, fine-tune, measure, save, export and report, in one go.

    The same command goes on with a run that was interrupted, and shows the result of a finished one.
    """
    from torchslim.pipeline.settings import Settings

    record = _run(Settings(
        model=model, data=data, out=out, macs=amount("--macs", macs), params=amount("--params", params), seed=seed,
        size=size, batch_size=batch_size, lr=lr, baseline_epochs=baseline_epochs, sparsify_epochs=sparsify_epochs,
        finetune_epochs=finetune_epochs, sparsity=sparsity, importance=importance, round_to=round_to, threads=threads,
        workers=workers, export=export), restart)
    if as_json:
        print(record.to_json())
    else:
        _show(record, out)


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
    from torchslim.pipeline.slim import run_slim

    watch: Callable[[Event], None]
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
    from torchslim import units

    before, after = record.before, record.after
    rows = [
        ("parameters", units.count(before.params, " "), units.count(after.params, " "),
         units.change(before.params, after.params)),
        ("MACs", units.count(before.macs, " "), units.count(after.macs, " "), units.change(before.macs, after.macs)),
        ("file size", units.size(before.file_bytes), units.size(after.file_bytes),
         units.change(before.file_bytes, after.file_bytes)),
    ]
    for name in before.latency:
        old, new = before.latency[name].median_ms, after.latency[name].median_ms
        rows.append((f"latency, {name}", units.milliseconds(old), units.milliseconds(new), units.change(old, new)))
    if before.accuracy is not None and after.accuracy is not None:
        rows.append(("accuracy", units.percent(before.accuracy), units.percent(after.accuracy),
                     f"{100 * (after.accuracy - before.accuracy):+.1f} points"))
    print_table(("", "before", "after", "change"), rows)
    print(f"Proof: the cut network differs from its silenced original by {units.error(record.proof_error)}")
    if record.onnx_error is not None:
        print(f"ONNX: differs from PyTorch by {units.error(record.onnx_error)}")
    print(f"Model: {out / 'slim.safetensors'}")
    print(f"Report: {out / 'report.html'}")


class Lines:
    """Progress for files and pipes: a line when a phase begins or ends, and one for each epoch."""

    def __init__(self) -> None:
        self._began = 0.0

    def __call__(self, event: Event) -> None:
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

    def __enter__(self) -> Callable[[Event], None]:
        self._progress.start()
        return self._watch

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _watch(self, event: Event) -> None:
        name = event.phase.name
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{event.number}/{event.phases} {name}", total=1.0, text="")
        text = "done before" if event.kind == "skip" else event.text or event.phase.title
        self._progress.update(self._tasks[name], completed=event.done, text=text)
