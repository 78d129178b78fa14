"""Scores of all groups by a criterion, checked and normalised."""

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
        criterion: see `torchslim.importance.criterion` for one by its name.
        evidence: the network, and data and loss if given.

    Raises:
        RequestError: the criterion lacks evidence, or can't score a group, which is named; or scores are not one
            finite number per channel.
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
    """Scores normalised as in `Criterion.normalize`; all-zero scores stay as they are."""
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
    """A key that isomorphic groups share: the shapes of their tensors and the channels' role in each."""
    return group.channels, tuple(sorted(
        (m.role, m.dim, m.scale, m.groups, m.indices.shape[1], tuple(evidence.state[m.name].shape))
        for m in group.members))
