"""Costs as functions of which channels stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchslim.costs.memory import lives, size
from torchslim.coupling.coupling import Scaling
from torchslim.coupling.tape import Index, Tape

Shares = NDArray[np.float64]


class Meter:
    """A cost as a function of which channels stay: sum of amount x kept share of each dimension."""

    def __init__(self, scalings: Sequence[Scaling]) -> None:
        self.amounts = np.array([s.amount for s in scalings], dtype=np.float64)
        along = [(place, labels) for place, s in enumerate(scalings) for labels in s.along]
        self.owner = np.array([place for place, _ in along], dtype=np.int64)
        self.sizes = np.array([len(labels) for _, labels in along], dtype=np.float64)
        self.index = np.concatenate([labels for _, labels in along]) if along else np.zeros(0, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64) if along else self.owner
        self.firsts = np.flatnonzero(np.diff(self.owner, prepend=-1))  # where the dimensions of each count begin

    @property
    def total(self) -> int:
        """The cost of the whole network."""
        return int(self.amounts.sum())

    def __call__(self, shares: Shares) -> int:
        """The cost where each class of channels stays with a share (1 stays, 0 goes; between: that part of its row)."""
        return int(self.scaled(shares).sum())

    def scaled(self, shares: Shares) -> Shares:
        """Each count by itself."""
        scaled = self.amounts.copy()
        if len(self.index):
            kept = np.rint(np.add.reduceat(shares[self.index], self.starts))
            scaled[self.owner[self.firsts]] *= np.multiply.reduceat(kept / self.sizes, self.firsts)
        return np.asarray(np.rint(scaled))


class PeakMeter(Meter):
    """The most bytes of activations that are alive at once, as a function of which channels stay (see `lives`)."""

    def __init__(self, tape: Tape) -> None:
        found = lives(tape.graph)
        super().__init__([Scaling(size(life.value), tuple(track.ravel() for track in _apart(
            tape.tracks.get(life.value.id, ())))) for life in found])
        self.first = np.array([life.first for life in found], dtype=np.int64)
        self.last = np.array([life.last for life in found], dtype=np.int64)

    @property
    def total(self) -> int:
        """The peak of the whole network."""
        return self._peak(self.amounts)

    def __call__(self, shares: Shares) -> int:
        """The peak where each class of channels stays with a share."""
        return self._peak(self.scaled(shares))

    def _peak(self, amounts: Shares) -> int:
        steps = np.zeros(int(self.last.max(initial=0)) + 2)
        np.add.at(steps, self.first, amounts)
        np.subtract.at(steps, self.last + 1, amounts)
        return int(np.cumsum(steps).max())


def _apart(tracks: Sequence[Index]) -> list[Index]:
    """Of tracks that vary along the same dimension the first: they say the same of its size."""
    found: list[Index] = []
    taken: set[int] = set()
    for track in tracks:
        dims = {dim for dim, count in enumerate(track.shape) if count > 1}
        if dims.isdisjoint(taken):
            found.append(track)
            taken |= dims
    return found
