"""What all networks share: features and a head, and the checks of their options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar

from torch import Tensor, nn

from torchslim.blocks.common import counts
from torchslim.errors import RequestError

T = TypeVar("T")


class Network(nn.Module):
    """Features, then a head: both plain sequences.

    Args:
        features: layers from a picture to a map.
        head: layers from that map to the classes.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)
    """

    def __init__(self, features: Iterable[nn.Module], head: Iterable[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        classes: Tensor = self.head(self.features(x))
        return classes


def initialised(network: Network) -> Network:
    """Weights as light networks are trained from: He's (He et al. 2015) by fan-out, a linear layer's small.

    Those of torchvision's MobileNetV2 and V3: convolutions keep the variance of gradients, classes start alike.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            else:
                nn.init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def pooled() -> list[nn.Module]:
    """The mean over a map: (B, C, H, W) -> (B, C)."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def at_least_one(where: str, **numbers: int) -> None:
    """Check channels and classes.

    Raises:
        RequestError: one is no whole number, or below 1.
    """
    for name, number in numbers.items():
        if not counts(number):
            raise RequestError(f"{where}: {name}={number!r} found, a whole number of at least 1 wanted; try {name}=3")


def positive(where: str, width: float) -> float:
    """A width multiplier.

    Raises:
        RequestError: it is not a positive number.
    """
    if not isinstance(width, Real) or isinstance(width, bool) or not 0 < width < math.inf:
        raise RequestError(f"{where}: width={width!r} found, a positive number wanted; try width=0.5")
    return width


def chosen(where: str, option: str, value: float | str,
           rows: Mapping[float, T] | Mapping[int, T] | Mapping[str, T] | Mapping[int | str, T]) -> T:
    """The row of a table for an option.

    Raises:
        RequestError: the table has no such row; the message lists those it has.
    """
    known: dict[Any, T] = dict(rows.items())
    if not isinstance(value, Real | str) or isinstance(value, bool) or value not in known:
        raise RequestError(f"{where}: {option}={value!r} found, one of {', '.join(map(str, known))} wanted; "
                           f"try {option}={next(iter(known))}")
    return known[value]


def layered(where: str, depth: int, each: int, rest: int) -> int:
    """How many blocks there are in a stage of a network of `each` n + `rest` layers.

    Raises:
        RequestError: the depth is of no such network.
    """
    if not counts(depth) or depth <= rest or (depth - rest) % each:
        raise RequestError(f"{where}: depth={depth!r} found, {each}n + {rest} wanted; try depth={2 * each + rest}")
    return (depth - rest) // each


def scaled(where: str, network: Network, scale: float) -> Network:
    """The network with all scales of its batch norms at one value, from which training starts.

    Raises:
        RequestError: it is not a positive number.
    """
    if not isinstance(scale, Real) or isinstance(scale, bool) or not 0 < scale < math.inf:
        raise RequestError(f"{where}: scale={scale!r} found, a positive number wanted; try scale=0.5")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, float(scale))
    return network
