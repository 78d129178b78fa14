"""Ridge regression of a layer's weights: those with which it comes closest to given outputs for given inputs.

A layer is linear in its weights, so that the best ones follow from second moments: of what its filters see, and of that
with the wanted outputs. The ridge pulls towards the old weights where a few batches leave the weights undetermined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.compensation.moments import Pair, Pairs, moments_of, sampled
from torchslim.rewriting.decomposition import leading_directions
from torchslim.utils.layer_spec import LayerSpec, filters_first, spec_of, torch_layout

RIDGES = 0.01, 0.1, 1.0
"""Ridges that are tried, in mean squares of what the filters see. Each layer takes the one with the least error on the
held-out batches: a lower one where the data are like these, a higher one where they are few and unlike. Without
held-out batches the middle one is taken."""


@torch.no_grad()
def fit_layer(layer: nn.Module, pairs: Pairs, held_out: Sequence[Pair] = ()) -> None:
    """Give a layer the weights, and the bias if it has one, that bring it nearest to the outputs.

    Args:
        layer: a convolution, in groups or not, transposed or not, or a linear layer; changed in place.
        pairs: batches of its inputs and the wanted outputs.
        held_out: more of them, by which the ridge is chosen.
    """
    spec, weights = _spec(layer), _parameters(layer)
    weight = filters_first(weights.weight, spec.groups, spec.transposed)
    rows = weight.double().reshape(spec.groups, spec.outputs // spec.groups, -1)
    moments = moments_of(rows, sampled(spec, pairs), spec.bias)

    def set_weights(ridge: float) -> None:
        best = moments.best(rows, moments.even(ridge))
        weights.weight.copy_(torch_layout(best.reshape(weight.shape), spec))
        if spec.bias:
            weights.bias.copy_(moments.missing(best))

    _choose_ridge(set_weights, layer, held_out)


@torch.no_grad()
def fit_low_rank(first: nn.Module, last: nn.Module, weight: Tensor, pairs: Pairs,
                 held_out: Sequence[Pair] = ()) -> None:
    """Reduced-rank regression: `fit_layer` for a layer without groups and the pointwise layer behind it.

    The last layer spans the main directions of the outputs of the best single layer, the first makes the coordinates in
    these (Izenman 1975; Zhang et al. 2015, section 3.1).

    Args:
        first, last: changed in place.
        weight: of the single layer that they replace, (N, M, k, ...).
        pairs, held_out: as above.
    """
    spec, last_spec = _spec(first), _spec(last)
    rows = weight.double().flatten(1)[None]
    moments = moments_of(rows, sampled(spec, pairs), last_spec.bias)
    shape = spec.outputs, spec.inputs, *spec.kernel

    def set_weights(ridge: float) -> None:
        costs = moments.even(ridge)
        best = moments.best(rows, costs)
        root_moments = torch.linalg.cholesky((moments.seen + torch.diag_embed(costs))[0])
        basis = leading_directions(best[0] @ root_moments, spec.outputs)
        coordinates = basis.T @ best[0]
        # Both factors of a direction get the same norm, so that one learning rate suits both.
        root = coordinates.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        rank = len(root)
        for layer in (first, last):
            _parameters(layer).weight.zero_()
        filters = best.new_zeros(spec.outputs, coordinates.shape[1])
        filters[:rank] = coordinates / root[:, None]
        _parameters(first).weight.copy_(torch_layout(filters.reshape(shape), spec))
        _parameters(last).weight.flatten(1)[:, :rank] = (basis * root).to(_parameters(last).weight.dtype)
        if last_spec.bias:
            _parameters(last).bias.copy_(moments.wanted[0] - basis @ (coordinates @ moments.means[0]))

    _choose_ridge(set_weights, nn.Sequential(first, last), held_out)


def _choose_ridge(set_weights: Callable[[float], None], layer: nn.Module, held_out: Sequence[Pair]) -> None:
    """Leave the layer with the weights of the ridge that has the least error on the held-out batches."""
    if not held_out:
        set_weights(RIDGES[len(RIDGES) // 2])
        return
    results: list[tuple[float, dict[str, Tensor]]] = []
    for ridge in RIDGES:
        set_weights(ridge)
        results.append((mean_squared_error(layer, held_out), copied_state(layer)))
    layer.load_state_dict(min(results, key=lambda result: result[0])[1])


@torch.no_grad()
def mean_squared_error(layer: nn.Module, pairs: Sequence[Pair]) -> float:
    """Mean over batches of the mean squared difference between a layer's outputs and the wanted ones."""
    return sum(float((layer(x) - y).double().square().mean()) for x, y in pairs) / len(pairs)


def copied_state(layer: nn.Module) -> dict[str, Tensor]:
    """A copy of a layer's state dict."""
    return {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}


def _spec(layer: nn.Module) -> LayerSpec:
    spec = spec_of(layer)
    assert spec is not None
    return spec


def _parameters(layer: Any) -> Any:
    """The layer itself, typed as having a `weight` and a `bias`."""
    return layer
