"""The time of a layer at any widths, interpolated between a few measured ones.

Kernels work on blocks of channels, mostly 8 or 16, and a width that is not a multiple costs at least as much as the
next one. So layers are measured at multiples of 16 and the time is interpolated. The penalties of odd multiples of 8
and of all other widths, relative to the next multiple of 16, are measured at two more widths of each layer. Their
median over the layers of a kernel family is used, since the ratio for a single layer is mostly noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchslim.latency.workloads import LabeledWorkload, Workload

Times = Mapping[Workload, float]
Array = NDArray[np.float64]

BLOCK, HALF_BLOCK = 16, 8
"""Block size of kernels in channels, and the smaller one that some kernels also support."""
_MIN_PENALTY = 0.05  # penalties closer to 1 are noise


@dataclass(frozen=True)
class WidthPenalty:
    """The time at a width over that at the next multiple of 16.

    Attributes:
        half_block: for odd multiples of 8.
        unaligned: for widths that are no multiple of 8.
    """

    half_block: float = 1.0
    unaligned: float = 1.0


Penalties = Mapping[tuple[str, str], WidthPenalty]
"""By kernel family and side, "in" or "out"."""


def sampled_widths(width: int) -> tuple[int, ...]:
    """The widths at which a layer of `width` channels is measured, ascending, up to `width`."""
    if width <= BLOCK:
        smaller = {2, 4, HALF_BLOCK}
    else:
        shares = {max(BLOCK, round(width * share / BLOCK) * BLOCK) for share in (0.125, 0.25, 0.5, 0.75)}
        smaller = {BLOCK} | shares | ({HALF_BLOCK} if width <= 4 * BLOCK else set())
    return (*sorted(each for each in smaller if each < width), width)


def kernel_family(workload: Workload) -> str:
    """The kind of layer that shares penalties: linear, depthwise, grouped, pointwise or other convolution."""
    if workload.kind == "linear":
        return workload.kind
    if workload.spec.groups > 1:
        return f"{workload.kind}, {'whole groups' if workload.removes_groups else 'grouped'}"
    return f"{workload.kind}, {'pointwise' if set(workload.spec.kernel) == {1} else 'dense'}"


def sampled_workloads(layer: LabeledWorkload) -> Iterator[Workload]:
    """The workloads to measure for a layer: for the interpolation and for the penalties."""
    in_widths, out_widths = _sampled_channels(layer)
    yield from (layer.workload.with_channels(i, o) for i in in_widths for o in out_widths)
    for _, between, _ in _penalty_pairs(layer):
        yield between


def _sampled_channels(layer: LabeledWorkload) -> tuple[tuple[int, ...], tuple[int, ...]]:
    spec = layer.workload.spec
    in_widths = sampled_widths(spec.inputs) if layer.cuts_inputs else (spec.inputs,)
    cuts_outputs = layer.cuts_outputs and not layer.workload.removes_groups
    return in_widths, sampled_widths(spec.outputs) if cuts_outputs else (spec.outputs,)


def _penalty_pairs(layer: LabeledWorkload) -> Iterator[tuple[tuple[str, str], Workload, Workload]]:
    """For each penalty its side and name, the workload at that width, and at the next multiple of 16."""
    workload, spec = layer.workload, layer.workload.spec
    for side, widths in zip(("in", "out"), _sampled_channels(layer), strict=True):
        aligned = [width for width in widths if width % BLOCK == 0 and 2 * BLOCK <= width <= 0.75 * widths[-1]]
        if not aligned or (spec.groups > 1 and not workload.removes_groups):
            continue
        for name, less in (("half_block", HALF_BLOCK), ("unaligned", 1)):
            between, on = (workload.with_channels(width, spec.outputs) if side == "in" else
                           workload.with_channels(spec.inputs, width) for width in (aligned[-1] - less, aligned[-1]))
            yield (side, name), between, on


def width_penalties(layers: Iterable[LabeledWorkload], times: Times) -> Penalties:
    """The penalties of all kernel families in the network."""
    ratios: dict[tuple[str, str], dict[str, list[float]]] = {}
    for layer in layers:
        for (side, name), between, on in _penalty_pairs(layer):
            by_name = ratios.setdefault((kernel_family(layer.workload), side), {"half_block": [], "unaligned": []})
            by_name[name].append(times[between] / max(times[on], 1e-9))
    return {key: WidthPenalty(_median_penalty(by_name["half_block"], 0.5), _median_penalty(by_name["unaligned"], 1.0))
            for key, by_name in ratios.items()}


def _median_penalty(ratios: list[float], least: float) -> float:
    """The median of measured ratios; 1 if that may be noise."""
    median = float(np.median(ratios)) if ratios else 1.0
    return 1.0 if abs(median - 1) < _MIN_PENALTY else max(least, median)


class LayerLatency:
    """The time of one layer by its numbers of input and output channels, in nanoseconds.

    Args:
        layer: the layer.
        times: of every workload in `sampled_workloads(layer)`.
        penalties: of widths not divisible by 16.
    """

    def __init__(self, layer: LabeledWorkload, times: Times, penalties: Penalties) -> None:
        in_widths, out_widths = _sampled_channels(layer)
        family = kernel_family(layer.workload)
        self.values: Array = np.array([[times[layer.workload.with_channels(i, o)] for o in out_widths]
                                       for i in in_widths], dtype=np.float64)
        self.in_axis = _WidthAxis(in_widths, penalties.get((family, "in"), WidthPenalty()))
        self.out_axis = _WidthAxis(out_widths, penalties.get((family, "out"), WidthPenalty()))

    def __call__(self, in_channels: Array, out_channels: Array) -> Array:
        """The times at widths of equal shape; widths are clipped to the layer's own."""
        row, row_fraction, in_penalty = self.in_axis.locate(in_channels)
        column, column_fraction, out_penalty = self.out_axis.locate(out_channels)
        values = self.values
        next_row, next_column = np.minimum(row + 1, values.shape[0] - 1), np.minimum(column + 1, values.shape[1] - 1)
        near = values[row, column] * (1 - column_fraction) + values[row, next_column] * column_fraction
        far = values[next_row, column] * (1 - column_fraction) + values[next_row, next_column] * column_fraction
        return np.asarray((near * (1 - row_fraction) + far * row_fraction) * in_penalty * out_penalty)


