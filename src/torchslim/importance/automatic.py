"""The best criterion for what is given: `obs` on data, scales that training pressed, else weights.

Which one it was is in the settings and the notes of the plan. `docs/decisions/automatic-importance.md` has the
measurements behind the order and behind `PRESSED_SHARE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.criterion import Criterion, Needs, Random
from torchslim.importance.evidence import Evidence
from torchslim.importance.obs.criterion import OBS
from torchslim.importance.scoring import score
from torchslim.importance.types import Scores
from torchslim.importance.weights import L2, BNScale
from torchslim.utils.copying import copy_model
from torchslim.utils.data import batch_length, call_on_batch
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.formatting import pluralize
from torchslim.utils.inputs import tensors_in
from torchslim.utils.text import describe_error

PRESSED_SHARE, PRESSED_BELOW = 0.03, 0.03
"""Scales were pressed if this share of them or more lies below so much of their ninth decile."""

MOST_VALUES = 2**23
"""Of a layer that reads a group which `auto` measures: its weights, and the products of the group's channels."""


@dataclass(frozen=True)
class FilledOBS(OBS):
    """`OBS`, where groups that it can't measure are ranked by weights: auxiliary heads that run in training alone.

    So are groups around the hidden layers of VGG, which would take minutes (`MOST_VALUES`).
    """

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        narrow = [group for group in groups if _is_quick(group, evidence)]
        scores = dict(zip(map(id, narrow), self.measured(narrow, evidence), strict=True))
        return with_weights_for_missing(groups, [scores.get(id(group)) for group in groups], evidence)


def _is_quick(group: ChannelGroup, evidence: Evidence) -> bool:
    return all(group.channels**2 + evidence.state[member.name].numel() <= MOST_VALUES
               for member in group.members if member.role == "reads")


@dataclass(frozen=True)
class FilledBNScale(BNScale):
    """`BNScale`, where groups without a scale are ranked by their weights."""

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        scaled = _scaled(groups)
        scores = dict(zip(map(id, scaled), super().__call__(scaled, evidence), strict=True))
        return with_weights_for_missing(groups, [scores.get(id(group)) for group in groups], evidence)


def with_weights_for_missing(groups: Sequence[ChannelGroup], scores: Sequence[Scores | None],
                             evidence: Evidence) -> list[Scores]:
    """Scores for all groups: those without any get, by their weights, scores of the same kind as the others have.

    A channel without a score takes that of a channel whose weights are as large: its `L2` is put among those of all
    channels with scores, and the score at that place in order is taken, between two by interpolation, beyond the
    largest in proportion.

    Raises:
        RequestError: no group has scores.
    """
    missing = [group for group, of_group in zip(groups, scores, strict=True) if of_group is None]
    if missing:
        weights = score(groups, L2(), evidence)
        known = [(of_group, own) for of_group, own in zip(scores, weights, strict=True) if of_group is not None]
        if known and _CURVE not in evidence.memo:
            evidence.memo[_CURVE] = [np.sort(np.concatenate([[0.0], *each])) for each in zip(*known, strict=True)]
            evidence.memo[_MISSING] = len(missing)
        if _CURVE not in evidence.memo:
            raise RequestError("no group of channels can be scored")
        scores = [_interpolated(own, *evidence.memo[_CURVE]) if of_group is None else of_group
                  for of_group, own in zip(scores, weights, strict=True)]
    return [of_group for of_group in scores if of_group is not None]


_CURVE, _MISSING = "scores by weights", "groups without scores"


def _interpolated(weights: Scores, known_scores: Scores, known_weights: Scores) -> Scores:
    beyond = np.maximum(weights / known_weights[-1], 1.0) if known_weights[-1] > 0 else 1.0
    return np.asarray(np.interp(weights, known_weights, known_scores) * beyond)


