"""Convolutions and matrix products: where the multiply-adds are, where channels are read and new ones made."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from torchslim.rules.broadcasting import label_repeated
from torchslim.rules.labels import LabelSpace
from torchslim.rules.products import between_activations
from torchslim.rules.row import Row
from torchslim.rules.tracks import Labels, Tracks, along_dim
from torchslim.tracing.graph import Op, Value


def convolution_macs(op: Op) -> int:
    """Kernel elements x input channels a group x output elements; for a transposed one, x input elements."""
    x, weight, out = op.args[0], op.args[1], op.output
    transposed = op.argument(6, "transposed", False)
    # Each weight of a filter meets every output position once; of a transposed one, every input position once.
    return int(prod(weight.shape[1:]) * (x.numel if transposed else out.numel))


def convolution(space: LabelSpace, op: Op) -> None:
    """aten.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups).

    Labels along other dimensions than the channels pass where the convolution works on each index alone: along the
    batch (maps folded into it), and along a dimension of the map on which filters have one tap.
    """
    x, weight, bias = op.args[:3]
    transposed, groups = op.argument(6, "transposed", False), op.argument(8, "groups", 1)
    channels = x.shape[1]
    passing = _passing(space, op)
    into = space.along(x, 1, op)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    alone = groups > 1 and groups == channels and weight.shape[1] == 1
    depthwise = alone and weight.name not in space.options.grouped_weights
    if groups == 1:
        out = _dense(space, op, into, in_dim, out_dim)
    elif depthwise:
        out = _depthwise(space, op, into)
    else:
        out = _grouped(space, op, into, groups)
    if out is not None and not depthwise:
        space.makes(out, prod(op.output.shape[2:]))
    space.add_channels(out)
    if bias is not None:
        space.tie(space.along(bias, 0, op), out, op, "the bias of channels that can't be cut")
    made = () if out is None else (along_dim(out, 1, len(op.output.shape)),)
    space.set(op.output, (*made, *passing))
    # A filter reads its group's channels: with a group, filters go, and those left read as many as before.
    by_filters = depthwise or (groups > 1 and space.options.whole_groups)
    space.meter(op, convolution_macs(op), (*((out,) if by_filters else (out, into)), *(t.ravel() for t in passing)))


def _passing(space: LabelSpace, op: Op) -> Tracks:
    """The tracks of a convolution's input that pass as they are; others that do not vary along channels are frozen."""
    x = op.args[0]
    stride, padding, dims = op.args[3], op.args[4], len(x.shape) - 2
    single = {0, *(dim + 2 for dim in range(dims) if op.args[1].shape[dim + 2] == 1 and x.shape[dim + 2] > 1
                   and stride[dim % len(stride)] == 1 and padding[dim % len(padding)] == 0)}
    tracks = [track for track in space.tracks(x) if track.shape[1] == 1]
    passing = tuple(track for track in tracks if {dim for dim, size in enumerate(track.shape) if size > 1} <= single)
    for track in tracks:
        if not any(track is other for other in passing):
            space.freeze(track, f"convolved over in {op.where}")
    return passing


def _dense(space: LabelSpace, op: Op, into: Labels | None, in_dim: int, out_dim: int) -> Labels | None:
    x, weight = op.args[:2]
    read = space.along(weight, in_dim, op)
    space.tie(into, read, op, _doing("reads", x, into))
    if read is not None:
        space.reads(weight, read, prod(x.shape[2:]))
    _keep_kernel(space, op, weight)
    return space.along(weight, out_dim, op)


def _depthwise(space: LabelSpace, op: Op, into: Labels | None) -> Labels | None:
    x, weight = op.args[:2]
    filters = space.along(weight, 0, op)
    _keep_kernel(space, op, weight)
    multiplier = weight.shape[0] // x.shape[1]
    space.tie(None if into is None else np.repeat(into, multiplier), filters, op, _doing("filters", x, into))
    return filters


def _grouped(space: LabelSpace, op: Op, into: Labels | None, groups: int) -> Labels | None:
    x, weight = op.args[:2]
    if weight.name:
        by_group: Labels | None = space.grouped_input_labels(weight, groups)
    else:
        shared = space.along(weight, 1, op)
        by_group = None if shared is None else np.tile(shared, groups)
    plain = space.along(weight, 0, op)
    # A filter holds its group's input channels; where transposed, an input channel holds its group's filters.
    read, filters = (plain, by_group) if op.argument(6, "transposed", False) else (by_group, plain)
    _keep_kernel(space, op, weight)
    space.tie(into, read, op, _doing("reads", x, into))
    if read is not None:
        space.reads(weight, read, prod(x.shape[2:]))
    if space.options.whole_groups:
        _live_together(space, op, into, filters, groups)
        return filters
    for labels in (into, filters):
        if labels is not None:
            space.equal_groups(labels.reshape(groups, -1), least=1)
            space.declared.group_blocks.append(labels.reshape(groups, -1))
    return filters


