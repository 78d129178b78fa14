"""Input moments and squared output gradients of layers: what errors of a layer cost the network's outputs."""

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
"""So many places of each map are looked at: pictures differ more than places of one picture do."""

Layers = Mapping[str, tuple[LayerSpec, Sequence[Tensor]]]
"""Layers by name, as what they are, and sets of columns of what each filter sees."""


@dataclass
class Sums:
    """Of one network's runs of every other batch: how many places were looked at, and of each set of columns squares
    and sums, (G, F, F) and (G, F)."""

    places: int = 0
    squares: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)


@dataclass
class LayerStatistics:
    """Input moments and squared output gradients of a layer.

    Attributes:
        spec: the layer.
        columns: sets of what its filters see; each filter of a group of channels sees fan-in x taps numbers.
        views: of the network as it is, and of the copy whose norms are settled, if there is one: what the batches in
            even places tell, and those in odd ones.
        squared_gradients: (N,): squared gradients of a random projection of the network's outputs, summed over
            maps and items; None where no gradient reaches the layer.
    """

    spec: LayerSpec
    columns: Sequence[Tensor]
    views: tuple[tuple[Sums, Sums], ...]
    squared_gradients: Tensor | None = None

    def __post_init__(self) -> None:
        self.looks = [InputSampler(self.spec, PLACES) for _ in self.views]

    def moments(self, columns: int) -> Tensor:
        """Second moments about the means of one set of columns, (G, F, F), where norms are settled if any are."""
        return _central(columns, self.views[-1])

    def moments_of_half(self, columns: int, half: int) -> Tensor:
        """Likewise on the batches in even (0) or odd (1) places, and the mean of all views."""
        return torch.stack([_central(columns, _of_half(view, half)) for view in self.views]).mean(0)

    def level(self, columns: int, half: int) -> Tensor:
        """What is seen on average in the network as it is, (G, F), of a set of columns on a half of the batches."""
        return _mean(columns, _of_half(self.views[0], half))

    def add_input(self, x: Tensor, view: int, half: int) -> None:
        """Count what the layer reads; nothing at all where the data leave it no rows (a detector that finds none)."""
        if not x.numel():
            return
        views = torch.cat(list(self.looks[view](wide(x.detach()))))
        rows, half_sums = views.reshape(len(views), self.spec.groups, -1).transpose(0, 1), self.views[view][half]
        half_sums.places += len(views)
        # Squares about nought lose what is small beside a large mean: in single precision about the batch's mean, the
        # rest in double.
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
        """Count how the outputs feel the layer's, (B, N, *map) or (*, N)."""
        dim = gradient.dim() - 1 - self.spec.dims
        squares = gradient.double().square().movedim(dim, 0).flatten(1).sum(1).cpu()
        self.squared_gradients = squares if self.squared_gradients is None else self.squared_gradients + squares


def _of_half(view: Sequence[Sums], half: int) -> Sequence[Sums]:
    """Every other batch; all that there are where the layer ran on none of these."""
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
    """Run all batches forth and back in a copy whose batch norms have their statistics, and forth in the model itself.

    On a few pictures many channels are silent that speak on others. In that copy every channel is as active as it was
    in training. A model without such norms is run once, forth and back.

    Args:
        model: left as it was.
        batches: inputs without targets.
        layers: which.
        seed: of the projection of the outputs.

    Raises:
        RequestError: the model fails on a batch, or has no outputs that are differentiable.
        TraceError: it runs other layers on one batch than on another.
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
                return y.clone()  # what comes next may write into it, and the gradient would be that of what it wrote

            stack.enter_context(network.get_submodule(name).register_forward_hook(note, with_kwargs=True))
        yield


def _gradients(outputs: Any, given: Sequence[tuple[str, Tensor]], chance: torch.Generator) -> list[tuple[str, Tensor]]:
    """Of a projection of all outputs with random signs, with respect to what layers gave that they depend on."""
    differentiable = [y for y in tensors_in(outputs) if y.requires_grad]
    if not differentiable:
        raise RequestError("importance 'obs': no output of the model is differentiable, so that nothing says what its "
                           "layers' errors cost; use importance='activation'")
    signs = [torch.randint(0, 2, y.shape, generator=chance).to(y) * 2 - 1 for y in differentiable]
    ways = [(name, y) for name, y in given if y.requires_grad]
    gradients = torch.autograd.grad(differentiable, [y for _, y in ways], signs, allow_unused=True) if ways else ()
    return [(name, gradient) for (name, _), gradient in zip(ways, gradients, strict=True) if gradient is not None]
