"""Reading and writing by remembered positions: what is picked by its number must keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.tracing.graph import Op, Value

_MASKS = frozenset({torch.bool, torch.uint8})


def index(space: LabelSpace, op: Op) -> None:
    """aten.index(x, indices): positions of remembered numbers; dimensions that are not indexed pass."""
    x, indices = op.args[:2]
    for value in indices:
        if value is not None:
            space.freeze_value(value, f"positions in {op.where}")
    used = _indexed_dims(indices)
    together = used == list(range(used[0], used[-1] + 1)) if used else True
    tracks = []
    for track in space.tracks(x):
        if any(track.shape[dim] > 1 for dim in used) or not together or not used:
            space.freeze(track, f"picked by position in {op.where}")
            continue
        width = len(op.output.shape) - (track.ndim - len(used))
        shape = [*track.shape[: used[0]], *(1,) * width, *track.shape[used[-1] + 1:]]
        tracks.append(track.reshape(shape))
    space.set(op.output, tracks)


def _indexed_dims(indices: Sequence[Value | None]) -> list[int]:
    """The dimensions that are indexed; a mask stands for as many as it has."""
    used, dim = list[int](), 0
    for value in indices:
        spanned = len(value.shape) if value is not None and value.dtype in _MASKS else 1
        if value is not None:
            used += range(dim, dim + spanned)
        dim += spanned
    return used


def index_select(space: LabelSpace, op: Op) -> None:
    """aten.index_select(x, dim, index): channels picked by remembered numbers stay."""
    x, dim, positions = op.args[:3]
    space.freeze_value(positions, f"positions in {op.where}")
    tracks = []
    for track in space.tracks(x):
        if track.shape[dim] > 1:
            space.freeze(track, f"picked by position in {op.where}")
        else:
            tracks.append(track)
    space.set(op.output, tracks)


def index_put(space: LabelSpace, op: Op) -> None:
    """aten.index_put(x, indices, values): where whole rows are written (regions, say), the other dimensions pass."""
    x, indices, values = op.args[:3]
    if len(indices) > 1 or len(indices[0].shape) != 1 or len(values.shape) != len(x.shape):
        write_at(space, op)
        return
    space.freeze_value(indices[0], f"positions in {op.where}")
    written = list(space.tracks(values))
    passed = []
    for track in space.tracks(x):
        twin = next((t for t in written if t.shape == track.shape and track.shape[0] == 1), None)
        if twin is None:
            space.freeze(track, f"written by position in {op.where}")
        else:
            space.union(track, twin)
            written.remove(twin)
            passed.append(track)
    for track in written:
        space.freeze(track, f"written by position in {op.where}")
    space.set(op.output, passed)


def write_at(space: LabelSpace, op: Op) -> None:
    """Scatter and its kin: written by position, so that everything involved stays."""
    for value in op.inputs:
        space.freeze_value(value, f"written by position in {op.where}")


_ROWS: dict[tuple[str, ...], Callable[[LabelSpace, Op], None]] = {
    ("index", "_unsafe_index"): index,
    ("index_select",): index_select,
    ("index_put", "_unsafe_index_put"): index_put,
}

ROWS = {f"aten.{name}": Row(function) for names, function in _ROWS.items() for name in names}
