"""First and second moments of layers' inputs and target outputs, as used by least-squares fits.

A layer is linear in its weights, so its squared error as a function of them follows from the second moments of its
inputs and the cross moments of inputs and target outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchslim.compensation.ridge import solve_ridge
from torchslim.utils.layer_spec import LayerSpec, torch_layout

PLACES = 256
"""Positions sampled per map, or all if it has fewer."""

Pair = tuple[Tensor, Tensor]
Pairs = Iterable[Pair]


class Moments(NamedTuple):
    """Second moments of filters' inputs (G, F, F) and with target outputs (G, N / G, F), and means of both, (G, F) and
    (G, N / G); central moments if there is a bias."""

    seen: Tensor
    both: Tensor
    means: Tensor
    wanted: Tensor

    @property
    def squares(self) -> Tensor:
        """Of each weight's input, (G, F)."""
        return self.seen.diagonal(dim1=1, dim2=2)

    def even(self, ridge: float) -> Tensor:
        """The same ridge for all weights, in mean squares of their inputs, (G, F)."""
        mean = self.squares.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return (ridge * mean).expand_as(self.squares)

    def best(self, weight: Tensor, costs: Tensor) -> Tensor:
        """Ridge regression with prior `weight`, (G, N / G, F), and ridge `costs`."""
        read = (self.squares != 0).any(0).nonzero().flatten()  # other inputs are zero: no change
        best = weight.clone()
        best[..., read] = solve_ridge(self.seen[:, read[:, None], read], self.both[..., read], costs[:, read],
                                      weight[..., read])
        return best

    def missing(self, weight: Tensor) -> Tensor:
        """Mean target output minus that of these weights, (N,): the bias."""
        return (self.wanted - (weight @ self.means.unsqueeze(2)).squeeze(2)).flatten()


def moments_of(weight: Tensor, rows: Pairs, centred: bool) -> Moments:
    """Moments of a layer's filter inputs and target outputs, batches of (rows, G x F) and (rows, N).

    Args:
        weight: (G, N / G, F); its shape is used.
        rows: see `sampled`.
        centred: about the means.
    """
    groups, share, width = weight.shape
    seen, both = weight.new_zeros(groups, width, width), torch.zeros_like(weight)
    means, wanted, places = weight.new_zeros(groups, width), weight.new_zeros(groups, share), 0
    for x, y in _together(rows, PLACES):
        a, b = x.reshape(len(x), groups, width).transpose(0, 1), y.reshape(len(y), groups, share).transpose(0, 1)
        read = a.any(1).any(0).nonzero().flatten()
        if 2 * len(read) < width:  # on small maps most inputs are padding
            few = a[..., read]
            seen[:, read[:, None], read] += few.mT @ few
            both[..., read] += b.mT @ few
        else:
            seen += a.mT @ a
            both += b.mT @ a
        means += a.sum(1)
        wanted += b.sum(1)
        places += len(x)
    seen, both, means, wanted = (moment / places for moment in (seen, both, means, wanted))
    if centred:
        seen -= means.unsqueeze(2) * means.unsqueeze(1)
        both -= wanted.unsqueeze(2) * means.unsqueeze(1)
    return Moments(seen, both, means, wanted)


def _together(pairs: Pairs, least: int) -> Iterator[Pair]:
    """The same rows, at least `least` at a time but for the last, so that small maps share a matrix product."""
    held: list[Pair] = []
    for pair in pairs:
        held.append(pair)
        if sum(len(x) for x, _ in held) >= least:
            yield torch.cat([x for x, _ in held]), torch.cat([y for _, y in held])
            held = []
    if held:
        yield torch.cat([x for x, _ in held]), torch.cat([y for _, y in held])


def sampled(spec: LayerSpec, pairs: Pairs) -> Iterator[Pair]:
    """At sampled positions of each input: filter inputs, channel by channel, and target outputs."""
    inputs, outputs = InputSampler(spec), OutputSampler(spec)
    for x, y in pairs:
        yield from zip(inputs(x), outputs(y), strict=True)


class _PlaceSampler:
    """Samples positions of maps; the same ones for the same sequence of map sizes."""

    def __init__(self, spec: LayerSpec, places: int | None = None) -> None:
        self.spec, self.places = spec, PLACES if places is None else places
        self.chance = torch.Generator().manual_seed(0)

    def choose(self, size: int, device: torch.device) -> Tensor:
        """Position indices in a map of this size."""
        return torch.randperm(size, generator=self.chance)[:self.places].to(device)


class InputSampler(_PlaceSampler):
    """Inputs of a layer's filters."""

    unfold: nn.Module | None = None

    def __call__(self, x: Tensor) -> Iterator[Tensor]:
        """At sampled positions, per item, (positions, inputs x taps); of a linear layer all rows."""
        if not self.spec.dims:
            yield x.reshape(-1, x.shape[-1])
            return
        if self.unfold is None:
            self.unfold = (_Strided(self.spec) if _pointwise(self.spec) else _unfold(self.spec)).to(x.device, x.dtype)
        for item in x.reshape(-1, *x.shape[-self.spec.dims - 1:]):
            views = self.unfold(item[None])[0].flatten(1)
            yield views[:, self.choose(views.shape[1], x.device)].T


class OutputSampler(_PlaceSampler):
    """A layer's outputs at the positions of `InputSampler`."""

    def __call__(self, y: Tensor) -> Iterator[Tensor]:
        """Per item, (positions, N); of a linear layer all rows at once."""
        if not self.spec.dims:
            yield y.reshape(-1, y.shape[-1])
            return
        for item in y.reshape(-1, *y.shape[-self.spec.dims - 1:]).flatten(2):
            yield item[:, self.choose(item.shape[1], y.device)].T


def _unfold(spec: LayerSpec) -> nn.Module:
    """A layer whose outputs are the inputs of each tap of a filter."""
    taps = prod(spec.kernel)
    wide = replace(spec, outputs=spec.inputs * taps, groups=spec.inputs, bias=False)
    layer: Any = wide.layer().requires_grad_(False)
    ones = torch.eye(taps).reshape(taps, 1, *spec.kernel).repeat(spec.inputs, *[1] * (spec.dims + 1))
    layer.weight.copy_(torch_layout(ones, wide))
    built: nn.Module = layer
    return built


def _pointwise(spec: LayerSpec) -> bool:
    return prod(spec.kernel) == 1 and not spec.transposed and (isinstance(spec.padding, str) or not any(spec.padding))


class _Strided(nn.Module):
    """The inputs of 1x1 filters: the map, subsampled by the stride."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.places: Any = (..., *(slice(None, None, stride) for stride in spec.stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, *map) -> (B, M, *smaller)."""
        return x[self.places]


class ChannelStatistics:
    """Mean and variance of each channel of a norm's inputs."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Add a batch, (B, C, *map)."""
        rows = x.detach().double().transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self.sum, self.squares = self.sum + rows.sum(1), self.squares + rows.square().sum(1)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """By channel."""
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(torch.finfo(torch.float32).tiny)


def wide(tensor: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for sums."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
