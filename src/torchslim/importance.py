"""How much each channel matters: group -> one score a channel, higher for channels that matter more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchslim.channels import ChannelGroup, Member
from torchslim.errors import RequestError
from torchslim.gradients import Gradients, totals
from torchslim.modules import BLOCK

Scores = NDArray[np.float64]


class Weights:
    """A network's tensors, and sums over them that several groups ask for."""

    def __init__(self, state: Mapping[str, Tensor], gradients: Gradients | None = None) -> None:
        self.state = state
        self._gradients = gradients
        self._sums: dict[tuple[str, int, int], Scores] = {}

    def sums(self, member: Member, power: int) -> Scores:
        """Sum of |w|^power over the weights at each channel of a member, shape (channels,)."""
        key = (member.name, member.dim, power)
        if key not in self._sums:
            self._sums[key] = _sums(self.state[member.name].detach(), member.dim, member.groups, power)
        return np.asarray(self._sums[key][member.indices].sum(axis=1))

    @property
    def gradients(self) -> Gradients:
        """What a loss says of the weights.

        Raises:
            RequestError: there is no labelled data.
        """
        if self._gradients is None:
            raise RequestError("importance: 'taylor' and 'hessian' ask for data=, batches of (inputs, targets), and "
                               "loss=, a callable(outputs, targets) such as torch.nn.functional.cross_entropy")
        return self._gradients


Criterion = Callable[[ChannelGroup, Weights], Scores]


def bn_scale(group: ChannelGroup, weights: Weights) -> Scores:
    """Mean |gamma| over the norm layers that scale the channel (network slimming, Liu et al. 2017, section 3).

    Raises:
        RequestError: no norm layer scales the group's channels.
    """
    scales = [m for m in group.members if m.scale]
    if not scales:
        raise RequestError(f"importance 'bn_scale': no batch norm scales the channels of `{group.name}`; "
                           "use importance='l2', or exclude the layer")
    return np.asarray(np.mean([weights.sums(m, 1) for m in scales], axis=0))


def l1(group: ChannelGroup, weights: Weights) -> Scores:
    """Mean |w| over the weights that make and read the channel (Li et al. 2017), relative to the group's mean."""
    return _relative(_norm(group, weights, 1))


def l2(group: ChannelGroup, weights: Weights) -> Scores:
    """Root mean square of the weights that make and read the channel, relative to the group's mean."""
    return _relative(np.sqrt(_norm(group, weights, 2)))


def fpgm(group: ChannelGroup, weights: Weights) -> Scores:
    """Sum of distances to the group's other filters (geometric median, He et al. 2019), relative to the mean."""
    filters = [m for m in group.members if m.role == "makes"] or list(group.members)
    total = np.zeros(group.channels)
    for member in filters:
        weight = weights.state[member.name].detach().double().movedim(member.dim, 0).flatten(1)
        own = weight[torch.from_numpy(member.indices.ravel())].reshape(group.channels, -1)
        total += _distances(own).sum(1).cpu().numpy()
    return _relative(total)


def lamp(group: ChannelGroup, weights: Weights) -> Scores:
    """The channel's squares over those of all that are at least as large (LAMP, Lee et al. 2021, section 3).

    The largest channel of every group scores 1: none is emptied before the others.
    """
    squares = _norm(group, weights, 2)
    ordered = np.sort(squares)
    at_least = np.cumsum(ordered[::-1])[::-1][np.searchsorted(ordered, squares)]
    return np.divide(squares, at_least, out=np.zeros_like(squares), where=at_least > 0)


def taylor(group: ChannelGroup, weights: Weights) -> Scores:
    """The square of what the loss changes by, to the first order, where the channel is silenced, mean over batches.

    Molchanov et al. 2019, equation 8, with the weights that read the channel as its parameters. Not relative to the
    group: the loss is one for the whole network.
    """
    return np.asarray(np.square(weights.gradients.changes(group)).mean(axis=0))


def hessian(group: ChannelGroup, weights: Weights) -> Scores:
    """What the loss changes by, to the second order, where the weights that read the channel go to zero each by itself.

    Optimal brain damage (LeCun et al. 1989, equation 5), with the squares of the gradients for the Hessian's diagonal
    (Theis et al. 2018): half the sum of (weight x gradient)^2, mean over batches; batches of one item give the Fisher
    information itself.
    """
    return np.asarray(weights.gradients.squares(group).mean(axis=0) / 2)


