"""Concatenations and stacks: labels follow each other along the dimension of joining; along others they become one."""

from __future__ import annotations

import numpy as np

from torchslim.rules.broadcasting import mark_repeated
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.rules.tracks import Labels, along_dim, spread
from torchslim.tracing.graph import Op, Value


def cat(space: LabelSpace, op: Op) -> None:
    """aten.cat(tensors, dim): along the dimension labels follow each other; along others they become one."""
    values = [value for value in op.args[0] if value.shape != (0,)]
    ndim = len(op.output.shape)
    dim = op.argument(1, "dim", 0) % ndim
    _join(space, op, values, dim, [space.tracks(value) for value in values])
    if len(values) > 1 and values[0].shape[dim] == 1 and all(value is values[0] for value in values):
        mark_repeated(space, op.output, [dim])


def stack(space: LabelSpace, op: Op) -> None:
    """aten.stack(tensors, dim): rows of a new dimension; each keeps labels of its own."""
    values = list(op.args[0])
    dim = op.argument(1, "dim", 0) % len(op.output.shape)
    if len(values) > 1 and all(value is values[0] for value in values):
        mark_repeated(space, op.output, [dim])
    tracks = [tuple(np.expand_dims(t, dim) for t in space.tracks(value)) for value in values]
    if len(values) > 1 and all(len(t) == 1 and t[0].shape == tracks[0][0].shape for t in tracks):
        space.set(op.output, [np.concatenate([t[0] for t in tracks], axis=dim)])
        return
    space.set(op.output, _cut_alike(space, op, tracks))


def _join(space: LabelSpace, op: Op, values: list[Value], dim: int, tracks: list[tuple[Labels, ...]]) -> None:
    spanning = [[t for t in ts if t.shape[dim] > 1] for ts in tracks]
    rest = [tuple(t for t in ts if t.shape[dim] == 1) for ts in tracks]
    if not any(spanning):
        space.set(op.output, _cut_alike(space, op, rest))
        return
    others = {d for ts in spanning for t in ts for d in range(t.ndim) if d != dim and t.shape[d] > 1}
    parts = []
    for value, along in zip(values, spanning, strict=True):
        labels = along[0] if along else _staying(space, value, dim, op)
        for extra in along[1:]:
            space.union(labels, extra)
        parts.append(spread(labels, value.shape, others))
    joined = np.concatenate(parts, axis=dim)
    if len(values) > 1:
        space.declared.joined_branches.append(joined)
    for ts in rest:
        for track in ts:
            if any(track.shape[d] > 1 for d in others):
                space.freeze(track, f"joined along another dimension in {op.where}")
    beside = [tuple(t for t in ts if all(t.shape[d] == 1 for d in others)) for ts in rest]
    space.set(op.output, [joined, *_cut_alike(space, op, beside)])


def _staying(space: LabelSpace, value: Value, dim: int, op: Op) -> Labels:
    """Labels for a dimension that can't be cut, so that it has its place among others that can."""
    labels = along_dim(space.new_labels(value.shape[dim]), dim, len(value.shape))
    space.freeze(labels, f"joined as a whole in {op.where}")
    return labels


def _cut_alike(space: LabelSpace, op: Op, tracks: list[tuple[Labels, ...]]) -> list[Labels]:
    """The tracks of tensors laid beside each other, along the other dimensions: what is at one place becomes one."""
    merged: list[Labels] = []
    for ts in tracks:
        for track in ts:
            twin = next((m for m in merged if m.shape == track.shape), None)
            if twin is None:
                merged.append(track)
            else:
                space.union(twin, track)
    for track in merged:
        if any(not any(t.shape == track.shape for t in ts) for ts in tracks):
            space.freeze(track, f"joined to a tensor that can't be cut in {op.where}")
    return merged


ROWS = {"aten.cat": Row(cat), "aten.stack": Row(stack)}
