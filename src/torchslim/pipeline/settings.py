"""Settings of a run. No torch here: a finished run shows its result without it."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torchslim.errors import RequestError

# These do not affect the final weights: they may differ when a run is continued.
_NOT_IN_IDENTITY = frozenset({"out", "export", "workers", "threads", "nearest"})


@dataclass(frozen=True)
class Settings:
    """One run of the pipeline.

    Attributes:
        model: a MODEL specification (see `torchslim.zoo.sources`).
        data: a DATA specification (see `torchslim.train.load_data`).
        out: the run's folder.
        macs: multiply-adds to keep: a share (a float in (0, 1]) or a count (an int).
        params: parameters to keep, likewise.
        channels: output channels of all layers to keep, likewise.
        latency: measured time of a call to keep: a share, or nanoseconds as an int.
        backend: in which the slim network is timed (see `torchslim.plan`).
        seed: of every random choice.
        size: height and width of the images; None for the data's own.
        batch_size: images in a training step.
        lr: highest learning rate of the baseline.
        sparsify_lr: that of sparsification; None for twice the baseline's.
        finetune_lr: that of fine-tuning; None for a tenth of the baseline's.
        milestones: shares of a phase at which its rate is divided by 10; empty for a warm-up and half a cosine.
        later_milestones: those of the phases after the baseline; None for the same.
        weight_decay: of all phases, for all but biases and scales.
        label_smoothing: of the cross entropy.
        baseline_epochs: 0 skips training the baseline.
        sparsify_epochs: 0 skips sparsification.
        finetune_epochs: epochs after the cut.
        fresh: whether sparsification starts from random weights instead of the baseline's.
        sparsity: weight of the L1 penalty on batch-norm scales; None to fit it to the number of steps.
        importance: criterion of the channels' scores.
        round_to: numbers of channels stay multiples of this. Many runtimes' kernels work on blocks of 8 channels; other
            widths can make a network slower than the uncut one.
        min_kept: minimum share of its channels that a group keeps.
        nearest: whether budgets that can't be met become the nearest that can.
        threads: CPU threads; None for the number of cores, or that of the interrupted run.
        workers: processes that load images.
        export: whether to write and time ONNX files.
    """

    model: str
    data: str
    out: Path
    macs: float | None = None
    params: float | None = None
    channels: float | None = None
    latency: float | None = None
    backend: str | None = None
    seed: int = 0
    size: int | None = None
    batch_size: int = 64
    lr: float = 0.05
    sparsify_lr: float | None = None
    finetune_lr: float | None = None
    milestones: tuple[float, ...] = ()
    later_milestones: tuple[float, ...] | None = None
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    baseline_epochs: int = 12
    sparsify_epochs: int = 10
    finetune_epochs: int = 8
    fresh: bool = False
    sparsity: float | None = None
    importance: str = "bn_scale"
    round_to: int = 8
    min_kept: float = 0.0
    nearest: bool = False
    threads: int | None = None
    workers: int = 0
    export: bool = True

    def __post_init__(self) -> None:
        if all(budget is None for budget in (self.macs, self.params, self.channels, self.latency)):
            raise RequestError("slim: no budget; give --macs 0.4 (keep 40% of the multiply-adds), --params, "
                               "--channels, --latency, or several of them")
        wanted = {
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "a number above 0"),
            "sparsify_lr": (self.sparsify_lr is None or 0 < self.sparsify_lr < math.inf, "a number above 0"),
            "finetune_lr": (self.finetune_lr is None or 0 < self.finetune_lr < math.inf, "a number above 0"),
            "milestones": (_rising(self.milestones), _MILESTONES),
            "later_milestones": (self.later_milestones is None or _rising(self.later_milestones), _MILESTONES),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "baseline_epochs": (self.baseline_epochs >= 0, "0 or more"),
            "sparsify_epochs": (self.sparsify_epochs >= 0, "0 or more"),
            "finetune_epochs": (self.finetune_epochs >= 0, "0 or more"),
            "fresh": (not self.fresh or self.sparsify_epochs > 0, "sparsification to start from fresh weights; give "
                      "--sparsify-epochs above 0"),
            "sparsity": (self.sparsity is None or 0 <= self.sparsity < math.inf, "0 or more"),
            "round_to": (self.round_to >= 1, "1 or more; try 8"),
            "min_kept": (0 <= self.min_kept <= 1, "a share from 0 to 1; try 0.1"),
            "threads": (self.threads is None or self.threads >= 1, "1 or more"),
            "workers": (self.workers >= 0, "0 or more"),
        }
        for name, (good, text) in wanted.items():
            if not good:
                raise RequestError(f"{option_name(name)} {option_text(name, getattr(self, name))}: wanted {text}")

    def identity(self) -> dict[str, Any]:
        """Settings that must be equal to continue a run, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_IN_IDENTITY}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {**asdict(self), "out": str(self.out)}

    def command(self) -> str:
        """The command line of these settings."""
        words = ["torchslim", "slim", self.model, "--data", self.data]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("model", "data", "out") or value == field.default:
                continue
            if isinstance(value, bool):
                words.append(option_name(field.name) if value else f"--no-{field.name}")
            else:
                words += [option_name(field.name), option_text(field.name, value)]
        return shlex.join([*words, "--out", str(self.out)])


_MILESTONES = "rising shares of a phase, each between 0 and 1, such as 0.5,0.75"


def _rising(shares: tuple[float, ...]) -> bool:
    return all(0 < share < 1 for share in shares) and list(shares) == sorted(set(shares))


def option_text(name: str, value: object) -> str:
    """A setting's value as the command line takes it."""
    if name == "latency" and isinstance(value, int):
        return f"{value}ns"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def option_name(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")