def _distances(filters: Tensor) -> Tensor:
    """Euclidean distances between the rows of a matrix, shape (rows, rows).

    In whole numbers, so large that their sums are just exact: a product of matrices adds in an order that depends on
    the number of threads, and whole numbers do not mind. Equal rows are at distance 0.
    """
    bits = (51 - filters.shape[1].bit_length()) // 2
    largest = float(filters.abs().max())
    whole = (filters * (2.0**bits / largest)).round() if largest else filters
    products = whole @ whole.T
    squares = products.diagonal().clone()
    return products.mul_(-2).add_(squares[:, None]).add_(squares).sqrt_().mul_(largest / 2.0**bits)


CRITERIA: dict[str, Criterion] = {"bn_scale": bn_scale, "fpgm": fpgm, "hessian": hessian, "l1": l1, "l2": l2,
                                  "lamp": lamp, "taylor": taylor}
ON_LABELS = ("hessian", "taylor")
"""Criteria that ask for labelled data and a loss."""


def score(groups: tuple[ChannelGroup, ...], state: Mapping[str, Tensor],
          importance: str | Callable[[ChannelGroup], object], seed: int = 0,
          gradients: Gradients | None = None) -> list[Scores]:
    """The scores of each group's channels, shape (channels,).

    Args:
        groups: the channel groups.
        state: the network's tensors by name.
        importance: a criterion's name, "random", or a callable from a group to one score a channel.
        seed: of "random".
        gradients: of a loss, for those criteria that ask for it (`ON_LABELS`).

    Raises:
        RequestError: unknown name; a criterion that has no data for a group, which is named; scores that are not one
            finite number a channel.
    """
    if callable(importance):
        found = [_numbers(group, importance(group)) for group in groups]
    elif importance == "random":
        numbers = np.random.default_rng(seed)
        found = [numbers.random(group.channels) for group in groups]
    elif importance in CRITERIA:
        weights = Weights(state, gradients)
        for group in groups:
            if any(state[member.name].is_meta for member in group.members):
                raise RequestError(f"importance {importance!r}: the weights of `{group.name}` are on the meta device "
                                   "and hold no numbers; load them, or use importance='random'")
        if importance in ON_LABELS:
            weights.gradients.prepare(groups)
        found = [CRITERIA[importance](group, weights) for group in groups]
    else:
        raise RequestError(f"importance: unknown criterion {importance!r}; wanted one of "
                           f"{', '.join(sorted([*CRITERIA, 'random']))}, or a callable(group)")
    for group, scores in zip(groups, found, strict=True):
        if scores.shape != (group.channels,) or not np.isfinite(scores).all():
            raise RequestError(f"importance: `{group.name}` got scores of shape {scores.shape}"
                               f"{'' if np.isfinite(scores).all() else ' with values that are not finite'}, wanted "
                               f"({group.channels},) finite numbers, one a channel")
    return found


def _numbers(group: ChannelGroup, scores: object) -> Scores:
    try:
        return np.asarray(scores.detach().double().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"importance: `{group.name}` got {type(scores).__name__} ({error}), wanted "
                           f"{group.channels} numbers, one a channel") from error


def _sums(tensor: Tensor, dim: int, groups: int, power: int) -> Scores:
    """Sum of |w|^power at each index of one dimension; over all groups' inputs for a grouped convolution."""
    if groups > 1:
        return totals(_powers(tensor, power), dim, groups).double().cpu().numpy()
    rows = max(1, BLOCK * len(tensor) // max(tensor.numel(), 1))
    blocks = (_powers(block, power) for block in torch.split(tensor, rows))
    sums = [totals(block, dim).double() for block in blocks]
    total = torch.cat(sums) if dim == 0 else torch.stack(sums).sum(0)
    return total.cpu().numpy()


def _powers(tensor: Tensor, power: int) -> Tensor:
    return tensor.abs() if power == 1 else tensor.square()


def _norm(group: ChannelGroup, weights: Weights, power: int) -> Scores:
    """Mean |w|^power over the weights that make or read each channel."""
    own = [m for m in group.members if m.role != "follows"] or list(group.members)
    count = sum(weights.state[m.name].numel() // (weights.state[m.name].shape[m.dim] * m.groups) * m.indices.shape[1]
                for m in own)
    return np.asarray(np.sum([weights.sums(m, power) for m in own], axis=0) / max(count, 1))


def _relative(scores: Scores) -> Scores:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
