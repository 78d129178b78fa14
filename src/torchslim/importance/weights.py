"""Criteria that use weights only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from torchslim.coupling.groups import ChannelGroup, Member
from torchslim.errors import RequestError
from torchslim.importance.criterion import Criterion, Normalize
from torchslim.importance.evidence import Evidence
from torchslim.importance.types import Scores

Over = Literal["filters", "weights", "all"]


@dataclass(frozen=True)
class BNScale(Criterion):
    """Mean |gamma| over the norm layers that scale the channel (network slimming, Liu et al. 2017, section 3)."""

    name: ClassVar[str] = "bn_scale"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`.

        Raises:
            RequestError: no norm layer scales a group's channels.
        """
        return [_bn_scale(group, evidence) for group in groups]


def _bn_scale(group: ChannelGroup, evidence: Evidence) -> Scores:
    scales = [m for m in group.members if m.scale]
    if not scales:
        raise RequestError(f"importance 'bn_scale': no batch norm scales the channels of `{group.name}`; "
                           "use importance='l2', or exclude the layer")
    return np.asarray(np.mean([evidence.sums(m, 1) for m in scales], axis=0))


@dataclass(frozen=True)
class L1(Criterion):
    """Mean |w| over weights of the channel, relative to the group's mean.

    Attributes:
        over: "filters", the weights that compute the channel (Li et al. 2017, section 3.1); "weights", also those that
            read it; "all", also its biases, norms and depthwise filters.
    """

    over: Over = "weights"
    normalize: Normalize = field(default="mean", kw_only=True)
    name: ClassVar[str] = "l1"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"over": get_args(Over)}

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        return [_norm(group, evidence, 1, self.over) for group in groups]


@dataclass(frozen=True)
class L2(Criterion):
    """Root mean square of weights of the channel, relative to the group's mean.

    Attributes:
        over: see `L1`.
    """

    over: Over = "weights"
    normalize: Normalize = field(default="mean", kw_only=True)
    name: ClassVar[str] = "l2"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"over": get_args(Over)}

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        return [np.sqrt(_norm(group, evidence, 2, self.over)) for group in groups]


@dataclass(frozen=True)
class FPGM(Criterion):
    """Sum of distances to the group's other filters (geometric median, He et al. 2019), relative to the mean."""

    normalize: Normalize = field(default="mean", kw_only=True)
    name: ClassVar[str] = "fpgm"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        return [_apart(group, evidence) for group in groups]


@dataclass(frozen=True)
class LAMP(Criterion):
    """Mean square of the channel's weights over the sum of those not smaller (LAMP, Lee et al. 2021, section 3).

    The largest channel of every group scores 1, so no group is removed first.
    """

    name: ClassVar[str] = "lamp"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        return [_lamp(_norm(group, evidence, 2)) for group in groups]


def _lamp(squares: Scores) -> Scores:
    ordered = np.sort(squares)
    at_least = np.cumsum(ordered[::-1])[::-1][np.searchsorted(ordered, squares)]
    return np.divide(squares, at_least, out=np.zeros_like(squares), where=at_least > 0)


def _norm(group: ChannelGroup, evidence: Evidence, power: int, over: Over = "weights") -> Scores:
    """Mean |w|^power over weights of each channel."""
    members = _members(group, evidence, over)
    count = sum(evidence.state[m.name].numel() // (evidence.state[m.name].shape[m.dim] * m.groups) * m.indices.shape[1]
                for m in members)
    return np.asarray(np.sum([evidence.sums(m, power) for m in members], axis=0) / max(count, 1))


def _members(group: ChannelGroup, evidence: Evidence, over: Over) -> list[Member]:
    """The group's members selected by `over`; all members if it selects none."""
    def counts(member: Member) -> bool:
        if over == "all":  # not running statistics
            return isinstance(evidence.state[member.name], nn.Parameter)
        return member.role == "makes" if over == "filters" else member.role != "follows"

    return [m for m in group.members if counts(m)] or list(group.members)


def _apart(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Sum of the distances from each channel's filters to those of the others."""
    filters = [m for m in group.members if m.role == "makes"] or list(group.members)
    total = np.zeros(group.channels)
    for member in filters:
        weight = evidence.state[member.name].detach().double().movedim(member.dim, 0).flatten(1)
        filters_of_channels = weight[torch.from_numpy(member.indices.ravel())].reshape(group.channels, -1)
        total += _distances(filters_of_channels).sum(1).cpu().numpy()
    return total


def _distances(filters: Tensor) -> Tensor:
    """Euclidean distances between the rows of a matrix, shape (rows, rows).

    Rows are scaled and rounded to integers whose products and sums are exact in float64, so the result does not depend
    on the number of threads. Equal rows are at distance 0.
    """
    bits = (51 - filters.shape[1].bit_length()) // 2
    largest = float(filters.abs().max())
    integers = (filters * (2.0**bits / largest)).round() if largest else filters
    products = integers @ integers.T
    squares = products.diagonal().clone()
    return products.mul_(-2).add_(squares[:, None]).add_(squares).sqrt_().mul_(largest / 2.0**bits)
