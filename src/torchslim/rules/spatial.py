"""Pooling, resizing, padding, region pooling: what works on the space of each channel by itself, so labels pass."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.rules.tracks import Labels, squeeze_equal
from torchslim.tracing.graph import Op, Value


def spatial(ndim: int) -> Row:
    """An operation on the last `ndim` dimensions, whose sizes change; labels of the dimensions before pass."""

    def labels(space: LabelSpace, op: Op) -> None:
        x = op.inputs[0]
        for out in op.outputs:
            if out is not None:
                space.set(out, _unchanged_over(space, x, ndim, op, _idle_dims(op, ndim)))

    return Row(labels)


def _idle_dims(op: Op, ndim: int) -> frozenset[int]:
    """The dimensions of the map, from 0, along which each index is left as it is."""
    before, after = op.inputs[0].shape[-ndim:], op.output.shape[-ndim:]
    kernel = op.args[1] if "pool" in op.name and "adaptive" not in op.name else (1,)
    return frozenset(dim for dim in range(ndim) if before[dim] == after[dim] and kernel[dim % len(kernel)] == 1)


def _unchanged_over(space: LabelSpace, x: Value, ndim: int, op: Op,
                    idle: frozenset[int] = frozenset()) -> list[Labels]:
    kept = []
    for track in space.tracks(x):
        last = tuple(track.ndim - ndim + dim for dim in range(ndim) if dim not in idle)
        if all(track.shape[dim] == 1 for dim in last):
            kept.append(track)
        elif all(size == 1 for dim, size in enumerate(track.shape) if dim not in last):
            kept += _centres(space, track, ndim, op)
        else:  # labels change over space and channels: those of one channel become one
            first = track
            for dim in last:
                first = first.take([0], axis=dim)
            space.union(track, first)
            kept.append(first)
    return kept


def _centres(space: LabelSpace, track: Labels, ndim: int, op: Op) -> list[Labels]:
    """Of labels that are pooled over, as in local response norms: the one in the middle of each window.

    They stay, unless the caller allows that what is left has other neighbours.
    """
    varied = [dim for dim, size in enumerate(track.shape) if size > 1]
    first, count = _windows(op, ndim, varied[0] - track.ndim) if len(varied) == 1 else (-1, 0)
    if first < 0 or first + count > track.size:
        space.freeze(track, f"resized over in {op.where}")
        return []
    before, middle, after = np.split(track, [first, first + count], axis=varied[0])
    for end in (before, after):
        space.freeze(end, f"resized over in {op.where}")
    return [middle] if space.mix(middle, op) else []


def _windows(op: Op, ndim: int, dim: int) -> tuple[int, int]:
    """Of a pool with a stride and a dilation of 1: the index in the middle of the first window, and their number."""
    if op.name not in ("aten.avg_pool2d", "aten.avg_pool3d", "aten.max_pool2d_with_indices",
                       "aten.max_pool3d_with_indices"):
        return -1, 0
    kernel, stride, padding, dilation = ([*numbers] * ndim for numbers in (
        op.args[1], op.argument(2, "stride") or op.args[1], op.argument(3, "padding") or [0],
        (op.argument(4, "dilation") or [1]) if "max" in op.name else [1]))
    dim += ndim
    return (kernel[dim] // 2 - padding[dim] if stride[dim] == dilation[dim] == 1 else -1,
            op.output.shape[dim - ndim])


def pad(space: LabelSpace, op: Op) -> None:
    """aten.constant_pad_nd(x, pad, value): padded channels are constants that stay."""
    x, padding = op.args[:2]
    tracks = []
    for track in space.tracks(x):
        for pair in range(len(padding) // 2):
            dim = track.ndim - 1 - pair
            before, after = padding[2 * pair], padding[2 * pair + 1]
            if track.shape[dim] > 1 and (before or after):
                if before < 0 or after < 0:
                    space.freeze(track, f"cropped by position in {op.where}")
                    return
                track = _pad_dim(space, track, dim, before, after, op)
        tracks.append(track)
    space.set(op.output, tracks)


def _pad_dim(space: LabelSpace, track: Labels, dim: int, before: int, after: int, op: Op) -> Labels:
    parts = [track]
    for size, index in ((before, 0), (after, len(parts))):
        if size:
            labels = space.new_labels(size).reshape([size if d == dim else 1 for d in range(track.ndim)])
            space.freeze(labels, f"padded channels in {op.where}")
            full = [size if d == dim else s for d, s in enumerate(track.shape)]
            parts.insert(index, np.broadcast_to(labels, full)) if index == 0 else parts.append(
                np.broadcast_to(labels, full))
    return np.concatenate(parts, axis=dim)


def grid_sample(space: LabelSpace, op: Op) -> None:
    """aten.grid_sampler_2d(x, grid, ...): the grid's coordinates stay, the sampled channels pass."""
    x, grid = op.args[:2]
    space.freeze_value(grid, f"coordinates in {op.where}")
    space.set(op.output, _unchanged_over(space, x, len(x.shape) - 2, op))