class _WidthAxis:
    """Positions of all widths between the sampled ones, computed once."""

    def __init__(self, samples: tuple[int, ...], penalty: WidthPenalty) -> None:
        full, widths = samples[-1], np.arange(samples[-1] + 1)
        half_blocks = np.minimum(-(-widths // HALF_BLOCK) * HALF_BLOCK, full)
        rounded = np.minimum(-(-widths // BLOCK) * BLOCK, full)
        if samples[0] <= HALF_BLOCK:  # small widths cost as much as the next sampled one
            next_sample = np.array(samples)[np.searchsorted(samples, np.minimum(widths, HALF_BLOCK))]
            rounded = np.where(widths <= HALF_BLOCK, next_sample, rounded)
        position = np.interp(rounded, samples, np.arange(len(samples), dtype=np.float64))
        self.index = np.floor(position).astype(np.int64)
        self.fraction = position - self.index
        penalized = (widths > HALF_BLOCK) & (widths < full)
        is_half = penalized & (half_blocks % BLOCK == HALF_BLOCK) & (half_blocks < full)
        is_unaligned = penalized & (widths % HALF_BLOCK != 0)
        self.penalty = np.where(is_half, penalty.half_block, 1.0) * np.where(is_unaligned, penalty.unaligned, 1.0)

    def locate(self, widths: Array) -> tuple[NDArray[np.int64], Array, Array]:
        """The sample at or below each width, the fraction of the way to the next, and the width's penalty."""
        index = np.clip(np.rint(widths).astype(np.int64), 0, len(self.index) - 1)
        return self.index[index], self.fraction[index], self.penalty[index]
