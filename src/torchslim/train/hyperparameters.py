"""The hyperparameters of a training, validated: all that its result depends on beside the model and the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from torchslim.errors import RequestError
from torchslim.train.checking import check_fields
from torchslim.train.mixing import Mixing
from torchslim.train.optimizers import MOMENTUM, OptimizerChoice
from torchslim.train.schedule import Schedule, mean_learning_rate
from torchslim.train.stepping import StepOptions
from torchslim.utils.text import did_you_mean

__all__ = ["MOMENTUM", "HyperparameterKeywords", "Hyperparameters", "mean_learning_rate"]


class HyperparameterKeywords(TypedDict, total=False):
    """The fields of `Hyperparameters` and of its groups, as keywords of `fit`."""

    epochs: int
    batch_size: int
    seed: int
    lr: float
    schedule: str | None
    warmup: float | None
    milestones: Sequence[float]
    optimizer: str
    momentum: float | None
    weight_decay: float
    precision: str
    accumulate: int
    clip: float | None
    ema: float
    channels_last: bool
    compile: bool
    mixup: float
    cutmix: float
    label_smoothing: float
    class_weights: Sequence[float] | str
    temperature: float
    alpha: float
    freeze: Sequence[str]
    patience: int | None
    keep_best: bool


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of one training. As keywords of `fit`, those of the groups stand beside the others.

    Attributes:
        epochs: passes over the data, at the most.
        batch_size: of a dataset, over all processes; ready batches are not changed.
        seed: of the order, the augmentation, dropout and mixing; the caller's generators are unchanged.
        label_smoothing: of the cross entropy.
        class_weights: of the cross entropy, one a class; "balanced" is n / (classes x items of the class).
        temperature: of the distillation.
        alpha: the teacher's share of the loss.
        sparsity: weight of the penalty on scales.
        freeze: patterns of names, such as "backbone.*": these parameters get no gradient, and batch norms of such names
            keep their statistics.
        patience: stop when the held-out score has not risen for so many epochs; None never does.
        keep_best: end with the weights of the epoch with the best held-out score. They were chosen by that score, so
            that it is no longer an unbiased estimate.
        rate: `lr`, `schedule`, `warmup`, `milestones`; see `Schedule`.
        choice: `optimizer`, `momentum`, `weight_decay`; see `OptimizerChoice`.
        step: `precision`, `accumulate`, `clip`, `ema`, `channels_last`, `compile`; see `StepOptions`.
        mixing: `mixup`, `cutmix`; see `Mixing`.
    """

    epochs: int = 10
    batch_size: int = 64
    seed: int = 0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    temperature: float = 4.0
    alpha: float = 0.5
    sparsity: float = 0.0
    freeze: tuple[str, ...] = ()
    patience: int | None = None
    keep_best: bool = False
    rate: Schedule = field(default_factory=Schedule)
    choice: OptimizerChoice = field(default_factory=OptimizerChoice)
    step: StepOptions = field(default_factory=StepOptions)
    mixing: Mixing = field(default_factory=Mixing)

    def __post_init__(self) -> None:
        check_fields(self, {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more; try 64"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1; try 0.1"),
            "class_weights": (all(0 <= weight < math.inf for weight in self.class_weights),
                              "a weight of 0 or more for each class, or 'balanced'"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0; try 4"),
            "alpha": (0 <= self.alpha <= 1, "the teacher's share of the loss, from 0 to 1; try 0.5"),
            "patience": (self.patience is None or self.patience >= 1, "epochs, 1 or more; try 5"),
        })

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Hyperparameters:
        """The hyperparameters of keywords of `fit`.

        Raises:
            RequestError: a keyword that is none, or a value that is none of those that it takes.
        """
        rest = dict(keywords)
        groups = {name: group(**{key: rest.pop(key) for key in _names(group) if key in rest})
                  for name, group in _GROUPS.items()}
        unknown = next((name for name in rest if name not in _names(cls) or name in _GROUPS), None)
        if unknown is not None:
            known = list(HyperparameterKeywords.__annotations__)
            raise RequestError(f"fit: {unknown}= is no keyword; {did_you_mean(unknown, known)}")
        return cls(**groups, **rest)

    def flat(self) -> dict[str, Any]:
        """All values by the names of their keywords."""
        values = asdict(self)
        return {**{name: value for name, value in values.items() if name not in _GROUPS},
                **{name: value for group in _GROUPS for name, value in values[group].items()}}


_GROUPS: dict[str, Any] = {"rate": Schedule, "choice": OptimizerChoice, "step": StepOptions, "mixing": Mixing}


def _names(kind: Any) -> list[str]:
    return [each.name for each in fields(kind)]
