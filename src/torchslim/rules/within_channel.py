"""Operations that move what is in a channel: rolls, flips, crops, transpositions of its space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchslim.rules.row import plain_name
from torchslim.rules.tracks import Labels
from torchslim.tracing.graph import Op, Value

# Where each of these names the dimensions along which it picks or moves.
_DIMS = {"flip": (1, "dims"), "roll": (2, "dims"), "slice": (1, "dim"), "select": (1, "dim"),
         "unfold": (1, "dimension"), "index_select": (1, "dim"), "gather": (1, "dim")}


def moves_within_channels(op: Op, tracks: Sequence[Labels]) -> bool:
    """Whether an operation moves or picks elements within their channels, which `tracks` tell.

    Channels that are rolled over the batch, mirrored or cropped are other channels than those beside them that are not.
    """
    name, x = plain_name(op.name).removeprefix("aten."), op.args[0] if op.args else None
    if not isinstance(x, Value) or not tracks:
        return False
    spanning = [track for track in tracks if track.ndim == len(x.shape)]  # positions have tracks of their own
    plain = [dim for dim, size in enumerate(x.shape) if size > 1 and all(track.shape[dim] == 1 for track in spanning)]
    if name in _DIMS:
        dims = op.argument(*_DIMS[name], default=0)
        named = [dims] if isinstance(dims, int) else dims
        return not named or any(dim % len(x.shape) in plain for dim in named)
    if name in ("index", "_unsafe_index"):
        return any(op.args[1][dim] is not None for dim in plain if dim < len(op.args[1]))
    if name in ("permute", "transpose", "t"):
        order = _reordered(op, np.arange(len(x.shape)))
        return [dim for dim in order if dim in plain] != plain
    return name in ("index_put", "_unsafe_index_put", "slice_scatter", "select_scatter")


def _reordered(op: Op, dims: Labels) -> list[int]:
    """The dimensions in the order that a permutation or transposition leaves them in."""
    if plain_name(op.name) == "aten.permute":
        return [int(dims[dim]) for dim in op.args[1]]
    a, b = op.args[1:3] if len(op.args) > 2 else (0, -1)
    dims[a], dims[b] = dims[b], dims[a]
    order: list[int] = dims.tolist()
    return order
