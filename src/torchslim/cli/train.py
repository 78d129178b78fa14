"""`train`: a model trained on data by its task."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.cli import training_options as training
from torchslim.cli.interrupts import interrupts
from torchslim.cli.options import DATA_FORMS, Json, Model, SkipBroken, check_out
from torchslim.cli.output import print_json, print_table, say
from torchslim.cli.usage import flags_for_keywords
from torchslim.utils.launcher import requested_rank

if TYPE_CHECKING:
    from torchslim.train import Progress

Data = Annotated[str, typer.Option("--data", metavar="DATA", show_default=False, help=f"{DATA_FORMS}.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", show_default=False, help=(
    "The trained model, such as trained.safetensors."))]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.")]
Lr = Annotated[float | None, typer.Option(show_default="the task's", help="Highest learning rate.")]
Checkpoint = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help=(
    "Keep the state after each epoch; the same command goes on from it."))]
Log = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help=(
    "Append a line of JSON for each epoch: loss, metrics, learning rate, seconds."))]


def train(
    context: typer.Context, model: Model, data: Data, out: Out, weights: training.Weights = None,
    new_head: training.NewHead = None, epochs: Epochs = 10, lr: Lr = None, seed: training.RunSeed = None,
    task: training.Task = None, size: training.Size = None, skip_broken: SkipBroken = None,
    batch_size: training.BatchSize = None, milestones: training.Milestones = None, schedule: training.Schedule = None,
    optimizer: training.Optimizer = None, momentum: training.Momentum = None,
    weight_decay: training.WeightDecay = None, label_smoothing: training.LabelSmoothing = None,
    class_weights: training.ClassWeights = None, mixup: training.Mixup = None, cutmix: training.Cutmix = None,
    precision: training.Precision = None, accumulate: training.Accumulate = None, clip: training.Clip = None,
    ema: training.Ema = None, freeze: training.Freeze = None, patience: training.Patience = None,
    keep_best: training.KeepBest = None, channels_last: training.ChannelsLast = None,
    compile: training.Compile = None, tracker: training.Tracker = None, checkpoint: Checkpoint = None,
    log: Log = None, threads: training.Threads = None, workers: training.Workers = None, as_json: Json = False,
) -> None:
    """Train a model on data by its task, save it, and print its metrics on held-out data."""
    from torchslim.pipeline.training import train_model
    from torchslim.pipeline.training_settings import TrainingSettings
    from torchslim.utils.formatting import format_metric
    from torchslim.zoo.sources import resolve

    settings = TrainingSettings(
        **training.given_settings(context.params, ("epochs", "checkpoint", "log", "as_json"), {}))
    source = resolve(model)
    if requested_rank() == 0:
        check_out(out, source if weights is None else source.with_weights(weights, bool(new_head)))
    if checkpoint is not None:
        interrupts.remedy = "the same command goes on from the checkpoint"
    with flags_for_keywords(context):
        found = train_model(settings, epochs, checkpoint, log, _Lines())
    if requested_rank() > 0:
        return
    if as_json:
        print_json({"model": str(out), "metrics": found.metrics, **asdict(found.history)})
        return
    print_table(("", "held out"), [(name, format_metric(name, value)) for name, value in found.metrics.items()])
    print(f"Model: {out}")


class _Lines:
    """A line on stderr for each epoch."""

    def __init__(self) -> None:
        self._start, self._first = time.monotonic(), 0

    def __call__(self, at: Progress) -> None:
        from torchslim.utils.formatting import format_metric

        interrupts.check()
        self._first = self._first or at.epoch  # of a training that goes on
        if not at.finished:
            return
        done = at.epoch - self._first + 1
        left = (time.monotonic() - self._start) / done * (at.epochs - at.epoch)
        score = f", {at.metric} {format_metric(at.metric, at.score)}" if at.score is not None else ""
        say(f"epoch {at.epoch}/{at.epochs}: loss {at.loss:.3f}{score}" + (f", {left:.0f} s left" if left else ""))
