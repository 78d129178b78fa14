"""Graph -> channel groups.

The rules run over the graph's operations and declare which labels are the same. The resulting equivalence classes of
labels are the channels that must be kept or removed together. Classes that index the same dimensions of the same
parameters form a *channel group*, whose channels can be removed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchslim.coupling.grouping import group_channels, stable_hash
from torchslim.coupling.groups import ChannelGroups
from torchslim.coupling.labeled_graph import Index, LabeledGraph
from torchslim.coupling.unreached import freeze_widths_of_unreached_layers, unreached_parameters
from torchslim.rules import differentiates_channels, move_labels
from torchslim.rules.declarations import CostTerm, EqualCountConstraint, LabeledDim, MixedLabels
from torchslim.rules.labels import LabelSpace
from torchslim.rules.options import DEFAULTS, CouplingOptions
from torchslim.rules.tracks import Labels, Tracks
from torchslim.tracing.graph import Graph
from torchslim.tracing.runs import trace_modes
from torchslim.utils.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Coupling:
    """Which channels of a network are kept or removed together, and how its costs depend on them.

    Attributes:
        num_classes: how many classes of channels there are.
        constraints: matrices of classes whose rows must lose equally many.
        sub_tensors: the classes of each slice that becomes a tensor of its own; two of them must stay.
        macs, params: the terms that sum to each cost.
        labeled_dims: every prunable dimension, with the class of each index.
        reading_dims: (tensor name, dimension) pairs along which weights read channels.
        options: which channels may be cut, and how.
        graphs: the traced runs; multiply-adds are counted on the first.
        unknown: names of operations without a rule.
        mixed: classes that operations of the first graph mix by value and that the caller allowed to cut anyway.
        whole_heads: the classes of the heads that go whole, by the number of the product of activations.
        head_widths: numbers of the products of activations whose heads lose equally many widths.
        builder: computes the properties below when they are first read.
    """

    num_classes: int
    constraints: tuple[EqualCountConstraint, ...]
    sub_tensors: tuple[Index, ...]
    macs: tuple[CostTerm, ...]
    params: tuple[CostTerm, ...]
    labeled_dims: tuple[LabeledDim, ...]
    reading_dims: frozenset[tuple[str, int]]
    options: CouplingOptions
    graphs: tuple[Graph, ...]
    unknown: tuple[str, ...]
    mixed: tuple[MixedLabels, ...]
    whole_heads: Mapping[int, Index]
    head_widths: frozenset[int]
    builder: _CouplingBuilder

    @cached_property
    def groups(self) -> ChannelGroups:
        """Every channel group, frozen ones too, in the order of the run."""
        return self.builder.groups()

    @cached_property
    def labeled_graphs(self) -> tuple[LabeledGraph, ...]:
        """The graphs, with the classes of each value's elements."""
        return self.builder.labeled_graphs()

    @cached_property
    def signatures(self) -> NDArray[np.uint64]:
        """For each class a hash of the dimensions and convolution groups that it indexes and of the operations that
        change it; 0 for a class that indexes no dimension."""
        return self.builder.signatures(with_operations=True)

    @cached_property
    def grouped_weights(self) -> frozenset[str]:
        """Names of the weights of grouped convolutions."""
        return frozenset(labeled.name for labeled in self.labeled_dims if labeled.groups > 1)

    @cached_property
    def by_dimension(self) -> dict[tuple[str, int], LabeledDim]:
        """The labeled dimensions by tensor name and dimension."""
        return {(labeled.name, labeled.dim): labeled for labeled in self.labeled_dims}


def groups(model: nn.Module, inputs: Inputs, *, allow_approximate: bool = False,
           whole_groups: bool = False) -> ChannelGroups:
    """The channel groups of a model: which channels must be kept or removed together, and why some can't be removed.

    The result is a tuple of groups. Printed, it lists them; a single group prints every dimension that it indexes.

        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> groups = ts.groups(model, torch.zeros(1, 3, 8, 8))
        >>> [(group.channels, group.makers, group.state) for group in groups if not group.frozen]
        [(8, ('0',), 'free')]

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with (see `torchslim.profile`).
        allow_approximate: also cut channels that a layer norm or similar operation mixes.
        whole_groups: grouped convolutions lose whole groups instead of equally many channels of each group.

    Raises:
        TraceError: the model fails on these inputs.
    """
    return couple(trace_modes(model, inputs), CouplingOptions(allow_approximate, whole_groups)).groups


