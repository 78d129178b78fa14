"""A graph whose values carry channel classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchslim.rules.tracks import widest_dim
from torchslim.tracing.graph import Graph, Value

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabeledGraph:
    """A graph and, for each of its values that has labels, the classes of its elements."""

    graph: Graph
    tracks: Mapping[int, tuple[Index, ...]]

    def shape(self, value: Value, shares: NDArray[np.float64]) -> tuple[int, ...]:
        """The shape of a value after a cut that keeps this share of each class of channels (1 kept, 0 removed)."""
        shape = list(value.shape)
        for track in self.tracks.get(value.id, ()):
            kept = shares[track]
            varied = [dim for dim in range(track.ndim) if track.shape[dim] > 1]
            widest = widest_dim(track)
            for dim in varied:
                by_index = np.moveaxis(kept, dim, -1).reshape(-1, track.shape[dim])
                # Rows get narrower along the widest dimension; along the others, whole rows are kept or removed.
                count = by_index.sum(1).max() if dim == widest else (by_index > 0).any(0).sum()
                shape[dim] = min(shape[dim], round(float(count)))
        return tuple(shape)
