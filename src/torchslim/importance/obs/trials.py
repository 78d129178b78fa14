"""Measured costs of cuts: channels are silenced, their readers refitted on some batches, outputs compared on others.

The residual error of a refit on its own images is too small where filters have a thousand inputs and there are a
hundred images: deep in a network it can be tens of times smaller than on other images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, log, log1p, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchslim.compensation.ridge import solve_ridge
from torchslim.errors import RequestError
from torchslim.importance.obs.cost_law import TINY, PowerLaw, Trial
from torchslim.importance.obs.readers import Index, WeightReader
from torchslim.importance.obs.statistics import LayerStatistics
from torchslim.importance.types import Scores
from torchslim.utils.copying import copy_model
from torchslim.utils.data import call_on_batch
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, tensors_in
from torchslim.utils.layer_spec import LayerSpec, torch_layout

NEGLIGIBLE_LOSS = 1e-9
"""Losses below this, in output variances, are rounding."""
MIN_SCORE_SHARE = 1e-6
"""Below this share of the group's highest score a channel counts as dead."""
RIDGE = 1e-9
"""Share of the inputs' mean square added as a ridge, so that the system is never singular."""
MAX_LOSS = 0.99
"""Loss, a share of the outputs' variance, is clipped here so its logarithm stays finite."""


@dataclass(frozen=True)
class RefittedLayer:
    """A layer's weight without some channels, in torch's layout, and a shift of its outputs, (N,)."""

    spec: LayerSpec
    weight: Tensor
    shift: Tensor


