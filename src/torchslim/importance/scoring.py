"""Scores of all groups by a criterion, checked and made comparable from group to group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.criterion import Criterion, Normalize, numbers_of
from torchslim.importance.evidence import Evidence
from torchslim.importance.types import Scores


def score(groups: Sequence[ChannelGroup], criterion: Criterion, evidence: Evidence) -> list[Scores]:
    """The scores of each group's channels, shape (channels,).

    Args:
        groups: the channel groups.
        criterion: what ranks them (see `torchslim.importance.criterion` for one by its name).
        evidence: the network, and what else there is to look at.

    Raises:
        RequestError: there is not what the criterion needs; it has nothing to say of a group, which is named; scores
            that are not one finite number a channel.
    """
    criterion.check(evidence)
    for group in groups if criterion.needs != "nothing" else ():
        if any(evidence.state[member.name].is_meta for member in group.members):
            raise RequestError(f"importance '{criterion}': the weights of `{group.name}` are on the meta device "
                               "and hold no numbers; load them, or use importance='random'")
    given = list(criterion(groups, evidence))
    if len(given) != len(groups):
        raise RequestError(f"importance '{criterion}': gave scores for {len(given)} groups, wanted {len(groups)}, one "
                           "array a group")
    scores_of_groups = [numbers_of(group, scores) for group, scores in zip(groups, given, strict=True)]
    for group, scores in zip(groups, scores_of_groups, strict=True):
        if scores.shape != (group.channels,) or not np.isfinite(scores).all():
            raise RequestError(f"importance '{criterion}': `{group.name}` got scores of shape {scores.shape}"
                               f"{'' if np.isfinite(scores).all() else ' with values that are not finite'}, wanted "
                               f"({group.channels},) finite numbers, one a channel")
    return normalized(groups, scores_of_groups, evidence, criterion.normalize)


def normalized(groups: Sequence[ChannelGroup], scores: Sequence[Scores], evidence: Evidence,
               how: Normalize) -> list[Scores]:
    """Scores that are comparable from group to group (see `Criterion.normalize`); those of zeros stay as they are."""
    if how == "none":
        return list(scores)
    kinds = [kind(group, evidence) if how == "kind" else index for index, group in enumerate(groups)]
    together: dict[Any, list[Scores]] = {}
    for key, group_scores in zip(kinds, scores, strict=True):
        together.setdefault(key, []).append(group_scores)
    summary: Callable[[Scores], Any] = np.max if how == "max" else np.mean
    units = {key: float(summary(np.concatenate(group_scores))) for key, group_scores in together.items()}
    return [group_scores / units[key] if units[key] > 0 else group_scores
            for key, group_scores in zip(kinds, scores, strict=True)]


def kind(group: ChannelGroup, evidence: Evidence) -> tuple[Any, ...]:
    """What is equal for isomorphic groups: the shapes of the tensors that a channel touches, and the part it has in
    each."""
    return group.channels, tuple(sorted(
        (m.role, m.dim, m.scale, m.groups, m.indices.shape[1], tuple(evidence.state[m.name].shape))
        for m in group.members))
