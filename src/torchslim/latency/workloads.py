"""What a layer's time depends on, at its own and other widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchslim.costs.cost_models import STAYS
from torchslim.coupling.labeled_graph import Index, LabeledGraph
from torchslim.tracing.graph import Op
from torchslim.utils.layer_spec import LayerSpec


@dataclass(frozen=True)
class Workload:
    """A convolution or a linear layer on inputs of one size.

    Attributes:
        spec: channels, kernel, stride and the like.
        batch: images; for a linear layer all rows.
        input_size: spatial input sizes; empty for a linear layer.
        dtype: such as "float32".
        removes_groups: whether cuts remove whole groups, as in depthwise convolutions.
    """

    spec: LayerSpec
    batch: int
    input_size: tuple[int, ...] = ()
    dtype: str = "float32"
    removes_groups: bool = False

    def with_channels(self, in_channels: int, out_channels: int) -> Workload:
        """The layer at other widths. The number of groups stays, unless cuts remove groups."""
        spec = self.spec
        groups = max(1, in_channels * spec.groups // spec.inputs) if self.removes_groups else spec.groups
        per_group = (spec.inputs // spec.groups, spec.outputs // spec.groups) if self.removes_groups else \
            (max(1, in_channels // groups), max(1, out_channels // groups))
        return replace(self, spec=replace(spec, inputs=groups * per_group[0], outputs=groups * per_group[1],
                                          groups=groups))

    @property
    def kind(self) -> str:
        """Its kind: "convolution", "transposed" (a transposed convolution) or "linear"."""
        return "transposed" if self.spec.transposed else "convolution" if self.spec.kernel else "linear"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of its input."""
        return (self.batch, self.spec.inputs, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of its weight in torch."""
        spec = self.spec
        if spec.transposed:
            return (spec.inputs, spec.outputs // spec.groups, *spec.kernel)
        return (spec.outputs, spec.inputs // spec.groups, *spec.kernel)

    @property
    def key(self) -> str:
        """A short text of all fields, for the cache."""
        spec = self.spec
        options = [f"{letter}{'x'.join(map(str, sizes))}" for letter, sizes in (
            ("k", spec.kernel), ("s", spec.stride), ("p", spec.padding), ("d", spec.dilation),
            ("o", spec.output_padding)) if sizes]
        return " ".join([self.kind, "x".join(map(str, self.input_shape)), f"to {spec.outputs}", *options,
                         f"g{spec.groups}", "bias" if spec.bias else "plain", self.dtype])


@dataclass(frozen=True, eq=False)
class LabeledWorkload:
    """A layer of a graph, and the class of each of its input and output channels (`STAYS`: it can't be cut)."""

    workload: Workload
    in_classes: Index
    out_classes: Index

    @property
    def cuts_inputs(self) -> bool:
        """Whether any of its input channels can be cut."""
        return bool((self.in_classes != STAYS).any())

    @property
    def cuts_outputs(self) -> bool:
        """Whether any of its output channels can be cut."""
        return bool((self.out_classes != STAYS).any())


def layer_workloads(labeled: LabeledGraph, whole_groups: bool = False) -> Iterator[tuple[Op, LabeledWorkload]]:
    """The convolutions and linear layers of a graph, in call order.

    Args:
        labeled: the graph.
        whole_groups: grouped convolutions lose whole groups.
    """
    for op in labeled.graph.ops:
        if op.name in ("aten.convolution", "aten._convolution"):
            x, workload = op.args[0], _convolution(op, whole_groups)
        elif op.name in ("aten.addmm", "aten.mm") and op.args[-1].static and not op.args[-2].static:
            x, weight = op.args[-2:]
            bias = op.name == "aten.addmm"
            spec = LayerSpec(x.shape[1], weight.shape[1], (), (), (), (), (), 1, bias, False, "zeros")
            workload = Workload(spec, x.shape[0], dtype=_dtype(x))
        else:
            continue
        yield op, LabeledWorkload(workload, _channel_classes(labeled, x), _channel_classes(labeled, op.output))


def classes_along(track: Index, dim: int) -> Index:
    """The class of each index along a dimension of a value."""
    return np.asarray(np.moveaxis(track, dim, -1).reshape(-1, track.shape[dim])[0])


def _convolution(op: Op, whole_groups: bool) -> Workload:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = op.args[:9]
    dims = len(x.shape) - 2

    def each(option: Any) -> tuple[int, ...]:
        numbers = tuple(option) if isinstance(option, list | tuple) else (option,)
        return numbers * dims if len(numbers) == 1 else numbers

    spec = LayerSpec(x.shape[1], op.output.shape[1], tuple(weight.shape[2:]), each(stride), each(padding),
                     each(dilation), each(output_padding) if transposed else (), groups, bias is not None, transposed,
                     "zeros")
    depthwise = groups == x.shape[1] and weight.shape[1] == 1
    return Workload(spec, x.shape[0], tuple(x.shape[2:]), _dtype(x), groups > 1 and (depthwise or whole_groups))


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _channel_classes(labeled: LabeledGraph, value: Any) -> Index:
    """The class of each channel of a value; all `STAYS` if none can be cut."""
    for track in labeled.tracks.get(value.id, ()):
        if track.shape[1] > 1:
            return classes_along(track, 1)
    return np.full(value.shape[1], STAYS)