def _live_together(space: LabelSpace, op: Op, into: Labels | None, filters: Labels | None, groups: int) -> None:
    """A group's channels, those that it reads and those that it makes, are one."""
    space.tie(None if into is None else into.reshape(groups, -1)[:, 0],
              None if filters is None else filters.reshape(groups, -1)[:, 0], op, "groups that can't be cut")
    for labels in (into, filters):
        if labels is not None:
            rows = labels.reshape(groups, -1)
            space.union(rows[:, :1], rows)


def _doing(verb: str, x: Value, channels: Labels | None) -> str:
    """What a layer does with channels that stay, for a reason: those of the network's input are called so."""
    if channels is None and x.source == "input":
        return f"{verb} the network's input"
    return f"{verb} channels that can't be cut"


def _keep_kernel(space: LabelSpace, op: Op, weight: Value) -> None:
    """Freeze the labels of a computed kernel's own dimensions; those of a plain parameter are never made."""
    for track in () if weight.name else space.tracks(weight):
        if track.shape[0] == track.shape[1] == 1:
            space.freeze(track, f"kernel size in {op.where}")


def _as_convolution(op: Op) -> Op:
    """A deformable convolution as the plain one of the same weights."""
    x, weight, _, _, bias = op.args[:5]
    stride, padding, dilation = (op.args[position:position + 2] for position in (5, 7, 9))
    return replace(op, args=(x, weight, bias, stride, padding, dilation, False, (0, 0), op.args[11]))


def deformable(space: LabelSpace, op: Op) -> None:
    """torchvision.deform_conv2d(x, weight, offset, mask, bias, ..., groups, offset_groups, use_mask).

    Where it samples is no channel that could go. Equal runs of the input's channels share their offsets.
    """
    x, offset, mask = op.args[0], *op.args[2:4]
    for value in (offset, mask):
        space.freeze_value(value, f"coordinates in {op.where}")
    channels, runs = space.along(x, 1, op), op.args[12]
    if channels is not None and runs > 1:
        space.equal_groups(channels.reshape(runs, -1), least=1)
        space.declared.group_blocks.append(channels.reshape(runs, -1))
    convolution(space, _as_convolution(op))


def deformable_macs(op: Op) -> int:
    """As of a plain convolution: finding the samples is not counted."""
    return convolution_macs(_as_convolution(op))


def matmul_macs(op: Op) -> int:
    """(..., n, k) @ (..., k, m): n x k x m, over the batch."""
    a, b = _factors(op)
    return int(prod(a.shape) * b.shape[-1])