def _scaled(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups whose channels a norm layer scales."""
    return [group for group in groups if any(member.scale for member in group.members)]


def pressed_share(groups: Sequence[ChannelGroup], evidence: Evidence) -> float:
    """The share of channels whose scale lies below `PRESSED_BELOW` of the ninth decile of all scales; 0 without any."""
    scales = np.concatenate([np.zeros(0), *score(_scaled(groups), BNScale(), evidence)])
    return float((scales < PRESSED_BELOW * np.quantile(scales, 0.9)).mean()) if len(scales) else 0.0


_ALONE = "it looks at weights alone"


@dataclass(frozen=True)
class Choice:
    """A criterion, the evidence that it is given, and why it was taken."""

    criterion: Criterion
    evidence: Evidence
    why: str


@dataclass(frozen=True)
class Automatic(Criterion):
    """The best criterion for what is given.

    `OBS` on the first batches of data, without targets, if there are any; else the scales of batch norms, if training
    pressed them (`pressed_share`); groups that these can't score are ranked by their weights. Else `L2`. A criterion
    that can't be computed for the network gives way to the next. Weights on the meta device hold no numbers: `Random`.

    Raises:
        RequestError: there is no batch in the data, one on which the model fails, or one with NaN; or weights are not
            finite.
    """

    needs: ClassVar[Needs] = "nothing"
    name: ClassVar[str] = "auto"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        if self not in evidence.memo:  # planning may score again with other groups: the choice stays
            evidence.memo[self] = _choices(groups, evidence)
        while True:
            first, *others = evidence.memo[self]
            first.evidence.gains = evidence.gains
            try:
                return score(groups, first.criterion, first.evidence)
            except Exception as error:
                if not others:
                    raise
                for key in (_CURVE, _MISSING):
                    evidence.memo.pop(key, None)
                why = f"{others[0].why}; {first.criterion} can't be computed here ({describe_error(error)})"
                evidence.memo[self] = [replace(others[0], why=why), *others[1:]]

    @classmethod
    def all_choices(cls) -> dict[str, tuple[str, ...]]:
        """None: the criterion that is taken normalises as it does by itself."""
        return {}

    @property
    def looks_at_data(self) -> bool:
        """Whether it looks at data if there is any."""
        return True

    def taken(self, evidence: Evidence) -> Criterion:
        """The criterion that was taken on this evidence; itself before."""
        choices = evidence.memo.get(self)
        return choices[0].criterion if choices else self

    def notes(self, evidence: Evidence) -> tuple[str, ...]:
        """Which criterion was taken, and why; nothing of `L2` where there was no other."""
        choice, missing = evidence.memo[self][0], evidence.memo.get(_MISSING, 0)
        rest = f"; {pluralize(missing, 'group')} that it can't score are ranked by their weights" if missing else ""
        alone = choice.why == _ALONE
        return () if alone else (f"importance: auto took {choice.criterion}: {choice.why}{rest}",)


def _choices(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Choice]:
    """What can be taken, best first."""
    sample = None if evidence.data is None else _sample(evidence)
    if any(evidence.state[member.name].is_meta for group in groups for member in group.members):
        return [Choice(Random(), evidence, "weights on the meta device hold no numbers")]
    choices = []
    if sample is not None:
        count = sum(map(batch_length, sample.batches))
        choices.append(Choice(FilledOBS(), sample, f"there is data (the first {count} inputs were looked at)"))
    share = pressed_share(groups, evidence)
    if share >= PRESSED_SHARE:
        choices.append(Choice(FilledBNScale(), evidence,
                              f"training pressed {share:.0%} of the scales of batch norms to almost nothing"))
    return [*choices, Choice(L2(), evidence, _ALONE)]


def _sample(evidence: Evidence) -> Evidence:
    """The evidence with the first batches alone, without targets; each was run once.

    Raises:
        RequestError: the data's own fault: no batch, one that holds NaN, or on which the model fails.
    """
    sample = replace(evidence, data=evidence.first_batches, loss=None)
    model = copy_model(evidence.model)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for index, batch in enumerate(sample.batches):
            if any(bool(tensor.isnan().any()) for tensor in tensors_in(batch)):
                raise RequestError(f"data: batch {index} holds NaN; look for it in what the batches are made of")
            call_on_batch(model, batch, index)
    return sample
