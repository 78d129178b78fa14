"""Input moments and squared output gradients of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.compensation.layerwise import has_running_statistics
from torchslim.compensation.moments import InputSampler, wide
from torchslim.compensation.recalibration import recalibrated
from torchslim.errors import RequestError
from torchslim.utils.copying import copy_model
from torchslim.utils.data import call_on_batch
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, tensors_in
from torchslim.utils.layer_spec import LayerSpec

PLACES = 64
"""Positions sampled per map: images differ more than the positions within one."""

Layers = Mapping[str, tuple[LayerSpec, Sequence[Tensor]]]
"""By layer name its spec and index sets (columns) of its filters' inputs."""


@dataclass
class Sums:
    """Sums over every other batch in one network: sampled positions, and per set of columns products and values of
    inputs, (G, F, F) and (G, F)."""

    places: int = 0
    squares: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)


@dataclass
class LayerStatistics:
    """Input moments and squared output gradients of a layer.

    Attributes:
        spec: the layer.
        columns: index sets of a filter's fan-in x taps inputs.
        views: of the network, and of the copy with recalibrated norms, if any: sums over the batches of even index and
            over those of odd index.
        squared_gradients: (N,): squared gradients of a random projection of the network's outputs, summed over
            positions and samples; None where no gradient reaches the layer.
    """

    spec: LayerSpec
    columns: Sequence[Tensor]
    views: tuple[tuple[Sums, Sums], ...]
    squared_gradients: Tensor | None = None

    def __post_init__(self) -> None:
        self.looks = [InputSampler(self.spec, PLACES) for _ in self.views]

    def moments(self, columns: int) -> Tensor:
        """Input covariance of a set of columns, (G, F, F), with recalibrated norms if any."""
        return _central(columns, self.views[-1])

    def moments_of_half(self, columns: int, half: int) -> Tensor:
        """Likewise on the batches of even (0) or odd (1) index, mean over views."""
        return torch.stack([_central(columns, _of_half(view, half)) for view in self.views]).mean(0)

    def level(self, columns: int, half: int) -> Tensor:
        """Mean inputs of a set of columns in the network itself, (G, F), on a half of the batches."""
        return _mean(columns, _of_half(self.views[0], half))

    def add_input(self, x: Tensor, view: int, half: int) -> None:
        """Add the moments of a layer's input; an input without rows (a detector without boxes) adds none."""
        if not x.numel():
            return
        views = torch.cat(list(self.looks[view](wide(x.detach()))))
        rows, half_sums = views.reshape(len(views), self.spec.groups, -1).transpose(0, 1), self.views[view][half]
        half_sums.places += len(views)
        # Against cancellation: products about the batch's mean in single precision, the mean's share in double.
        near = rows.mean(1, keepdim=True)
        rows, near = rows - near, near.double().cpu()
        for index, columns in enumerate(self.columns):
            a, mean = rows[:, :, columns.to(rows.device)], near[:, :, columns]
            squares, sums = (a.mT @ a).double().cpu(), a.double().sum(1, keepdim=True).cpu()
            squares += mean.mT @ sums + sums.mT @ mean + len(views) * mean.mT @ mean
            sums = (sums + len(views) * mean).squeeze(1)
            if len(half_sums.squares) == index:
                half_sums.squares.append(squares)
                half_sums.sums.append(sums)
            else:
                half_sums.squares[index] += squares
                half_sums.sums[index] += sums

    def add_gradient(self, gradient: Tensor) -> None:
        """Add a squared output gradient, (B, N, *map) or (*, N)."""
        dim = gradient.dim() - 1 - self.spec.dims
        squares = gradient.double().square().movedim(dim, 0).flatten(1).sum(1).cpu()
        self.squared_gradients = squares if self.squared_gradients is None else self.squared_gradients + squares


