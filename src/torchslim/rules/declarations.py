"""What rules declare of labels, for `coupling` and `planning` to read: labelled dimensions, constraints, costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torchslim.rules.tracks import Labels


@dataclass(frozen=True, eq=False)
class LabeledDim:
    """A dimension of a parameter, buffer or attribute, and the label of each of its indices.

    For a grouped convolution's input dimension `groups` is above 1, and the labels count the input channels over all
    groups, of which each group's filters hold their own. Where a channel comes several times (a map and its mirror
    image joined, say), `copies` identifies each copy by its source label, not its position.
    """

    name: str
    dim: int
    labels: Labels
    groups: int = 1
    copies: Labels | None = None


@dataclass(frozen=True, eq=False)
class FrozenLabels:
    """Labels that must stay, and why."""

    labels: Labels
    reason: str


@dataclass(frozen=True, eq=False)
class MixedLabels:
    """Labels whose channels an operation mixes by value, where the caller allows to cut them all the same."""

    labels: Labels
    reason: str
    op: int


@dataclass(frozen=True, eq=False)
class EqualCountConstraint:
    """A matrix of labels whose rows must lose equally many, and how many each row keeps at least.

    `index` is the number of the operation that declared it, and its own among those of that operation: the same for
    every run of the same operations.
    """

    labels: Labels
    min_kept: int
    index: tuple[int, int]


@dataclass(frozen=True, eq=False)
class CostTerm:
    """A count (multiply-adds, parameters) and, for each dimension that scales it, the label or class of each index."""

    amount: int
    along: tuple[Labels, ...]


@dataclass
class Declarations:
    """All that the rules declare of the labels of one coupling run, in the order of the operations.

    Attributes:
        labeled_dims: dimensions of parameters, buffers and attributes, with their labels.
        unions: pairs of arrays whose labels, one by one, are the same.
        tied_dims: pairs of dimensions of layers that must agree, the one that makes channels and the one that reads.
        frozen: labels that must stay, and why.
        mixed: labels whose channels are mixed by value, where that is allowed.
        constraints: rows of labels that must lose equally many.
        sub_tensors: labels that become a tensor of their own.
        group_blocks: rows of labels; in which row a channel lies changes what is done to it.
        producers, readers: labels of the channels that weights make or read, and on how many positions.
        layer_channels: labels that run through a layer's channels, which alone may be cut.
        joined_branches: labels of tensors that branches are joined to by addition or concatenation.
        mac_costs: multiply-adds of the first graph, and what scales them.
        norm_scales: names of the scales of batch norms.
        unknown_ops: names of operations without a rule.
        whole_heads: labels of the heads that go whole, by the number of the product of activations.
        head_widths: numbers of the products of activations whose heads lose equally many widths.
    """

    labeled_dims: list[LabeledDim] = field(default_factory=list)
    unions: list[tuple[Labels, Labels]] = field(default_factory=list)
    tied_dims: list[tuple[Labels, Labels]] = field(default_factory=list)
    frozen: list[FrozenLabels] = field(default_factory=list)
    mixed: list[MixedLabels] = field(default_factory=list)
    constraints: list[EqualCountConstraint] = field(default_factory=list)
    sub_tensors: list[Labels] = field(default_factory=list)
    group_blocks: list[Labels] = field(default_factory=list)
    producers: list[tuple[Labels, int]] = field(default_factory=list)
    readers: list[tuple[Labels, int]] = field(default_factory=list)
    layer_channels: list[Labels] = field(default_factory=list)
    joined_branches: list[Labels] = field(default_factory=list)
    mac_costs: list[CostTerm] = field(default_factory=list)
    norm_scales: set[str] = field(default_factory=set)
    unknown_ops: set[str] = field(default_factory=set)
    whole_heads: dict[int, Labels] = field(default_factory=dict)
    head_widths: set[int] = field(default_factory=set)

    @property
    def that_bind(self) -> tuple[list[Any], ...]:
        """What ties labels to others or to their place."""
        return self.unions, self.frozen, self.constraints, self.sub_tensors
