"""Weights by least squares: those with which a layer comes closest to some outputs for some inputs.

A layer is linear in its weights, so that the best ones follow from second moments: of what its filters see, and of that
with what they should give. What a few pictures leave open, a ridge keeps as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.rewriting.building import plain, stored
from torchslim.rewriting.fits import leading
from torchslim.rewriting.spec import Spec, spec_of

RIDGE = 0.5
"""What it costs to leave the weights that there were, in mean squares of what the filters see: little where the data
are like what comes, more where they are few and unlike."""
PLACES = 256
"""So many places of each map are looked at, or all if it has no more."""

Pair = tuple[Tensor, Tensor]
Pairs = Iterable[Pair]


@torch.no_grad()
def solve(layer: nn.Module, pairs: Pairs) -> None:
    """Give a layer the weights, and the bias if it has one, that bring it nearest to the outputs.

    Args:
        layer: a convolution, in groups or not, transposed or not, or a linear layer; changed in place.
        pairs: batches of what it reads and what it should give.
    """
    spec, like = _spec(layer), _any(layer)
    weight = plain(like.weight, spec.groups, spec.transposed)
    rows = weight.double().reshape(spec.groups, spec.outputs // spec.groups, -1)
    best, seen, wanted, _ = _best(spec, rows, pairs, spec.bias)
    like.weight.copy_(stored(best.reshape(weight.shape), spec))
    if spec.bias:
        like.bias.copy_((wanted - (best @ seen.unsqueeze(2)).squeeze(2)).flatten())


@torch.no_grad()
def factor(first: nn.Module, last: nn.Module, weight: Tensor, pairs: Pairs) -> None:
    """The same for a layer without groups and the pointwise one that follows it: regression of a low rank.

    What the best whole layer gives has few main directions: the last layer spans these, the first makes their amounts
    (Izenman 1975; Zhang et al. 2015, section 3.1).

    Args:
        first, last: changed in place.
        weight: of the one layer in whose place they are, (N, M, k, ...).
        pairs: as above.
    """
    spec, end = _spec(first), _spec(last)
    best, seen, wanted, moments = _best(spec, weight.double().flatten(1)[None], pairs, end.bias)
    basis = leading(best[0] @ torch.linalg.cholesky(moments[0]), spec.outputs)
    amounts = basis.T @ best[0]
    # Both factors of a direction get the same norm, so that one rate of learning suits both.
    root = amounts.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    have = len(root)
    for layer in (first, last):
        _any(layer).weight.zero_()
    shape = spec.outputs, spec.inputs, *spec.kernel
    filters = best.new_zeros(spec.outputs, amounts.shape[1])
    filters[:have] = amounts / root[:, None]
    _any(first).weight.copy_(stored(filters.reshape(shape), spec))
    _any(last).weight.flatten(1)[:, :have] = (basis * root).to(_any(last).weight.dtype)
    if end.bias:
        _any(last).bias.copy_(wanted[0] - basis @ (amounts @ seen[0]))


def _best(spec: Spec, weight: Tensor, pairs: Pairs, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (G, N / G, F) near to `weight`, means (G, F) and (G, N / G) of what filters see and should give, and the
    second moments (G, F, F) of what they see, about the means if there is a bias."""
    groups, share, width = weight.shape
    seen, both = weight.new_zeros(groups, width, width), torch.zeros_like(weight)
    means, wanted, places = weight.new_zeros(groups, width), weight.new_zeros(groups, share), 0
    for x, y in sampled(spec, pairs):
        a, b = x.reshape(len(x), groups, width).transpose(0, 1), y.reshape(len(y), groups, share).transpose(0, 1)
        seen += a.mT @ a
        both += b.mT @ a
        means += a.sum(1)
        wanted += b.sum(1)
        places += len(x)
    seen, both, means, wanted = (moment / places for moment in (seen, both, means, wanted))
    if bias:
        seen -= means.unsqueeze(2) * means.unsqueeze(1)
        both -= wanted.unsqueeze(2) * means.unsqueeze(1)
    ridge = RIDGE * seen.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)[:, None, None]
    seen.diagonal(dim1=1, dim2=2).add_(ridge[:, :, 0])
    best: Tensor = torch.linalg.solve(seen, (both + ridge * weight).mT).mT
    return best, means, wanted, seen


def sampled(spec: Spec, pairs: Pairs) -> Iterator[Pair]:
    """At some places of each input: what the filters see there, channel by channel, and what they should give."""
    chance, unfold = torch.Generator().manual_seed(0), None
    for x, y in pairs:
        if not spec.dims:
            yield x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
            continue
        unfold = unfold or _unfold(spec).to(device=x.device, dtype=x.dtype)
        for one, given in zip(x.reshape(-1, *x.shape[-spec.dims - 1:]), y.reshape(-1, *y.shape[-spec.dims - 1:]),
                              strict=True):
            views, wanted = unfold(one[None])[0].flatten(1), given.flatten(1)
            some = torch.randperm(views.shape[1], generator=chance)[:PLACES].to(x.device)
            yield views[:, some].T, wanted[:, some].T


def _unfold(spec: Spec) -> nn.Module:
    """A layer whose outputs are what each tap of a filter sees of each channel."""
    taps = prod(spec.kernel)
    wide = replace(spec, outputs=spec.inputs * taps, groups=spec.inputs, bias=False)
    layer = wide.layer().requires_grad_(False)
    ones = torch.eye(taps).reshape(taps, 1, *spec.kernel).repeat(spec.inputs, *[1] * (spec.dims + 1))
    _any(layer).weight.copy_(stored(ones, wide))
    return layer


def _spec(layer: nn.Module) -> Spec:
    spec = spec_of(layer)
    assert spec is not None
    return spec


def _any(layer: Any) -> Any:
    return layer