def couple(graphs: Sequence[Graph], options: CouplingOptions = DEFAULTS) -> Coupling:
    """The coupling of one network's graphs.

    Args:
        graphs: traced runs of the network; multiply-adds are counted on the first.
        options: which channels may be cut, and how.
    """
    space = LabelSpace(options, kernels=graphs[0].kernels)
    tracks = []
    for index, graph in enumerate(graphs):
        tracks.append(space.start_graph())
        space.skip_costs = index > 0
        space.batch_size = next((value.shape[0] for value in graph.inputs if value.shape), 1)
        unused = graph.unused_ops()
        for op in graph.ops:
            space.unused = op.index in unused
            move_labels(space, op)
        for value in graph.wanted_outputs:
            space.freeze_value(value, "the network's output")
    unreached = unreached_parameters(graphs)
    for graph, tracks_of_graph in zip(graphs, tracks if unreached else (), strict=bool(unreached)):
        freeze_widths_of_unreached_layers(space, graph, tracks_of_graph, unreached)
    for constraint in space.declared.constraints:
        if constraint.index in options.tied_constraints:
            space.union(constraint.labels[:1], constraint.labels)
    return _CouplingBuilder(space, graphs, tracks).build()


class _CouplingBuilder:
    """Turns the declarations of the rules, which are by label, into values by class.

    Attributes:
        class_of: the class of each label.
        num_classes: how many classes there are.
        labeled_dims: those of the label space, with classes in place of labels.
    """

    def __init__(self, space: LabelSpace, graphs: Sequence[Graph], tracks: Sequence[Mapping[int, Tracks]]) -> None:
        self.space = space
        self.graphs = tuple(graphs)
        self.tracks = tracks
        self.class_of = connected_components(space.num_labels, space.declared.unions)
        self.num_classes = int(self.class_of.max()) + 1 if space.num_labels else 0
        self.labeled_dims = self._labeled_dims()
        self._freeze_positions()
        self._freeze_copies_in_unequal_rows()

    def _labeled_dims(self) -> tuple[LabeledDim, ...]:
        shared: dict[bytes, Index] = {}  # a layer's weight, bias and norm have the same channels: they share one array
        with_classes = [(labeled, self.class_of[labeled.labels]) for labeled in self.space.declared.labeled_dims]
        keys = [classes.tobytes() for _, classes in with_classes]
        for key, (_, classes) in zip(keys, with_classes, strict=True):
            shared.setdefault(key, classes)
        with_copies = {key for key, classes in shared.items() if len(np.unique(classes)) < len(classes)}
        source_of = self.source_labels() if with_copies else self.class_of
        return tuple(LabeledDim(labeled.name, labeled.dim, shared[key], labeled.groups,
                                source_of[labeled.labels] if key in with_copies else None)
                     for key, (labeled, _) in zip(keys, with_classes, strict=True))

    def source_labels(self) -> Index:
        """For each label of a dimension that reads channels the label that it reads.

        Labels are numbered in the order of the run, so of two tied labels the smaller one is the source.
        """
        source_of = np.arange(self.space.num_labels)
        for a, b in reversed(self.space.declared.tied_dims):  # of several sources the first is kept
            left, right = np.broadcast_arrays(a, b)
            source_of[np.maximum(left, right).ravel()] = np.minimum(left, right).ravel()
        return source_of

    def labeled_graphs(self) -> tuple[LabeledGraph, ...]:
        return tuple(LabeledGraph(graph, {value: tuple(self.class_of[track] for track in tracks)
                                  for value, tracks in tracks_of_graph.items()})
                     for graph, tracks_of_graph in zip(self.graphs, self.tracks, strict=True))

    def _freeze_positions(self) -> None:
        """Freeze what runs through no layer's channels: rows of position tables, entries of look-up buffers."""
        in_layer = np.zeros(self.num_classes, dtype=bool)
        for labels in self.space.declared.layer_channels:
            in_layer[self.class_of[labels]] = True
        for labeled in self.space.declared.labeled_dims:
            elsewhere = labeled.labels[~in_layer[self.class_of[labeled.labels]]]
            if len(elsewhere):
                self.space.freeze(elsewhere, f"no layer's channels: positions of `{labeled.name}`")

    def _freeze_copies_in_unequal_rows(self) -> None:
        """Freeze rows that share a channel and are not equal: removing it would shift the other channels apart."""
        for constraint in self.space.declared.constraints:
            distinct = {frozenset(row) for row in self.class_of[constraint.labels].tolist()}
            if sum(map(len, distinct)) > len(frozenset().union(*distinct)):
                self.space.freeze(constraint.labels, "copies of a channel lie in unequal rows")

    def build(self) -> Coupling:
        """The finished value."""
        space, declared, class_of = self.space, self.space.declared, self.class_of
        return Coupling(
            num_classes=self.num_classes,
            constraints=self._constraints(),
            sub_tensors=tuple({labels.tobytes(): class_of[labels] for labels in declared.sub_tensors}.values()),
            macs=tuple(CostTerm(c.amount, tuple(class_of[labels] for labels in c.along)) for c in declared.mac_costs),
            params=self._params(),
            labeled_dims=self.labeled_dims,
            reading_dims=self._reading(),
            options=space.options,
            graphs=self.graphs,
            unknown=tuple(sorted(declared.unknown_ops)),
            mixed=tuple(MixedLabels(class_of[m.labels], m.reason, m.op) for m in declared.mixed),
            whole_heads={number: class_of[labels] for number, labels in declared.whole_heads.items()},
            head_widths=frozenset(declared.head_widths),
            builder=self,
        )

    def _constraints(self) -> tuple[EqualCountConstraint, ...]:
        constraints: dict[tuple[int, bytes], EqualCountConstraint] = {}
        for constraint in self.space.declared.constraints:
            rows = self.class_of[constraint.labels]
            # Rows that hold one channel each are positions of that channel: it is removed from all of them.
            positions = constraint.min_kept > 1 < rows.shape[1] and (rows == rows[:, :1]).all()
            if len(rows) > 1 and not positions and not (rows == rows[:1]).all():
                key = rows.shape[0], rows.tobytes()
                same = constraints.get(key, constraint)
                constraints[key] = EqualCountConstraint(rows, max(constraint.min_kept, same.min_kept), same.index)
        return tuple(constraints.values())

    def _params(self) -> tuple[CostTerm, ...]:
        along: dict[str, list[Index]] = {}
        for labeled in self.labeled_dims:
            # With whole groups, filters go and those that stay read as many channels as before.
            if labeled.groups == 1 or not self.space.options.whole_groups:
                along.setdefault(labeled.name, []).append(labeled.labels)
        return tuple(CostTerm(value.numel, tuple(along.get(name, ())))
                     for name, value in self.graphs[0].state.items() if value.source == "parameter")

    def _reading(self) -> frozenset[tuple[str, int]]:
        """A tied weight may make channels along a dimension in one layer and read along it in another."""
        first_labels = {int(labels[0]) for labels, _ in self.space.declared.readers}
        return frozenset((labeled.name, labeled.dim) for labeled in self.space.declared.labeled_dims
                         if int(labeled.labels[0]) in first_labels)

    def groups(self) -> ChannelGroups:
        return group_channels(self.space, self.class_of, self.labeled_dims, self.signatures(with_operations=False))

    def signatures(self, with_operations: bool) -> NDArray[np.uint64]:
        """A hash for each class: equal for classes that index the same dimensions equally often.

        Args:
            with_operations: also hash the group of a grouped convolution, and the operations that change the channels.
        """
        label_hashes = np.zeros(self.space.num_labels, dtype=np.uint64)
        for labeled in self.space.declared.labeled_dims:  # no label comes twice in a dimension
            label_hashes[labeled.labels] += stable_hash(labeled.name, labeled.dim)
        for index, rows in enumerate(self.space.declared.group_blocks if with_operations else ()):
            for block, labels in enumerate(rows):
                np.add.at(label_hashes, labels, stable_hash("block", index, block))
        signatures = np.zeros(self.num_classes, dtype=np.uint64)
        np.add.at(signatures, self.class_of, label_hashes)
        if with_operations:
            self._add_operations(signatures, label_hashes)
        return signatures

    def _add_operations(self, signatures: NDArray[np.uint64], label_hashes: NDArray[np.uint64]) -> None:
        """Distinguish channels of the same weights that are treated differently, such as one half that is pooled.

        Each operation that changes a channel, or moves elements within it, is hashed with the position of the argument
        and the weights that the argument came from: `a - b` is not `b - a`. Only on the meta device is it certain that
        a run has the same operations at other widths.
        """
        has_dims = signatures != 0
        for index, (graph, tracks) in enumerate(zip(self.graphs, self.tracks, strict=True)):
            for op in graph.ops if graph.device == "meta" else ():
                if not differentiates_channels(op, [track for v in op.inputs for track in tracks.get(v.id, ())]):
                    continue
                for position, value in enumerate(op.inputs):
                    change = stable_hash(op.name, op.index, index, position)
                    for track in tracks.get(value.id, ()):
                        labels = track.ravel()
                        classes = self.class_of[labels]
                        kept = has_dims[classes]
                        np.add.at(signatures, classes[kept], change ^ label_hashes[labels[kept]])


def connected_components(count: int, unions: Sequence[tuple[Labels, Labels]]) -> Index:
    """The class of each label, numbered from 0: the connected components of the unions."""
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
                grandparent = parent[parent]
                if np.array_equal(grandparent, parent):
                    break
                parent = grandparent
    roots = parent == np.arange(count)
    return np.asarray((np.cumsum(roots) - 1)[parent])
