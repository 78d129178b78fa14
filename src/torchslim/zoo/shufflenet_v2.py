"""ShuffleNetV2 (Ma et al. 2018) for ImageNet and for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from torchslim.blocks import ConvNormAct, ShuffleUnitV2
from torchslim.zoo.common import Network, check_positive_ints, classifier, look_up

STEM = 24
UNITS = (4, 8, 4)
# Table 5
WIDTHS = {
    # width: stage 2, 3, 4, conv5
    0.5: (48, 96, 192, 1024),
    1: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2: (244, 488, 976, 2048),
}


def shufflenet_v2(num_classes: int = 1000, *, width: float = 1, in_channels: int = 3) -> Network:
    """ShuffleNetV2 for 224x224 images.

    ShuffleNetV2 (Ma et al. 2018), table 5, with 976 channels in stage 4 of width 2, as in the authors' code. The
    layers are torchvision's `shufflenet_v2_x0_5`, `x1_0`, `x1_5` and `x2_0`.

        width   input          parameters           MACs    top-1 %, published
        0.5     3x224x224       1,366,792     40,476,448    61.1
        1       3x224x224       2,278,604    144,907,992    69.4
        1.5     3x224x224       3,503,624    295,759,392    72.6
        2       3x224x224       7,393,996    583,253,464    75.0

    Args:
        num_classes, in_channels: at the output and at the input.
        width: 0.5, 1, 1.5 or 2.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: another width, classes or channels below 1.
    """
    check_positive_ints("shufflenet_v2", num_classes=num_classes, in_channels=in_channels)
    widths = look_up("shufflenet_v2", "width", width, WIDTHS)
    stem = [ConvNormAct(in_channels, STEM, 3, 2), nn.MaxPool2d(3, 2, 1)]
    return _network(stem, widths, num_classes, narrow=False, bias=False)


def shufflenet_v2_cifar(num_classes: int = 100, *, width: float = 1, in_channels: int = 3) -> Network:
    """ShuffleNetV2 for 32x32 images: a stem of stride 1 without ReLU and pool, biases.

    In the units with a stride the right branch keeps the input's channels up to its last convolution.

        width   input          parameters           MACs
        0.5     3x32x32           448,268     10,994,176
        1       3x32x32         1,360,896     43,675,520
        1.5     3x32x32         2,584,716     91,189,760
        2       3x32x32         5,550,976    182,300,544

    Args:
        num_classes, in_channels: at the output and at the input.
        width: 0.5, 1, 1.5 or 2.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: another width, classes or channels below 1.
    """
    check_positive_ints("shufflenet_v2_cifar", num_classes=num_classes, in_channels=in_channels)
    widths = look_up("shufflenet_v2_cifar", "width", width, WIDTHS)
    stem = [ConvNormAct(in_channels, STEM, 3, 1, bias=True, act=None)]
    return _network(stem, widths, num_classes, narrow=True, bias=True)


def _network(stem: Sequence[nn.Module], widths: Sequence[int], num_classes: int, *, narrow: bool,
             bias: bool) -> Network:
    *stages, last = widths
    features = [*stem]
    for (before, width), units in zip(pairwise((STEM, *stages)), UNITS, strict=True):
        features.append(ShuffleUnitV2(before, width, 2, middle=before if narrow else None, bias=bias))
        features += [ShuffleUnitV2(width, width, bias=bias) for _ in range(units - 1)]
    features.append(ConvNormAct(stages[-1], last, 1, bias=bias))
    return classifier(features, last, num_classes)
