"""Operations along given dimensions: sorting, cumulative sums, Fourier transforms, halves that gate each other.

Each index of the other dimensions is worked on by itself, so labels along these pass; labels along the given ones stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from torchslim.rules.broadcasting import broadcast_union, inherit_repeats
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.tracing.graph import Op, Value

Dims = Collection[int] | None
"""Dimensions, negative ones counted from the end; None for all."""


def separately(dims_of: Callable[[Op], Dims], doing: str = "worked on along") -> Row:
    """A row of an operation that works along some dimensions, and keeps or reduces them."""

    def labels(space: LabelSpace, op: Op) -> None:
        x = op.inputs[0]
        ndim, wanted = len(x.shape), dims_of(op)
        dims = set(range(ndim)) if wanted is None else {dim % ndim for dim in wanted} if ndim else set()
        values = [value for value in op.inputs if value.shape == x.shape]
        tracks = []
        for track in broadcast_union(space, values, op) if len(values) > 1 else space.tracks(x):
            if any(track.shape[dim] > 1 for dim in dims):
                space.freeze(track, f"{doing} in {op.where}")
            else:
                tracks.append(track)
        for out in op.outputs:
            if out is not None and len(out.shape) >= ndim - len(dims):
                gone = sorted(dims)[len(dims) - ndim + len(out.shape):]
                space.set(out, [np.squeeze(track, axis=tuple(gone)) for track in tracks])

    return Row(labels)


def _dim(position: int, default: int | None = -1) -> Callable[[Op], Dims]:
    """Reads one dimension, or several, from an operation's arguments."""

    def dims_of(op: Op) -> Dims:
        dims = op.argument(position, "dim", default)
        return None if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims

    return dims_of


def _other_dims(op: Op) -> Dims:
    """renorm(x, p, dim, maxnorm) works on each slice of a dimension, along all others."""
    return [dim for dim in range(len(op.inputs[0].shape)) if dim != op.args[2] % len(op.inputs[0].shape)]


def gated_halves(space: LabelSpace, op: Op) -> None:
    """aten.glu(x, dim): the n-th channels of the two halves meet."""
    x, dim = op.args[0], op.argument(1, "dim", -1) % len(op.args[0].shape)
    tracks = []
    for track in space.tracks(x):
        if track.shape[dim] > 1:
            first, second = np.split(track, 2, axis=dim)
            space.union(first, second)
            track = first
        tracks.append(track)
    space.set(op.output, tracks)


def at_positions(space: LabelSpace, op: Op) -> None:
    """gather(x, dim, index), scatter(x, dim, index, src), index_add(x, dim, index, src): positions along a dimension.

    Labels along the dimension stay. Where the tensors have the same sizes elsewhere, labels along the others meet.
    """
    x, dim = op.args[0], op.args[1] % max(1, len(op.args[0].shape))
    values = [value for value in op.inputs if value.numel != 1 or value is x]
    doing = "picked" if op.name == "aten.gather" else "written"
    full = [value for value in values if len(value.shape) == len(x.shape)]
    alike = all(_without(value.shape, dim) == _without(x.shape, dim) for value in full)
    for value in values:
        for track in space.tracks(value):
            if not alike or len(value.shape) != len(x.shape) or track.shape[dim] > 1:
                space.freeze(track, f"{doing} by position in {op.where}")
    if alike:
        slices = []  # without the dimension, of which the tensors may have other sizes
        for value in full:
            slices.append(replace(value.unnamed(), shape=(*value.shape[:dim], 1, *value.shape[dim + 1:])))
            space.set(slices[-1], [track for track in space.tracks(value) if track.shape[dim] == 1])
            inherit_repeats(space, slices[-1], [value], {d: d for d in range(len(value.shape)) if d != dim})
        space.set(op.output, broadcast_union(space, slices, op))


def _without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1:])


def diagonal(space: LabelSpace, op: Op) -> None:
    """aten.diagonal(x, offset, dim1, dim2): two dimensions become one, the last."""
    x: Value = op.args[0]
    dims = tuple(op.argument(position, name, default) % len(x.shape)
                 for position, name, default in ((2, "dim1", 0), (3, "dim2", 1)))
    tracks = []
    for track in space.tracks(x):
        if any(track.shape[dim] > 1 for dim in dims):
            space.freeze(track, f"picked by position in {op.where}")
        else:
            tracks.append(np.expand_dims(np.squeeze(track, axis=dims), -1))
    space.set(op.output, tracks)


def complex_pairs(space: LabelSpace, op: Op) -> None:
    """aten.view_as_complex, view_as_real: the last dimension of 2 goes, or comes."""
    x = op.args[0]
    fewer = len(op.output.shape) < len(x.shape)
    for track in space.tracks(x) if fewer else ():
        if track.shape[-1] > 1:
            space.freeze(track, f"the parts of complex numbers in {op.where}")
    space.set(op.output, [track[..., 0] if fewer else np.expand_dims(track, -1) for track in space.tracks(x)
                          if not fewer or track.shape[-1] == 1])


_BY_ARGUMENT = {
    (1, -1): ("sort", "mode", "cummax", "cummin", "cumprod", "logcumsumexp"),
    (2, -1): ("topk", "kthvalue", "linalg_cross"),
    (1, None): ("median", "nanmedian", "aminmax", "nansum", "count_nonzero", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
}

ROWS = {
    **{f"aten.{name}": separately(_dim(*where)) for where, names in _BY_ARGUMENT.items() for name in names},
    **{f"aten.{name}": separately(lambda _: (-2, -1)) for name in (
        "tril", "triu", "max_unpool2d", "linalg_inv_ex", "linalg_cholesky_ex", "linalg_qr", "_linalg_det",
        "_linalg_eigh", "_linalg_slogdet", "_linalg_svd")},
    "aten.max_unpool3d": separately(lambda _: (-3, -2, -1)),
    "aten.rot90": separately(lambda op: op.argument(2, "dims", (0, 1))),
    "aten.renorm": separately(_other_dims, "normalised over"),
    "aten.glu": Row(gated_halves),
    "aten.diagonal": Row(diagonal),
    **{f"aten.{name}": Row(complex_pairs) for name in ("view_as_complex", "view_as_real")},
    **{f"aten.{name}": Row(at_positions) for name in (
        "gather", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_reduce")},
}
