"""Products of two activations, as in attention: scores are sums over a head's widths, results are sums over positions.

A channel of the inner dimension that goes, goes from both factors. Where the factors come head by head, folded into the
first of three dimensions, heads go whole; or, where there are few of them or the code does not allow it, each head
loses equally many of its widths.
"""

from __future__ import annotations

from math import prod

import numpy as np

from torchslim.rules.broadcasting import broadcast_union, label_repeated
from torchslim.rules.labels import LabelSpace
from torchslim.rules.tracks import Labels, Tracks
from torchslim.tracing.graph import Op, Value

MAX_HEADS_BY_WIDTH = 2
"""So many heads are as few as can be: their widths are cut instead."""


def between_activations(space: LabelSpace, op: Op, a: Value, b: Value) -> None:
    """The labels of a product of two activations: those of the outer dimensions pass, those of the inner one meet."""
    inner = _inner_labels(space, op, a, b)
    heads = None if inner is None else _heads(space, inner)
    left = [track for track in space.tracks(a) if track.shape[-1] == 1]
    right = [track for track in space.tracks(b) if track.shape[-2] == 1]
    folded = _tie_batches(space, op, a, b, heads)
    _meter(space, op, inner, left, right, folded)
    out = [track for track in (*left, *right, *folded[:1]) if not _only_batch(track)]
    if folded and not any(_along_batch(track) for track in out):
        out.append(folded[0])
    if len(op.args) == 3:  # baddbmm
        product = op.output.unnamed()
        space.set(product, out)
        out = list(broadcast_union(space, [product, op.args[0]], op))
    space.set(op.output, out)


def _inner_labels(space: LabelSpace, op: Op, a: Value, b: Value) -> Labels | None:
    """The labels that both factors have along the inner dimension, last; frozen where one factor has none."""
    left = _last_labels(space, space.tracks(a))
    right = _last_labels(space, [track.swapaxes(-1, -2) for track in space.tracks(b)])
    if left is None or right is None:
        found = left if right is None else right
        other, track = (b, None if left is None else left.swapaxes(-1, -2)) if right is None else (a, right)
        if found is None or label_repeated(space, other, track):
            return found
        space.freeze(found, f"multiplied out between two activations in {op.where}")
        return None
    space.union(left, right)
    return left if left.size >= right.size else right


def _last_labels(space: LabelSpace, tracks: Tracks | list[Labels]) -> Labels | None:
    """One track of all that vary along the last dimension; what is beside each other along the one before is one."""
    found: Labels | None = None
    for track in tracks:
        if track.shape[-1] > 1:
            first = track[..., :1, :]
            space.union(track, first)
            if found is not None:
                space.union(found, first)
            found = first if found is None or first.size > found.size else found
    return found


def _heads(space: LabelSpace, inner: Labels) -> Labels | None:
    """A track of whole heads along the batch; None where there is one head, or heads lose equally many widths."""
    if not _along_batch(inner):
        return None
    rows = inner.reshape(len(inner), -1)
    number = space.op_number
    few = number not in space.options.whole_heads and len(np.unique(rows[:, 0])) <= MAX_HEADS_BY_WIDTH
    if few or number in space.options.head_widths:
        space.declared.head_widths.add(number)
        space.equal_groups(rows, least=2)
        space.declared.group_blocks.append(rows)
        return None
    space.declared.whole_heads[number] = rows.ravel()
    space.union(rows[:, :1], rows)
    return inner[..., :1]


def _along_batch(track: Labels) -> bool:
    return track.ndim == 3 and track.shape[0] > 1


def _only_batch(track: Labels) -> bool:
    return _along_batch(track) and track.size == track.shape[0]


def _tie_batches(space: LabelSpace, op: Op, a: Value, b: Value, heads: Labels | None) -> list[Labels]:
    """Unite what the factors have at each index of the batch, where an index may go; the tracks along the batch."""
    along = [[track for track in space.tracks(value) if _along_batch(track)] for value in (a, b)]
    whole = [track for track in (heads, *along[0], *along[1]) if track is not None and _only_batch(track)]
    if not whole:
        for track in (*along[0], *along[1]):  # a channel of one head is none of another's
            space.declared.group_blocks.append(track.reshape(len(track), -1))
        return []
    for value, tracks in zip((a, b), along, strict=True):
        for track in tracks:
            space.union(whole[0], track)
        if not tracks and not label_repeated(space, value, whole[0]):
            space.freeze(whole[0], f"multiplied with a tensor that can't be cut in {op.where}")
    return whole


def _meter(space: LabelSpace, op: Op, inner: Labels | None, left: list[Labels], right: list[Labels],
           folded: list[Labels]) -> None:
    """Multiply-adds, index by index of the batch where labels differ along it."""
    rows, columns = (next((t for t in tracks if t.shape[dim] > 1), None) for tracks, dim in ((left, -2), (right, -1)))
    parts = [track for track in (inner, rows, columns) if track is not None]
    if folded and not any(map(_along_batch, parts)):
        parts.append(folded[0])
    a = op.args[-2]
    macs = prod(a.shape) * op.output.shape[-1]
    if not any(map(_along_batch, parts)):
        space.meter(op, macs, (part.ravel() for part in parts))
        return
    size = a.shape[0]
    flat = [np.broadcast_to(part.reshape(len(part), -1), (size, part.size // len(part))) for part in parts]
    ends = np.cumsum([part.shape[1] for part in flat])[:-1]
    distinct, counts = np.unique(np.concatenate(flat, axis=1), axis=0, return_counts=True)
    for line, count in zip(distinct, counts.tolist(), strict=True):
        space.meter(op, macs // size * count, np.split(line, ends))
