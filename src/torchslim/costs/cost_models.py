"""Costs as functions of which channels stay: sums of terms, each of which depends on the widths of a few dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchslim.costs.memory import lives, size
from torchslim.coupling.labeled_graph import Index, LabeledGraph
from torchslim.rules.declarations import CostTerm

Array = NDArray[np.float64]
Shares = NDArray[np.float64]
"""Of each class of channels the share that stays: 1 or 0; between, that part of its row."""

STAYS = -1
"""The class of an index that can't be cut."""


@dataclass(frozen=True, eq=False)
class Term:
    """A cost that depends on the widths of some dimensions of a `CostModel`.

    Attributes:
        dims: the numbers of the dimensions.
        weight: a factor.
        function: of arrays of widths, one a dimension and all of one shape.
    """

    dims: tuple[int, ...]
    weight: float
    function: Callable[..., Array]

    def __call__(self, widths: Sequence[Array]) -> Array:
        """The cost at widths of its dimensions."""
        return np.asarray(self.weight * self.function(*widths))


@dataclass(frozen=True)
class KeptShare:
    """The product of the shares that stay of dimensions; a begun block of channels counts as a whole one.

    Attributes:
        sizes: of the dimensions before any cut.
        block: channels that a kernel works on at once.
    """

    sizes: tuple[int, ...]
    block: int = 1

    def __call__(self, *widths: Array) -> Array:
        """The product at widths of the dimensions."""
        product = np.asarray(1.0)
        for width, size_before in zip(widths, self.sizes, strict=True):
            product = product * np.minimum(np.ceil(width / self.block) * self.block, size_before) / size_before
        return product


class CostModel:
    """A cost as a sum of terms.

    Terms along the same dimensions are one. Counts (multiply-adds, parameters, channels) are in proportion to the
    kept shares of their dimensions; they are evaluated together, as arrays.

    Attributes:
        dims: of each dimension, by number, the class of each index.
        terms: what is summed.
    """

    def __init__(self, counts: Iterable[CostTerm] = ()) -> None:
        self.dims: list[Index] = []
        self._numbers: dict[bytes, int] = {}
        self._counts: dict[tuple[int, ...], float] = {}
        self._functions: list[Term] = []
        self._arrays: _CountArrays | None = None
        for count in counts:
            self.add(count.amount, count.along)

    def add(self, weight: float, along: Sequence[Index], function: Callable[..., Array] | None = None) -> None:
        """Add a term that depends on the widths of dimensions with these classes.

        Args:
            weight: a factor.
            along: the class of each index of each dimension.
            function: see `Term`; None for the product of the shares that stay.
        """
        dims = tuple(self._number(labels) for labels in along)
        self._arrays = None
        if function is None:
            self._counts[dims] = self._counts.get(dims, 0.0) + weight
        else:
            self._functions.append(Term(dims, weight, function))

    def include(self, other: CostModel, factor: float) -> None:
        """Add the terms of another cost, times a factor."""
        for dims, weight in other._counts.items():
            self.add(weight * factor, [other.dims[dim] for dim in dims])
        for term in other._functions:
            self.add(term.weight * factor, [other.dims[dim] for dim in term.dims], term.function)

    def _number(self, labels: Index) -> int:
        key = labels.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.dims)
            self.dims.append(labels)
        return self._numbers[key]

    @property
    def terms(self) -> list[Term]:
        """Every term, counts first."""
        return [Term(dims, weight, KeptShare(tuple(len(self.dims[dim]) for dim in dims)))
                for dims, weight in self._counts.items()] + self._functions

    def full_widths(self) -> list[Array]:
        """The width of each dimension before any cut."""
        return [np.asarray(float(len(labels))) for labels in self.dims]

    def at_widths(self, widths: Sequence[Array]) -> float:
        """The cost at widths of the dimensions."""
        return float(sum(term([widths[dim] for dim in term.dims]) for term in self.terms))

    def at_shares(self, shares: Shares) -> float:
        """The cost where each class of channels stays with a share."""
        arrays = self._evaluated()
        widths = arrays.widths(shares)
        return float((arrays.weights * arrays.kept_shares(shares)).sum()) + float(
            sum(term([widths[dim] for dim in term.dims]) for term in self._functions))

    @property
    def total(self) -> int:
        """The cost of the whole network."""
        return int(sum(self._counts.values()))

    def __call__(self, shares: Shares) -> int:
        """The cost where each class of channels stays with a share; each count is rounded."""
        arrays = self._evaluated()
        return int(np.rint(arrays.weights * arrays.kept_shares(shares)).sum())

    def _evaluated(self) -> _CountArrays:
        if self._arrays is None:
            self._arrays = _CountArrays(self.dims, self._counts)
        return self._arrays


