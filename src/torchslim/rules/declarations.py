"""What rules declare of labels, for `coupling` and `planning` to read: labelled dimensions, constraints, costs."""

from __future__ import annotations

from dataclasses import dataclass

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
