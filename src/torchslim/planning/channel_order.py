"""Checks channel order at every operation: the slim network must have the channels that stay, in their order.

A slim run's channels are matched with the original's by the dimensions that they touch. That leaves a choice where
several channels touch the same, and after flips, shuffles and slices in a row not every choice is right. So the choice
is checked, value by value, along the whole graph: label by label, since channels of one class (copies that met their
mirror image) may still be different ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from torchslim.coupling.coupling import Coupling
from torchslim.coupling.labeled_graph import Index
from torchslim.rules.tracks import Labels, widest_dim


def out_of_order(coupling: Coupling, slim: Coupling, stays: NDArray[np.bool_],
                 kept: Mapping[str, Mapping[int, tuple[int, ...]]]) -> tuple[str, frozenset[int]] | None:
    """Where the slim result first has other channels than the original's that stay, and which these are.

    Args:
        coupling: the original's.
        slim: that of the run at slim widths, with the same operations.
        stays: of each class of the original, whether it stays.
        kept: what is to stay of each dimension of each tensor.
    """
    wide, narrow = coupling.builder, slim.builder
    left = stays[wide.class_of]
    expected_source, slim_source = _same_labels(coupling, slim, kept)
    checked: dict[tuple[int, int], bool] = {}  # many values carry the very same track

    def agree(track: Labels, slim_track: Labels) -> bool:
        key = id(track), id(slim_track)
        if key not in checked:
            checked[key] = _agree(track, left, expected_source, slim_source[slim_track])
        return checked[key]

    for graph, tracks, slim_graph, slim_tracks in zip(wide.graphs, wide.tracks, narrow.graphs, narrow.tracks,
                                                      strict=True):
        if graph.device != "meta":  # the operations may depend on the data
            continue
        for op, after in zip(graph.ops, slim_graph.ops, strict=True):
            for value, slim_value in zip(op.outputs, after.outputs, strict=True):
                if value is None or slim_value is None:
                    continue
                op_tracks, other = tracks.get(value.id, ()), slim_tracks.get(slim_value.id, ())
                if len(op_tracks) != len(other) or not all(map(agree, op_tracks, other)):
                    return op.where, frozenset(
                        label for track in op_tracks for label in np.unique(wide.class_of[track]).tolist())
    misread = _misread(coupling, slim, kept, expected_source, slim_source)
    return ("", misread) if misread else None


def _same_labels(coupling: Coupling, slim: Coupling,
                 kept: Mapping[str, Mapping[int, tuple[int, ...]]]) -> tuple[Index, Index]:
    """The original's labels that parameters tell of (others are -1), and for each slim label the original's it is."""
    expected_source = np.full(coupling.builder.space.num_labels, -1, dtype=np.int64)
    slim_source = np.full(slim.builder.space.num_labels, -1, dtype=np.int64)
    home = {(touch.name, touch.dim): touch.labels for touch in coupling.builder.space.declared.labeled_dims}
    for labels in home.values():
        expected_source[labels] = labels
    for touch in slim.builder.space.declared.labeled_dims:
        before, index = home[touch.name, touch.dim], kept.get(touch.name, {}).get(touch.dim)
        slim_source[touch.labels] = before if index is None else before[list(index)]
    return expected_source, slim_source


def _agree(track: Labels, left: NDArray[np.bool_], expected_source: Index, slim_source: Index) -> bool:
    """Whether a slim value's channels are those of the original's that are left.

    They may have changed places, as the weights that make them say; where a channel comes several times (its copies go
    different ways), each must be in its place.
    """
    if track.ndim != slim_source.ndim:
        return False
    widest = widest_dim(track)
    before = np.moveaxis(track, widest, -1)
    expected, slim = expected_source[before[left[before]]], np.moveaxis(slim_source, widest, -1).ravel()
    if len(expected) != len(slim):
        return False
    if np.array_equal(expected, slim):
        return True
    runs, slim_runs = _runs(expected), _runs(slim)  # a channel's positions, where they are flattened, are one run
    once = len(runs) == len(np.unique(runs[:, 0]))
    return once and np.array_equal(runs[np.lexsort(runs.T)], slim_runs[np.lexsort(slim_runs.T)])


def _runs(labels: Index) -> Index:
    """Labels and how often each comes in a row, shape (runs, 2)."""
    starts = np.flatnonzero(np.diff(labels, prepend=-2))
    return np.stack([labels[starts], np.diff(np.append(starts, len(labels)))], axis=1)


def _misread(coupling: Coupling, slim: Coupling, kept: Mapping[str, Mapping[int, tuple[int, ...]]],
             expected_source: Index, slim_source: Index) -> frozenset[int]:
    """Classes of the first dimension whose slim indices meet other channels than the original's that they are."""
    wide, narrow = coupling.builder, slim.builder
    origin, slim_origin = wide.source_labels(), narrow.source_labels()
    home = {(touch.name, touch.dim): touch.labels for touch in wide.space.declared.labeled_dims}
    for touch in narrow.space.declared.labeled_dims:
        labels, index = home[touch.name, touch.dim], kept.get(touch.name, {}).get(touch.dim)
        kept_labels = labels if index is None else labels[list(index)]
        if not np.array_equal(expected_source[origin[kept_labels]], slim_source[slim_origin[touch.labels]]):
            return frozenset(wide.class_of[labels].tolist())
    return frozenset()
