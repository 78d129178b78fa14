"""The cost laws of convolutions in closed form; pure Python, no network and no torch needed.

    >>> from torchslim.formulas import batch_norm, convolution, separable
    >>> print(convolution(64, 128, 3, (56, 56)) + batch_norm(128))
    73,984 parameters, 231,211,008 MACs
    >>> print(separable(64, 128, 3, (56, 56)))
    8,768 parameters, 27,496,448 MACs

A MAC is one fused multiply-add of a convolution or a matrix product, those with padded zeros too; biases, norms and
activations count none. Costs are those of one image. Channels are numbers, `kernel` is an int or one for each dimension
of the map, maps are tuples such as (height, width), of any number of dimensions. `docs/costs.md` has the table of laws.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod, sqrt
from numbers import Real
from typing import Any, overload

from torchslim.errors import RequestError

Map = Sequence[int]
Size = int | Map
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What a layer costs; costs add, and `sum(costs, Cost())` is a network's.

    Attributes:
        params: numbers that are trained.
        macs: multiply-adds for one image.
    """

    params: int = 0
    macs: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 x MACs."""
        return 2 * self.macs

    def size_bytes(self, element: int = 4) -> int:
        """Bytes that the parameters take; `element` is 4 for float32, 2 for float16 and bfloat16, 1 for int8."""
        return self.params * _whole("size_bytes: element", element)

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.params + other.params, self.macs + other.macs)

    def __str__(self) -> str:
        return f"{self.params:,} parameters, {self.macs:,} MACs"


# --- layers -------------------------------------------------------------------------------------------------

def convolution(inputs: int, outputs: int, kernel: Size, out: Map, *, groups: int = 1,
                bias: bool = False) -> Cost:
    """A convolution: K K M N / g weights, each of which multiplies once at every position of the output map.

    Dilation is free: it changes nothing but the map (`output_size`).

    Args:
        inputs, outputs: channels M and N.
        kernel: K, or one for each dimension of the map.
        out: the output map.
        groups: g, a divisor of both channel numbers.
        bias: one more parameter for each output channel.

    Raises:
        RequestError: a number that is none or too small, or channels that can't be split into the groups.
    """
    return _law("convolution", inputs, outputs, kernel, out, groups, bias)


def depthwise(channels: int, kernel: Size, out: Map, *, multiplier: int = 1, bias: bool = False) -> Cost:
    """A depthwise convolution: every channel by itself, K K M m weights.

    Args:
        channels: M.
        kernel, out, bias: as for `convolution`.
        multiplier: m, output channels made of each input channel.

    Raises:
        RequestError: as for `convolution`.
    """
    outputs = _whole("depthwise: channels", channels) * _whole("depthwise: multiplier", multiplier)
    return _law("depthwise", channels, outputs, kernel, out, channels, bias)


def separable(inputs: int, outputs: int, kernel: Size, out: Map, *, multiplier: int = 1,
              width: float = 1.0, resolution: float = 1.0, bias: bool = False) -> Cost:
    """A depthwise convolution and a 1x1 convolution: (K K aM + aM aN) (rH)(rW) MACs for m = 1.

    MobileNet (Howard et al. 2017), sections 3.1 and 3.3.

    Args:
        inputs, outputs, kernel, out: as for `convolution`; both convolutions give maps of the size of `out`.
        multiplier: m, channels between the two for each input channel.
        width: a, by which M and N are multiplied.
        resolution: r, by which each size of the map is multiplied; `scaled` rounds down.
        bias: in both convolutions.

    Raises:
        RequestError: as for `convolution` and `scaled`.
    """
    inputs = scaled(_whole("separable: inputs", inputs), width)
    outputs = scaled(_whole("separable: outputs", outputs), width)
    out = tuple(scaled(size, resolution) for size in _numbers("separable: out", out))
    between = inputs * _whole("separable: multiplier", multiplier)
    return (_law("separable", inputs, between, kernel, out, inputs, bias)
            + _law("separable", between, outputs, 1, out, 1, bias))


def separable_ratio(outputs: int, kernel: Size) -> float:
    """What a separable convolution costs of the standard one, parameters and MACs alike: 1/N + 1/K^2.

    MobileNet (Howard et al. 2017), section 3.1. Kernels have two dimensions here; an int is square.

    Raises:
        RequestError: a number that is none or below 1.
    """
    taps = prod(_each("separable_ratio: kernel", kernel, 2))
    return 1 / _whole("separable_ratio: outputs", outputs) + 1 / taps


def asymmetric_pair(inputs: int, outputs: int, kernel: int, out: Map, *, middle: int | None = None,
                    rows: int | None = None, groups: int = 1, bias: bool = False) -> Cost:
    """A 1 x K convolution, and then a K x 1 one: K (M C + C N) / g weights.

    The first changes the map's width alone, so the map between has the input's rows and the output's columns.
    Inception-v3 (Szegedy et al. 2016), section 3.2.

    Args:
        inputs, outputs, kernel, out: as for `convolution`; the map has two dimensions.
        middle: C, channels between the two; N unless given.
        rows: of the input map; those of `out` unless given.
        groups, bias: of both convolutions.

    Raises:
        RequestError: as for `convolution`, or a map that is not (height, width).
    """
    where, taps = "asymmetric_pair", _whole("asymmetric_pair: kernel", kernel)
    size = _numbers(f"{where}: out", out)
    if len(size) != 2:
        raise RequestError(f"{where}: a map of {len(size)} dimensions found, 2 wanted; give (height, width)")
    middle = outputs if middle is None else _whole(f"{where}: middle", middle)
    between = (size[0] if rows is None else _whole(f"{where}: rows", rows), size[1])
    return (_law(where, inputs, middle, (1, taps), between, groups, bias)
            + _law(where, middle, outputs, (taps, 1), size, groups, bias))


def transposed_convolution(inputs: int, outputs: int, kernel: Size, size: Map, *, groups: int = 1,
                           bias: bool = False) -> Cost:
    """A transposed convolution: K K M N / g weights, each of which multiplies once at every position of the INPUT map.

    Args:
        inputs, outputs, kernel, groups, bias: as for `convolution`.
        size: the input map. The output map (`transposed_output_size`) changes nothing.

    Raises:
        RequestError: as for `convolution`.
    """
    return _law("transposed_convolution", inputs, outputs, kernel, size, groups, bias)


def linear(inputs: int, outputs: int, *, positions: int = 1, bias: bool = False) -> Cost:
    """A fully connected layer: M N weights, each of which multiplies once for every vector.

    Args:
        inputs, outputs, bias: as for `convolution`.
        positions: how many vectors it is applied to.

    Raises:
        RequestError: a number that is none or below 1.
    """
    return _law("linear", inputs, outputs, 1, (_whole("linear: positions", positions),), 1, bias)


def batch_norm(channels: int) -> Cost:
    """A batch norm: a scale and a shift for each channel. Its multiplications fold into the convolution before it."""
    return Cost(2 * _whole("batch_norm: channels", channels))


# --- maps ---------------------------------------------------------------------------------------------------

@overload
def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int: ...
@overload
def output_size(size: Map, kernel: Size, stride: Size = 1, padding: Size = 0, dilation: Size = 1) -> Shape: ...
def output_size(size: Size, kernel: Size, stride: Size = 1, padding: Size = 0, dilation: Size = 1) -> int | Shape:
    """The map that a convolution or a pool gives: floor((size + 2p - d(k - 1) - 1) / s) + 1 along each dimension.

    Args:
        size: the input map, or one dimension of it.
        kernel, stride, padding, dilation: an int, or one for each dimension.

    Raises:
        RequestError: a number that is none or too small, or a kernel that does not fit.
    """
    def law(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
        reach = dilation * (kernel - 1) + 1
        if reach > size + 2 * padding:
            raise RequestError(f"output_size: a kernel that reaches over {reach} does not fit a map of {size} with "
                               f"padding {padding}; pad by {(reach - size + 1) // 2}")
        return (size + 2 * padding - reach) // stride + 1

    return _along("output_size", law, size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)


@overload
def transposed_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1,
                           output_padding: int = 0) -> int: ...
@overload
def transposed_output_size(size: Map, kernel: Size, stride: Size = 1, padding: Size = 0, dilation: Size = 1,
                           output_padding: Size = 0) -> Shape: ...
def transposed_output_size(size: Size, kernel: Size, stride: Size = 1, padding: Size = 0, dilation: Size = 1,
                           output_padding: Size = 0) -> int | Shape:
    """The map that a transposed convolution gives: (size - 1)s - 2p + d(k - 1) + 1 + output padding.

    Raises:
        RequestError: as for `output_size`, padding that leaves nothing, or an output padding that is neither below the
            stride nor below the dilation.
    """
    def law(size: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
        if extra >= max(stride, dilation):
            raise RequestError(f"transposed_output_size: output_padding {extra} found, less than the stride {stride} "
                               f"or the dilation {dilation} wanted; take {max(stride, dilation) - 1}")
        whole = (size - 1) * stride + dilation * (kernel - 1) + 1 + extra
        if whole <= 2 * padding:
            raise RequestError(f"transposed_output_size: padding {padding} leaves nothing of a map of {whole}; "
                               f"take at most {(whole - 1) // 2}")
        return whole - 2 * padding

    return _along("transposed_output_size", law, size, kernel=kernel, stride=stride, padding=padding,
                  dilation=dilation, output_padding=output_padding)


@overload
def same_padding(kernel: int, dilation: int = 1) -> int: ...
@overload
def same_padding(kernel: Map, dilation: Size = 1) -> Shape: ...
def same_padding(kernel: Size, dilation: Size = 1) -> int | Shape:
    """The padding with which a map keeps its size at stride 1: d(k - 1)/2 on each side.

    Raises:
        RequestError: that is no whole number, as for even kernels without dilation.
    """
    def law(kernel: int, dilation: int) -> int:
        if dilation * (kernel - 1) % 2:
            raise RequestError(f"same_padding: a kernel of {kernel} with dilation {dilation} wants "
                               f"{dilation * (kernel - 1) / 2} on each side; take a kernel of {kernel + 1}")
        return dilation * (kernel - 1) // 2

    return _along("same_padding", law, kernel, dilation=dilation)


def scaled(number: int, factor: float) -> int:
    """Channels or a size of a map times a multiplier, rounded down, at least 1 (Howard et al. 2017, section 3.3).

    Raises:
        RequestError: a number below 1, or a factor that is not positive.
    """
    number = _whole("scaled: number", number)
    if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < factor < inf:
        raise RequestError(f"scaled: a multiplier of {factor!r} found, a positive number wanted, such as 0.5")
    return max(1, int(number * factor + 1e-6))  # 100 x 0.29 is less than 29 in floating point


# --- memory -------------------------------------------------------------------------------------------------

def pointwise_access(inputs: int, outputs: int, out: Map, *, groups: int = 1) -> int:
    """Elements that a 1x1 convolution reads and writes: H W (M + N) + M N / g.

    ShuffleNet V2 (Ma et al. 2018), guidelines G1 and, with groups, G2. Both maps and the weights count once.

    Raises:
        RequestError: as for `convolution`, which has these arguments.
    """
    weights = _law("pointwise_access", inputs, outputs, 1, out, groups, False).params
    return prod(map(int, out)) * (int(inputs) + int(outputs)) + weights


def pointwise_access_bound(macs: int, out: Map, *, groups: int = 1) -> float:
    """The least that a 1x1 convolution of B MACs reads and writes: 2 sqrt(H W B g) + B / (H W) elements.

    ShuffleNet V2 (Ma et al. 2018), guideline G1: it is reached where M = N. With groups it grows as G2 says.

    Raises:
        RequestError: a number that is none or below 1.
    """
    where = "pointwise_access_bound"
    positions = prod(_numbers(f"{where}: out", out))
    macs, groups = _whole(f"{where}: macs", macs), _whole(f"{where}: groups", groups)
    return 2 * sqrt(positions * macs * groups) + macs / positions


# --- what all of them share ---------------------------------------------------------------------------------

def _law(where: str, inputs: int, outputs: int, kernel: Size, positions: Map, groups: int, bias: bool) -> Cost:
    """Weights that each multiply once at every position."""
    inputs, outputs = _whole(f"{where}: inputs", inputs), _whole(f"{where}: outputs", outputs)
    groups, positions = _whole(f"{where}: groups", groups), _numbers(f"{where}: map", positions)
    for channels in (inputs, outputs):
        if rest := channels % groups:
            near = [str(n) for n in (channels - rest, channels - rest + groups) if n]
            raise RequestError(f"{where}: {channels} channels cannot be split into {groups} groups; "
                               f"keep {' or '.join(near)}")
    weights = prod(_each(f"{where}: kernel", kernel, len(positions))) * inputs * outputs // groups
    return Cost(weights + outputs * bool(bias), weights * prod(positions))


def _along(where: str, law: Callable[..., int], size: Size, **options: Size) -> int | Shape:
    """A law along each dimension of a map, or along the one that was given."""
    sizes = _numbers(where, size if isinstance(size, Sequence) else (size,))
    columns = [_each(f"{where}: {name}", value, len(sizes), least=0 if "padding" in name else 1)
               for name, value in options.items()]
    results = tuple(law(*numbers) for numbers in zip(sizes, *columns, strict=True))
    return results if isinstance(size, Sequence) else results[0]


def _each(what: str, value: Any, dims: int, least: int = 1) -> Shape:
    """One number for each of `dims` dimensions; the same one if there is but one."""
    numbers = _numbers(what, value if isinstance(value, Sequence) else (value,) * dims, least)
    if len(numbers) != dims:
        raise RequestError(f"{what}: {value!r} found for a map of {dims} dimensions; give one number or {dims}")
    return numbers


def _numbers(what: str, value: Any, least: int = 1) -> Shape:
    if not isinstance(value, Sequence) or not value or isinstance(value, str | bytes):
        raise RequestError(f"{what}: {value!r} found, a number for each dimension wanted, such as (32, 32)")
    return tuple(_whole(what, number, least) for number in value)


def _whole(what: str, value: Any, least: int = 1) -> int:
    """Any kind of whole number (numpy's, too) as an int; truth values are none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise RequestError(f"{what}: {value!r} found, a whole number of at least {least} wanted")
    return number