class _CountArrays:
    """The counts of a cost model as arrays, for evaluating all of them at once."""

    def __init__(self, dims: Sequence[Index], counts: Mapping[tuple[int, ...], float]) -> None:
        self.weights = np.array(list(counts.values()), dtype=np.float64)
        # One more dimension, of width 1, fills up terms of fewer dimensions than others.
        self.index = np.concatenate([*dims, np.array([STAYS])])
        self.sizes = np.array([*map(len, dims), 1], dtype=np.float64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)
        most = max(map(len, counts), default=0)
        self.dims = np.array([(*term_dims, *(len(dims),) * (most - len(term_dims))) for term_dims in counts],
                             dtype=np.int64).reshape(len(counts), most)

    def widths(self, shares: Shares) -> Array:
        """The width of each dimension, the one of width 1 last."""
        return np.asarray(np.rint(np.add.reduceat(np.append(shares, 1.0)[self.index], self.starts)))

    def kept_shares(self, shares: Shares) -> Array:
        """Of each count the product of the shares that stay of its dimensions."""
        return np.asarray(np.multiply.reduce((self.widths(shares) / self.sizes)[self.dims], axis=1))


class PeakMemory(CostModel):
    """The most bytes of activations that are alive at once, as a function of which channels stay (see `lives`)."""

    def __init__(self, labeled: LabeledGraph) -> None:
        super().__init__()
        alive = lives(labeled.graph)
        keys = []
        for life in alive:
            along = tuple(track.ravel() for track in _distinct_dimensions(labeled.tracks.get(life.value.id, ())))
            self.add(1.0, along)
            keys.append(tuple(self._number(labels) for labels in along))
        numbers = {key: number for number, key in enumerate(self._counts)}
        self._count_of_life = np.array([numbers[key] for key in keys], dtype=np.int64)
        self._bytes = np.array([size(life.value) for life in alive], dtype=np.float64)
        self._first = np.array([life.first for life in alive], dtype=np.int64)
        self._last = np.array([life.last for life in alive], dtype=np.int64)

    @property
    def total(self) -> int:
        """The peak of the whole network."""
        return self._peak(self._bytes)

    def __call__(self, shares: Shares) -> int:
        """The peak where each class of channels stays with a share."""
        kept = self._evaluated().kept_shares(shares)
        return self._peak(np.rint(self._bytes * kept[self._count_of_life]))

    def _peak(self, amounts: Array) -> int:
        steps = np.zeros(int(self._last.max(initial=0)) + 2)
        np.add.at(steps, self._first, amounts)
        np.subtract.at(steps, self._last + 1, amounts)
        return int(np.cumsum(steps).max())


def _distinct_dimensions(tracks: Sequence[Index]) -> list[Index]:
    """Of tracks that vary along the same dimension the first: they say the same of its size."""
    distinct: list[Index] = []
    taken: set[int] = set()
    for track in tracks:
        dims = {dim for dim, count in enumerate(track.shape) if count > 1}
        if dims.isdisjoint(taken):
            distinct.append(track)
            taken |= dims
    return distinct
