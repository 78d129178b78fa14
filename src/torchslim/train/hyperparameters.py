"""The hyperparameters of a training, validated; its learning-rate schedule and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from torchslim.errors import RequestError, TrainingError

OPTIMIZERS = ("sgd", "adamw")
MOMENTUM = 0.9
WARMUP = 0.2
"""Default share of warm-up before cosine decay."""
MILESTONE_FACTOR = 0.1
"""Factor of the learning rate at a milestone."""


def mean_learning_rate(milestones: Sequence[float]) -> float:
    """A schedule's mean rate, as a share of its highest; 0.5 for warm-up and cosine."""
    if not milestones:
        return 0.5
    edges = [0.0, *milestones, 1.0]
    return sum((end - start) * MILESTONE_FACTOR**index for index, (start, end) in enumerate(pairwise(edges)))


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of one training; see the arguments of `fit`."""

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float
    optimizer: str
    warmup: float
    label_smoothing: float
    sparsity: float
    temperature: float
    alpha: float
    seed: int
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        wanted = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "lr": (0 < self.lr < math.inf, "a number above 0; try 0.05 for sgd, 0.001 for adamw"),
            "batch_size": (self.batch_size >= 1, "1 or more; try 64"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more; try 5e-4"),
            "optimizer": (self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS)),
            "warmup": (0 <= self.warmup < 1, "a share of the epochs from 0 to below 1; try 0.2"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1; try 0.1"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0; try 4"),
            "milestones": (all(0 < share < 1 for share in self.milestones)
                           and list(self.milestones) == sorted(set(self.milestones)),
                           "rising shares of the training, each between 0 and 1; try (0.5, 0.75)"),
            "alpha": (0 <= self.alpha <= 1, "the teacher's share of the loss, from 0 to 1; try 0.5"),
        }
        for name, (good, text) in wanted.items():
            if not good:
                raise RequestError(f"fit: {name}={getattr(self, name)!r} found, wanted {text}")

    def learning_rate(self, done: float) -> float:
        """The learning rate when a share of the training is done: linear warm-up, then half a cosine or milestones.

        It depends on nothing else, so checkpoints need no scheduler state.
        """
        if done < self.warmup:
            return self.lr * done / self.warmup
        if self.milestones:
            return self.lr * MILESTONE_FACTOR**sum(done >= share for share in self.milestones)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters; no decay of biases and scales."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise TrainingError(f"{type(model).__name__}: no parameter has requires_grad, so nothing can be "
                                "trained; set requires_grad on some")
        groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
                  {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=MOMENTUM, nesterov=True)
