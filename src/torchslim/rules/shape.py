"""Views, permutations and splits: labels move exactly as the elements do.

Most rows simply run the operation on the label tracks. What a track does not vary over stays at size 1, so that a label
costs memory by the channel and not by the pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch

from torchslim.rules.broadcasting import alias, broadcast_union, inherit_repeats, mark_repeated
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row, plain_name
from torchslim.rules.tracks import Labels, spread, squeeze_equal
from torchslim.tracing.graph import Op, Value


def view(space: LabelSpace, op: Op) -> None:
    """Reshapes of any kind: the result's own shape says how."""
    x = op.args[0]
    # Without elements (no detections, say) the sizes need not add up; then nobody can tell what goes where.
    old, new = ([size or 1 for size in value.shape] for value in (x, op.output))
    if prod(old) != prod(new):
        space.freeze_value(x, f"reshaped without elements in {op.where}")
        return
    space.set(op.output, [reshape_track(track, old, new) for track in space.tracks(x)])
    inherit_repeats(space, op.output, [x], {left[0]: right[0] for left, right in (
        ([dim for dim in dims if shape[dim] > 1] for dims, shape in zip(block, (old, new), strict=True))
        for block in _blocks(old, new)) if len(left) == len(right) == 1})


def reshape_track(track: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """A track of a tensor of shape `old` after `tensor.reshape(new)`.

    The dimensions are matched in blocks of equal size; only blocks along which the labels vary are written out.
    """
    middle: list[int] = []
    written: list[int] = []
    final: list[int] = []
    for old_dims, new_dims in _blocks(old, new):
        varies = any(track.shape[dim] > 1 for dim in old_dims)
        if varies:
            track = spread(track, old, old_dims)
            final += [new[dim] for dim in new_dims]
            written += new_dims
        else:
            final += [1] * len(new_dims)
        middle += old_dims
    return squeeze_equal(track.reshape(final), written)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of two shapes that hold equally many elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        if i < len(old):
            left.append(i)
            i += 1
        if j < len(new):
            right.append(j)
            j += 1
        while prod(old[d] for d in left) != prod(new[d] for d in right):
            if prod(old[d] for d in left) < prod(new[d] for d in right):
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        yield left, right


def moved(function: Callable[..., Labels]) -> Callable[[LabelSpace, Op], None]:
    """A row that runs `function(track, *arguments)` on each track; for operations that only reorder dimensions."""

    def labels(space: LabelSpace, op: Op) -> None:
        space.set(op.output, [function(track, *op.args[1:]) for track in space.tracks(op.args[0])])

    return labels


def _unsqueeze(track: Labels, dim: int) -> Labels:
    return np.expand_dims(track, dim)


def _transpose(track: Labels, a: int = 0, b: int = 1) -> Labels:
    return np.swapaxes(track, a, b) if track.ndim > 1 else track


def squeeze(space: LabelSpace, op: Op) -> None:
    """squeeze() of all, one or several dimensions of size 1."""
    x = op.args[0]
    dims = op.args[1] if len(op.args) > 1 else range(len(x.shape))
    dims = [dims] if isinstance(dims, int) else dims
    gone = tuple(dim % len(x.shape) for dim in dims if x.shape[dim] == 1)
    space.set(op.output, [np.squeeze(track, axis=gone) for track in space.tracks(x)])


def expand(space: LabelSpace, op: Op) -> None:
    """expand: new dimensions come in front; what is repeated is cut only with what it meets."""
    x, shape = op.args[0], op.output.shape
    if x.shape == shape:
        alias(space, op.output, x)
        return
    stored = (1,) * (len(shape) - len(x.shape)) + x.shape
    space.set(op.output, [t.reshape((1,) * (len(shape) - t.ndim) + t.shape) for t in space.tracks(x)])
    inherit_repeats(space, op.output, [x])
    mark_repeated(space, op.output, [dim for dim, size in enumerate(shape) if stored[dim] == 1 < size])


def repeat(space: LabelSpace, op: Op) -> None:
    """repeat: tiles, along dimensions with labels and without; one element is repeated as `expand` does."""
    x, times = op.args[:2]
    stored = (1,) * (len(times) - len(x.shape)) + x.shape
    tracks = []
    for track in space.tracks(x):
        track = track.reshape((1,) * (len(times) - track.ndim) + track.shape)
        tracks.append(np.tile(track, [n if size > 1 else 1 for n, size in zip(times, track.shape, strict=True)]))
    space.set(op.output, tracks)
    mark_repeated(space, op.output, [dim for dim, n in enumerate(times) if stored[dim] == 1 < n])


def slices(space: LabelSpace, op: Op) -> None:
    """aten.slice(x, dim, start, end, step)."""
    x = op.args[0]
    dim, start, end, step = (op.argument(position, name, default) for position, name, default in (
        (1, "dim", 0), (2, "start", None), (3, "end", None), (4, "step", 1)))
    tracks = []
    for track in space.tracks(x):
        if track.shape[dim] > 1:
            cut = [slice(None)] * track.ndim
            cut[dim] = slice(start, None if end is None or end > x.shape[dim] else end, step)
            part = track[tuple(cut)]
            if part.shape[dim] == 1 < track.shape[dim]:
                _by_position(space, track, dim, op)
            elif part.size < track.size:
                space.add_sub_tensor(part)
                _like_its_siblings(space, track, start or 0, part.shape[dim], step)
            track = part
        tracks.append(track)
    space.set(op.output, tracks)


def narrow(space: LabelSpace, op: Op) -> None:
    """aten.narrow_copy(x, dim, start, length)."""
    x, dim, start, length = op.args
    slices(space, replace(op, args=(x, dim, start, start + length)))


def _like_its_siblings(space: LabelSpace, track: Labels, start: int, size: int, step: int) -> None:
    """A slice that is one of n equal parts (`x[:, :c // 2]`, `x[:, ::2]`): they lose equally many, as in a chunk."""
    extent = track.size
    if size <= 1 or max(track.shape) < extent or extent % size:
        return
    if step == 1 and start % size == 0:
        space.equal_groups(track.reshape(-1, size), least=2)
    elif step * size == extent and 0 <= start < step:
        space.equal_groups(track.reshape(size, step).T, least=2)


def select(space: LabelSpace, op: Op) -> None:
    """aten.select(x, dim, index): one index; a channel picked by its number must keep it."""
    x, dim, index = op.args[:3]
    tracks = []
    for track in space.tracks(x):
        if track.shape[dim] > 1:
            _by_position(space, track, dim, op)
            tracks.append(track.take(index, axis=dim))
        else:
            tracks.append(np.squeeze(track, axis=dim))
    space.set(op.output, tracks)


def _by_position(space: LabelSpace, track: Labels, dim: int, op: Op) -> None:
    """Freeze labels that vary along the dimension from which one index is picked alone."""
    if track.size == track.shape[dim]:
        space.freeze(track, f"picked by position in {op.where}")


def written_view(view: Callable[[LabelSpace, Op], None]) -> Callable[[LabelSpace, Op], None]:
    """A row of slice_scatter(x, source, ...) and its like: a copy of x in which a view is overwritten."""

    def labels(space: LabelSpace, op: Op) -> None:
        x, source = op.args[:2]
        target = source.unnamed()
        view(space, replace(op, args=(x, *op.args[2:]), inputs=(x,), outputs=(target,)))
        broadcast_union(space, [target, source], op)
        space.set(op.output, space.tracks(x))

    return labels


def split(space: LabelSpace, op: Op) -> None:
    """aten.split(x, size, dim), split_with_sizes(x, sizes, dim), chunk: equal parts lose equally many."""
    x = op.args[0]
    dim = op.argument(2, "dim", 0)
    _parts(space, op, x, dim, [out.shape[dim] for out in op.outputs if out is not None])


def _parts(space: LabelSpace, op: Op, x: Value, dim: int, sizes: list[int]) -> None:
    ends = np.cumsum(sizes)
    results: list[list[Labels]] = [[] for _ in sizes]
    for track in space.tracks(x):
        parts: list[Labels]
        if track.shape[dim] == 1:
            parts = [track] * len(sizes)
        else:
            parts = list(np.split(track, ends[:-1], axis=dim))
            space.refine_rows(track, dim)
            if track.size == track.shape[dim] and len(sizes) > 1:
                if len(set(sizes)) == 1 and sizes[0] > 1:
                    space.equal_groups(track.reshape(len(sizes), -1), least=2)
                elif plain_name(op.name) not in ("aten.split_with_sizes", "aten.unsafe_split_with_sizes"):
                    space.freeze(track, f"split into unequal parts in {op.where}")
        for result, part in zip(results, parts, strict=True):
            if part.size == 1 < track.size:
                space.freeze(part, f"a part of one channel in {op.where}")
            elif part.size < track.size:
                space.add_sub_tensor(part)
            result.append(part)
    for out, tracks in zip(op.outputs, results, strict=True):
        if out is not None:
            space.set(out, tracks)


def unbind(space: LabelSpace, op: Op) -> None:
    """aten.unbind(x, dim): every index of a dimension by itself."""
    x, dim = op.args[0], op.argument(1, "dim", 0)
    for track in space.tracks(x):
        if track.shape[dim] > 1:
            _by_position(space, track, dim, op)
    for index, out in enumerate(op.outputs):
        if out is not None:
            space.set(out, [np.asarray(t.take(index if t.shape[dim] > 1 else 0, axis=dim)) for t in space.tracks(x)])


def generic(*positions: int) -> Callable[[LabelSpace, Op], None]:
    """A row that runs the very operation on each track, written out along the dimensions named by its arguments.

    `positions` are the places of the arguments that name dimensions; without them every dimension is written out.
    """

    def labels(space: LabelSpace, op: Op) -> None:
        x = op.args[0]
        named: set[int] = set()
        for position in positions:
            dims = op.args[position] if position < len(op.args) else ()
            named |= {dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)}
        for_all = not positions or not named
        tracks = []
        for track in space.tracks(x):
            dims = range(track.ndim) if for_all else named
            if all(track.shape[dim] == 1 for dim in dims):
                tracks.append(track)
                continue
            full = torch.from_numpy(np.array(spread(track, x.shape, dims), order="C"))
            result: Any = op.overload(full, *op.args[1:], **op.kwargs)
            tracks.append(squeeze_equal(result.numpy()))
        space.set(op.output, tracks)

    return labels


_ROWS: dict[tuple[str, ...], Callable[[LabelSpace, Op], None]] = {
    ("view", "_unsafe_view", "_reshape", "_reshape_alias"): view,
    ("permute",): moved(np.transpose),
    ("transpose", "t"): moved(_transpose),
    ("unsqueeze",): moved(_unsqueeze),
    ("squeeze",): squeeze,
    ("expand",): expand,
    ("repeat",): repeat,
    ("slice",): slices,
    ("narrow",): narrow,
    ("select",): select,
    ("slice_scatter",): written_view(slices),
    ("select_scatter",): written_view(select),
    ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"): split,
    ("unbind",): unbind,
    ("flip",): generic(1),
    ("roll",): generic(2),
    ("unfold",): generic(),
}

ROWS = {f"aten.{name}": Row(function) for names, function in _ROWS.items() for name in names}
