"""VGG (Simonyan and Zisserman 2015) with batch norm for 32x32 images, of network slimming (Liu et al. 2017)."""

from __future__ import annotations

from torch import nn

from torchslim.blocks import ConvNormAct
from torchslim.zoo.common import Network, check_positive_ints, classifier, initialise_weights, look_up, set_norm_scales

# 3x3 convolutions of each stage, tables 1 and 2; a 2x2 max-pool between stages
CHANNELS = (64, 128, 256, 512, 512)
DEPTHS = {
    # depth: convolutions by stage
    19: (2, 2, 4, 4, 4),
    16: (2, 2, 3, 3, 3),
    13: (2, 2, 2, 2, 2),
    11: (1, 1, 2, 2, 2),
}


def vgg_cifar(num_classes: int = 10, *, depth: int = 19, scale: float = 1.0, in_channels: int = 3) -> Network:
    """VGG for 32x32 images: batch norm after each convolution, global average pooling, one linear layer.

    Network slimming (Liu et al. 2017), table 1: VGGNet on CIFAR-10, 20.04M parameters and 7.97e8 FLOPs, which are two
    for each MAC.

        depth   input          parameters           MACs
        19      3x32x32        20,035,018    398,136,320
        16      3x32x32        14,724,042    313,201,664

    Args:
        num_classes, in_channels: at the output and at the input.
        depth: layers with weights of the original VGG: 11, 13, 16 or 19.
        scale: initial scale of batch norms; 0.5 in network slimming.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes); H and W at least 16.

    Raises:
        RequestError: another depth, a scale that is not positive, classes or channels below 1.
    """
    check_positive_ints("vgg_cifar", num_classes=num_classes, in_channels=in_channels)
    features: list[nn.Module] = []
    channels = in_channels
    for stage, (width, convolutions) in enumerate(zip(CHANNELS, look_up("vgg_cifar", "depth", depth, DEPTHS),
                                                      strict=True)):
        features += [nn.MaxPool2d(2)] if stage else []
        for _ in range(convolutions):
            features.append(ConvNormAct(channels, width, 3))
            channels = width
    network = initialise_weights(classifier(features, channels, num_classes))
    return set_norm_scales("vgg_cifar", network, scale)
