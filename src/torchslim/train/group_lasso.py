"""Sparsity training: a group lasso over everything that a channel touches."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.coupling.groups import ChannelGroup, ChannelGroups, Member
from torchslim.errors import RequestError

_GIVE = "give torchslim.groups of this model"


@dataclass(frozen=True)
class _Slices:
    """The slices of a parameter along one or several of its dimensions, and the channel that each belongs to.

    Attributes:
        parameter: its place among the parameters.
        shape: the parameter's, with the dimension of a grouped convolution's inputs taken apart.
        channels: for each set of dimensions that numbers slices the channel of each, shape (slices,); that of slices
            which can't be cut is the last, which counts nothing.
    """

    parameter: int
    shape: tuple[int, ...]
    channels: dict[tuple[int, ...], Tensor]

    def squares(self, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each set of dimensions the channels of its slices, and the sum of the squares of each, (slices,)."""
        kept = sorted({dim for dims in self.channels for dim in dims})
        seen = weight.reshape(self.shape).to(_precise(weight))
        # One pass over the weight, whose kernels are summed up first; what is left is small.
        squares = _summed(seen * seen, [dim for dim in range(len(self.shape)) if dim not in kept])
        for dims, channels in self.channels.items():
            yield channels, _summed(squares, [dim for dim in kept if dim not in dims]).flatten()

    def factors(self, of_channels: Tensor) -> Tensor:
        """A value per channel to the sum of those of each entry's channels, in a shape broadcast over `shape`."""
        parts = [of_channels[channels].reshape([size if dim in dims else 1 for dim, size in enumerate(self.shape)])
                 for dims, channels in self.channels.items()]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def _precise(*parameters: Tensor) -> torch.dtype:
    """The type of sums: half precision has too few digits for them, and squares that it can't hold."""
    dtype = torch.float32
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def _summed(x: Tensor, dims: list[int]) -> Tensor:
    """The sums along these dimensions, which stay with size 1."""
    return x.sum(dims, keepdim=True) if dims else x


class GroupLasso:
    """Group lasso: `weight` times the sum over channels of the root of their size times their norm.

    The norm of a channel is that of all parameters that go when it is cut: its filters, biases, scales and shifts, and
    the weights that read it (of a weight that does both, as in a block whose input is added to its output, twice). Its
    size is their number. All of them shrink together, those of unimportant channels to
    zero, whichever layers a network has; batch norms are not needed.

    Sources: Yuan and Lin 2006, "Model Selection and Estimation in Regression with Grouped Variables", eq. 2; for
    filters of convolutions Wen et al. 2016, "Learning Structured Sparsity in Deep Neural Networks"; for coupled layers
    Fang et al. 2023, "DepGraph", section 3.3.

    Args:
        model: the model that is trained.
        groups: its channel groups (`torchslim.groups`); those that can't be cut are left out.
        weight: of the penalty.

    Attributes:
        names: of the penalised parameters.
        parameters: these.

    Raises:
        RequestError: a weight that is negative or not finite, or groups of which none can be cut or which are another
            model's.
    """

    def __init__(self, model: nn.Module, groups: Iterable[ChannelGroup], weight: float = 1e-5) -> None:
        if not (weight >= 0 and math.isfinite(weight)):
            raise RequestError(f"GroupLasso: weight={weight} found, a number from 0 wanted; try 1e-5")
        groups = groups if isinstance(groups, ChannelGroups) else tuple(groups)
        free = [group for group in groups if not group.frozen]
        if not free:
            raise RequestError("GroupLasso: none of the groups can be cut, so nothing can be pressed; "
                               "print(torchslim.groups(model, inputs)) says why")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        _check_model(groups, parameters, {name for name, _ in model.named_buffers(remove_duplicate=False)})
        starts = torch.tensor([0] + [group.channels for group in free]).cumsum(0).tolist()
        members = [(start, member) for start, group in zip(starts, free, strict=False) for member in group.members
                   if member.name in parameters]
        named = (parameters[member.name] for _, member in members)
        self.parameters: tuple[Tensor, ...] = tuple({id(parameter): parameter for parameter in named}.values())
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        slices: dict[tuple[int, tuple[int, ...]], dict[tuple[int, ...], Tensor]] = {}
        self.weight = weight
        self.names = tuple(dict.fromkeys(member.name for _, member in members))
        for start, member in members:
            parameter = parameters[member.name]
            shape, dims = _numbering(parameter, member)
            of_dims = slices.setdefault((places[id(parameter)], shape), {})
            if dims not in of_dims:
                of_dims[dims] = torch.full((math.prod(shape[dim] for dim in dims),), starts[-1])
            _number(of_dims[dims], member, start)
        self._slices = [_Slices(place, shape, channels) for (place, shape), channels in slices.items()]
        self._roots = self._sizes(starts[-1]).sqrt()

    def __call__(self) -> Tensor:
        """The penalty, a scalar with gradient."""
        penalty: Tensor = _Penalty.apply(self._slices, self._roots, *self.parameters)
        return self.weight * penalty

    def _sizes(self, channels: int) -> Tensor:
        """Shape (channels + 1,): the parameters of each channel; of none in the last place."""
        sizes = torch.zeros(channels + 1, dtype=torch.float64)
        for one in self._slices:
            for of_slices in one.channels.values():
                count = math.prod(one.shape) / len(of_slices)
                sizes.index_add_(0, of_slices, torch.full((len(of_slices),), count, dtype=torch.float64))
        sizes[-1] = 0
        return sizes


