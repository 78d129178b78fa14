"""MobileNet (Howard et al. 2017) for ImageNet and for 32x32 images."""

from __future__ import annotations

from torch import nn

from torchslim.blocks import ConvNormAct, DepthwiseSeparable
from torchslim.zoo.common import Network, check_positive_ints, check_width, classifier, initialise_weights

STEM = 32
# Depthwise separable units, table 1, after the stem.
ROWS = (
    # c, n, s
    (64, 1, 1),
    (128, 1, 2),
    (128, 1, 1),
    (256, 1, 2),
    (256, 1, 1),
    (512, 1, 2),
    (512, 5, 1),
    (1024, 1, 2),
    (1024, 1, 1),
)


def mobilenet_v1(num_classes: int = 1000, *, width: float = 1.0, in_channels: int = 3) -> Network:
    """MobileNet for 224x224 images.

    MobileNet (Howard et al. 2017), tables 1, 6 and 7: a 3x3 stem of stride 2, thirteen depthwise separable units, a
    linear layer; batch norm and ReLU after every convolution. The last unit has stride 1: the paper's table says 2, but
    keeps the size.

        width   input          parameters           MACs    top-1 %, in the paper
        1       3x224x224       4,231,976    568,740,352    70.6
        1       3x192x192       4,231,976    418,121,728
        1       3x160x160       4,231,976    290,675,200
        1       3x128x128       4,231,976    186,400,768
        0.75    3x224x224       2,585,560    325,400,448    68.4
        0.5     3x224x224       1,331,592    149,497,088    63.7
        0.25    3x224x224         470,072     41,030,272    50.6

    Args:
        num_classes, in_channels: at the output and at the input.
        width: multiplies all channels, any positive number; 8 stay at the least.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a width that is not positive, classes or channels below 1.
    """
    check_positive_ints("mobilenet_v1", num_classes=num_classes, in_channels=in_channels)
    return _network(in_channels, num_classes, check_width("mobilenet_v1", width), stride=2, bias=False)


def mobilenet_v1_cifar(num_classes: int = 100, *, width: float = 1.0, in_channels: int = 3) -> Network:
    """MobileNet for 32x32 images: the stem has stride 1, the 1x1 convolutions have biases.

        width   input          parameters           MACs
        1       3x32x32         3,315,428     46,446,592
        0.75    3x32x32         1,897,924     26,577,408
        0.5     3x32x32           872,868     12,213,248
        0.25    3x32x32           240,260      3,354,112

    Args:
        num_classes, in_channels: at the output and at the input.
        width: multiplies all channels, any positive number; 8 stay at the least.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a width that is not positive, classes or channels below 1.
    """
    check_positive_ints("mobilenet_v1_cifar", num_classes=num_classes, in_channels=in_channels)
    return _network(in_channels, num_classes, check_width("mobilenet_v1_cifar", width), stride=1, bias=True)


def _network(in_channels: int, num_classes: int, width: float, *, stride: int, bias: bool) -> Network:
    def scale_channels(channels: int) -> int:
        return max(8, int(width * channels))

    channels = scale_channels(STEM)
    features: list[nn.Module] = [ConvNormAct(in_channels, channels, 3, stride)]
    for c, n, s in ROWS:
        for number in range(n):
            features.append(DepthwiseSeparable(channels, scale_channels(c), 3, 1 if number else s, bias=(False, bias)))
            channels = scale_channels(c)
    return initialise_weights(classifier(features, channels, num_classes))
