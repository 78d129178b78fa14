"""Optimizers by name: those of torch, and of timm where it is installed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from torchslim.errors import MissingExtra, RequestError, TrainingError
from torchslim.train.checking import check_fields
from torchslim.utils.text import did_you_mean

MOMENTUM = 0.9
TIMM = "timm:"
# A closure, sparse gradients, or matrices alone are what these work with.
_OTHER_USE = ("optimizer", "lbfgs", "sparseadam", "muon")
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): kind for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name.lower() not in _OTHER_USE}


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer.

    Attributes:
        optimizer: "sgd" (Nesterov's), "adamw", "adam", "rmsprop" and the others of `torch.optim`, by their names in
            small letters; "timm:lamb" and the others of timm.
        momentum: of those that have it; None is 0.9 for "sgd" and the optimizer's own default for others.
        weight_decay: for all but biases and scales.
    """

    optimizer: str = "sgd"
    momentum: float | None = None
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_fields(self, {
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more; try 5e-4"),
            "momentum": (self.momentum is None or 0 <= self.momentum < 1, "from 0 to below 1; try 0.9"),
        })
        known = _timm_names() if str(self.optimizer).startswith(TIMM) else OPTIMIZERS
        if self.optimizer not in known:
            close = did_you_mean(str(self.optimizer), known, f"wanted {', '.join(OPTIMIZERS)}, or timm:NAME")
            raise RequestError(f"fit: optimizer={self.optimizer!r} found, no optimizer of that name; {close}")
        if self.momentum is not None and self.optimizer in OPTIMIZERS and "momentum" not in self._keywords:
            raise RequestError(f"fit: momentum={self.momentum} found, {self.optimizer} has none; leave it out, or take "
                               "sgd or rmsprop")

    @property
    def _keywords(self) -> Iterable[str]:
        return inspect.signature(OPTIMIZERS[self.optimizer]).parameters

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters; no decay of biases and scales.

        Raises:
            TrainingError: nothing is trainable.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise TrainingError(f"{type(model).__name__}: no parameter has requires_grad, so nothing can be "
                                "trained; set requires_grad on some")
        groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
                  {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        momentum = {} if self.momentum is None else {"momentum": self.momentum}
        if self.optimizer.startswith(TIMM):
            built: torch.optim.Optimizer = import_module("timm.optim").create_optimizer_v2(
                groups, self.optimizer.removeprefix(TIMM), lr=lr, weight_decay=self.weight_decay, **momentum)
            return built
        options: dict[str, Any] = momentum
        if self.optimizer == "sgd":
            options = {"momentum": MOMENTUM, **momentum}
            options["nesterov"] = options["momentum"] > 0
        if "weight_decay" not in self._keywords:  # Rprop
            groups = [{"params": trained}]
        return OPTIMIZERS[self.optimizer](groups, lr=lr, **options)  # type: ignore[call-arg]


def _timm_names() -> list[str]:
    try:
        listed = import_module("timm.optim").list_optimizers()
    except ImportError as error:
        raise MissingExtra("timm", "timm", "an optimizer of timm") from error
    return [f"{TIMM}{name}" for name in listed]
