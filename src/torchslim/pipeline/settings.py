"""How a run is asked for. No torch here: a finished run shows its result without it."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torchslim.errors import RequestError

# What has no part in the weights that come out: these may differ when a run is continued.
_FREE = frozenset({"out", "export", "workers", "threads"})


@dataclass(frozen=True)
class Settings:
    """One run of the pipeline.

    Attributes:
        model: a MODEL specification (see `torchslim.sources`).
        data: a DATA specification (see `torchslim.train.load_data`).
        out: the run's folder.
        macs: multiply-adds to keep: a share (a float in (0, 1]) or a count (an int).
        params: parameters to keep, likewise.
        seed: of every random choice.
        size: height and width of the pictures; None for the data's own.
        batch_size: pictures in a training step.
        lr: highest learning rate of the baseline; the other phases take theirs from it.
        baseline_epochs: 0 takes the model as it comes.
        sparsify_epochs: 0 leaves sparsification out.
        finetune_epochs: epochs after the cut.
        sparsity: weight of the L1 penalty on batch-norm scales; None to fit it to the number of steps.
        importance: how channels are scored.
        round_to: numbers of channels stay multiples of this. The kernels of many runtimes work on blocks of 8
            channels; a network of odd widths can be slower than the one it was cut from.
        threads: CPU threads; None for as many as there are cores, or as the run began with.
        workers: processes that load pictures.
        export: whether to write and time ONNX files.
    """

    model: str
    data: str
    out: Path
    macs: float | None = None
    params: float | None = None
    seed: int = 0
    size: int | None = None
    batch_size: int = 64
    lr: float = 0.05
    baseline_epochs: int = 12
    sparsify_epochs: int = 10
    finetune_epochs: int = 8
    sparsity: float | None = None
    importance: str = "bn_scale"
    round_to: int = 8
    threads: int | None = None
    workers: int = 0
    export: bool = True

    def __post_init__(self) -> None:
        if self.macs is None and self.params is None:
            raise RequestError("slim: no budget; give --macs 0.4 (keep 40% of the multiply-adds), --params, or both")
        wanted = {
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "a number above 0"),
            "baseline_epochs": (self.baseline_epochs >= 0, "0 or more"),
            "sparsify_epochs": (self.sparsify_epochs >= 0, "0 or more"),
            "finetune_epochs": (self.finetune_epochs >= 0, "0 or more"),
            "sparsity": (self.sparsity is None or 0 <= self.sparsity < math.inf, "0 or more"),
            "round_to": (self.round_to >= 1, "1 or more; try 8"),
            "threads": (self.threads is None or self.threads >= 1, "1 or more"),
            "workers": (self.workers >= 0, "0 or more"),
        }
        for name, (good, text) in wanted.items():
            if not good:
                raise RequestError(f"{option(name)} {getattr(self, name)}: wanted {text}")

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {**asdict(self), "out": str(self.out)}

    def command(self) -> str:
        """The command line that asks for the same."""
        words = ["torchslim", "slim", self.model, "--data", self.data]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("model", "data", "out") or value == field.default:
                continue
            words += ["--no-export"] if field.name == "export" else [option(field.name), str(value)]
        return shlex.join([*words, "--out", str(self.out)])


def option(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")
