"""Which channels belong together: Graph -> channel groups.

The rules run over the tape and declare which labels are one. The classes of labels that follow are the channels that
live or die together; those that touch the same dimensions of the same parameters form a *channel group*, whose
channels can be removed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchslim.coupling.grouping import group_channels, number
from torchslim.coupling.groups import ChannelGroups
from torchslim.coupling.tape import Index, Tape
from torchslim.coupling.unreached import freeze_what_unread_layers_meet, unread
from torchslim.rules import move_labels, tells_apart
from torchslim.rules.labels import EqualCountConstraint, LabeledDim, Labels, LabelSpace, MixedLabels, Tracks
from torchslim.rules.options import DEFAULTS, CouplingOptions
from torchslim.tracing.graph import Graph
from torchslim.tracing.runs import trace_modes
from torchslim.utils.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Scaling:
    """A count (multiply-adds, parameters) and, for each dimension that scales it, the class of each index."""

    amount: int
    along: tuple[Index, ...]


@dataclass(frozen=True, eq=False)
class Coupling:
    """The channel groups of a network, and how its costs depend on them.

    Attributes:
        classes: how many classes of channels there are.
        constraints: matrices of classes whose rows must lose equally many.
        sub_tensors: classes that become tensors of their own, of which two must stay.
        macs, params: the costs.
        labeled_dims: every cut-able dimension, with the class of each index.
        reading: the dimensions, by tensor name, along which weights read channels.
        options: what may be cut, and how.
        graphs: the runs that this was learned from.
        unknown: operations without a rule.
        mixed: where the first tape mixes channels by value, and the caller allowed to cut them all the same; the
            labels are classes.
        builder: makes what only some callers ask for, when they first do.
    """

    classes: int
    constraints: tuple[EqualCountConstraint, ...]
    sub_tensors: tuple[Index, ...]
    macs: tuple[Scaling, ...]
    params: tuple[Scaling, ...]
    labeled_dims: tuple[LabeledDim, ...]
    reading: frozenset[tuple[str, int]]
    options: CouplingOptions
    graphs: tuple[Graph, ...]
    unknown: tuple[str, ...]
    mixed: tuple[MixedLabels, ...]
    builder: _Builder

    @cached_property
    def groups(self) -> ChannelGroups:
        """Every channel group, frozen ones too, in the order of the tape."""
        return self.builder.groups()

    @cached_property
    def tapes(self) -> tuple[Tape, ...]:
        """The runs, with the classes of each value's elements."""
        return self.builder.tapes()

    @cached_property
    def signatures(self) -> NDArray[np.uint64]:
        """For each class a number that says which dimensions, and which group of a grouped convolution, it touches, and
        which operations change it; 0 for one that touches none."""
        return self.builder.signatures(blocks=True)

    @cached_property
    def grouped(self) -> frozenset[str]:
        """Names of the weights of grouped convolutions."""
        return frozenset(touch.name for touch in self.labeled_dims if touch.groups > 1)

    @cached_property
    def by_dimension(self) -> dict[tuple[str, int], LabeledDim]:
        """The touches by tensor name and dimension."""
        return {(touch.name, touch.dim): touch for touch in self.labeled_dims}


def groups(model: nn.Module, inputs: Inputs, *, allow_approximate: bool = False,
           whole_groups: bool = False) -> ChannelGroups:
    """The channel groups of a model: what lives or dies together, and why a frozen group is frozen.

    A tuple of groups that prints as a list of them; a group by itself prints all that it touches.

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with (see `torchslim.profile`).
        allow_approximate: let channels be cut that a layer norm or its like mixes.
        whole_groups: let grouped convolutions lose whole groups, not equally many channels of each.

    Raises:
        TraceError: the model fails on these inputs.
    """
    return couple(trace_modes(model, inputs), CouplingOptions(allow_approximate, whole_groups)).groups


