"""The runs of one network: in eval mode, and in train mode where that reads more.

Parts that only training runs (auxiliary heads) must survive a cut too, so their tape is coupled with the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchslim.calling import Inputs, map_tensors
from torchslim.errors import TraceError
from torchslim.graph import Graph, Value
from torchslim.labels import widest_dim
from torchslim.trace import trace

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tape:
    """A graph and, for each of its values that has labels, the classes of its elements."""

    graph: Graph
    tracks: Mapping[int, tuple[Index, ...]]

    def shape(self, value: Value, shares: NDArray[np.float64]) -> tuple[int, ...]:
        """The shape of a value where each class of channels stays with a share (see `Meter`)."""
        shape = list(value.shape)
        for track in self.tracks.get(value.id, ()):
            kept = shares[track]
            varied = [dim for dim in range(track.ndim) if track.shape[dim] > 1]
            widest = widest_dim(track)
            for dim in varied:
                by_index = np.moveaxis(kept, dim, -1).reshape(-1, track.shape[dim])
                # Rows get narrower along the widest dimension; along the others, whole rows stay or go.
                count = by_index.sum(1).max() if dim == widest else (by_index > 0).any(0).sum()
                shape[dim] = min(shape[dim], round(float(count)))
        return tuple(shape)


def tapes(model: nn.Module, inputs: Inputs) -> tuple[Graph, ...]:
    """The tape in eval mode and, where some parameter is not read there (auxiliary heads), the one in train mode."""
    graph = trace(model, inputs)
    unread = {name for name, value in graph.state.items() if value.source == "parameter"} - graph.read()
    if not unread:
        return (graph,)
    try:
        return (graph, trace(model, _paired(inputs), training=True))
    except TraceError:
        return (graph,)  # detectors want targets in train mode; what no tape reads stays as it is


def retrace(model: nn.Module, inputs: Inputs, tape: Graph) -> Graph:
    """The tape of another run of the same kind: of the model at other widths, say."""
    if tape.training:
        return trace(model, _paired(inputs), training=True, watch=False)
    return trace(model, inputs, meta=tape.device == "meta", watch=False)


def _paired(inputs: Inputs) -> Inputs:
    """Inputs with every batch of one doubled: in train mode batch norm refuses one value a channel."""
    paired: Inputs = map_tensors(lambda t: t.expand(2, *t.shape[1:]) if t.dim() > 1 and t.shape[0] == 1 else t, inputs)
    return paired
