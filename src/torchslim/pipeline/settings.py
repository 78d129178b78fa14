"""Settings of a run. No torch here: a finished run shows its result without it."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, fields
from typing import Any

from torchslim.errors import RequestError
from torchslim.pipeline.training_settings import MILESTONES, TrainingSettings, option_name, option_text, rising
from torchslim.utils.text import quoted

__all__ = ["BUDGETS", "DISTILLED", "SPARSIFY_EPOCHS", "Settings", "option_name", "option_text", "parse_shares"]

# These do not affect the final weights: they may differ when a run is continued.
_NOT_IN_IDENTITY = frozenset({"out", "export", "workers", "threads", "nearest", "tracker"})

SPARSIFY_EPOCHS = 10
DISTILLED = 0.5
"""The share of distillation in the loss of fine-tuning; docs/defaults.md has others beside it."""
BUDGETS = ("macs", "params", "channels", "memory", "latency")


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """One run of the pipeline; see `TrainingSettings` for what every training has.

    Attributes:
        macs: multiply-adds to keep: a share (a float in (0, 1]) or a count (an int).
        params: parameters to keep, likewise.
        channels: output channels of all layers to keep, likewise.
        memory: peak of activations to keep: a share, or bytes as an int.
        latency: measured time of a call to keep: a share, or nanoseconds as an int.
        backend: in which the slim network is timed (see `torchslim.plan`).
        sparsify_lr: that of sparsification; None for twice the baseline's.
        finetune_lr: that of fine-tuning; None for a tenth of the baseline's.
        later_milestones: those of the phases after the baseline; None for the same.
        baseline_epochs: 0 skips training the baseline.
        sparsify_epochs: 0 skips sparsification; None is `SPARSIFY_EPOCHS` if the criterion ranks by what it presses,
            the scales of batch norms, else 0.
        finetune_epochs: epochs after the cut.
        fresh: whether sparsification starts from random weights instead of the baseline's.
        sparsity: weight of the L1 penalty on batch-norm scales; None to fit it to the number of steps.
        importance: criterion of the channels' scores.
        scope: "global", "uniform", or JSON of layer pattern to share of channels kept (see `torchslim.plan`).
        only, exclude: patterns of layers whose channels may, or may not, be cut.
        compensate: whether the cut network is refitted to the uncut one's outputs, if that lowers its loss.
        distill: the share of distillation from the baseline in the loss of fine-tuning; 0 for none.
        round_to: numbers of channels stay multiples of this. Many runtimes' kernels work on blocks of 8 channels; other
            widths can make a network slower than the uncut one.
        min_kept: minimum share of its channels that a group keeps.
        nearest: whether budgets that can't be met become the nearest that can.
        export: whether to write and time ONNX files.
    """

    macs: float | None = None
    params: float | None = None
    channels: float | None = None
    memory: float | None = None
    latency: float | None = None
    backend: str | None = None
    sparsify_lr: float | None = None
    finetune_lr: float | None = None
    later_milestones: tuple[float, ...] | None = None
    baseline_epochs: int = 12
    sparsify_epochs: int | None = None
    finetune_epochs: int = 8
    fresh: bool = False
    sparsity: float | None = None
    importance: str = "auto"
    scope: str = "global"
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    compensate: bool = True
    distill: float = DISTILLED
    round_to: int = 8
    min_kept: float = 0.0
    nearest: bool = False
    export: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.plan_scope, str) and all(getattr(self, name) is None for name in BUDGETS):
            raise RequestError("slim: no budget; give --macs 0.4 (keep 40% of the multiply-adds), --params, "
                               "--channels, --memory, --latency, or several of them")
        super().__post_init__()
        self.check({
            "sparsify_lr": (self.sparsify_lr is None or 0 < self.sparsify_lr < math.inf, "a number above 0"),
            "finetune_lr": (self.finetune_lr is None or 0 < self.finetune_lr < math.inf, "a number above 0"),
            "later_milestones": (self.later_milestones is None or rising(self.later_milestones), MILESTONES),
            "baseline_epochs": (self.baseline_epochs >= 0, "0 or more"),
            "sparsify_epochs": (self.pressing_epochs >= 0, "0 or more"),
            "finetune_epochs": (self.finetune_epochs >= 0, "0 or more"),
            "fresh": (not self.fresh or self.pressing_epochs > 0, "sparsification to start from fresh weights; give "
                      "--sparsify-epochs above 0"),
            "sparsity": (self.sparsity is None or 0 <= self.sparsity < math.inf, "0 or more"),
            "round_to": (self.round_to >= 1, "1 or more; try 8"),
            "distill": (0 <= self.distill <= 1, "a share from 0 to 1; try 0.5"),
            "min_kept": (0 <= self.min_kept <= 1, "a share from 0 to 1; try 0.1"),
        })
        plain = self.optimizer == "sgd" and self.momentum is None and self.schedule in (None, "cosine")
        if self.pressing_epochs and self.sparsity is None and not plain:
            raise RequestError("slim: the weight of the penalty is fitted to plain SGD with its default schedule and "
                               "momentum, another was asked for; give --sparsity, such as --sparsity 1e-4")

    @property
    def pressing_epochs(self) -> int:
        """Epochs of sparsification."""
        if self.sparsify_epochs is not None:
            return self.sparsify_epochs
        return SPARSIFY_EPOCHS if self.importance.partition(":")[0] == "bn_scale" else 0

    @property
    def plan_scope(self) -> str | dict[str, float]:
        """The scope as `torchslim.plan` takes it.

        Raises:
            RequestError: neither a word nor JSON of shares.
        """
        return self.scope if self.scope in ("global", "uniform") else parse_shares(self.scope)

    def identity(self) -> dict[str, Any]:
        """Settings that must be equal to continue a run, as JSON values."""
        return {name: value for name, value in self.to_dict().items() if name not in _NOT_IN_IDENTITY}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {**super().to_dict(), "sparsify_epochs": self.pressing_epochs}

    def command(self) -> str:
        """The command line of these settings."""
        words = ["torchslim", "slim", self.model, "--data", self.data]
        for field in sorted(fields(self), key=lambda field: field.name not in (*BUDGETS, "backend")):
            value = getattr(self, field.name)
            if field.name in ("model", "data", "out") or value == field.default:
                continue
            if isinstance(value, bool):
                words.append(option_name(field.name) if value else f"--no-{field.name}")
            elif field.name in ("only", "exclude", "freeze"):
                words += [word for pattern in value for word in (option_name(field.name), pattern)]
            else:
                words += [option_name(field.name), option_text(field.name, value)]
        return shlex.join([*words, "--out", str(self.out)])


def parse_shares(text: str) -> dict[str, float]:
    """Shares of channels kept by pattern of layer names, from JSON.

    Raises:
        RequestError: it is something else.
    """
    try:
        shares = json.loads(text)
    except (ValueError, RecursionError):
        shares = None
    if not isinstance(shares, dict) or not all(type(share) in (int, float) for share in shares.values()):
        raise RequestError(f"--scope {quoted(text)}: wanted global, uniform, or JSON of layer patterns and shares, "
                           'such as {"layer1.*": 0.8}')
    return shares
