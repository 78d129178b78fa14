"""The time of a layer at any widths, from the few that were measured.

Kernels work on blocks of channels, 8 or 16 mostly, and a width that is no multiple costs as much as the next one, or
more. So layers are measured at multiples of 16, between which the time is interpolated. What an odd multiple of 8, and
what any other width, costs over the next multiple of 16 is measured at two more widths of each layer, and is the median
over the layers of a kind: a factor of one layer alone would be mostly noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchslim.latency.workloads import Geometry, Layer

Times = Mapping[Geometry, float]
Array = NDArray[np.float64]

BLOCK, HALF = 16, 8
"""Channels that a kernel works on at once, and the smaller number that some work on as well."""
_NOISE = 0.05  # factors nearer to 1 than this are taken for 1


def grid(width: int) -> tuple[int, ...]:
    """The widths at which a layer of so many channels is measured, ascending, the last its own."""
    if width <= BLOCK:
        smaller = {2, 4, HALF}
    else:
        parts = {max(BLOCK, round(width * share / BLOCK) * BLOCK) for share in (0.125, 0.25, 0.5, 0.75)}
        smaller = {BLOCK} | parts | ({HALF} if width <= 4 * BLOCK else set())
    return (*sorted(each for each in smaller if each < width), width)


@dataclass(frozen=True)
class Factors:
    """What a width costs over the next multiple of 16: an odd multiple of 8, and a width that is no multiple of 8."""

    half: float = 1.0
    odd: float = 1.0


def kind(layer: Geometry) -> str:
    """Layers whose kernels treat widths alike: linear, depthwise, grouped, pointwise and other convolutions."""
    if layer.kind == "linear":
        return layer.kind
    if layer.groups > 1:
        return f"{layer.kind}, {'whole groups' if layer.whole else 'grouped'}"
    return f"{layer.kind}, {'pointwise' if set(layer.kernel) == {1} else 'dense'}"


def wanted(layer: Layer) -> Iterator[Geometry]:
    """The geometries at which a layer is measured: on the grid, and beside it."""
    own = layer.geometry
    reads, makes = _grids(layer)
    yield from (own.at(i, o) for i in reads for o in makes)
    for _, beside, _ in _probes(layer):
        yield beside


def _grids(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    own = layer.geometry
    reads = grid(own.reads) if layer.read is not None else (own.reads,)
    makes = grid(own.makes) if layer.made is not None and not own.whole else (own.makes,)
    return reads, makes


def _probes(layer: Layer) -> Iterator[tuple[tuple[str, str], Geometry, Geometry]]:
    """Pairs that tell a factor: its side and name, the geometry beside the grid, and the one on it."""
    own = layer.geometry
    for side, widths in zip(("reads", "makes"), _grids(layer), strict=True):
        middle = [width for width in widths if width % BLOCK == 0 and 2 * BLOCK <= width <= 0.75 * widths[-1]]
        if not middle or (own.groups > 1 and not own.whole):
            continue
        for name, less in (("half", HALF), ("odd", 1)):
            beside, on = ({"reads": (width, own.makes), "makes": (own.reads, width)}[side]
                          for width in (middle[-1] - less, middle[-1]))
            yield (side, name), own.at(*beside), own.at(*on)


def factors(layers: Iterable[Layer], times: Times) -> dict[tuple[str, str], Factors]:
    """By kind of layer and side ("reads", "makes") what widths beside the grid cost."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for layer in layers:
        for (side, name), beside, on in _probes(layer):
            own = found.setdefault((kind(layer.geometry), side), {"half": [], "odd": []})
            own[name].append(times[beside] / max(times[on], 1e-9))
    return {key: Factors(_settled(own["half"], 0.5), _settled(own["odd"], 1.0)) for key, own in found.items()}


def _settled(ratios: list[float], least: float) -> float:
    """The median of measured factors; 1 where that may be noise."""
    middle = float(np.median(ratios)) if ratios else 1.0
    return 1.0 if abs(middle - 1) < _NOISE else max(least, middle)


class Surface:
    """The time of one layer by what it reads and makes, in nanoseconds."""

    def __init__(self, layer: Layer, times: Times, beside: Mapping[tuple[str, str], Factors]) -> None:
        own = layer.geometry
        reads, makes = _grids(layer)
        self.values: Array = np.array([[times[own.at(i, o)] for o in makes] for i in reads], dtype=np.float64)
        self.reads = _Axis(reads, beside.get((kind(own), "reads"), Factors()))
        self.makes = _Axis(makes, beside.get((kind(own), "makes"), Factors()))

    def __call__(self, reads: Array, makes: Array) -> Array:
        """The times at widths of equal shape; a width above the layer's own counts as that."""
        row, across, first = self.reads.at(reads)
        column, along, second = self.makes.at(makes)
        values = self.values
        below, above = np.minimum(row + 1, values.shape[0] - 1), np.minimum(column + 1, values.shape[1] - 1)
        near = values[row, column] * (1 - along) + values[row, above] * along
        far = values[below, column] * (1 - along) + values[below, above] * along
        return np.asarray((near * (1 - across) + far * across) * first * second)


class _Axis:
    """Where each width lies on a grid, worked out once for all widths."""

    def __init__(self, points: tuple[int, ...], beside: Factors) -> None:
        own, widths = points[-1], np.arange(points[-1] + 1)
        even = np.minimum(-(-widths // HALF) * HALF, own)
        base = np.minimum(-(-widths // BLOCK) * BLOCK, own)
        if points[0] <= HALF:  # small widths cost what the next one that was measured does
            next_point = np.array(points)[np.searchsorted(points, np.minimum(widths, HALF))]
            base = np.where(widths <= HALF, next_point, base)
        place = np.interp(base, points, np.arange(len(points), dtype=np.float64))
        self.whole = np.floor(place).astype(np.int64)
        self.part = place - self.whole
        beyond = (widths > HALF) & (widths < own)
        half, odd = beyond & (even % BLOCK == HALF) & (even < own), beyond & (widths % HALF != 0)
        self.factor = np.where(half, beside.half, 1.0) * np.where(odd, beside.odd, 1.0)

    def at(self, widths: Array) -> tuple[NDArray[np.int64], Array, Array]:
        """The point of the grid below each width, the way from there to the next, and the width's factor."""
        index = np.clip(np.rint(widths).astype(np.int64), 0, len(self.whole) - 1)
        return self.whole[index], self.part[index], self.factor[index]
