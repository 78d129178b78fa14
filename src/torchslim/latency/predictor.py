"""The time of a network as a function of which channels stay.

The sum of its layers' times, by the table, and of the rest: what the network takes over that sum today, spread over the
activations that other operations read and write, by bytes. Sums of parts are not quite the whole. So the meter is set
twice by the network itself: to what it takes today, where nothing is cut, and to what a cut network was then seen to
take (`gain`: how much of the foreseen saving came true).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from torchslim.costs.cost_models import Meter, Shares
from torchslim.costs.memory import accessed, size
from torchslim.costs.width_costs import STAYS, Parts, in_proportion
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.tape import Index, Tape
from torchslim.latency.interpolation import BLOCK, Surface, factors, wanted
from torchslim.latency.workloads import Geometry, Layer, layers
from torchslim.rules.labels import Tracks


class ClockMeter(Meter):
    """Nanoseconds of a call, as a function of which channels stay.

    Args:
        coupling: the network's.
        times: of every geometry in `needs(coupling)`.
        today: what the uncut network takes.
        gain: of a saving that the table foresees, the part that comes true.

    Attributes:
        sums: what is summed.
        at_full: the sum where nothing is cut.
    """

    def __init__(self, coupling: Coupling, times: Mapping[Geometry, float], today: float, gain: float = 1.0) -> None:
        super().__init__(())
        self.today, self.gain = today, gain
        self.sums = Parts()
        tape = coupling.tapes[0]
        found = dict(layers(tape, coupling.terms.whole_groups))
        beside = factors(found.values(), times)
        alike: dict[tuple[Geometry, bytes, bytes], list[Layer]] = {}
        for layer in found.values():
            read, made = _along(layer)
            alike.setdefault((layer.geometry, read.tobytes(), made.tobytes()), []).append(layer)
        for same in alike.values():
            self.sums.add(len(same), _along(same[0]), Surface(same[0], times, beside))
        self._add_the_rest(tape, {op.index for op in found})
        self.at_full = self.sums.sum(self.sums.full())

    def _add_the_rest(self, tape: Tape, timed: set[int]) -> None:
        """What the network takes over the sum of its layers, by the bytes that its other operations move."""
        moved: dict[tuple[bytes, ...], tuple[float, list[Index]]] = {}
        for op in tape.graph.ops:
            for value in accessed(op) if op.index not in timed else ():
                if not value.static:
                    along = _dimensions(tape.tracks.get(value.id, ()))
                    key = tuple(labels.tobytes() for labels in along)
                    moved[key] = moved.get(key, (0.0, along))[0] + size(value), along
        left, total = self.today - self.sums.sum(self.sums.full()), sum(own for own, _ in moved.values())
        if left > 0 and total:
            for own, along in moved.values():
                # Memory is laid out in blocks as well: part of a block is no faster than the whole.
                self.sums.add(left * own / total, along, in_proportion([len(labels) for labels in along], BLOCK))

    def time(self, total: float) -> float:
        """Nanoseconds of the network by the sum of its parts."""
        # Where the layers alone sum to more than the network takes, all are scaled.
        return self.today * (1 - self.gain * (1 - total / self.at_full))

    def allowed(self, time: float) -> float:
        """The sum of the parts at which the network takes so many nanoseconds."""
        return self.at_full * (1 - (1 - time / self.today) / self.gain)

    @property
    def total(self) -> int:
        """What the uncut network takes."""
        return round(self.today)

    def __call__(self, shares: Shares) -> int:
        """What the network takes where each class of channels stays with a share."""
        return round(self.time(self.sums.sum(self.sums.widths(shares))))


def needs(coupling: Coupling) -> Iterable[Geometry]:
    """The geometries whose times a `ClockMeter` is made of."""
    return [each for _, layer in layers(coupling.tapes[0], coupling.terms.whole_groups) for each in wanted(layer)]


def _along(layer: Layer) -> tuple[Index, Index]:
    """The classes of what a layer reads and makes."""
    own = layer.geometry
    read, made = (np.full(width, STAYS) if labels is None else labels
                  for labels, width in ((layer.read, own.reads), (layer.made, own.makes)))
    return read, made


def _dimensions(tracks: Tracks) -> list[Index]:
    """The dimensions of a value along which it can be cut, each once: the classes along them."""
    found: dict[int, Index] = {}
    for track in tracks:
        for dim in range(track.ndim):
            if track.shape[dim] > 1 and dim not in found:
                found[dim] = np.moveaxis(track, dim, -1).reshape(-1, track.shape[dim])[0]
                break
    return list(found.values())
