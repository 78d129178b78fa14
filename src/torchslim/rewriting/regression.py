"""Weights by least squares: those with which a layer comes closest to some outputs for some inputs.

A layer is linear in its weights, so that the best ones follow from second moments: of what its filters see, and of that
with what they should give. What a few pictures leave open, a ridge keeps as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.compensation.moments import Pair, Pairs, moments_of
from torchslim.rewriting.decomposition import leading
from torchslim.utils.layer_spec import Spec, plain, spec_of, stored

RIDGES = 0.01, 0.1, 1.0
"""What it may cost to leave the weights that there were, in mean squares of what the filters see. Each layer takes the
one that is best on what is kept back: less where the data are like that, more where they are few and unlike. Where
nothing is kept back it is the middle one."""


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


def _spec(layer: nn.Module) -> Spec:
    spec = spec_of(layer)
    assert spec is not None
    return spec


def _any(layer: Any) -> Any:
    return layer