def grid_made(space: LabelSpace, op: Op) -> None:
    """aten.affine_grid_generator(theta, size, align_corners): coordinates, and no channels."""
    space.freeze_value(op.args[0], f"coordinates in {op.where}")


def region_pool(space: LabelSpace, op: Op) -> None:
    """torchvision.roi_align(x, boxes, ...) and its kin: (K, C, h, w) out of (N, C, H, W)."""
    x, boxes = op.args[:2]
    space.freeze_value(boxes, f"coordinates in {op.where}")
    tracks = [t for t in _unchanged_over(space, x, 2, op) if t.shape[0] == 1]
    space.set(op.output, tracks)


def pixel_shuffle(space: LabelSpace, op: Op) -> None:
    """aten.pixel_shuffle(x, r): (C r r, H, W) -> (C, H r, W r); the r r channels of one result are one."""
    x, factor = op.args[:2]
    tracks = []
    for track in _unchanged_over(space, x, 2, op):
        if track.shape[-3] == 1:
            tracks.append(track)
            continue
        blocks = np.moveaxis(track, -3, -1)
        blocks = blocks.reshape(*blocks.shape[:-1], -1, factor * factor)
        space.union(blocks, blocks[..., :1])
        tracks.append(np.moveaxis(blocks[..., 0], -1, -3))
    space.set(op.output, tracks)


def pixel_unshuffle(space: LabelSpace, op: Op) -> None:
    """aten.pixel_unshuffle(x, r): (C, H r, W r) -> (C r r, H, W)."""
    x, factor = op.args[:2]
    space.set(op.output, [np.repeat(t, factor * factor, axis=-3) if t.shape[-3] > 1 else t
                          for t in _unchanged_over(space, x, 2, op)])


def unfolded(space: LabelSpace, op: Op) -> None:
    """aten.im2col(x, kernel, ...): (N, C, H, W) -> (N, C k k, L), or without the batch: k k rows a channel."""
    x, kernel = op.args[:2]
    tracks = [np.squeeze(t, axis=-1) for t in _unchanged_over(space, x, 2, op)]
    size = kernel[0] * kernel[1]
    space.set(op.output, [np.repeat(t, size, axis=-2) if t.shape[-2] > 1 else t for t in tracks])


def folded(space: LabelSpace, op: Op) -> None:
    """aten.col2im(x, size, kernel, ...), `nn.Fold`: (C k k, positions) -> (C, H, W); the k k of one result are one."""
    x, _, kernel = op.args[:3]
    tracks = []
    for track in _unchanged_over(space, x, 1, op):
        if track.shape[-2] > 1:
            blocks = track.reshape(*track.shape[:-2], -1, prod(kernel))
            space.union(blocks, blocks[..., :1])
            track = blocks[..., :1]
        tracks.append(np.expand_dims(track, -1))
    space.set(op.output, tracks)


def shuffle_channels(space: LabelSpace, op: Op) -> None:
    """aten.channel_shuffle(x, groups)."""
    x, groups = op.args[:2]
    tracks = []
    for track in space.tracks(x):
        if track.shape[1] > 1:
            folded = track.reshape(track.shape[0], groups, -1, *track.shape[2:])
            if squeeze_equal(track).ndim and track.size == track.shape[1]:
                space.equal_groups(folded.reshape(groups, -1), least=2)
            track = np.swapaxes(folded, 1, 2).reshape(track.shape)
        tracks.append(track)
    space.set(op.output, tracks)


_BY_NDIM: dict[int, tuple[str, ...]] = {
    1: ("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d", "reflection_pad1d",
        "replication_pad1d"),
    2: ("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
        "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad2d", "replication_pad2d",
        "fractional_max_pool2d"),
    3: ("avg_pool3d", "max_pool3d_with_indices", "_adaptive_avg_pool3d", "adaptive_max_pool3d",
        "upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact3d", "reflection_pad3d",
        "replication_pad3d", "fractional_max_pool3d"),
}
_OTHERS: dict[str, Callable[[LabelSpace, Op], None]] = {
    "aten.constant_pad_nd": pad,
    "aten.affine_grid_generator": grid_made,
    "aten.grid_sampler_2d": grid_sample,
    "aten.grid_sampler_3d": grid_sample,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.im2col": unfolded,
    "aten.col2im": folded,
    "aten.channel_shuffle": shuffle_channels,
    "torchvision.roi_align": region_pool,
    "torchvision.roi_pool": region_pool,
}

ROWS = {
    **{f"aten.{name}": spatial(ndim) for ndim, names in _BY_NDIM.items() for name in names},
    **{name: Row(labels) for name, labels in _OTHERS.items()},
}
