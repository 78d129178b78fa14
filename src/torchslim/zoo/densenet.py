"""DenseNet (Huang et al. 2017) for 32x32 images, as in network slimming (Liu et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.zoo.common import (
    Network,
    blocks_per_stage,
    check_positive_ints,
    classifier,
    initialise_weights,
    set_norm_scales,
)

STEM, STAGES = 16, 3


class DenseLayer(nn.Module):
    """Norm, ReLU and a 3x3 convolution, concatenated with the input.

    Args:
        in_channels: at the input.
        growth: channels added.

    Shape:
        (B, in_channels, H, W) -> (B, in_channels + growth, H, W)
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(),
                                    nn.Conv2d(in_channels, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([x, self.layers(x)], 1)


def densenet_cifar(num_classes: int = 10, *, depth: int = 40, growth: int = 12, scale: float = 1.0,
                   in_channels: int = 3) -> Network:
    """DenseNet for 32x32 images, without bottlenecks and without compression: DenseNet-40.

    Densely Connected Convolutional Networks (Huang et al. 2017), section 3; network slimming (Liu et al. 2017), table
    1: DenseNet-40 on CIFAR-10, 1.02M parameters and 5.33e8 FLOPs, which are two for each MAC.

        depth   input          parameters           MACs
        40      3x32x32         1,019,722    264,812,928

    Args:
        num_classes, in_channels: at the output and at the input.
        depth: layers with weights: 3n + 4, with n dense layers in each of three stages.
        growth: channels that each dense layer adds.
        scale: initial scale of batch norms; 0.5 in network slimming.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes); H and W at least 4.

    Raises:
        RequestError: a depth other than 3n + 4, a scale that is not positive, growth, classes or channels below 1.
    """
    check_positive_ints("densenet_cifar", num_classes=num_classes, growth=growth, in_channels=in_channels)
    layers = blocks_per_stage("densenet_cifar", depth, STAGES, 4)
    features: list[nn.Module] = [nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)]
    channels = STEM
    for stage in range(STAGES):
        for _ in range(layers):
            features.append(DenseLayer(channels, growth))
            channels += growth
        features += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < STAGES - 1:
            features += [nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)]
    network = initialise_weights(classifier(features, channels, num_classes))
    return set_norm_scales("densenet_cifar", network, scale)
