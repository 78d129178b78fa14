"""MobileNetV3 (Howard et al. 2019), large and small."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from torchslim.blocks import ConvNormAct, InvertedResidualSE
from torchslim.blocks.common import make_divisible
from torchslim.zoo.common import Network, check_positive_ints, check_width, global_pool, initialise_weights

STEM = 16
RE, HS = nn.ReLU, nn.Hardswish
Row = tuple[int, int, int, bool, type[nn.Module], int]

# Table 1
LARGE: tuple[Row, ...] = (
    # k, exp, out, SE, NL, s
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2),
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
)
# Table 2
SMALL: tuple[Row, ...] = (
    # k, exp, out, SE, NL, s
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)


def mobilenet_v3_large(num_classes: int = 1000, *, width: float = 1.0, in_channels: int = 3) -> Network:
    """MobileNetV3-Large for 224x224 images.

    MobileNetV3 (Howard et al. 2019), table 1. The layers are torchvision's `mobilenet_v3_large`. Top-1: 75.2 %.

        input          parameters           MACs
        3x224x224       5,483,032    216,589,760

    Args:
        num_classes, in_channels: at the output and at the input.
        width: multiplies all channels, any positive number; they are multiples of 8.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a width that is not positive, classes or channels below 1.
    """
    check_positive_ints("mobilenet_v3_large", num_classes=num_classes, in_channels=in_channels)
    return _network(LARGE, 1280, check_width("mobilenet_v3_large", width), in_channels, num_classes)


def mobilenet_v3_small(num_classes: int = 1000, *, width: float = 1.0, in_channels: int = 3) -> Network:
    """MobileNetV3-Small for 224x224 images.

    MobileNetV3 (Howard et al. 2019), table 2. The layers are torchvision's `mobilenet_v3_small`.

        input          parameters           MACs
        3x224x224       2,542,856     56,510,400

    Args:
        num_classes, in_channels: at the output and at the input.
        width: multiplies all channels, any positive number; they are multiples of 8.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a width that is not positive, classes or channels below 1.
    """
    check_positive_ints("mobilenet_v3_small", num_classes=num_classes, in_channels=in_channels)
    return _network(SMALL, 1024, check_width("mobilenet_v3_small", width), in_channels, num_classes)


def _network(rows: Sequence[Row], last: int, width: float, in_channels: int, num_classes: int) -> Network:
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
    channels, last = make_divisible(STEM * width), make_divisible(last * width)
    features: list[nn.Module] = [ConvNormAct(in_channels, channels, 3, 2, norm=norm, act=HS)]
    for k, exp, out, squeezes, act, s in rows:
        out_channels, expanded = make_divisible(out * width), make_divisible(exp * width)
        features.append(InvertedResidualSE(channels, out_channels, s, expanded=expanded, kernel_size=k,
                                           reduction=4 if squeezes else None, norm=norm, act=act))
        channels = out_channels
    features.append(ConvNormAct(channels, 6 * channels, 1, norm=norm, act=HS))
    return initialise_weights(Network(features, [*global_pool(), nn.Linear(6 * channels, last), HS(), nn.Dropout(0.2),
                                          nn.Linear(last, num_classes)]))
