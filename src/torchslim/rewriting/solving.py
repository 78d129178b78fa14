"""Weights by least squares: those with which a layer comes closest to some outputs for some inputs.

A layer is linear in its weights, so that the best ones follow from second moments: of what its filters see, and of that
with what they should give. What a few pictures leave open, a ridge keeps as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchslim.rewriting.building import plain, stored
from torchslim.rewriting.fits import leading
from torchslim.rewriting.spec import Spec, spec_of

RIDGES = 0.01, 0.1, 1.0
"""What it may cost to leave the weights that there were, in mean squares of what the filters see. Each layer takes the
one that is best on what is kept back: less where the data are like that, more where they are few and unlike. Where
nothing is kept back it is the middle one."""
PLACES = 256
"""So many places of each map are looked at, or all if it has no more."""

Pair = tuple[Tensor, Tensor]
Pairs = Iterable[Pair]


@torch.no_grad()
def solve(layer: nn.Module, pairs: Pairs, held: Sequence[Pair] = ()) -> None:
    """Give a layer the weights, and the bias if it has one, that bring it nearest to the outputs.

    Args:
        layer: a convolution, in groups or not, transposed or not, or a linear layer; changed in place.
        pairs: batches of what it reads and what it should give.
        held: more of them, by which the ridge is chosen.
    """
    spec, like = _spec(layer), _any(layer)
    weight = plain(like.weight, spec.groups, spec.transposed)
    rows = weight.double().reshape(spec.groups, spec.outputs // spec.groups, -1)
    moments = moments_of(spec, rows, pairs, spec.bias)

    def give(ridge: float) -> None:
        best = moments.best(rows, moments.even(ridge))
        like.weight.copy_(stored(best.reshape(weight.shape), spec))
        if spec.bias:
            like.bias.copy_(moments.missing(best))

    _choose(give, layer, held)


@torch.no_grad()
def factor(first: nn.Module, last: nn.Module, weight: Tensor, pairs: Pairs, held: Sequence[Pair] = ()) -> None:
    """The same for a layer without groups and the pointwise one that follows it: regression of a low rank.

    What the best whole layer gives has few main directions: the last layer spans these, the first makes their amounts
    (Izenman 1975; Zhang et al. 2015, section 3.1).

    Args:
        first, last: changed in place.
        weight: of the one layer in whose place they are, (N, M, k, ...).
        pairs, held: as above.
    """
    spec, end = _spec(first), _spec(last)
    rows = weight.double().flatten(1)[None]
    moments = moments_of(spec, rows, pairs, end.bias)
    shape = spec.outputs, spec.inputs, *spec.kernel

    def give(ridge: float) -> None:
        costs = moments.even(ridge)
        best = moments.best(rows, costs)
        basis = leading(best[0] @ torch.linalg.cholesky((moments.seen + torch.diag_embed(costs))[0]), spec.outputs)
        amounts = basis.T @ best[0]
        # Both factors of a direction get the same norm, so that one rate of learning suits both.
        root = amounts.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        have = len(root)
        for layer in (first, last):
            _any(layer).weight.zero_()
        filters = best.new_zeros(spec.outputs, amounts.shape[1])
        filters[:have] = amounts / root[:, None]
        _any(first).weight.copy_(stored(filters.reshape(shape), spec))
        _any(last).weight.flatten(1)[:, :have] = (basis * root).to(_any(last).weight.dtype)
        if end.bias:
            _any(last).bias.copy_(moments.wanted[0] - basis @ (amounts @ moments.means[0]))

    _choose(give, nn.Sequential(first, last), held)


def _choose(give: Callable[[float], None], layer: nn.Module, held: Sequence[Pair]) -> None:
    """The ridge with which a layer is nearest on what is kept back."""
    found: list[tuple[float, dict[str, Tensor]]] = []
    for ridge in RIDGES if held else RIDGES[len(RIDGES) // 2:][:1]:
        give(ridge)
        found.append((error(layer, held) if held else 0.0, state(layer)))
    layer.load_state_dict(min(found, key=lambda one: one[0])[1])


@torch.no_grad()
def error(layer: nn.Module, pairs: Sequence[Pair]) -> float:
    """The mean squared difference of what a layer gives from what it should."""
    return sum(float((layer(x) - y).double().square().mean()) for x, y in pairs) / len(pairs)


def state(layer: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of a layer, by name."""
    return {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}


class Moments(NamedTuple):
    """Second moments (G, F, F) of what filters see and (G, N / G, F) with what they should give, and means of both,
    (G, F) and (G, N / G); about the means if there is a bias."""

    seen: Tensor
    both: Tensor
    means: Tensor
    wanted: Tensor

    @property
    def squares(self) -> Tensor:
        """Of what each weight sees, (G, F)."""
        return self.seen.diagonal(dim1=1, dim2=2)

    def even(self, ridge: float) -> Tensor:
        """A ridge of the same height for all weights, in mean squares of what they see: costs (G, F)."""
        mean = self.squares.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return (ridge * mean).expand_as(self.squares)

    def best(self, weight: Tensor, costs: Tensor) -> Tensor:
        """Weights (G, N / G, F) near to `weight`, which it costs so much to leave."""
        read = (self.squares != 0).any(0).nonzero().flatten()  # no filter sees anything elsewhere: nothing changes
        best = weight.clone()
        seen, both, kept = self.seen[:, read[:, None], read], self.both[..., read], costs[:, read]
        best[..., read] = torch.linalg.solve(seen + torch.diag_embed(kept),
                                             (both + kept.unsqueeze(1) * weight[..., read]).mT).mT
        return best

    def missing(self, weight: Tensor) -> Tensor:
        """What filters with these weights lack on average, (N,): the bias."""
        return (self.wanted - (weight @ self.means.unsqueeze(2)).squeeze(2)).flatten()


def moments_of(spec: Spec, weight: Tensor, pairs: Pairs, centred: bool) -> Moments:
    """Of what a layer's filters see in some inputs; a weight (G, N / G, F) says how many they are."""
    groups, share, width = weight.shape
    seen, both = weight.new_zeros(groups, width, width), torch.zeros_like(weight)
    means, wanted, places = weight.new_zeros(groups, width), weight.new_zeros(groups, share), 0
    for x, y in _sampled(spec, pairs):
        a, b = x.reshape(len(x), groups, width).transpose(0, 1), y.reshape(len(y), groups, share).transpose(0, 1)
        read = a.any(1).any(0).nonzero().flatten()
        if 2 * len(read) < width:  # filters on small maps see padding for the most part
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


def _sampled(spec: Spec, pairs: Pairs) -> Iterator[Pair]:
    """At some places of each input: what the filters see there, channel by channel, and what they should give."""
    chance, unfold = torch.Generator().manual_seed(0), None
    for x, y in pairs:
        if not spec.dims:
            yield x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
            continue
        unfold = unfold or _unfold(spec).to(device=x.device, dtype=x.dtype)
        x, y = (each.reshape(-1, *each.shape[-spec.dims - 1:]) for each in (x, y))
        places = prod(y.shape[2:])
        # Small maps together: their products are a matrix's then, and not a sum of outer products.
        for some, given in zip(*(torch.split(each, max(1, PLACES // places)) for each in (x, y)), strict=True):
            views, wanted = unfold(some).flatten(2), given.flatten(2)
            if places > PLACES:
                chosen = torch.randperm(places, generator=chance)[:PLACES].to(x.device)
                views, wanted = views[..., chosen], wanted[..., chosen]
            yield views.mT.flatten(0, 1), wanted.mT.flatten(0, 1)


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
