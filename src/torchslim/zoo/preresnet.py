"""Pre-activation ResNet (He et al. 2016b) with bottlenecks for 32x32 images, as in network slimming."""

from __future__ import annotations

from torch import Tensor, nn

from torchslim.zoo.common import (
    Network,
    blocks_per_stage,
    check_positive_ints,
    classifier,
    initialise_weights,
    set_norm_scales,
)

STEM, EXPANSION = 16, 4
WIDTHS = (16, 32, 64)


class PreBottleneck(nn.Module):
    """Norm and ReLU before each of a 1x1, a 3x3 and a 1x1 convolution, added to the input.

    Where the sizes differ, the shortcut is a 1x1 convolution without norm.

    Args:
        in_channels: at the input.
        width: channels of the two inner maps.
        stride: of the 3x3 convolution.

    Shape:
        (B, in_channels, H, W) -> (B, 4 width, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out_channels, 1, bias=False))
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out


def preresnet_cifar(num_classes: int = 10, *, depth: int = 164, scale: float = 1.0, in_channels: int = 3) -> Network:
    """Pre-activation ResNet for 32x32 images, with bottlenecks: ResNet-164.

    Identity Mappings in Deep Residual Networks (He et al. 2016), section 4; network slimming (Liu et al. 2017), table
    1: ResNet-164 on CIFAR-10, 1.70M parameters and 4.99e8 FLOPs, which are two for each MAC.

        depth   input          parameters           MACs
        164     3x32x32         1,703,258    247,646,720

    Args:
        num_classes, in_channels: at the output and at the input.
        depth: layers with weights on the longest path: 9n + 2, with n blocks in each of three stages.
        scale: initial scale of batch norms; 0.5 in network slimming.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a depth other than 9n + 2, a scale that is not positive, classes or channels below 1.
    """
    check_positive_ints("preresnet_cifar", num_classes=num_classes, in_channels=in_channels)
    blocks = blocks_per_stage("preresnet_cifar", depth, 9, 2)
    features: list[nn.Module] = [nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)]
    channels = STEM
    for stage, width in enumerate(WIDTHS):
        for block in range(blocks):
            features.append(PreBottleneck(channels, width, 2 if stage and not block else 1))
            channels = EXPANSION * width
    features += [nn.BatchNorm2d(channels), nn.ReLU()]
    network = initialise_weights(classifier(features, channels, num_classes))
    return set_norm_scales("preresnet_cifar", network, scale)