def couple(graphs: Sequence[Graph], options: CouplingOptions = DEFAULTS) -> Coupling:
    """The coupling of one network's tapes.

    Args:
        graphs: the tapes; multiply-adds are counted on the first.
        options: what may be cut, and how.
    """
    space = LabelSpace(options, kernels=graphs[0].kernels)
    tracks = []
    for place, graph in enumerate(graphs):
        tracks.append(space.start_graph())
        space.skip_costs = place > 0
        space.batch_size = next((value.shape[0] for value in graph.inputs if value.shape), 1)
        for op in graph.ops:
            move_labels(space, op)
        for value in graph.outputs:
            space.freeze_value(value, "the network's output")
    names = unread(graphs)
    for graph, by_value in zip(graphs, tracks if names else (), strict=bool(names)):
        freeze_what_unread_layers_meet(space, graph, by_value, names)
    for rows in space.constraints:
        if rows.index in options.tied_constraints:
            space.union(rows.labels[:1], rows.labels)
    return _Builder(space, graphs, tracks).coupling()


class _Builder:
    """Turns what the rules declared into classes and groups."""

    def __init__(self, space: LabelSpace, graphs: Sequence[Graph], tracks: Sequence[Mapping[int, Tracks]]) -> None:
        self.space = space
        self.graphs = tuple(graphs)
        self.tracks = tracks
        self.of = _classes(space.num_labels, space.unions)
        self.count = int(self.of.max()) + 1 if space.num_labels else 0
        self.labeled_dims = self._touches()
        self._keep_torn_rows()

    def _touches(self) -> tuple[LabeledDim, ...]:
        same: dict[bytes, Index] = {}  # a layer's weight, bias and norm have the same channels: one array for all
        by_class = [(touch, self.of[touch.labels]) for touch in self.space.labeled_dims]
        keys = [classes.tobytes() for _, classes in by_class]
        for key, (_, classes) in zip(keys, by_class, strict=True):
            same.setdefault(key, classes)
        copies = {key for key, classes in same.items() if len(np.unique(classes)) < len(classes)}
        origin = self.origins() if copies else self.of
        return tuple(LabeledDim(touch.name, touch.dim, same[key], touch.groups,
                           origin[touch.labels] if key in copies else None)
                     for key, (touch, _) in zip(keys, by_class, strict=True))

    def origins(self) -> Index:
        """For each label the one that arrived where it reads or follows: labels are made in the order of the tape."""
        origin = np.arange(self.space.num_labels)
        for a, b in reversed(self.space.tied_dims):  # the first to arrive counts
            left, right = np.broadcast_arrays(a, b)
            origin[np.maximum(left, right).ravel()] = np.minimum(left, right).ravel()
        return origin

    def tapes(self) -> tuple[Tape, ...]:
        return tuple(Tape(graph, {key: tuple(self.of[t] for t in own) for key, own in by_value.items()})
                     for graph, by_value in zip(self.graphs, self.tracks, strict=True))

    def _keep_torn_rows(self) -> None:
        """Copies of one channel in rows that differ: what goes from one row would shift the others."""
        for rows in self.space.constraints:
            distinct = {frozenset(row) for row in self.of[rows.labels].tolist()}
            if sum(map(len, distinct)) > len(frozenset().union(*distinct)):
                self.space.freeze(rows.labels, "copies of a channel lie in unequal rows")

    def coupling(self) -> Coupling:
        """The finished value."""
        return Coupling(
            classes=self.count,
            constraints=self._constraints(),
            sub_tensors=tuple({labels.tobytes(): self.of[labels] for labels in self.space.sub_tensors}.values()),
            macs=tuple(Scaling(c.macs, tuple(self.of[labels] for labels in c.along)) for c in self.space.mac_costs),
            params=self._params(),
            labeled_dims=self.labeled_dims,
            reading=self._reading(),
            options=self.space.options,
            graphs=self.graphs,
            unknown=tuple(sorted(self.space.unknown_ops)),
            mixed=tuple(MixedLabels(self.of[m.labels], m.reason, m.op) for m in self.space.mixed),
            builder=self,
        )

    def _constraints(self) -> tuple[EqualCountConstraint, ...]:
        found: dict[tuple[int, bytes], EqualCountConstraint] = {}
        for rows in self.space.constraints:
            classes = self.of[rows.labels]
            # Rows of one channel each are positions of that channel, which goes from all of them or none.
            positions = rows.min_kept > 1 < classes.shape[1] and (classes == classes[:, :1]).all()
            if len(classes) > 1 and not positions and not (classes == classes[:1]).all():
                key = classes.shape[0], classes.tobytes()
                least = max(rows.min_kept, found[key].min_kept if key in found else 0)
                found[key] = EqualCountConstraint(classes, least, found[key].index if key in found else rows.index)
        return tuple(found.values())

    def _params(self) -> tuple[Scaling, ...]:
        along: dict[str, list[Index]] = {}
        for touch in self.labeled_dims:
            if touch.groups == 1 or not self.space.options.whole_groups:  # else filters go, as wide as before
                along.setdefault(touch.name, []).append(touch.labels)
        return tuple(Scaling(value.numel, tuple(along.get(name, ())))
                     for name, value in self.graphs[0].state.items() if value.source == "parameter")

    def _reading(self) -> frozenset[tuple[str, int]]:
        """A tied weight may make channels along a dimension in one place and read along it in another."""
        first = {int(labels[0]) for labels, _ in self.space.readers}
        return frozenset((touch.name, touch.dim) for touch in self.space.labeled_dims if int(touch.labels[0]) in first)

    def groups(self) -> ChannelGroups:
        return group_channels(self.space, self.of, self.labeled_dims, self.signatures(blocks=False))

    def signatures(self, blocks: bool) -> NDArray[np.uint64]:
        """A number for each class: equal for classes that touch the same dimensions equally often.

        With `blocks`, the groups of a grouped convolution count as dimensions of their own, and what happens to the
        channels counts, too.
        """
        own = np.zeros(self.space.num_labels, dtype=np.uint64)
        for touch in self.space.labeled_dims:
            np.add.at(own, touch.labels, number(touch.name, touch.dim))
        for place, rows in enumerate(self.space.group_blocks if blocks else ()):
            for block, labels in enumerate(rows):
                np.add.at(own, labels, number("block", place, block))
        signatures = np.zeros(self.count, dtype=np.uint64)
        np.add.at(signatures, self.of, own)
        if blocks:
            self._tell_apart(signatures, own)
        return signatures

    def _tell_apart(self, signatures: NDArray[np.uint64], own: NDArray[np.uint64]) -> None:
        """Channels of the same weights may be treated differently: one half of them pooled, say, the other not.

        What changes a channel, or moves what is in it, counts, with the weights that each argument came from (`own`, by
        label): in a difference it matters what is taken from what. Only on the meta device are a run's operations sure
        to be the same at other widths.
        """
        touched = signatures != 0
        for place, (graph, tracks) in enumerate(zip(self.graphs, self.tracks, strict=True)):
            changing = (op for op in graph.ops if graph.device == "meta"
                        and tells_apart(op, [track for value in op.inputs for track in tracks.get(value.id, ())]))
            for op in changing:
                for position, value in enumerate(op.inputs):
                    change = number(op.name, op.index, place, position)
                    for track in tracks.get(value.id, ()):
                        labels = track.ravel()[touched[self.of[track.ravel()]]]
                        np.add.at(signatures, self.of[labels], change ^ own[labels])

def _classes(count: int, unions: Sequence[tuple[Labels, Labels]]) -> Index:
    """The class of each label, numbered from 0: connected components, by arrays."""
    parent = np.arange(count)
    if unions:
        a = np.concatenate([pair[0] for pair in unions])
        b = np.concatenate([pair[1] for pair in unions])
        while len(a):
            left, right = parent[a], parent[b]
            apart = left != right
            a, b = a[apart], b[apart]
            np.minimum.at(parent, np.maximum(left, right)[apart], np.minimum(left, right)[apart])
            while True:
                further = parent[parent]
                if np.array_equal(further, parent):
                    break
                parent = further
    roots = parent == np.arange(count)
    return np.asarray((np.cumsum(roots) - 1)[parent])
