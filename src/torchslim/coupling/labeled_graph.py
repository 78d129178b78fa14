"""A graph whose values carry channel classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchslim.rules.tracks import widest_dim
from torchslim.tracing.graph import Graph, Op, Value

Index = NDArray[np.int64]

GROUP_NORM = "aten.native_group_norm"


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

    def classes_of(self, values: Iterable[Value | None]) -> frozenset[int]:
        """The classes of the elements of some values."""
        tracks = [track.ravel() for value in values if value is not None for track in self.tracks.get(value.id, ())]
        return frozenset(np.unique(np.concatenate(tracks)).tolist() if tracks else ())

    def norm_groups(self, op: Op, shares: NDArray[np.float64]) -> int:
        """The number of groups of a group norm after a cut: whole groups go, or channels of each."""
        x, groups = op.args[0], op.args[6]
        track = next((track for track in self.tracks.get(x.id, ()) if track.shape[1] > 1), None)
        if track is None:
            return int(groups)
        rows = np.moveaxis(track, 1, -1).reshape(-1, x.shape[1])[0].reshape(groups, -1)
        whole = (rows == rows[:, :1]).all(1)
        return round(float(np.where(whole, shares[rows[:, 0]], (shares[rows] > 0).any(1)).sum()))