def _of_half(view: Sequence[Sums], half: int) -> Sequence[Sums]:
    """Sums of a half of the batches; of all if the layer did not run on these."""
    return view[half:half + 1] if view[half].places else [half_sums for half_sums in view if half_sums.places]


def _mean(columns: int, sums: Sequence[Sums]) -> Tensor:
    halves = [half for half in sums if half.places]
    return torch.stack([half.sums[columns] for half in halves]).sum(0) / sum(half.places for half in halves)


def _central(columns: int, sums: Sequence[Sums]) -> Tensor:
    halves, means = [half for half in sums if half.places], _mean(columns, sums)
    squares = torch.stack([half.squares[columns] for half in halves]).sum(0) / sum(half.places for half in halves)
    return squares - means.unsqueeze(2) * means.unsqueeze(1)


def collect_statistics(model: nn.Module, batches: Sequence[Inputs], layers: Layers,
                       seed: int) -> dict[str, LayerStatistics]:
    """Run all batches forward and backward in a copy whose batch norms have their statistics, and forward in the model.

    Many channels that are active on other images are inactive on a few; in that copy every channel is as active as in
    training. A model without batch norms runs once, forward and backward.

    Args:
        model: not changed.
        batches: inputs without targets.
        layers: see `Layers`.
        seed: of the projection.

    Raises:
        RequestError: the model fails on a batch, or has no differentiable output.
        TraceError: it runs different layers on different batches.
    """
    networks = [copy_model(model)]
    if any(has_running_statistics(module) for module in model.modules()):
        networks.append(recalibrated(model, batches))
    collected = {name: LayerStatistics(spec, columns, tuple((Sums(), Sums()) for _ in networks))
             for name, (spec, columns) in layers.items()}
    chance = torch.Generator().manual_seed(seed)
    for parameter in networks[-1].parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with evaluating(*networks), torch.random.fork_rng(devices=[]):
        for index, batch in enumerate(batches):
            for view, network in enumerate(networks):
                given: list[tuple[str, Tensor]] = []
                with_gradients = network is networks[-1]
                with torch.set_grad_enabled(with_gradients), _hooks_on(network, collected, given, view, index % 2):
                    outputs = call_on_batch(network, batch, index)
                for name, gradient in _gradients(outputs, given, chance) if with_gradients else ():
                    collected[name].add_gradient(gradient)
    return {name: each for name, each in collected.items()
            if all(any(half.places for half in view) for view in each.views)}


@contextmanager
def _hooks_on(network: nn.Module, layers: Mapping[str, LayerStatistics], given: list[tuple[str, Tensor]], view: int,
             half: int) -> Iterator[None]:
    with ExitStack() as stack:
        for name, statistics in layers.items():
            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor, name: str = name,
                     statistics: LayerStatistics = statistics) -> Tensor:
                statistics.add_input(next(iter((*args, *kwargs.values()))), view, half)
                given.append((name, y))
                return y.clone()  # an in-place operation on y would change which tensor the gradient is of

            stack.enter_context(network.get_submodule(name).register_forward_hook(note, with_kwargs=True))
        yield


def _gradients(outputs: Any, given: Sequence[tuple[str, Tensor]], chance: torch.Generator) -> list[tuple[str, Tensor]]:
    """Gradients of a projection of all outputs with random signs, with respect to layers' outputs."""
    differentiable = [y for y in tensors_in(outputs) if y.requires_grad]
    if not differentiable:
        raise RequestError("importance 'obs': no output of the model is differentiable, so that nothing says what its "
                           "layers' errors cost; use importance='activation'")
    signs = [torch.randint(0, 2, y.shape, generator=chance).to(y) * 2 - 1 for y in differentiable]
    ways = [(name, y) for name, y in given if y.requires_grad]
    gradients = torch.autograd.grad(differentiable, [y for _, y in ways], signs, allow_unused=True) if ways else ()
    return [(name, gradient) for (name, _), gradient in zip(ways, gradients, strict=True) if gradient is not None]
