"""The Pareto front of finished trials, what is picked from it, and which trials are stopped. Neither torch nor Optuna.

Scores are better when higher, costs when lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Stage = tuple[float, float]
"""The share of the fine-tuning that is done, from 0 after the cut, and the score then."""


@dataclass(frozen=True)
class Finished:
    """A finished trial.

    Attributes:
        number: of the trial.
        score: the task's main metric at the end.
        cost: as a share of the uncut network's.
        stages: the scores on the way.
    """

    number: int
    score: float
    cost: float
    stages: tuple[Stage, ...] = ()


def pareto_front(trials: Sequence[Finished]) -> list[Finished]:
    """The trials that no other dominates, by rising cost; of equal ones the first.

    A trial dominates another if its score is no lower and its cost no higher, and one of both is better.
    """
    front: list[Finished] = []
    for trial in sorted(trials, key=lambda each: (each.cost, -each.score, each.number)):
        if not front or trial.score > front[-1].score:
            front.append(trial)
    return front


def dominating(cost: float, stage: Stage, finished: Sequence[Finished], margin: float) -> Finished | None:
    """A finished trial of no more cost that is ahead of a running one by more than the margin; None if there is none.

    Compared are the score of the running trial and that of the finished one at the same share of its fine-tuning (the
    last before it, or its final score if that is lower). After the cut the margin is twice as wide as at the end, and
    falls linearly in between.

    Args:
        cost: of the running trial.
        stage: where it is.
        finished: other trials.
        margin: at the end of the fine-tuning.
    """
    done, score = stage
    for other in finished:
        peer = [value for share, value in other.stages if share <= done + 1e-9]
        if other.cost <= cost and peer and min(peer[-1], other.score) - score > margin * (2 - done):
            return other
    return None


def knee(front: Sequence[Finished]) -> Finished:
    """The trial of a front that lies farthest above the line between its ends, both axes from 0 to 1.

    That is the knee of Satopää et al., "Finding a 'Kneedle' in a Haystack", 2011. Of two trials, and where none lies
    above the line, it is the one with the highest score.
    """
    first, last = front[0], front[-1]
    width, height = last.cost - first.cost, last.score - first.score

    def above(trial: Finished) -> float:
        return (trial.score - first.score) / height - (trial.cost - first.cost) / width

    return max(front[1:-1], key=above, default=last) if width and height and any(
        above(trial) > 0 for trial in front[1:-1]) else last


def cheapest_with(front: Sequence[Finished], score: float) -> Finished | None:
    """The cheapest trial of a front whose score is at least this; None if none is."""
    return next((trial for trial in front if trial.score >= score), None)


def best_within(front: Sequence[Finished], cost: float) -> Finished | None:
    """The trial of a front with the highest score that costs at most this; None if all cost more."""
    return next((trial for trial in reversed(front) if trial.cost <= cost), None)
