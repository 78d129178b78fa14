"""Channel labels: which elements of every tensor live or die together.

Every channel of a parameter has an integer label. A tensor carries *tracks*: integer arrays, broadcastable to its
shape (size 1 along each dimension on which the label does not change). An element stays while all its labels live. A
convolution's weight has two tracks, (out, 1, 1, 1) and (1, in, 1, 1); an activation usually has one, (1, channels, 1,
1). Where a tensor has no track along a dimension, that dimension can't be cut.

Operations move labels (`rules/`), and declare here what follows: that labels are one (`union`), that they must stay
(`freeze`), that rows of them must lose equally many (`equal_rows`), that a parameter reads them (`reads`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from torchslim.rules.declarations import (
    CostTerm,
    Declarations,
    EqualCountConstraint,
    FrozenLabels,
    LabeledDim,
    MixedLabels,
)
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
    and no channels. `batch_size` is the first size of the graph's first input. `unused` is set while an operation moves
    labels whose results nobody uses. `op_number` counts the operations of all graphs. `repeats` and `filled` describe
    values of the present graph, by id: along which dimensions they repeat one element (see `broadcasting`), and which
    labels they got as tensors of equal elements, with how much was declared until then.

    Mutable while the rules run over the graphs; `coupling` reads `declared` afterwards.
    """

    options: CouplingOptions = DEFAULTS
    kernels: frozenset[str] = frozenset()
    skip_costs: bool = False
    unused: bool = False
    batch_size: int = 1
    num_labels: int = 0
    declared: Declarations = field(default_factory=Declarations)
    op_number: int = 0
    _tracks: dict[int, Tracks] = field(default_factory=dict)
    repeats: dict[int, dict[int, Repeat]] = field(default_factory=dict)
    _state: dict[tuple[str, int], Labels | None] = field(default_factory=dict)
    _spread: dict[str, Labels] = field(default_factory=dict)
    filled: dict[int, tuple[int, int, tuple[int, ...]]] = field(default_factory=dict)
    _constraints_of_op: dict[int, int] = field(default_factory=dict)

    def new_labels(self, count: int) -> Labels:
        """`count` new labels."""
        self.num_labels += count
        return np.arange(self.num_labels - count, self.num_labels)

    def start_graph(self) -> dict[int, Tracks]:
        """Begin another graph, and return the tracks that its values will get, by id.

        Parameters keep their labels, which joins the graphs.
        """
        self._tracks, self.repeats, self.filled = {}, {}, {}
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
            self.declared.labeled_dims.append(LabeledDim(value.name, dim, labels))
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

    def fill(self, value: Value) -> None:
        """Label a tensor of equal elements (zeros, ones, uninitialised): it is cut along with whatever it meets."""
        first = self.num_labels
        self.set(value, [along_dim(self.new_labels(size), dim, len(value.shape))
                         for dim, size in enumerate(value.shape) if size > 1])
        self.filled[value.id] = first, self.num_labels, tuple(map(len, self.declared.that_bind))

    def is_blank(self, value: Value) -> bool:
        """True for a tensor of equal elements (see `fill`) that met nothing, and had no part taken, up to now."""
        first, end, counts = self.filled.get(value.id, (0, 0, ()))
        met = (labels for declared, count in zip(self.declared.that_bind, counts, strict=False)
               for labels in declared[count:])
        return end > 0 and not any(((part >= first) & (part < end)).any() for item in met for part in (
            item if isinstance(item, tuple) else (getattr(item, "labels", item),)))

    def union(self, a: Labels, b: Labels) -> None:
        """The labels at one position are one."""
        if a is b:
            return
        left, right = (a, b) if a.shape == b.shape else np.broadcast_arrays(a, b)
        self.declared.unions.append((left.ravel(), right.ravel()))

    def freeze(self, labels: Labels, reason: str) -> None:
        """These labels must stay."""
        self.declared.frozen.append(FrozenLabels(labels.ravel(), reason))

    def freeze_value(self, value: Value, reason: str) -> None:
        """All labels of a value must stay."""
        for track in self.tracks(value):
            self.freeze(track, reason)

    def mix(self, labels: Labels, op: Op, doing: str = "mixed by") -> bool:
        """Channels are mixed by value: frozen, unless the caller allows it, or nobody uses the result; True if so."""
        if self.unused:
            return True
        reason = f"channels are {doing} {op.where}"
        if self.options.allow_approximate:
            self.declared.mixed.append(MixedLabels(labels.ravel(), reason, op.index))
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
        self.declared.constraints.append(EqualCountConstraint(rows, least, (self.op_number, number)))

    def refine_rows(self, track: Labels, dim: int) -> None:
        """Rows along a dimension are split: what lies in each part has rows of its own, which lose equally many."""
        if sum(size > 1 for size in track.shape) > 1 and widest_dim(track) == dim:
            rows = np.moveaxis(track, dim, -1).reshape(-1, track.shape[dim])
            self.declared.constraints = [c for c in self.declared.constraints if not np.array_equal(c.labels, rows)]

    def add_sub_tensor(self, labels: Labels) -> None:
        """Labels that become a tensor of their own: two stay at the least (see `equal_groups`)."""
        self.declared.sub_tensors.append(labels.ravel())

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
            self.declared.tied_dims.append((a, b))
        elif a is not None or b is not None:
            kept = a if a is not None else b
            assert kept is not None
            self.freeze(kept, f"{what} in {op.where}")

    def makes(self, labels: Labels, size: int, layer: bool = True) -> None:
        """Weights with these labels make channels, on maps of `size` positions; without a layer see `add_channels`."""
        self.declared.producers.append((labels, size))
        if layer:
            self.add_channels(labels)

    def reads(self, value: Value, labels: Labels, size: int, layer: bool = True) -> None:
        """Weights with these labels read channels, from maps of `size` positions; as with `makes`."""
        self.declared.readers.append((labels, size))
        if layer:
            self.add_channels(labels)

    def add_channels(self, labels: Labels | None) -> None:
        """Declare that these are channels of a layer: what runs through no layer's channels can't be cut."""
        if labels is not None:
            self.declared.layer_channels.append(labels.ravel())

    def meter(self, op: Op, macs: int, along: Iterable[Labels | None]) -> None:
        """An operation's multiply-adds and what scales them; those of a second graph are not counted."""
        if not self.skip_costs:
            self.declared.mac_costs.append(CostTerm(macs, tuple(labels for labels in along if labels is not None)))

    def grouped_input_labels(self, value: Value, groups: int) -> Labels:
        """Labels for the input channels of a grouped convolution, counted over all groups."""
        if value.name not in self._spread:
            shared = self._state.get((value.name, 1))
            if shared is not None:  # read elsewhere with its plain dimension: one index then stands for all groups
                self.freeze(shared, "a grouped weight that is also read otherwise")
                self.declared.labeled_dims = [labeled for labeled in self.declared.labeled_dims
                                              if (labeled.name, labeled.dim) != (value.name, 1)]
            self._state[value.name, 1] = None
            labels = self.new_labels(value.shape[1] * groups)
            self.declared.labeled_dims.append(LabeledDim(value.name, 1, labels, groups))
            self._spread[value.name] = labels
            if shared is not None:
                self.freeze(labels, "a grouped weight that is also read otherwise")
        return self._spread[value.name]

