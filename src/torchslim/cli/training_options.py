"""Options of the commands that train: `slim` and `train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from torchslim.cli.options import fractions

Weights = Annotated[str | None, typer.Option("--weights", metavar="FILE", show_default=False, help=(
    "Starting weights: a state dict (.pth, .safetensors, ...), or a training script's checkpoint of one."))]
NewHead = Annotated[bool | None, typer.Option("--new-head", show_default=False, help=(
    "Leave the last layers random where FILE has them for another number of classes."))]
RunSeed = Annotated[int | None, typer.Option(
    "--seed", min=0, max=2**32 - 1, show_default="0", help="Seed of every random choice.")]
Task = Annotated[str | None, typer.Option(metavar="TASK", show_default="the data's", help=(
    "classification, multilabel, segmentation, detection, keypoints or regression, where the data may be of several."))]
Size = Annotated[int | None, typer.Option(min=8, show_default=False, help=(
    "Height and width of the pictures; default: the data's own."))]
BatchSize = Annotated[int | None, typer.Option(min=1, show_default="64", help="Pictures in a batch.")]
Milestones = Annotated[str | None, typer.Option(metavar="SHARE,...", show_default=False, help=(
    "Shares of a phase at which its rate falls to a tenth; default: a warm-up and half a cosine."))]
WeightDecay = Annotated[float | None, typer.Option(show_default="0.0005", help="For all but biases and scales.")]
LabelSmoothing = Annotated[float | None, typer.Option(show_default="0.1", help="Of the cross entropy.")]
Threads = Annotated[int | None, typer.Option(min=1, show_default=False, help="CPU threads; default: all cores.")]
Workers = Annotated[int | None, typer.Option(min=0, show_default="0", help="Processes that load pictures.")]
ClassWeights = Annotated[str | None, typer.Option(metavar="balanced|WEIGHT,...", show_default=False, help=(
    "Of the cross entropy, one a class; balanced makes up for classes that are rare."))]
Optimizer = Annotated[str | None, typer.Option(show_default="sgd", help=(
    "sgd, adamw, adam, rmsprop and the others of torch.optim, or timm:NAME."))]
Momentum = Annotated[float | None, typer.Option(show_default="0.9 with sgd", help="Of optimizers that have it.")]
Schedule = Annotated[str | None, typer.Option(show_default="cosine", help=(
    "Of the learning rate: cosine, constant, linear or onecycle; for steps give --milestones."))]
Precision = Annotated[str | None, typer.Option(show_default="fp32", help=(
    "Of the layers' arithmetic: fp32, bf16, or fp16 (on CUDA)."))]
Accumulate = Annotated[int | None, typer.Option(min=1, show_default="1", help="Batches whose gradients make a step.")]
Clip = Annotated[float | None, typer.Option(show_default=False, help="Highest norm of the gradient.")]
Ema = Annotated[float | None, typer.Option(show_default="0", help=(
    "Decay of an average of the weights, which is evaluated and kept: 0.999."))]
Mixup = Annotated[float | None, typer.Option(show_default="0", help=(
    "Mix pictures and their classes: parameter of the Beta distribution, such as 0.2."))]
Cutmix = Annotated[float | None, typer.Option(show_default="0", help="Exchange parts of pictures, likewise: 1.")]
Freeze = Annotated[list[str] | None, typer.Option(metavar="PATTERN", show_default=False, help=(
    "Leave parameters of this name as they are: 'features.*'; again for each further pattern."))]
Patience = Annotated[int | None, typer.Option(min=1, show_default=False, help=(
    "Stop when the held-out score has not risen for so many epochs."))]
KeepBest = Annotated[bool | None, typer.Option("--keep-best/--no-keep-best", show_default="no-keep-best", help=(
    "End with the weights of the epoch with the best held-out score, which is then no unbiased estimate."))]
ChannelsLast = Annotated[bool | None, typer.Option("--channels-last/--no-channels-last", show_default=False, help=(
    "Keep pictures and filters in that memory format."))]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", show_default=False, help=(
    "Train through torch.compile."))]
Tracker = Annotated[str | None, typer.Option(metavar="NAME", show_default=False, help=(
    "Send each epoch to tensorboard (files in runs), wandb, mlflow or another of Accelerate's trackers."))]


def shares_of_phase(option: str, text: str) -> tuple[float, ...]:
    """Milestones that are joined by commas; a text without any is none."""
    shares = text.strip(",")
    return fractions(option, shares, "shares of a phase, such as 0.5,0.75") if shares else ()


def given_settings(options: dict[str, Any], others: tuple[str, ...],
                   texts: dict[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    """The settings among the options of a command that were given: they have the same names.

    Args:
        options: all of the command's.
        others: names of those that are no settings.
        texts: by name, what reads a text.
    """
    def as_tuple(_: str, patterns: Any) -> Any:
        return tuple(patterns)

    texts = {"milestones": shares_of_phase, "freeze": as_tuple, "only": as_tuple, "exclude": as_tuple, **texts}
    given = {name: value for name, value in options.items() if value not in (None, []) and name not in others}
    return {name: texts[name]("--" + name.replace("_", "-"), value) if name in texts else value
            for name, value in given.items()}
