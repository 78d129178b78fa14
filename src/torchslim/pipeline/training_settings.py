"""Settings that every training by the command line has. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchslim.errors import RequestError

# Handed to `torchslim.train.fit` as they are, which checks them.
FIT = ("optimizer", "momentum", "schedule", "weight_decay", "precision", "accumulate", "clip", "ema", "mixup", "cutmix",
       "freeze", "patience", "keep_best", "channels_last", "compile", "tracker")


SCHEDULES, PRECISIONS = ("cosine", "constant", "linear", "onecycle"), ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingSettings:
    """What is trained, on what, and how; see `torchslim.train.fit` for what is not described.

    Attributes:
        model: a MODEL specification (see `torchslim.zoo.sources`).
        data: a DATA specification (see `torchslim.train.load_data`).
        out: the run's folder, or the trained model's file.
        weights: a file with the model's starting weights (see `torchslim.create_model`, `checkpoint`).
        new_head: whether layers that depend on the number of classes stay random, where the file's differ in size.
        seed: of every random choice.
        task: what is predicted; None for what the data tell (see `torchslim.train.load_data`).
        size: height and width of the images; None for the data's own.
        skip_broken: share of the pictures that may be left out as they can't be read.
        batch_size: images in a training step.
        lr: highest learning rate, in `slim` of the baseline; None for the task's (0.05 for classes, 0.01 for boxes).
        milestones: shares of a phase at which its rate is divided by 10; empty for a warm-up and half a cosine.
        weight_decay: of all phases, for all but biases and scales.
        label_smoothing: of the cross entropy.
        class_weights: "balanced", or weights joined by commas; empty for 1 each.
        threads: CPU threads; None for the number of cores, or that of the interrupted run.
        workers: processes that load images.
    """

    model: str
    data: str
    out: Path
    weights: str | None = None
    new_head: bool = False
    seed: int = 0
    task: str | None = None
    size: int | None = None
    skip_broken: float = 0.0
    batch_size: int = 64
    lr: float | None = None
    milestones: tuple[float, ...] = ()
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    class_weights: str = ""
    optimizer: str = "sgd"
    momentum: float | None = None
    schedule: str | None = None
    precision: str = "fp32"
    accumulate: int = 1
    clip: float | None = None
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    freeze: tuple[str, ...] = ()
    patience: int | None = None
    keep_best: bool = False
    channels_last: bool = False
    compile: bool = False
    tracker: str | None = None
    threads: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        self.check({
            "new_head": (self.weights is not None or not self.new_head, "a file of weights, too; give --weights"),
            "skip_broken": (0 <= self.skip_broken < 1, "a share from 0 to below 1, such as 0.02 or 2%"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "lr": (self.lr is None or 0 < self.lr < math.inf, "a number above 0"),
            "milestones": (rising(self.milestones), MILESTONES),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "class_weights": (self.weights_of_classes is not None,
                              "balanced, or a weight for each class, such as 1,2.5"),
            "schedule": (self.schedule is None or (self.schedule in SCHEDULES and not self.milestones),
                         f"{', '.join(SCHEDULES)}, and then no --milestones"),
            "precision": (self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "clip": (self.clip is None or 0 < self.clip < math.inf, "a norm above 0, such as 1"),
            "ema": (0 <= self.ema < 1, "a decay from 0 to below 1, such as 0.999"),
            "mixup": (0 <= self.mixup < math.inf, "0 or more, such as 0.2"),
            "cutmix": (0 <= self.cutmix < math.inf, "0 or more, such as 1"),
            "momentum": (self.momentum is None or 0 <= self.momentum < 1, "from 0 to below 1, such as 0.9"),
            "patience": (self.patience is None or self.patience >= 1, "1 or more"),
            "threads": (self.threads is None or self.threads >= 1, "1 or more"),
            "workers": (self.workers >= 0, "0 or more"),
        })

    def check(self, wanted: Mapping[str, tuple[bool, str]]) -> None:
        """Check settings: for each name whether it is good, and what was wanted.

        Raises:
            RequestError: one is not.
        """
        for name, (good, text) in wanted.items():
            if not good:
                raise RequestError(f"{option_name(name)} {option_text(name, getattr(self, name))}: wanted {text}")

    @property
    def weights_of_classes(self) -> str | tuple[float, ...] | None:
        """The weights of classes as `fit` takes them; None if they can't be read."""
        if self.class_weights == "balanced":
            return self.class_weights
        try:
            return tuple(float(text) for text in self.class_weights.split(",")) if self.class_weights else ()
        except ValueError:
            return None

    @property
    def fit_options(self) -> dict[str, Any]:
        """Keywords of `fit` that are the same in every phase."""
        return {name: getattr(self, name) for name in FIT} | {"class_weights": self.weights_of_classes}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {**asdict(self), "out": str(self.out)}


MILESTONES = "rising shares of a phase, each between 0 and 1, such as 0.5,0.75"


def rising(shares: tuple[float, ...]) -> bool:
    """Whether shares between 0 and 1 rise."""
    return all(0 < share < 1 for share in shares) and list(shares) == sorted(set(shares))


def option_text(name: str, value: object) -> str:
    """A setting's value as the command line takes it."""
    if name == "latency" and isinstance(value, int):
        return f"{value}ns"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def option_name(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")
