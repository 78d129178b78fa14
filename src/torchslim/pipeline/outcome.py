"""Whether scores say anything, and what they say of a run. No torch here.

A score is the main metric of the task on the pictures that were held out, such as the accuracy. What all answers that
are the same for every picture reach at best is its *constant* score: the share of the most frequent class, say. A score
leads by what it has more than that.

- *Chance level*: no lead. Of accuracies, a lead that an answer by the most frequent class would have by luck: a test at
  a level of 1% by the binomial distribution. Where the pictures are too few for even a faultless network to pass, only
  an accuracy no higher than that class's share is chance level.
- *Lower*: more than a tenth of the lead lost. Of accuracies, two that differ by more than two samples of this size
  would (one-sided, pooled normal approximation, 1%).
- *Collapsed*: lower, and at chance level or with more than half of the lead lost.
- *Well below*: lower, and more than a tenth of the lead lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchslim.utils.formatting import format_metric

LEVEL = 0.01
_DEVIATIONS = 2.326  # of a normal variable, exceeded with probability LEVEL
_WELL_BELOW, _MOST_LOST = 0.1, 0.5


@dataclass(frozen=True)
class HeldOut:
    """The pictures that scores are measured on.

    Attributes:
        pictures: how many.
        constant: the score of the best answer that is the same for all of them.
        metric: what the scores are; "accuracy" is a share of right answers, which has a distribution.
    """

    pictures: int
    constant: float
    metric: str = "accuracy"

    @property
    def are_enough(self) -> bool:
        """Whether a faultless network would be above chance level."""
        return self.metric != "accuracy" or self.constant ** self.pictures <= LEVEL

    def is_chance(self, score: float) -> bool:
        """Whether a score is at chance level."""
        if self.metric != "accuracy" or not self.are_enough:
            return score <= self.constant
        return binomial_tail(round(score * self.pictures), self.pictures, self.constant) > LEVEL

    def is_lower(self, after: float, before: float) -> bool:
        """Whether the second of two scores is lower beyond chance."""
        if self.metric != "accuracy":
            return self.lost(before, after) > _WELL_BELOW
        mean = (after + before) / 2
        return before - after > _DEVIATIONS * math.sqrt(2 * mean * (1 - mean) / self.pictures)

    def lost(self, before: float, after: float) -> float:
        """The share of the lead over the constant score that was lost."""
        lead = before - self.constant
        return (before - after) / lead if lead > 0 else 0.0

    def has_collapsed(self, before: float, after: float) -> bool:
        """Whether a score above chance level has collapsed."""
        if self.is_chance(before) or not self.is_lower(after, before):
            return False
        return self.is_chance(after) or self.lost(before, after) > _MOST_LOST

    def text(self, score: float) -> str:
        """A score with its name, as people write it."""
        return f"{self.metric} {format_metric(self.metric, score)}"

    def describe_chance(self, score: float) -> str:
        """A score at chance level, in words."""
        if self.metric == "accuracy":
            return (f"at chance level: right on {score:.1%} of {self.pictures} held-out pictures, "
                    f"{self.constant:.1%} of which are of one class")
        return (f"at chance level: {self.text(score)} on {self.pictures} held-out pictures, where one answer for all "
                f"reaches {format_metric(self.metric, self.constant)}")


def binomial_tail(least: int, trials: int, share: float) -> float:
    """Probability of `least` or more successes in so many trials, each with probability `share`."""
    if least <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    start = math.lgamma(trials + 1)
    return math.fsum(math.exp(start - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(share)
                              + (trials - k) * math.log1p(-share)) for k in range(least, trials + 1))


def judge(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, bool]:
    """What keeps a run from being a success, empty if nothing does; and whether its result is useless.

    Args:
        results: of the phases, by name.
    """
    held_out = HeldOut(**results["baseline"]["held_out"])
    before, after = (results[phase]["metrics"][held_out.metric] for phase in ("baseline", "save"))
    if held_out.is_chance(after):
        also = held_out.is_chance(before)
        remedy = ("the baseline is too, so give a model with weights, or train longer or at another --lr" if also else
                  f"the baseline has {held_out.text(before)}; keep more, or fine-tune longer or at another "
                  "--finetune-lr")
        return f"the slim network is {held_out.describe_chance(after)}; {remedy}", True
    if held_out.is_chance(before):
        return (f"the baseline is {held_out.describe_chance(before)}, so that what the cut costs is not known; give a "
                "model with weights, or train longer or at another --lr"), False
    lost = held_out.lost(before, after)
    if not held_out.is_lower(after, before) or lost <= _WELL_BELOW:
        return "", False
    collapsed = held_out.has_collapsed(before, after)
    what = "collapsed" if collapsed else "is well below the baseline's"
    lead = "the most frequent class" if held_out.metric == "accuracy" else "one answer for all"
    return (f"the slim network's {held_out.metric} {what}: {format_metric(held_out.metric, before)} before, "
            f"{format_metric(held_out.metric, after)} after, {lost:.0%} of the lead over {lead} "
            f"({format_metric(held_out.metric, held_out.constant)}) is lost; keep more, or fine-tune longer or at "
            "another --finetune-lr"), collapsed
