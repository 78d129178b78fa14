"""MobileNetV2 (Sandler et al. 2018) for ImageNet and for 32x32 images."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from torchslim.blocks import ConvNormAct, InvertedResidual
from torchslim.blocks.common import make_divisible
from torchslim.zoo.common import Network, check_positive_ints, check_width, global_pool, initialise_weights

STEM, LAST = 32, 1280
# Inverted residuals, table 2
ROWS = (
    # t, c, n, s
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
CIFAR_STRIDES = (1, 2, 2, 2, 1, 1, 1)


def mobilenet_v2(num_classes: int = 1000, *, width: float = 1.0, in_channels: int = 3) -> Network:
    """MobileNetV2 for 224x224 images.

    MobileNetV2 (Sandler et al. 2018), table 2. Widths are multiples of 8, the last one is at least 1280.
    The layers are torchvision's `mobilenet_v2`. Top-1 in the paper: 72.0 %.

        input          parameters           MACs
        3x224x224       3,504,872    300,774,272

    Args:
        num_classes, in_channels: at the output and at the input.
        width: multiplies all channels, any positive number.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a width that is not positive, classes or channels below 1.
    """
    check_positive_ints("mobilenet_v2", num_classes=num_classes, in_channels=in_channels)
    width = check_width("mobilenet_v2", width)
    channels, last = make_divisible(STEM * width), make_divisible(LAST * max(1.0, width))
    features: list[nn.Module] = [ConvNormAct(in_channels, channels, 3, 2, act=nn.ReLU6)]
    for t, c, n, s in ROWS:
        for stride in _strides(n, s):
            features.append(InvertedResidual(channels, make_divisible(c * width), stride, t))
            channels = make_divisible(c * width)
    features.append(ConvNormAct(channels, last, 1, act=nn.ReLU6))
    return initialise_weights(Network(features, [*global_pool(), nn.Dropout(0.2), nn.Linear(last, num_classes)]))


def mobilenet_v2_cifar(num_classes: int = 100, *, in_channels: int = 3) -> Network:
    """MobileNetV2 for 32x32 images: a 1x1 stem with padding 1, biases, an expansion in the first block, too.

    Strides are 1, 2, 2, 2, 1, 1, 1; the classifier is a 1x1 convolution.

        input          parameters           MACs
        3x32x32         2,369,380     64,947,264

    Args:
        num_classes, in_channels: at the output and at the input.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: classes or channels below 1.
    """
    check_positive_ints("mobilenet_v2_cifar", num_classes=num_classes, in_channels=in_channels)
    channels = STEM
    features: list[nn.Module] = [ConvNormAct(in_channels, channels, 1, padding=1, bias=True, act=nn.ReLU6)]
    for (t, c, n, _), s in zip(ROWS, CIFAR_STRIDES, strict=True):
        for stride in _strides(n, s):
            features.append(InvertedResidual(channels, c, stride, t, expand=True, bias=True))
            channels = c
    features.append(ConvNormAct(channels, LAST, 1, bias=True, act=nn.ReLU6))
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(LAST, num_classes, 1), nn.Flatten()]
    return initialise_weights(Network(features, head))


def _strides(repeats: int, first: int) -> Iterable[int]:
    return (first, *[1] * (repeats - 1))
