"""Helpers of all networks: base class, initialisation, and checks of options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar

from torch import Tensor, nn

from torchslim.blocks.common import are_positive_ints
from torchslim.errors import RequestError

T = TypeVar("T")


class Network(nn.Module):
    """Features and a head, both `nn.Sequential`.

    Args:
        features: layers from image to map.
        head: layers from that map to the logits.

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


def initialise_weights(network: Network) -> Network:
    """Initialise convolutions by fan-out (He et al. 2015) and linear layers from N(0, 0.01^2).

    As torchvision's MobileNetV2 and V3: fan-out keeps the variance of gradients.
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


def classifier(features: Iterable[nn.Module], channels: int, num_classes: int) -> Network:
    """Features with `channels` outputs, global average pooling, a linear layer."""
    return Network(features, [*global_pool(), nn.Linear(channels, num_classes)])


def global_pool() -> list[nn.Module]:
    """Global mean pooling: (B, C, H, W) -> (B, C)."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def check_positive_ints(where: str, **numbers: int) -> None:
    """Check channels and classes.

    Raises:
        RequestError: one is not an integer, or below 1.
    """
    for name, number in numbers.items():
        if not are_positive_ints(number):
            raise RequestError(f"{where}: {name}={number!r} found, a whole number of at least 1 wanted; try {name}=3")


def check_width(where: str, width: float) -> float:
    """A width multiplier.

    Raises:
        RequestError: it is not a positive number.
    """
    if not isinstance(width, Real) or isinstance(width, bool) or not 0 < width < math.inf:
        raise RequestError(f"{where}: width={width!r} found, a positive number wanted; try width=0.5")
    return width


def look_up(where: str, option: str, value: float | str,
           rows: Mapping[float, T] | Mapping[int, T] | Mapping[str, T] | Mapping[int | str, T]) -> T:
    """The value of an option in a table.

    Raises:
        RequestError: the table has no such key; the message lists those it has.
    """
    table: dict[Any, T] = dict(rows.items())
    if not isinstance(value, Real | str) or isinstance(value, bool) or value not in table:
        raise RequestError(f"{where}: {option}={value!r} found, one of {', '.join(map(str, table))} wanted; "
                           f"try {option}={next(iter(table))}")
    return table[value]


def blocks_per_stage(where: str, depth: int, factor: int, offset: int) -> int:
    """n of a network of depth `factor` n + `offset`.

    Raises:
        RequestError: no positive integer n gives this depth.
    """
    if not are_positive_ints(depth) or depth <= offset or (depth - offset) % factor:
        raise RequestError(f"{where}: depth={depth!r} found, {factor}n + {offset} wanted; try "
                           f"depth={2 * factor + offset}")
    return (depth - offset) // factor


def set_norm_scales(where: str, network: Network, scale: float) -> Network:
    """Set the scales of all batch norms to an initial value.

    Raises:
        RequestError: it is not a positive number.
    """
    if not isinstance(scale, Real) or isinstance(scale, bool) or not 0 < scale < math.inf:
        raise RequestError(f"{where}: scale={scale!r} found, a positive number wanted; try scale=0.5")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, float(scale))
    return network