def matmul(space: LabelSpace, op: Op) -> None:
    """aten.mm, bmm, addmm, baddbmm: the inner dimension is read, the outer ones pass."""
    a, b = _factors(op)
    if not (a.static or b.static):
        between_activations(space, op, a, b)
        return
    batch = _batch_labels(space, op, a, b)
    inner_a, inner_b = space.along(a, -1, op), space.along(b, -2, op)
    space.tie(inner_a, inner_b, op, _doing("reads", *((a, inner_a) if b.static else (b, inner_b))))
    weight, read, made = (b, inner_b, -1) if b.static else (a, inner_a, -2)
    # Rows of a table that a buffer picks, and what a fixed transform makes, are no layer's channels; of a weight
    # that is itself a product only the inner dimension surely is one.
    learned = not (a.fixed or b.fixed)
    if read is not None:
        space.reads(weight, read, 1, layer=learned)
    labels = space.along(weight, made, op)
    if labels is not None:  # positions, not pictures
        space.makes(labels, max(1, op.output.shape[-2] // max(1, space.batch_size)),
                    layer=learned and not (a.static and b.static))
    out = (*_outer(space, a, -1), *_outer(space, b, -2))
    if len(op.args) == 3:  # addmm, baddbmm
        out = _plus_bias(space, op, op.args[0], out)
    space.set(op.output, out)
    rows, columns = space.along(a, -2, op), space.along(b, -1, op)
    space.meter(op, matmul_macs(op), (rows, inner_a, columns, batch))


def _batch_labels(space: LabelSpace, op: Op, a: Value, b: Value) -> Labels | None:
    """The labels along the first of three dimensions (maps folded into the batch), which both factors share."""
    of_a, of_b = (next((track for track in space.tracks(value) if track.size == track.shape[0]), None)
                  if len(value.shape) == 3 else None for value in (a, b))
    track, other = (of_a, b) if of_a is not None else (of_b, a)
    if track is None:
        return None
    if of_a is not None and of_b is not None:
        space.union(of_a, of_b)
    elif not label_repeated(space, other, track):
        space.freeze(track, f"multiplied with a tensor that can't be cut in {op.where}")
    return track.ravel()


def _factors(op: Op) -> tuple[Value, Value]:
    a, b = op.args[-2:]
    return a, b


def _outer(space: LabelSpace, value: Value, inner: int) -> Tracks:
    """The tracks that survive a product: those that do not vary along the inner dimension."""
    return tuple(track for track in space.tracks(value) if track.shape[inner] == 1)


def _plus_bias(space: LabelSpace, op: Op, bias: Value, tracks: Tracks) -> Tracks:
    bias_labels = space.along(bias, -1, op) if bias.shape else None
    columns = next((t for t in tracks if t.shape[-1] > 1), None)
    if columns is None:
        if bias_labels is not None:
            space.freeze(bias_labels, f"added to channels that can't be cut in {op.where}")
        return tracks
    flat = _along_last(columns, space)
    space.tie(bias_labels, flat, op, "added to a bias that can't be cut")
    return tracks


def _along_last(track: Labels, space: LabelSpace) -> Labels:
    """The labels along the last dimension, those along others made one."""
    rows = track.reshape(-1, track.shape[-1])
    first: Labels = rows[0]
    for row in rows[1:]:
        space.union(first, row)
    return first


def embedding(space: LabelSpace, op: Op) -> None:
    """aten.embedding(weight, indices), _embedding_bag(weight, indices, offsets, ...): rows picked by number.

    The columns are channels that it makes.
    """
    weight = op.args[0]
    picking = [track for value in op.inputs[1:] for track in space.tracks(value)]
    for track in (*picking, *(track for track in space.tracks(weight) if track.shape[0] > 1)):
        space.freeze(track, f"picked by position in {op.where}")
    made = space.along(weight, 1, op)
    if made is not None:
        space.makes(made, prod(op.output.shape[1:-1]))
    for out in op.outputs:
        if out is not None and out.shape == op.output.shape:
            space.set_along(out, -1, made)


def bilinear(space: LabelSpace, op: Op) -> None:
    """aten._trilinear(x, weight, y, ...) as `F.bilinear` calls it: a weight (out, in, in) reads along two dims."""
    x, weight, y = op.args[:3]
    if not _is_bilinear(op):
        for value in op.inputs:
            space.freeze_value(value, f"multiplied out as a whole in {op.where}")
        return
    rows = max(1, x.shape[0] // max(1, space.batch_size))
    read = [_read_along_last(space, op, value, weight, dim, rows) for value, dim in ((x, 1), (y, 2))]
    made = space.along(weight, 0, op)
    if made is not None:
        space.makes(made, rows)
    space.set_along(op.output, -1, made)
    space.meter(op, bilinear_macs(op), (made, *read))


def bilinear_macs(op: Op) -> int:
    """Rows x elements of the weight."""
    return op.args[0].shape[0] * op.args[1].numel if _is_bilinear(op) else 0


def _is_bilinear(op: Op) -> bool:
    return [list(dims) for dims in op.args[3:7]] == [[1, 3], [0], [1, 2], [2, 3]]


def _read_along_last(space: LabelSpace, op: Op, x: Value, weight: Value, dim: int, size: int) -> Labels | None:
    """Tie the last dimension of a value to one of the weight that reads it."""
    into, read = space.only_along(x, -1, op, "multiplied out"), space.along(weight, dim, op)
    space.tie(into, read, op, _doing("reads", x, into))
    if read is not None:
        space.reads(weight, read, size)
    return read


def channels_last_convolution(space: LabelSpace, op: Op) -> None:
    """aten.conv_tbc(x, weight, bias, pad): x (time, batch, in), weight (time, in, out)."""
    x, weight, bias = op.args[:3]
    read = _read_along_last(space, op, x, weight, 1, x.shape[0])
    made = space.along(weight, 2, op)
    if made is not None:
        space.makes(made, op.output.shape[0])
    space.tie(space.along(bias, 0, op), made, op, "the bias of channels that can't be cut")
    space.set_along(op.output, -1, made)
    space.meter(op, channels_last_macs(op), (made, read))


def channels_last_macs(op: Op) -> int:
    """Outputs x elements of a filter."""
    return int(op.output.numel * prod(op.args[1].shape[:2]))


MATMUL = Row(matmul, matmul_macs)
CONVOLUTION = Row(convolution, convolution_macs)

ROWS = {
    "aten.convolution": CONVOLUTION,
    "aten._convolution": CONVOLUTION,
    "torchvision.deform_conv2d": Row(deformable, deformable_macs),
    **{f"aten.{name}": Row(embedding) for name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only")},
    "aten._trilinear": Row(bilinear, bilinear_macs),
    "aten.conv_tbc": Row(channels_last_convolution, channels_last_macs),
    "aten.mm": MATMUL,
    "aten.bmm": MATMUL,
    "aten.addmm": MATMUL,
    "aten.baddbmm": MATMUL,
}