def _check_model(groups: Sequence[ChannelGroup], parameters: Mapping[str, Tensor], buffers: Collection[str]) -> None:
    """Refuse groups of another model, by tensors that this one does not have, or has in another size."""
    highest: dict[tuple[str, int, int, bool], int] = {}
    for member in (member for group in groups for member in group.members):
        if member.name not in parameters and member.name not in buffers:
            raise RequestError(f"GroupLasso: the groups are of another model, this one has no {member.name}; {_GIVE}")
        if member.name in parameters and member.indices.size:
            key = (member.name, member.dim, member.groups, member.role == "makes")
            highest[key] = max(highest.get(key, 0), int(member.indices.max()))
    for (name, dim, count, makes), index in highest.items():
        shape = parameters[name].shape
        slices = shape[dim] * count if dim < len(shape) else 0
        # All groups of a model have all channels that its layers make.
        fewer = makes and isinstance(groups, ChannelGroups) and index < slices - 1
        if index >= slices or fewer:
            raise RequestError(f"GroupLasso: {name} has {slices} slices along dimension {dim}, the groups are of a "
                               f"model with {index + 1 if fewer else 'more'}; {_GIVE}")


def _numbering(parameter: Tensor, member: Member) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A parameter's shape, and the dimensions of it that number the slices of a member."""
    if member.groups > 1:  # inputs are counted over all groups of filters
        return (member.groups, parameter.shape[0] // member.groups, *parameter.shape[1:]), (0, 2)
    return tuple(parameter.shape), (member.dim,)


def _number(channels: Tensor, member: Member, start: int) -> None:
    """Write the channels of a member, which count from `start`."""
    indices = torch.as_tensor(member.indices)
    channels[indices.flatten()] = start + torch.arange(len(indices)).repeat_interleave(indices.shape[1])


class _Penalty(torch.autograd.Function):
    """The sum over channels of root times norm; one pass over each parameter forward, and one backward."""

    @staticmethod
    def forward(context: Any, slices: list[_Slices], roots: Tensor, *parameters: Tensor) -> Tensor:
        """The sum, as a scalar."""
        first = parameters[0]
        squares = torch.zeros(len(roots), dtype=_precise(*parameters), device=first.device)
        for one in slices:
            for channels, sums in one.squares(parameters[one.parameter]):
                squares.index_add_(0, channels.to(first.device), sums.to(squares.dtype))
        norms, roots = squares.sqrt(), roots.to(squares)
        # A channel that is zero has no direction; it stays there.
        context.factors = torch.where(norms > 0, roots / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
        context.slices = slices
        context.save_for_backward(*parameters)
        return (roots * norms).sum()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        """Each parameter times the factors of the channels that it belongs to."""
        parameters, factors = context.saved_tensors, context.factors * gradients[0]
        results: list[Tensor | None] = [None] * len(parameters)
        for one in context.slices:
            weight, earlier = parameters[one.parameter], results[one.parameter]
            part = (weight.reshape(one.shape) * one.factors(factors)).to(weight.dtype).reshape(weight.shape)
            results[one.parameter] = part if earlier is None else earlier + part
        return (None, None, *results)
