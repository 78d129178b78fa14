"""What all blocks share: the padding rule, and norms and activations as callables."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import inf
from numbers import Real
from typing import Any, Literal, TypeVar

from torch import nn

from torchslim.errors import RequestError
from torchslim.formulas import Size, convolution, output_size, same_padding
from torchslim.utils.text import first_line

Norm = Callable[[int], nn.Module] | Literal[False] | None
Act = Callable[[], nn.Module] | Literal[False] | None
Padding = Size | Literal["same"]
T = TypeVar("T")

_ANY_MAP = (1 << 30, 1 << 30)
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
    # the laws check the numbers
    convolution(in_channels, out_channels, kernel_size, (1, 1), groups=groups)
    output_size(_ANY_MAP, kernel_size, stride, 0 if isinstance(padding, str) else padding, dilation)
    kernel, spread = two(kernel_size), two(dilation)
    padding = same_padding(kernel, spread) if isinstance(padding, str) else padding
    return nn.Conv2d(in_channels, out_channels, kernel, two(stride), two(padding), spread, groups, bias)


def normed(norm: Norm, channels: int) -> list[nn.Module]:
    """[norm(channels)], or [] for None."""
    return [] if norm is None or norm is False else [_made("norm", norm, channels)]


def activated(act: Act) -> list[nn.Module]:
    """[act()], or [] for None."""
    return [] if act is None or act is False else [activation(act)]


def activation(act: Act, option: str = "act") -> nn.Module:
    """act(), or what passes everything on; `option` is its name in errors."""
    return nn.Identity() if act is None or act is False else _made(option, act)


def both(option: T | tuple[T, T]) -> tuple[T, T]:
    """An option for two convolutions: a pair, or one that goes for both.

    Raises:
        RequestError: not two of them.
    """
    if not isinstance(option, tuple | list):
        return option, option
    if len(option) != 2:
        raise RequestError(f"{option!r} found for two convolutions, a pair wanted, or one that goes for both; try "
                           "act=(None, nn.ReLU)")
    first, second = option
    return first, second


def two(size: Size) -> tuple[int, int]:
    """A size along both dimensions of a map."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


def still(stride: Size) -> bool:
    """Whether a stride keeps the size of a map."""
    return stride in (1, (1, 1), [1, 1])


def stays(stride: Size, in_channels: int, out_channels: int) -> bool:
    """Whether a block's input can be added to its output: the map and the width stay."""
    return still(stride) and in_channels == out_channels


def counts(*numbers: Any) -> bool:
    """Whether all are whole numbers of at least 1, of any kind (numpy's, too); truth values are none."""
    try:
        return all(operator.index(number) >= 1 and not isinstance(number, bool) for number in numbers)
    except TypeError:
        return False


def multiplied(where: str, channels: int, expansion: float) -> float:
    """Channels times an expansion, not rounded.

    Raises:
        RequestError: the expansion is no positive number.
    """
    if not isinstance(expansion, Real) or not 0 < expansion < inf:
        raise RequestError(f"{where}: expansion={expansion!r} found, a positive number wanted; try expansion=4")
    return channels * expansion


def part(where: str, channels: int, parts: int) -> int:
    """Channels in each of some equal parts.

    Raises:
        RequestError: they can't be equal.
    """
    if not counts(parts):
        raise RequestError(f"{where}: {parts} parts found, a whole number of at least 1 wanted")
    if rest := channels % parts:
        near = [str(n) for n in (channels - rest, channels - rest + parts) if n]
        raise RequestError(f"{where}: {channels} channels cannot be split into {parts} parts; keep {' or '.join(near)}")
    return channels // parts


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `channels`, but no less than nine tenths of it.

    What the MobileNets' published widths follow (Sandler et al. 2018, reference code).
    """
    near = max(by, int(channels + by / 2) // by * by)
    return near if near >= 0.9 * channels else near + by


def _made(option: str, maker: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    if isinstance(maker, nn.Module) or not callable(maker):
        raise RequestError(f"{option}: an instance of {type(maker).__name__} found, what makes a module wanted, "
                           f"since each place needs its own; give {_EXAMPLES[option]}")
    name = getattr(maker, "__name__", maker)
    try:
        made = maker(*arguments)
    except TypeError as error:
        example = "lambda channels: nn.GroupNorm(8, channels)" if arguments else "lambda: nn.LeakyReLU(0.1)"
        raise RequestError(f"{option}: {name} can't be called with "
                           f"{'the channels alone' if arguments else 'nothing'} ({error}); give {example}") from error
    except ValueError as error:
        refuses = f"refuses {arguments[0]} channels" if arguments else "fails"
        raise RequestError(f"{option}: {name} {refuses} ({first_line(error)}); give another") from error
    if not isinstance(made, nn.Module):
        raise RequestError(f"{option}: {name} made {type(made).__name__}, a module wanted; {option}=None leaves it out")
    return made
