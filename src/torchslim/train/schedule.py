"""Learning-rate schedules: functions of the share of the training that is done, so that checkpoints need no state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torchslim.train.checking import check_fields

SCHEDULES = ("cosine", "step", "constant", "linear", "onecycle")
WARMUP = {"cosine": 0.2, "linear": 0.2, "onecycle": 0.3}
"""Default share of warm-up; none in others."""
MILESTONE_FACTOR = 0.1
"""Factor of the learning rate at a milestone."""
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 250_000
"""First and last rate of a cycle, as shares of its highest, as in torch's OneCycleLR."""


@dataclass(frozen=True)
class Schedule:
    """Learning rates over a training.

    Attributes:
        lr: the highest learning rate.
        schedule: what comes after a linear warm-up: "cosine" (half a cosine to 0), "step" (a tenth at each milestone),
            "constant", "linear" (to 0), or "onecycle" (up and down by half a cosine each, Smith and Topin 2017). None
            is "step" where there are milestones, else "cosine".
        warmup: a share of the epochs; None is 0.2, with "onecycle" 0.3, with "step" and "constant" 0.
        milestones: rising shares of the training, of "step" alone: (0.5, 0.75).
    """

    lr: float = 0.05
    schedule: str | None = None
    warmup: float | None = None
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if self.schedule is None:
            object.__setattr__(self, "schedule", "step" if self.milestones else "cosine")
        if self.warmup is None:
            object.__setattr__(self, "warmup", WARMUP.get(str(self.schedule), 0.0))
        step = self.schedule == "step"
        check_fields(self, {
            "lr": (0 < self.lr < math.inf, "a number above 0; try 0.05 for sgd, 0.001 for adamw"),
            "schedule": (self.schedule in SCHEDULES, " or ".join(SCHEDULES)),
            "warmup": (0 <= self._warmup < 1, "a share of the epochs from 0 to below 1; try 0.2"),
            "milestones": (all(0 < share < 1 for share in self.milestones)
                           and list(self.milestones) == sorted(set(self.milestones)) and step == bool(self.milestones),
                           "rising shares of the training, each between 0 and 1, with schedule='step' alone; try "
                           "(0.5, 0.75)"),
        })

    @property
    def _warmup(self) -> float:
        return self.warmup or 0.0

    def learning_rate(self, done: float) -> float:
        """The learning rate when a share of the training is done."""
        onecycle = self.schedule == "onecycle"
        if done < self._warmup:
            share = done / self._warmup
            return self.lr * (_between(ONECYCLE_START, 1.0, share) if onecycle else share)
        after = (done - self._warmup) / (1 - self._warmup)
        if onecycle:
            return self.lr * _between(1.0, ONECYCLE_END, after)
        if self.schedule == "step":
            return self.lr * MILESTONE_FACTOR**sum(done >= milestone for milestone in self.milestones)
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "linear":
            return self.lr * (1 - after)
        return self.lr * 0.5 * (1 + math.cos(math.pi * after))


def mean_learning_rate(milestones: Sequence[float]) -> float:
    """A schedule's mean rate, as a share of its highest; 0.5 for warm-up and cosine."""
    if not milestones:
        return 0.5
    edges = [0.0, *milestones, 1.0]
    return sum((end - start) * MILESTONE_FACTOR**index for index, (start, end) in enumerate(pairwise(edges)))


def _between(start: float, end: float, share: float) -> float:
    """On half a cosine from one value to another."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
