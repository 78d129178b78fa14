"""Channel labels: which elements of every tensor live or die together.

Every channel of a parameter has an integer label. A tensor carries *tracks*: integer arrays, broadcastable to its
shape (size 1 along each dimension on which the label does not change). An element stays while all its labels live. A
convolution's weight has two tracks, (out, 1, 1, 1) and (1, in, 1, 1); an activation usually has one, (1, channels, 1,
1). Where a tensor has no track along a dimension, that dimension can't be cut.

Operations move labels (`rules/`), and declare here what follows: that labels are one (`union`), that they must stay
(`freeze`), that rows of them must lose equally many (`equal_rows`), that a parameter reads them (`reads`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchslim.rules.declarations import CostTerm, EqualCountConstraint, FrozenLabels, LabeledDim, MixedLabels
from torchslim.rules.options import DEFAULTS, CouplingOptions
from torchslim.rules.tracks import Labels, Tracks, along_dim, widest_dim
from torchslim.tracing.graph import Op, Value

Repeat = dict[int, tuple[Value, int]]
"""By their ids, values that repeat one element along a dimension each, all cut alike: what is computed of an expanded
tensor is expanded."""


@dataclass
class LabelSpace:
    """The labels of one coupling run, and all that the operations declared of them.

    `options` says what may be cut, and how. `kernels` names filters, whose last dimensions are positions
    and no channels. `batch` is the first size of the graph's first input. `op_number` counts the operations of all
    graphs; by it `whole_heads` and `head_widths` tell which products of activations lose whole heads, and which widths.

    Mutable while the rules run over the graphs; `coupling` reads it afterwards.
    """

    options: CouplingOptions = DEFAULTS
    kernels: frozenset[str] = frozenset()
    skip_costs: bool = False
    batch_size: int = 1
    num_labels: int = 0
    labeled_dims: list[LabeledDim] = field(default_factory=list)
    unions: list[tuple[Labels, Labels]] = field(default_factory=list)
    tied_dims: list[tuple[Labels, Labels]] = field(default_factory=list)
    frozen: list[FrozenLabels] = field(default_factory=list)
    constraints: list[EqualCountConstraint] = field(default_factory=list)
    group_blocks: list[Labels] = field(default_factory=list)
    sub_tensors: list[Labels] = field(default_factory=list)
    readers: list[tuple[Labels, int]] = field(default_factory=list)
    producers: list[tuple[Labels, int]] = field(default_factory=list)
    layer_channels: list[Labels] = field(default_factory=list)
    joined_branches: list[Labels] = field(default_factory=list)
    mac_costs: list[CostTerm] = field(default_factory=list)
    norm_scales: set[str] = field(default_factory=set)
    unknown_ops: set[str] = field(default_factory=set)
    mixed: list[MixedLabels] = field(default_factory=list)
    op_number: int = 0
    whole_heads: dict[int, Labels] = field(default_factory=dict)
    head_widths: set[int] = field(default_factory=set)
    _tracks: dict[int, Tracks] = field(default_factory=dict)
    _repeats: dict[int, dict[int, Repeat]] = field(default_factory=dict)
    _state: dict[tuple[str, int], Labels | None] = field(default_factory=dict)
    _spread: dict[str, Labels] = field(default_factory=dict)
    _filled: dict[int, tuple[int, int, tuple[int, ...]]] = field(default_factory=dict)
    _constraints_of_op: dict[int, int] = field(default_factory=dict)

    def new_labels(self, count: int) -> Labels:
        """`count` new labels."""
        self.num_labels += count
        return np.arange(self.num_labels - count, self.num_labels)

    def start_graph(self) -> dict[int, Tracks]:
        """Begin another graph, and return the tracks that its values will get, by id.

        Parameters keep their labels, which joins the graphs.
        """
        self._tracks, self._repeats, self._filled = {}, {}, {}
        return self._tracks

    def tracks(self, value: Value) -> Tracks:
        """The tracks of a value; those of parameters and buffers are made when first asked for."""
        if not value.name:
            return self._tracks.get(value.id, ())
        dims = 2 if value.name in self.kernels else len(value.shape)
        of_state = (self._state_dim(value, dim) for dim in range(dims) if value.shape[dim] > 1)
        return tuple(labels for labels in of_state if labels is not None)

    def _state_dim(self, value: Value, dim: int) -> Labels | None:
        """The track of one dimension of a parameter, buffer or attribute, made when first asked for."""
        key = (value.name, dim)
        if key not in self._state:
            labels = self.new_labels(value.shape[dim])
            self.labeled_dims.append(LabeledDim(value.name, dim, labels))
            self._state[key] = along_dim(labels, dim, len(value.shape))
        return self._state[key]

    def set(self, value: Value, tracks: Iterable[Labels]) -> None:
        """Give an operation's result its tracks; those that vary along no dimension say nothing and are dropped."""
        kept = tuple(track for track in tracks if track.size > 1)
        for track in kept:
            if sum(size > 1 for size in track.shape) > 1:
                self.equal_rows(track)
        if kept and not value.name:
            self._tracks[value.id] = kept

    def set_along(self, value: Value, dim: int, labels: Labels | None) -> None:
        """Give an operation's result the labels of one dimension; None where it can't be cut."""
        if labels is not None:
            self.set(value, [along_dim(labels, dim % len(value.shape), len(value.shape))])

    def mark_repeated(self, value: Value, dims: Iterable[int]) -> None:
        """Declare that a value repeats one element along these dimensions, as `expand` does.

        They get the labels of what they meet: whether torch broadcasts a tensor or is given it expanded is the same.
        """
        self._repeats.setdefault(value.id, {}).update({dim: {value.id: (value, dim)} for dim in dims})

    def inherit_repeats(self, value: Value, sources: Sequence[Value], places: Mapping[int, int] | None = None) -> None:
        """Declare that a value repeats one element along the dimensions on which all its sources do.

        Args:
            value: what an element-wise operation or a view gives.
            sources: what it is computed of.
            places: of each dimension of a single source, which of the value's it is; None if they broadcast.
        """
        for dim, size in enumerate(value.shape) if any(source.id in self._repeats for source in sources) else ():
            joined: Repeat = {}
            for source in sources:
                at = (dim - len(value.shape) + len(source.shape) if places is None
                      else next((old for old, new in places.items() if new == dim), -1))
                repeat = self._repeats.get(source.id, {}).get(at)
                if repeat is None and at >= 0 and source.shape[at] > 1:
                    break
                joined.update(repeat or {})
            else:
                if size > 1 and joined and all(track.shape[dim] == 1 for track in self.tracks(value)):
                    joined[value.id] = value, dim
                    for member, place in joined.values():
                        self._repeats.setdefault(member.id, {})[place] = joined

    def alias(self, value: Value, source: Value) -> None:
        """Give a value the labels of another of the same elements."""
        self.set(value, self.tracks(source))
        self.inherit_repeats(value, [source])
        if source.id in self._filled:
            self._filled[value.id] = self._filled[source.id]

    def fill(self, value: Value) -> None:
        """Label a tensor of equal elements (zeros, ones, uninitialised): it is cut along with whatever it meets."""
        first = self.num_labels
        self.set(value, [along_dim(self.new_labels(size), dim, len(value.shape))
                         for dim, size in enumerate(value.shape) if size > 1])
        self._filled[value.id] = first, self.num_labels, tuple(map(len, self._declared))

    def is_blank(self, value: Value) -> bool:
        """True for a tensor of equal elements (see `fill`) that met nothing, and had no part taken, up to now."""
        first, end, counts = self._filled.get(value.id, (0, 0, ()))
        met = (labels for declared, count in zip(self._declared, counts, strict=False) for labels in declared[count:])
        return end > 0 and not any(((part >= first) & (part < end)).any() for item in met for part in (
            item if isinstance(item, tuple) else (getattr(item, "labels", item),)))

    @property
    def _declared(self) -> tuple[list[Any], ...]:
        return self.unions, self.frozen, self.constraints, self.sub_tensors

    def union(self, a: Labels, b: Labels) -> None:
        """The labels at one position are one."""
        if a is b:
            return
        left, right = (a, b) if a.shape == b.shape else np.broadcast_arrays(a, b)
        self.unions.append((left.ravel(), right.ravel()))

    def freeze(self, labels: Labels, reason: str) -> None:
        """These labels must stay."""
        self.frozen.append(FrozenLabels(labels.ravel(), reason))

    def freeze_value(self, value: Value, reason: str) -> None:
        """All labels of a value must stay."""
        for track in self.tracks(value):
            self.freeze(track, reason)

    def mix(self, labels: Labels, op: Op, doing: str = "mixed by") -> bool:
        """Channels are mixed by value here: frozen, unless the caller allows the approximation. True if allowed."""
        reason = f"channels are {doing} {op.where}"
        if self.options.allow_approximate:
            self.mixed.append(MixedLabels(labels.ravel(), reason, op.index))
            return True
        self.freeze(labels, reason)
        return False

    def equal_rows(self, track: Labels) -> None:
        """A track that varies along several dimensions: its rows must lose equally many.

        The rows are the indices of the smaller dimensions: `view(b, 2, c // 2, ...)` has two rows.
        """
        widest = widest_dim(track)
        self.equal_groups(np.moveaxis(track, widest, -1).reshape(-1, track.shape[widest]), least=2)

    def equal_groups(self, rows: Labels, least: int) -> None:
        """Rows of labels, shape (groups, channels a group), that must lose equally many.

        Rows that become tensors of their own keep at least two: a dimension of size 1 broadcasts, and its channel
        could no longer be told from none.
        """
        number = self._constraints_of_op.get(self.op_number, 0)
        self._constraints_of_op[self.op_number] = number + 1
        self.constraints.append(EqualCountConstraint(rows, least, (self.op_number, number)))

    def refine_rows(self, track: Labels, dim: int) -> None:
        """Rows along a dimension are split: what lies in each part has rows of its own, which lose equally many."""
        if sum(size > 1 for size in track.shape) > 1 and widest_dim(track) == dim:
            rows = np.moveaxis(track, dim, -1).reshape(-1, track.shape[dim])
            self.constraints = [c for c in self.constraints if not np.array_equal(c.labels, rows)]

    def add_sub_tensor(self, labels: Labels) -> None:
        """Labels that become a tensor of their own: two stay at the least (see `equal_groups`)."""
        self.sub_tensors.append(labels.ravel())

    def along(self, value: Value, dim: int, op: Op) -> Labels | None:
        """The label of each index of a dimension; None where it can't be cut.

        Where the labels also change along other dimensions, those become one.
        """
        dim %= len(value.shape)
        if value.name:
            state = self._state_dim(value, dim) if value.shape[dim] > 1 else None
            return None if state is None else state.ravel()
        result: Labels | None = None
        for track in self.tracks(value):
            if track.shape[dim] == 1:
                continue
            rows = (track.reshape(1, -1) if track.size == track.shape[dim]
                    else np.moveaxis(track, dim, -1).reshape(-1, track.shape[dim]))
            for row in rows[1:]:
                self.union(rows[0], row)
            if result is not None:
                self.union(result, rows[0])
            result = rows[0]
        return result

    def only_along(self, value: Value, dim: int, op: Op, doing: str) -> Labels | None:
        """As `along`; labels that change along other dimensions alone are frozen."""
        dim %= len(value.shape)
        for track in self.tracks(value):
            if track.shape[dim] == 1:
                self.freeze(track, f"{doing} in {op.where}")
        return self.along(value, dim, op)

    def tie(self, a: Labels | None, b: Labels | None, op: Op, what: str) -> None:
        """Union of two dimensions that must agree; if one can't be cut, neither can the other."""
        if a is not None and b is not None:
            self.union(a, b)
            self.tied_dims.append((a, b))
        elif a is not None or b is not None:
            kept = a if a is not None else b
            assert kept is not None
            self.freeze(kept, f"{what} in {op.where}")

    def makes(self, labels: Labels, size: int, layer: bool = True) -> None:
        """Weights with these labels make channels, on maps of `size` positions; without a layer see `add_channels`."""
        self.producers.append((labels, size))
        if layer:
            self.add_channels(labels)

    def reads(self, value: Value, labels: Labels, size: int, layer: bool = True) -> None:
        """Weights with these labels read channels, from maps of `size` positions; as with `makes`."""
        self.readers.append((labels, size))
        if layer:
            self.add_channels(labels)

    def add_channels(self, labels: Labels | None) -> None:
        """Declare that these are channels of a layer: what runs through no layer's channels can't be cut."""
        if labels is not None:
            self.layer_channels.append(labels.ravel())

    def meter(self, op: Op, macs: int, along: Iterable[Labels | None]) -> None:
        """An operation's multiply-adds and what scales them; those of a second graph are not counted."""
        if not self.skip_costs:
            self.mac_costs.append(CostTerm(macs, tuple(labels for labels in along if labels is not None)))

    def grouped_input_labels(self, value: Value, groups: int) -> Labels:
        """Labels for the input channels of a grouped convolution, counted over all groups."""
        if value.name not in self._spread:
            shared = self._state.get((value.name, 1))
            if shared is not None:  # read elsewhere with its plain dimension: one index then stands for all groups
                self.freeze(shared, "a grouped weight that is also read otherwise")
                self.labeled_dims = [t for t in self.labeled_dims if (t.name, t.dim) != (value.name, 1)]
            self._state[value.name, 1] = None
            labels = self.new_labels(value.shape[1] * groups)
            self.labeled_dims.append(LabeledDim(value.name, 1, labels, groups))
            self._spread[value.name] = labels
            if shared is not None:
                self.freeze(labels, "a grouped weight that is also read otherwise")
        return self._spread[value.name]

    def broadcast_union(self, values: Sequence[Value], op: Op, out: Value | None = None) -> Tracks:
        """Element-wise meeting of tensors, broadcast as usual: labels at one position become one."""
        ndim = max(len(value.shape) for value in values)
        shapes = [(1,) * (ndim - len(value.shape)) + value.shape for value in values]
        merged: list[Labels] = []
        carried: list[list[Labels]] = []
        for value in values:
            aligned = [track.reshape((1,) * (ndim - track.ndim) + track.shape) for track in self.tracks(value)]
            carried.append(aligned)
            for track in aligned:
                self._merge_into(merged, track)
        for track in merged:
            dims = [dim for dim in range(ndim) if track.shape[dim] > 1]
            for value, aligned, shape in zip(values, carried, shapes, strict=True):
                spans_all = all(shape[dim] > 1 for dim in dims)
                if (spans_all and not any(o.shape[dim] > 1 for o in aligned for dim in dims)
                        and not self.label_repeated(value, track)):
                    self.freeze(track, f"meets a tensor that can't be cut in {op.where}")
        return tuple(merged)

    def label_repeated(self, value: Value, track: Labels | None) -> bool:
        """Label what repeats one element, and all that is computed of it, along the dimensions of a track.

        Returns:
            False unless the value repeats one element along all of them.
        """
        if track is None:
            return False
        offset = track.ndim - len(value.shape)
        varied = [dim for dim, size in enumerate(track.shape) if size > 1]
        repeats = [self._repeats.get(value.id, {}).get(dim - offset) for dim in varied]
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
                self.set(member, (*self.tracks(member), track.reshape(shape).transpose(order).reshape(full)))
        return True

    def _merge_into(self, merged: list[Labels], track: Labels) -> None:
        for index, other in enumerate(merged):
            if any(a > 1 and b > 1 for a, b in zip(track.shape, other.shape, strict=True)):
                self.union(track, other)
                if track.size > other.size:
                    merged[index] = track
                return
        merged.append(track)
