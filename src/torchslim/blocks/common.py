"""Helpers of all blocks: convolutions with "same" padding, norms and activations from callables, checked options."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import inf
from numbers import Real
from typing import Any, Literal, TypeVar

from torch import nn

from torchslim.errors import RequestError
from torchslim.formulas import Size, convolution, output_size, same_padding
from torchslim.utils.text import describe_error

Norm = Callable[[int], nn.Module] | Literal[False] | None
Act = Callable[[], nn.Module] | Literal[False] | None
Padding = Size | Literal["same"]
T = TypeVar("T")

_LARGE_MAP = (1 << 30, 1 << 30)
_EXAMPLES = {"norm": "nn.BatchNorm2d", "act": "nn.ReLU", "gate": "nn.Sigmoid"}


def conv(in_channels: int, out_channels: int, kernel_size: Size = 1, *, stride: Size = 1, padding: Padding = "same",
         dilation: Size = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A plain convolution whose padding may be "same": d(k - 1)/2, with strides as well.

    Torch's own padding="same" refuses strides, and pads even kernels on one side more than on the other.

    Raises:
        RequestError: numbers that don't fit together; even kernels have no "same" padding.
    """
    if isinstance(padding, str) and padding != "same":
        raise RequestError(f"padding={padding!r} found, a number or 'same' wanted; 'same' keeps a map's size")
    # called for validation only
    convolution(in_channels, out_channels, kernel_size, (1, 1), groups=groups)
    output_size(_LARGE_MAP, kernel_size, stride, 0 if isinstance(padding, str) else padding, dilation)
    kernel, dilation = size_pair(kernel_size), size_pair(dilation)
    padding = same_padding(kernel, dilation) if isinstance(padding, str) else padding
    return nn.Conv2d(in_channels, out_channels, kernel, size_pair(stride), size_pair(padding), dilation, groups, bias)


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """[norm(channels)], or [] for None."""
    return [] if norm is None or norm is False else [_call_factory("norm", norm, channels)]


def activation_layers(act: Act) -> list[nn.Module]:
    """[act()], or [] for None."""
    return [] if act is None or act is False else [activation(act)]


def activation(act: Act, option: str = "act") -> nn.Module:
    """act(), or the identity for None; `option` is its name in errors."""
    return nn.Identity() if act is None or act is False else _call_factory(option, act)


def option_pair(option: T | tuple[T, T]) -> tuple[T, T]:
    """The values of an option for two convolutions, from a pair or one value for both.

    Raises:
        RequestError: a sequence of another length.
    """
    if not isinstance(option, tuple | list):
        return option, option
    if len(option) != 2:
        raise RequestError(f"{option!r} found for two convolutions, a pair wanted, or one that goes for both; try "
                           "act=(None, nn.ReLU)")
    first, second = option
    return first, second


def size_pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size, which may be an int."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


def keeps_size(stride: Size) -> bool:
    """Whether a stride keeps the size of a map."""
    return stride in (1, (1, 1), [1, 1])


def keeps_shape(stride: Size, in_channels: int, out_channels: int) -> bool:
    """Whether a block's output has its input's shape, so that they can be added."""
    return keeps_size(stride) and in_channels == out_channels


def are_positive_ints(*numbers: Any) -> bool:
    """Whether all are integers of at least 1, of any integer type (also numpy's) but bool."""
    try:
        return all(operator.index(number) >= 1 and not isinstance(number, bool) for number in numbers)
    except TypeError:
        return False


def expanded_channels(where: str, channels: int, expansion: float) -> float:
    """Channels times an expansion, not rounded.

    Raises:
        RequestError: it is not a positive number.
    """
    if not isinstance(expansion, Real) or not 0 < expansion < inf:
        raise RequestError(f"{where}: expansion={expansion!r} found, a positive number wanted; try expansion=4")
    return channels * expansion


def channels_per_part(where: str, channels: int, parts: int) -> int:
    """Channels in each of `parts` equal parts.

    Raises:
        RequestError: not divisible.
    """
    if not are_positive_ints(parts):
        raise RequestError(f"{where}: {parts} parts found, a whole number of at least 1 wanted")
    if rest := channels % parts:
        near = [str(n) for n in (channels - rest, channels - rest + parts) if n]
        raise RequestError(f"{where}: {channels} channels cannot be split into {parts} parts; keep {' or '.join(near)}")
    return channels // parts


def make_divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `channels`, but at least 90% of it.

    As for the MobileNets' published widths (Sandler et al. 2018, reference code).
    """
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest if nearest >= 0.9 * channels else nearest + by


def _call_factory(option: str, factory: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """The module that a caller's `norm` or `act` makes.

    Raises:
        RequestError: it is not callable with these arguments, fails, or returns no module.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise RequestError(f"{option}: an instance of {type(factory).__name__} found, what makes a module wanted, "
                           f"since each place needs its own; give {_EXAMPLES[option]}")
    name = getattr(factory, "__name__", factory)
    try:
        module = factory(*arguments)
    except TypeError as error:
        example = "lambda channels: nn.GroupNorm(8, channels)" if arguments else "lambda: nn.LeakyReLU(0.1)"
        raise RequestError(f"{option}: {name} can't be called with "
                           f"{'the channels alone' if arguments else 'nothing'} ({error}); give {example}") from error
    except ValueError as error:
        refuses = f"refuses {arguments[0]} channels" if arguments else "fails"
        raise RequestError(f"{option}: {name} {refuses} ({describe_error(error)}); give another") from error
    if not isinstance(module, nn.Module):
        raise RequestError(f"{option}: {name} made {type(module).__name__}, a module wanted; {option}=None leaves it "
                           "out")
    return module
