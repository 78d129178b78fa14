"""Tensors that meet element by element, and those that repeat one element along a dimension.

A tensor of size 1 is broadcast to whatever it meets. One that was expanded to a size gets the labels of what it meets
along that dimension: whether torch broadcasts a tensor or is given it expanded is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torchslim.rules.labels import LabelSpace, Repeat
from torchslim.rules.tracks import Labels, Tracks
from torchslim.tracing.graph import Op, Value


def mark_repeated(space: LabelSpace, value: Value, dims: Iterable[int]) -> None:
    """Declare that a value repeats one element along these dimensions, as `expand` does.

    They get the labels of what they meet: whether torch broadcasts a tensor or is given it expanded is the same.
    """
    space.repeats.setdefault(value.id, {}).update({dim: {value.id: (value, dim)} for dim in dims})


def inherit_repeats(space: LabelSpace, value: Value, sources: Sequence[Value],
                    places: Mapping[int, int] | None = None) -> None:
    """Declare that a value repeats one element along the dimensions on which all its sources do.

    Args:
        value: what an element-wise operation or a view gives.
        sources: what it is computed of.
        places: of each dimension of a single source, which of the value's it is; None if they broadcast.
    """
    for dim, size in enumerate(value.shape) if any(source.id in space.repeats for source in sources) else ():
        joined: Repeat = {}
        for source in sources:
            at = (dim - len(value.shape) + len(source.shape) if places is None
                  else next((old for old, new in places.items() if new == dim), -1))
            repeat = space.repeats.get(source.id, {}).get(at)
            if repeat is None and at >= 0 and source.shape[at] > 1:
                break
            joined.update(repeat or {})
        else:
            if size > 1 and joined and all(track.shape[dim] == 1 for track in space.tracks(value)):
                joined[value.id] = value, dim
                for member, place in joined.values():
                    space.repeats.setdefault(member.id, {})[place] = joined


def label_repeated(space: LabelSpace, value: Value, track: Labels | None) -> bool:
    """Label what repeats one element, and all that is computed of it, along the dimensions of a track.

    Returns:
        False unless the value repeats one element along all of them.
    """
    if track is None:
        return False
    offset = track.ndim - len(value.shape)
    varied = [dim for dim, size in enumerate(track.shape) if size > 1]
    repeats = [space.repeats.get(value.id, {}).get(dim - offset) for dim in varied]
    if not varied or any(repeat is None for repeat in repeats) or any(
            track.shape[dim] != value.shape[dim - offset] for dim in varied):
        return False
    shape = [track.shape[dim] for dim in varied]
    for key, (member, _) in (repeats[0] or {}).items():
        places = [repeat[key][1] for repeat in repeats if repeat is not None and key in repeat]
        if len(places) == len(varied):
            order = sorted(range(len(places)), key=places.__getitem__)
            full = [1] * len(member.shape)
            for number in order:
                full[places[number]] = shape[number]
            space.set(member, (*space.tracks(member), track.reshape(shape).transpose(order).reshape(full)))
    return True


def alias(space: LabelSpace, value: Value, source: Value) -> None:
    """Give a value the labels of another of the same elements."""
    space.set(value, space.tracks(source))
    inherit_repeats(space, value, [source])
    if source.id in space.filled:
        space.filled[value.id] = space.filled[source.id]


def broadcast_union(space: LabelSpace, values: Sequence[Value], op: Op, out: Value | None = None) -> Tracks:
    """Element-wise meeting of tensors, broadcast as usual: labels at one position become one."""
    ndim = max(len(value.shape) for value in values)
    shapes = [(1,) * (ndim - len(value.shape)) + value.shape for value in values]
    merged: list[Labels] = []
    carried: list[list[Labels]] = []
    for value in values:
        aligned = [track.reshape((1,) * (ndim - track.ndim) + track.shape) for track in space.tracks(value)]
        carried.append(aligned)
        for track in aligned:
            _merge_into(space, merged, track)
    for track in merged:
        dims = [dim for dim in range(ndim) if track.shape[dim] > 1]
        for value, aligned, shape in zip(values, carried, shapes, strict=True):
            spans_all = all(shape[dim] > 1 for dim in dims)
            if (spans_all and not any(o.shape[dim] > 1 for o in aligned for dim in dims)
                    and not label_repeated(space, value, track)):
                space.freeze(track, f"meets a tensor that can't be cut in {op.where}")
    return tuple(merged)


def _merge_into(space: LabelSpace, merged: list[Labels], track: Labels) -> None:
    for index, other in enumerate(merged):
        if any(a > 1 and b > 1 for a, b in zip(track.shape, other.shape, strict=True)):
            space.union(track, other)
            if track.size > other.size:
                merged[index] = track
            return
    merged.append(track)
