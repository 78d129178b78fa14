"""Tracks, arrays of labels that broadcast to a tensor's shape: along which dimensions they vary, and how they grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Tracks = tuple[Labels, ...]


def along_dim(labels: Labels, dim: int, ndim: int) -> Labels:
    """Labels of one dimension as a track of an `ndim`-dimensional tensor."""
    shape = [1] * ndim
    shape[dim] = len(labels)
    return labels.reshape(shape)


def widest_dim(track: Labels) -> int:
    """The dimension along which a track's rows lie: that of the most labels.

    Where labels are repeated along a dimension (heads, for each picture of a batch), each counts once. Of two
    dimensions with equally many it is that whose labels were made beside each other, transposed or not.
    """
    varied = [dim for dim in range(track.ndim) if track.shape[dim] > 1]
    if len(varied) < 2:
        return varied[0] if varied else track.ndim - 1
    lines = {dim: track[tuple(slice(None) if other == dim else 0 for other in range(track.ndim))] for dim in varied}
    return max(varied, key=lambda dim: (len(np.unique(lines[dim])), -abs(int(lines[dim][1] - lines[dim][0])), dim))


def spread(track: Labels, shape: Sequence[int], dims: Iterable[int]) -> Labels:
    """A track made full along the given dimensions."""
    full = list(track.shape)
    for dim in dims:
        full[dim] = shape[dim]
    return np.broadcast_to(track, full)


def squeeze_equal(track: Labels, dims: Iterable[int] | None = None) -> Labels:
    """A track with the dimensions along which it does not change brought to size 1."""
    for dim in range(track.ndim) if dims is None else dims:
        if track.shape[dim] > 1:
            first = track.take([0], axis=dim)
            if track.strides[dim] == 0 or bool((track == first).all()):
                track = first
    return track
