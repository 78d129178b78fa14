"""ShuffleNet (Zhang et al. 2018) for ImageNet and for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from torchslim.blocks import ConvNormAct, ShuffleUnitV1
from torchslim.zoo.common import Network, check_positive_ints, classifier, look_up

STEM = 24
UNITS = (4, 8, 4)
# Table 1
WIDTHS = {
    # g: stage 2, 3, 4
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
CIFAR_WIDTHS = {**WIDTHS, 1: (144, 288, 567)}


def shufflenet_v1(num_classes: int = 1000, *, groups: int = 3, in_channels: int = 3) -> Network:
    """ShuffleNet 1x for 224x224 images.

    ShuffleNet (Zhang et al. 2018), table 1. The first 1x1 convolution of stage 2 is not grouped, since its input has
    only 24 channels.

        groups  input          parameters           MACs    top-1 %, in the paper
        1       3x224x224       1,531,936    143,078,976    66.4
        2       3x224x224       1,733,848    140,836,512    67.3
        3       3x224x224       1,865,728    137,460,672    67.4
        4       3x224x224       1,968,344    134,339,776    67.2
        8       3x224x224       2,434,768    138,365,952    67.6

    Args:
        num_classes, in_channels: at the output and at the input.
        groups: of the 1x1 convolutions; 1, 2, 3, 4 or 8.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: other groups, classes or channels below 1.
    """
    check_positive_ints("shufflenet_v1", num_classes=num_classes, in_channels=in_channels)
    widths = look_up("shufflenet_v1", "groups", groups, WIDTHS)
    stem = [ConvNormAct(in_channels, STEM, 3, 2), nn.MaxPool2d(3, 2, 1)]
    return _network(stem, widths, num_classes, groups=groups, all_grouped=False, bias=False)


def shufflenet_v1_cifar(num_classes: int = 100, *, groups: int = 3, in_channels: int = 3) -> Network:
    """ShuffleNet for 32x32 images: a stem of stride 1 without a pool, biases, every 1x1 convolution grouped.

    With one group the last stage has 567 channels, not the paper's 576.

        groups  input          parameters           MACs
        1       3x32x32           997,813     44,218,764
        2       3x32x32         1,022,548     43,201,152
        3       3x32x32         1,012,108     41,693,952
        4       3x32x32         1,000,892     40,375,552
        8       3x32x32         1,069,036     40,777,728

    Args:
        num_classes, in_channels: at the output and at the input.
        groups: of the 1x1 convolutions; 1, 2, 3, 4 or 8.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: other groups, classes or channels below 1.
    """
    check_positive_ints("shufflenet_v1_cifar", num_classes=num_classes, in_channels=in_channels)
    widths = look_up("shufflenet_v1_cifar", "groups", groups, CIFAR_WIDTHS)
    stem = [ConvNormAct(in_channels, STEM, 3, 1, bias=True)]
    return _network(stem, widths, num_classes, groups=groups, all_grouped=True, bias=True)


def _network(stem: Sequence[nn.Module], widths: Sequence[int], num_classes: int, *, groups: int, all_grouped: bool,
             bias: bool) -> Network:
    features = [*stem]
    for (before, width), units in zip(pairwise((STEM, *widths)), UNITS, strict=True):
        features.append(ShuffleUnitV1(before, width, 2, groups=groups, grouped_first=all_grouped or before != STEM,
                                      bias=bias))
        features += [ShuffleUnitV1(width, width, groups=groups, bias=bias) for _ in range(units - 1)]
    return classifier(features, widths[-1], num_classes)
