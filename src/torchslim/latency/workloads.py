"""What a layer is to a clock: its sizes and strides, without names and weights; and at other widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchslim.coupling.tape import Index, Tape
from torchslim.tracing.graph import Op


@dataclass(frozen=True)
class Geometry:
    """A convolution or a linear layer, as far as its time depends on it.

    Attributes:
        kind: "convolution", "transposed" (a transposed convolution) or "linear".
        batch: pictures; of a linear layer all rows.
        reads: input channels, over all groups.
        makes: output channels, over all groups.
        map: sizes of the input map; none for a linear layer.
        kernel, stride, padding, dilation, output_padding: one a dimension of the map.
        groups: of a convolution.
        whole: with fewer channels there are fewer groups, each as wide as before: so depthwise convolutions shrink.
        bias: whether there is one.
        dtype: such as "float32".
    """

    kind: str
    batch: int
    reads: int
    makes: int
    map: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    whole: bool = False
    bias: bool = False
    dtype: str = "float32"

    def at(self, reads: int, makes: int) -> Geometry:
        """The layer at other widths. Groups stay, and share the channels evenly, unless they go as a whole."""
        if self.whole:
            groups = max(1, reads * self.groups // self.reads)
            return replace(self, reads=groups * (self.reads // self.groups),
                           makes=groups * (self.makes // self.groups), groups=groups)
        return replace(self, reads=max(1, reads // self.groups) * self.groups,
                       makes=max(1, makes // self.groups) * self.groups)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of what it reads."""
        return (self.batch, self.reads, *self.map)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of its weight, as torch has it."""
        if self.kind == "transposed":
            return (self.reads, self.makes // self.groups, *self.kernel)
        return (self.makes, self.reads // self.groups, *self.kernel)

    @property
    def key(self) -> str:
        """All of it as a short text, equal for equal geometries."""
        options = [f"{letter}{'x'.join(map(str, sizes))}" for letter, sizes in (
            ("k", self.kernel), ("s", self.stride), ("p", self.padding), ("d", self.dilation),
            ("o", self.output_padding)) if sizes]
        return " ".join([self.kind, "x".join(map(str, self.input_shape)), f"to {self.makes}", *options,
                         f"g{self.groups}", "bias" if self.bias else "plain", self.dtype])


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a run: its geometry, and the class of each channel that it reads and makes (None: they stay)."""

    geometry: Geometry
    read: Index | None
    made: Index | None


def layers(tape: Tape, whole_groups: bool = False) -> Iterator[tuple[Op, Layer]]:
    """The convolutions and the products with weights of a run, in its order.

    Args:
        tape: the run.
        whole_groups: grouped convolutions lose whole groups.
    """
    for op in tape.graph.ops:
        if op.name in ("aten.convolution", "aten._convolution"):
            yield op, Layer(_convolution(op, whole_groups), _along(tape, op.args[0].id, 1),
                            _along(tape, op.output.id, 1))
        elif op.name in ("aten.addmm", "aten.mm") and op.args[-1].static and not op.args[-2].static:
            x, weight = op.args[-2:]
            found = Geometry("linear", x.shape[0], x.shape[1], weight.shape[1], bias=op.name == "aten.addmm",
                             dtype=_dtype(x))
            yield op, Layer(found, _along(tape, x.id, 1), _along(tape, op.output.id, 1))


def _convolution(op: Op, whole_groups: bool) -> Geometry:
    x, weight, bias = op.args[:3]
    stride, padding, dilation, transposed, output_padding, groups = op.args[3:9]
    sizes = len(x.shape) - 2

    def each(option: Any) -> tuple[int, ...]:
        numbers = tuple(option) if isinstance(option, list | tuple) else (option,)
        return numbers * sizes if len(numbers) == 1 else numbers

    depthwise = groups == x.shape[1] and weight.shape[1] == 1
    return Geometry("transposed" if transposed else "convolution", x.shape[0], x.shape[1], op.output.shape[1],
                    x.shape[2:], weight.shape[2:], each(stride), each(padding), each(dilation),
                    each(output_padding) if transposed else (), groups, groups > 1 and (depthwise or whole_groups),
                    bias is not None, _dtype(x))


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _along(tape: Tape, value: int, dim: int) -> Index | None:
    """The class of each index along a dimension; None where none of them can be cut."""
    for track in tape.tracks.get(value, ()):
        if track.shape[dim] > 1:
            return np.asarray(np.moveaxis(track, dim, -1).reshape(-1, track.shape[dim])[0])
    return None
