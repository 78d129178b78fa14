"""How far a network's features and outputs are from another's, as one number with gradients.

Each difference is in units of the variance of what it is compared with, so that no weights need tuning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from torchslim.compensation.moments import PLACES, ChannelStatistics, Pair, moments_of, wide
from torchslim.errors import RequestError
from torchslim.tracing.arguments import flat
from torchslim.tracing.trace import trace
from torchslim.train.targets import Place, comparable_outputs, feature_places
from torchslim.utils.data import call_on_batch
from torchslim.utils.inputs import Inputs, tensors_in
from torchslim.utils.text import format_shape

RIDGE = 0.01
"""Ridge of the map from narrower features to the original's, in mean squares of the features."""
SMALLEST_VARIANCE = 1e-6
"""As a share of the mean square: outputs that do not vary have none."""
_ALIKE, _NEITHER = -1, -2

Key = Place | int
"""Features by their places, outputs by their positions."""


@dataclass(frozen=True)
class Term:
    """How one tensor is compared.

    Attributes:
        scale: mean variance of the original's channels.
        dim: where the slim network has another number of channels; -1 where it has the same.
        weight: linear map from these to the original's, (N, C), or None.
        bias: of the map, (N,), or None.
    """

    scale: float
    dim: int = _ALIKE
    weight: Tensor | None = None
    bias: Tensor | None = None

    def distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared difference in units of the variance, a scalar."""
        found, wanted = wide(found), wide(wanted)
        if self.weight is not None:
            found = F.linear(found.movedim(self.dim, -1), self.weight, self.bias).movedim(-1, self.dim)
        return (found - wanted).square().mean() / self.scale


class Comparison:
    """The distance of a slim network from the original: that of its features plus that of its outputs, in the mean.

    Where features have fewer channels, a linear regression on the batches maps them to the original's, once for all.

    Args:
        model: the original.
        slim: the network that is compared.
        batches: of inputs, for the scales and the maps.

    Attributes:
        omitted: outputs that can't be compared, by their positions.

    Raises:
        RequestError: a network fails on a batch, or none of the outputs can be compared.
        TraceError: the original can't be traced.
    """

    def __init__(self, model: nn.Module, slim: nn.Module, batches: Sequence[Inputs]) -> None:
        self._model = model
        graph = trace(model, batches[0], detect_width_reads=False)
        names = {name for name, _ in slim.named_modules()}
        self._places = [place for place in feature_places(graph) if place.module in names]
        self._outputs = comparable_outputs(graph)
        with torch.no_grad():
            self._terms = self._measured(slim, batches)
        self.omitted = [place for place in range(len(graph.outputs)) if place not in self._terms]
        if not self._terms or (self._outputs and len(self.omitted) == len(graph.outputs)):
            slims = [format_shape(t.shape) for t in tensors_in(call_on_batch(slim, batches[0], 0))]
            wanted = [format_shape(value.shape) for value in graph.outputs]
            raise RequestError(f"distill: the slim network's outputs ({', '.join(slims)}) can't be compared with the "
                               f"original's ({', '.join(wanted)}); give a network with outputs of the same shapes, "
                               "some of them floats, that was made from the original")

    def __call__(self, slim: nn.Module, batch: Inputs, index: int = 0) -> Tensor:
        """The distance on a batch, a scalar with gradients of the slim network; `index` is for messages."""
        with torch.no_grad():
            wanted = self._run(self._model, batch, index)
        found = self._run(slim, batch, index)
        kinds: dict[bool, list[Tensor]] = {}
        for key, term in self._terms.items():
            if key in wanted and _other_dim(found.get(key), wanted[key]) == term.dim:
                kinds.setdefault(isinstance(key, int), []).append(term.distance(found[key], wanted[key]))
        if not kinds:
            raise RequestError(f"distill: on batch {index} of the data the networks give nothing that can be compared; "
                               "give batches of equal shapes")
        return torch.stack([torch.stack(distances).mean() for distances in kinds.values()]).sum()

    def _run(self, network: nn.Module, batch: Inputs, index: int) -> dict[Key, Tensor]:
        """What a network has at the places of the features, and its outputs."""
        found: dict[Key, Tensor] = {}
        calls: Counter[str] = Counter()
        with ExitStack() as stack:
            for name in {place.module for place in self._places}:
                def note(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                    tensors = flat(output)
                    found.update({place: tensors[place.position] for place in self._places
                                  if place[:2] == (name, calls[name]) and place.position < len(tensors)})
                    calls[name] += 1

                stack.enter_context(network.get_submodule(name).register_forward_hook(note))
            outputs = list(tensors_in(call_on_batch(network, batch, index)))
        found.update({position: outputs[position] for position in self._outputs if position < len(outputs)})
        return found

    def _measured(self, slim: nn.Module, batches: Sequence[Inputs]) -> dict[Key, Term]:
        """What the networks have on all batches, of the same shapes but for the channels of features."""
        statistics: dict[Key, ChannelStatistics] = {}
        rows: dict[Key, list[Pair]] = {}
        widths: dict[Key, int] = {}
        dims: dict[Key, set[int]] = {}
        for index, batch in enumerate(batches):
            wanted, found = self._run(self._model, batch, index), self._run(slim, batch, index)
            for key in wanted:
                dim = _other_dim(found.get(key), wanted[key])
                dims.setdefault(key, set()).add(_NEITHER if isinstance(key, int) and dim != _ALIKE else dim)
                if dims[key] == {dim}:
                    tensor = wanted[key] if wanted[key].dim() > 1 else wanted[key].unsqueeze(1)
                    if widths.setdefault(key, tensor.shape[1]) == tensor.shape[1]:  # maps without a batch differ
                        statistics.setdefault(key, ChannelStatistics()).add(tensor)
                    if dim >= 0:
                        rows.setdefault(key, []).append((_rows(found[key], dim), _rows(wanted[key], dim)))
        terms = {}
        for key, seen in dims.items():
            if len(seen) == 1 and _NEITHER not in seen:
                mean, variance = statistics[key].moments
                scale = float(torch.maximum(variance.mean(), SMALLEST_VARIANCE * mean.square().mean()))
                weight, bias = _map(rows[key]) if key in rows else (None, None)
                terms[key] = Term(max(scale, SMALLEST_VARIANCE**2), seen.pop(), weight, bias)
        return terms


def _other_dim(found: Tensor | None, wanted: Tensor) -> int:
    """The dimension in which two tensors differ; see `_ALIKE`, `_NEITHER`."""
    if found is None or found.dim() != wanted.dim() or not wanted.numel() or not found.numel() or not wanted.dim():
        return _NEITHER
    dims = [dim for dim, (a, b) in enumerate(zip(found.shape, wanted.shape, strict=True)) if a != b]
    return _ALIKE if not dims else dims[0] if len(dims) == 1 and dims[0] else _NEITHER


def _rows(tensor: Tensor, dim: int) -> Tensor:
    """Channels at some positions, (positions, C): the same ones in tensors that differ in channels alone."""
    rows = wide(tensor).movedim(dim, -1).flatten(0, -2)
    return rows[::-(-len(rows) // (PLACES * len(tensor)))]


def _map(rows: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the ridge regression from features to the original's."""
    narrow, whole = rows[0]
    weight = torch.zeros(1, whole.shape[1], narrow.shape[1], dtype=torch.float64, device=whole.device)
    moments = moments_of(weight, rows, centred=True)
    weight = moments.best(weight, moments.even(RIDGE))
    return weight[0].to(whole.dtype), moments.missing(weight).to(whole.dtype)
