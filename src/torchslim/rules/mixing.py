"""Norms, softmax, reductions, sorting: operations in which one channel may change another's value.

Where a batch norm works channel by channel, its parameters follow the channels. A group norm mixes the channels of each
of its groups, which go together. Where an operation mixes all channels, cutting one changes what the others become:
such labels are frozen, unless the caller allows the approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from torchslim.rules.broadcasting import broadcast_union, label_repeated
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.rules.tracks import Labels, along_dim, squeeze_equal
from torchslim.tracing.graph import Op, Value
from torchslim.tracing.undispatched import READ_OUTSIDE


def batch_norm(space: LabelSpace, op: Op) -> None:
    """aten.native_batch_norm(x, weight, bias, mean, var, training, ...): channel by channel."""
    x = op.args[0]
    channels = space.along(x, 1, op)
    for parameter in op.args[1:5]:
        if isinstance(parameter, Value) and not label_repeated(space, parameter, channels):
            space.tie(channels, space.along(parameter, 0, op), op, "normalises channels that can't be cut")
    if isinstance(op.args[1], Value) and op.args[1].name:
        space.declared.norm_scales.add(op.args[1].name)
    space.add_channels(channels)
    tracks = list(space.tracks(x))
    if op.args[3] is None:  # statistics of this very tensor: what lies in one channel is mixed
        tracks = [t for t in tracks if t.shape[1] > 1 or space.mix(t, op, "normalised over in")]
    space.set(op.output, tracks)


def layer_norm(space: LabelSpace, op: Op) -> None:
    """aten.native_layer_norm(x, normalized_shape, weight, bias, eps): mixes the last dimensions."""
    x, shape = op.args[:2]
    values = [x, *(v for v in op.args[2:4] if isinstance(v, Value))]
    tracks = broadcast_union(space, values, op)
    dims = range(len(x.shape) - len(shape), len(x.shape))
    for track in tracks if len(values) > 1 else ():
        if any(track.shape[dim] > 1 for dim in dims):
            space.add_channels(track)
    for statistics in op.outputs[1:]:
        if statistics is not None:
            space.set(statistics, [track for track in tracks if all(track.shape[dim] == 1 for dim in dims)])
    _mixed(space, op, tracks, dims)


def group_norm(space: LabelSpace, op: Op) -> None:
    """aten.native_group_norm(x, weight, bias, N, C, HxW, groups, eps): mixes each group's channels, which become one.

    Where the approximation is allowed, each group loses equally many channels instead.
    """
    x = op.args[0]
    channels = space.along(x, 1, op)
    for parameter in op.args[1:3]:
        if isinstance(parameter, Value) and not label_repeated(space, parameter, channels):
            space.tie(channels, space.along(parameter, 0, op), op, "normalises channels that can't be cut")
    space.add_channels(channels)
    rows = None if channels is None else channels.reshape(op.args[6], -1)
    if rows is not None and (rows.shape[1] == 1 or (len(rows) > 1 and not space.options.allow_approximate)):
        space.union(rows[:, :1], rows)
        space.set(op.output, [t for t in space.tracks(x) if t.shape[1] > 1 or t.size == t.shape[0] or space.mix(t, op)])
        for statistics in op.outputs[1:]:
            if statistics is not None:
                space.set(statistics, [along_dim(rows[:, 0], 1, 2)])
        return
    _mixed(space, op, space.tracks(x), range(1, len(x.shape)))
    if rows is not None and space.options.allow_approximate:
        space.equal_groups(rows, least=2)
        space.declared.group_blocks.append(rows)  # which of them a channel is in decides what it is mixed with


def _mixed(space: LabelSpace, op: Op, tracks: Sequence[Labels], dims: Sequence[int]) -> None:
    space.set(op.output, [track for track in tracks if all(track.shape[dim] == 1 for dim in dims)
                          or space.mix(track, op)])


def weight_norm(space: LabelSpace, op: Op) -> None:
    """aten._weight_norm_interface(v, g, dim) -> g v / |v|, |v|: a norm for each index of one dimension."""
    v, g = op.args[:2]
    dim = op.argument(2, "dim", 0)
    space.tie(space.along(v, dim, op), space.along(g, dim, op), op, "scales weights that can't be cut")
    tracks = [t for t in space.tracks(v) if t.shape[dim] > 1 or space.mix(t, op)]
    space.set(op.output, tracks)


def reduction(space: LabelSpace, op: Op) -> None:
    """mean, sum, max, var over dimensions: what is reduced together is one; where that is all, it is mixed."""
    x = op.inputs[0]
    ndim = len(x.shape)
    dims = op.argument(2 if op.name in _ORDER_FIRST else 1, "dim")
    dims = range(ndim) if dims is None or dims == () or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = sorted({dim % ndim for dim in dims}) if ndim else []
    tracks = [reduced for t in space.tracks(x) if (reduced := _reduced(space, t, dims, op)) is not None]
    for out in op.outputs:
        if out is not None:
            gone = tuple(dims) if len(out.shape) < ndim else ()
            space.set(out, [np.squeeze(t, axis=gone) for t in tracks])


# Norms take their order before the dimensions.
_ORDER_FIRST = frozenset({"aten.linalg_vector_norm", "aten.norm"})


def _reduced(space: LabelSpace, track: Labels, dims: Sequence[int], op: Op) -> Labels | None:
    """The track with the reduced dimensions brought to size 1; None if it varies along these alone."""
    if all(track.shape[dim] == 1 for dim in dims):
        return track
    first = track
    for dim in dims:
        first = first.take([0], axis=dim)
    if first.size == 1:
        space.mix(track, op)
        return None
    space.union(track, first)
    return first


def distances(space: LabelSpace, op: Op) -> None:
    """aten._cdist_forward(x, y, ...), (..., P, M) and (..., R, M) -> (..., P, R): the last dimension is summed over."""
    rows = []
    # The second value stands in for one that may be the first.
    for value, stand_in, dim in ((op.inputs[0], op.inputs[0].unnamed(), -2), (op.inputs[1], op.output.unnamed(), -1)):
        tracks = [_reduced(space, track, [track.ndim - 1], op) for track in space.tracks(value)]
        shape = (*value.shape[:-2], *((value.shape[-2], 1) if dim == -2 else (1, value.shape[-2])))
        rows.append(replace(stand_in, shape=shape))
        space.set(rows[-1], [track.swapaxes(-2, dim) for track in tracks if track is not None])
    space.set(op.output, broadcast_union(space, rows, op))


def pair_distances(space: LabelSpace, op: Op) -> None:
    """aten._pdist_forward(x, p), (N, M) -> one number for each pair of rows."""
    for track in space.tracks(op.inputs[0]):
        rows = _reduced(space, track, [1], op)
        if rows is not None:
            space.freeze(rows, f"compared as a whole in {op.where}")


def softmax(space: LabelSpace, op: Op) -> None:
    """Softmax and its kin over one dimension: what is normalised together is one, or mixed if that is all."""
    x, dim = op.args[:2]
    tracks = []
    for track in space.tracks(x):
        reduced = _reduced(space, track, [dim % track.ndim], op)
        if reduced is not None:
            tracks.append(squeeze_equal(np.broadcast_to(reduced, track.shape)))
        elif space.options.allow_approximate:
            tracks.append(track)
    space.set(op.output, tracks)


def freeze_compared(space: LabelSpace, op: Op) -> None:
    """Sorting, selection and suppression: channels are compared with each other."""
    for value in op.inputs:
        space.freeze_value(value, f"compared as a whole in {op.where}")


def multiplied_out(space: LabelSpace, op: Op) -> None:
    """Products that leave a vector or a number, as in the power iterations of spectral norms."""
    for value in op.inputs:
        space.freeze_value(value, f"multiplied out as a whole in {op.where}")


def read_outside(space: LabelSpace, op: Op) -> None:
    """`x.numpy()`, `x.tolist()`: what becomes of the numbers is not known."""
    for value in op.inputs:
        space.freeze_value(value, f"read by code outside torch in {op.where}")


ROWS = {
    **{f"aten.{name}": Row(batch_norm) for name in (
        "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
        "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update")},
    "aten.native_layer_norm": Row(layer_norm),
    "aten.native_group_norm": Row(group_norm),
    **{f"aten.{name}": Row(reduction) for name in (
        "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "any", "all",
        "logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin")},
    **{f"aten.{name}": Row(softmax) for name in ("_softmax", "_log_softmax", "cumsum", "_safe_softmax")},
    **{f"aten.{name}": Row(freeze_compared) for name in (
        "_unique2", "bincount", "nonzero", "histc")},
    **{f"aten.{name}": Row(multiplied_out) for name in ("mv", "dot", "vdot")},
    **{f"aten.{name}": Row(distances) for name in ("_cdist_forward", "_euclidean_dist")},
    "aten._pdist_forward": Row(pair_distances),
    "aten._weight_norm_interface": Row(weight_norm),
    **{name: Row(read_outside) for name in READ_OUTSIDE},
    "torchvision.nms": Row(freeze_compared),
}
