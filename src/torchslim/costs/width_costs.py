"""Costs that are sums of parts, each of which depends on the widths of a few dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchslim.costs.cost_models import Meter, Shares
from torchslim.coupling.tape import Index

Array = NDArray[np.float64]

STAYS = -1
"""The class of an index that can't be cut."""


@dataclass(frozen=True, eq=False)
class Part:
    """A cost by the widths of some dimensions, which are numbered.

    Attributes:
        dims: the numbers of the dimensions.
        weight: a factor.
        cost: of arrays of widths, one a dimension and all of one shape.
    """

    dims: tuple[int, ...]
    weight: float
    cost: Callable[..., Array]

    def __call__(self, widths: Sequence[Array]) -> Array:
        """The cost at widths of its dimensions."""
        return np.asarray(self.weight * self.cost(*widths))


class Parts:
    """A cost as a sum of parts.

    Attributes:
        dims: the class of each index of each dimension, by number.
        parts: what is summed.
    """

    def __init__(self) -> None:
        self.dims: list[Index] = []
        self.parts: list[Part] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, weight: float, along: Sequence[Index], cost: Callable[..., Array]) -> None:
        """Add a part that depends on the widths of dimensions with these classes."""
        self.parts.append(Part(tuple(self._number(labels) for labels in along), weight, cost))

    def include(self, other: Parts, factor: float) -> None:
        """Add the parts of another cost, times a factor."""
        numbers = [self._number(labels) for labels in other.dims]
        self.parts += [replace(part, dims=tuple(numbers[dim] for dim in part.dims), weight=part.weight * factor)
                       for part in other.parts]

    def _number(self, labels: Index) -> int:
        key = labels.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.dims)
            self.dims.append(labels)
        return self._numbers[key]

    def widths(self, shares: Shares) -> list[Array]:
        """The width of each dimension where each class of channels stays with a share."""
        shares = np.append(shares, 1.0)  # read where the class is STAYS
        return [np.rint(shares[labels].sum()) for labels in self.dims]

    def full(self) -> list[Array]:
        """The width of each dimension before any cut."""
        return [np.asarray(float(len(labels))) for labels in self.dims]

    def sum(self, widths: Sequence[Array]) -> float:
        """The cost at widths of the dimensions."""
        return float(sum(part([widths[dim] for dim in part.dims]) for part in self.parts))


def in_proportion(own: Sequence[int], block: int = 1) -> Callable[..., Array]:
    """The product of the shares that stay of dimensions this wide, where a begun block counts as a whole one."""

    def share(*widths: Array) -> Array:
        product = np.asarray(1.0)
        for now, before in zip(widths, own, strict=True):
            product = product * np.minimum(np.ceil(now / block) * block, before) / before
        return product

    return share


def parts_of(meter: Meter) -> Parts:
    """The counts of a meter as parts."""
    found = Parts()
    merged: dict[tuple[bytes, ...], tuple[float, list[Index]]] = {}
    ends = (meter.starts + meter.sizes).astype(np.int64)
    along: list[list[Index]] = [[] for _ in meter.amounts]
    for owner, start, end in zip(meter.owner.tolist(), meter.starts.tolist(), ends.tolist(), strict=True):
        along[owner].append(meter.index[start:end])
    for amount, own in zip(meter.amounts.tolist(), along, strict=True):
        key = tuple(labels.tobytes() for labels in own)
        merged[key] = merged.get(key, (0.0, own))[0] + amount, own
    for amount, own in merged.values():
        found.add(amount, own, in_proportion([len(labels) for labels in own]))
    return found