class TrialCuts:
    """Trials of cuts in a copy of a network.

    Args:
        model: the network; not changed.
        batches: inputs without targets; readers are refitted on every other one, and tried on one of the others.
        statistics: of the readers on these batches.
        damp: ridge on changes of weights, in mean squares of their inputs.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Inputs], statistics: Mapping[str, LayerStatistics],
                 damp: float) -> None:
        self.model, self.batches, self.statistics, self.damp = model, batches, statistics, damp
        self.before: dict[int, list[Tensor]] = {}

    @cached_property
    def network(self) -> nn.Module:
        """The copy."""
        return copy_model(self.model).requires_grad_(False)

    def law(self, readings: Sequence[WeightReader], prices: Scores, shares: Sequence[float]) -> PowerLaw | None:
        """The power law of a group's costs, fitted to trials of its cheapest channels.

        Args:
            readings: the layers that read a group's channels.
            prices: of its channels, (C,).
            shares: of the channels, one for each trial; equal numbers of channels are tried once.

        Returns:
            The law of the trials that lose more than `NEGLIGIBLE_LOSS`; if none does, one that gives `NEGLIGIBLE_LOSS`
            at the highest price tried. Dead channels, without a price, are not tried. None where the shapes of outputs
            depend on their values (boxes of a detector), so that they can't be compared.
        """
        order = np.argsort(prices, kind="stable")
        order = order[prices[order] > MIN_SCORE_SHARE * prices.max()]
        trials, dearest = [], TINY
        counts = dict.fromkeys(max(1, int(len(order) * share)) for share in shares) if len(order) else ()
        for trial, count in enumerate(counts):
            gone = order[:count]
            for half in (0, 1) if len(self.batches) > 1 else (0,):
                lost = self.lost(readings, gone, half, trial)
                if lost is None:
                    return None
                price = max(float(prices[gone].sum()), TINY)
                dearest = max(dearest, price)
                if lost > NEGLIGIBLE_LOSS:
                    # Remaining shares of successive cuts multiply, so their logarithms add up.
                    trials.append(Trial(price, -log1p(-min(lost, MAX_LOSS))))
        if trials:
            return PowerLaw.through(trials)
        return PowerLaw(log(NEGLIGIBLE_LOSS) - log(max(dearest, NEGLIGIBLE_LOSS)), 1.0)

    def lost(self, readings: Sequence[WeightReader], gone: Index, half: int, trial: int) -> float | None:
        """Output error without some channels, in output variances; None if the outputs' shapes change.

        Args:
            readings: the layers that read these channels.
            gone: the removed channels, (n,).
            half: of the batches, on which the readers are refitted.
            trial: selects a batch of the other half.
        """
        others = range(1 - half, len(self.batches), 2) if len(self.batches) > 1 else range(1)
        batch = others[trial % len(others)]
        wanted = self._outputs(batch)
        with ExitStack() as stack:
            for name, fitted in self._refitted(readings, gone, half).items():
                stack.enter_context(_replaced(self.network.get_submodule(name), fitted))
            outputs = self._run(batch)
        if [output.shape for output in outputs] != [output.shape for output in wanted]:
            return None
        return float(np.mean([_distance(output, other) for output, other in zip(outputs, wanted, strict=True)]))

    def _outputs(self, batch: int) -> list[Tensor]:
        if batch not in self.before:
            self.before[batch] = self._run(batch)
            if any(bool(output.isnan().any()) for output in self.before[batch]):
                raise RequestError(f"importance 'obs': the model gives NaN on batch {batch} of the data; look for NaN "
                                   "in the batches and the weights")
        return self.before[batch]

    def _run(self, batch: int) -> list[Tensor]:
        with evaluating(self.network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = call_on_batch(self.network, self.batches[batch], batch)
        return [output for output in tensors_in(outputs) if output.is_floating_point() and output.numel()]

    def _refitted(self, readings: Sequence[WeightReader], gone: Index, half: int) -> dict[str, RefittedLayer]:
        layers = {}
        for name in dict.fromkeys(reading.layer for reading in readings if reading.layer in self.statistics):
            layer_readers = [reading for reading in readings if reading.layer == name]
            layers[name] = refitted(layer_readers, self.statistics[name], gone, half, self.damp)
        return layers


def refitted(readings: Sequence[WeightReader], statistics: LayerStatistics, gone: Index, half: int,
             damp: float) -> RefittedLayer:
    """A layer's best weight without some channels, on a half of the batches: ridge regression on the other inputs.

    Args:
        readings: of one layer, several if it reads the channels more than once.
        statistics: the layer's.
        gone: the removed channels, (n,).
        half: of the batches.
        damp: ridge on changes of weights, in mean squares of their inputs.
    """
    spec, before = readings[0].spec, readings[0].weight
    weight, lost, level = before.clone(), _lost_outputs(readings, gone), torch.zeros_like(before[:, 0])
    for index, columns in enumerate(statistics.columns):
        level[:, columns] = statistics.level(index, half)
        if not lost[:, columns].any():
            continue
        moments = statistics.moments_of_half(index, half)
        for group in range(spec.groups):
            out, left = (mask[columns].nonzero().flatten() for mask in (lost[group], ~lost[group]))
            seen, squares = moments[group][left], moments[group].diagonal()
            ridge = damp * squares[left] + RIDGE * squares.mean().clamp_min(RIDGE)
            moves = solve_ridge(seen[:, left], seen[:, out].mT, ridge)
            weight[group][:, columns[left]] += before[group][:, columns[out]] @ moves
    weight[lost.unsqueeze(1).expand_as(weight)] = 0
    shift = ((before - weight) @ level.unsqueeze(2)).flatten()
    stacked = weight.reshape(spec.outputs, spec.fan_in, *spec.kernel)
    return RefittedLayer(spec, torch_layout(stacked, spec), shift)


def _lost_outputs(readings: Sequence[WeightReader], gone: Index) -> Tensor:
    """Mask of the removed inputs of each group's filters: (G, fan-in x taps)."""
    spec = readings[0].spec
    lost = torch.zeros(spec.groups, spec.fan_in, prod(spec.kernel), dtype=torch.bool)
    for reading in readings:
        inputs = torch.from_numpy(reading.seen[gone].ravel())
        lost[inputs // spec.fan_in, inputs % spec.fan_in] = True
    return lost.flatten(1)


class _Held(nn.Module):
    """Parametrization by a fixed weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        return self.weight


@contextmanager
def _replaced(layer: Any, fitted: RefittedLayer) -> Iterator[None]:
    """Temporarily replace a layer's weight and shift its output."""
    weight = fitted.weight.to(layer.weight)
    shift = fitted.shift.to(layer.weight).reshape(-1, *[1] * fitted.spec.dims)
    with ExitStack() as stack:
        if parametrize.is_parametrized(layer, "weight"):
            stack.enter_context(_swapped(layer.parametrizations, "weight", _Held(weight)))
        elif "weight" in layer._parameters:
            stack.enter_context(_swapped(layer._parameters, "weight", weight))
        else:  # a hook sets it before each call (`torch.nn.utils.weight_norm`, `prune`); this one runs after it
            stack.enter_context(layer.register_forward_pre_hook(lambda *_: setattr(layer, "weight", weight)))
        stack.enter_context(layer.register_forward_hook(lambda _, args, y: y + shift))
        yield


@contextmanager
def _swapped(held: Any, name: str, new: Any) -> Iterator[None]:
    before, held[name] = held[name], new
    try:
        yield
    finally:
        held[name] = before


def _distance(output: Tensor, wanted: Tensor) -> float:
    """Mean squared difference over the variance of `wanted`; over its mean square where it is constant.

    Entries where `wanted` is not finite (masked ones) are ignored; other non-finite outputs give infinity.
    """
    finite = wanted.isfinite()
    if not finite.any():
        return 0.0
    output, wanted = output[finite].double(), wanted[finite].double()
    size = wanted.square().mean()
    spread = (wanted - wanted.mean()).square().mean()
    unit = spread if spread > NEGLIGIBLE_LOSS * size else size
    error = float((output - wanted).square().mean() / (unit if unit > 0 else 1))
    return error if isfinite(error) else inf
