"""SqueezeNet (Iandola et al. 2016), 1.0 and 1.1 for ImageNet, and one for 32x32 images."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from torch import nn

from torchslim.blocks import ConvNormAct, Fire
from torchslim.zoo.common import Network, check_positive_ints, global_pool

# fire2 to fire9, table 1
FIRES = (
    # s1x1, e1x1, e3x3
    (16, 64, 64),
    (16, 64, 64),
    (32, 128, 128),
    (32, 128, 128),
    (48, 192, 192),
    (48, 192, 192),
    (64, 256, 256),
    (64, 256, 256),
)


def squeezenet1_0(num_classes: int = 1000, *, in_channels: int = 3) -> Network:
    """SqueezeNet 1.0 for 224x224 images, as in the paper.

    SqueezeNet (Iandola et al. 2016), table 1: no batch norm, every convolution with a bias, the last one followed by
    a ReLU, too. The layers are torchvision's `squeezenet1_0`.

        input          parameters           MACs
        3x224x224       1,248,424    818,924,576

    Args:
        num_classes, in_channels: at the output and at the input.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: classes or channels below 1.
    """
    check_positive_ints("squeezenet1_0", num_classes=num_classes, in_channels=in_channels)
    return _imagenet(ConvNormAct(in_channels, 96, 7, 2, 0, norm=None), 96, (4, 8), num_classes)


def squeezenet1_1(num_classes: int = 1000, *, in_channels: int = 3) -> Network:
    """SqueezeNet 1.1 for 224x224 images: the authors' later version, 2.3 times fewer MACs.

    A narrower 3x3 stem, and earlier pools. The layers are torchvision's `squeezenet1_1`.

        input          parameters           MACs
        3x224x224       1,235,496    349,151,936

    Args:
        num_classes, in_channels: at the output and at the input.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: classes or channels below 1.
    """
    check_positive_ints("squeezenet1_1", num_classes=num_classes, in_channels=in_channels)
    return _imagenet(ConvNormAct(in_channels, 64, 3, 2, 0, norm=None), 64, (3, 5), num_classes)


def squeezenet_cifar(num_classes: int = 100, *, in_channels: int = 3) -> Network:
    """SqueezeNet for 32x32 images: batch norm throughout, and the simple bypass.

    A 3x3 stem of stride 1; 2x2 pools after it, fire4 and fire8; the bypass around fire3, fire5 and fire7 (in the paper
    also fire9).

        input          parameters           MACs
        3x32x32           781,156     53,280,768

    Args:
        num_classes, in_channels: at the output and at the input.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: classes or channels below 1.
    """
    check_positive_ints("squeezenet_cifar", num_classes=num_classes, in_channels=in_channels)
    features = [ConvNormAct(in_channels, 96, bias=True), nn.MaxPool2d(2, 2),
                *_fires(96, (4, 8), nn.MaxPool2d(2, 2), bypass=(3, 5, 7), norm=True)]
    return Network(features, [nn.Conv2d(512, num_classes, 1), *global_pool()])


def _imagenet(stem: nn.Module, channels: int, pools: Collection[int], num_classes: int) -> Network:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    last = nn.Conv2d(512, num_classes, 1)
    network = Network([stem, pool, *_fires(channels, pools, pool)], [nn.Dropout(0.5), last, nn.ReLU(), *global_pool()])
    for module in network.modules():  # without norms, activations vanish with torch's init
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    nn.init.normal_(last.weight, std=0.01)
    return network


def _fires(channels: int, pools: Collection[int], pool: nn.MaxPool2d, *, bypass: Collection[int] = (),
           norm: bool = False) -> list[nn.Module]:
    fire = partial(Fire, bias=True, norm=nn.BatchNorm2d if norm else None)
    layers: list[nn.Module] = []
    for number, (squeezed, expand1, expand3) in enumerate(FIRES, 2):
        layers.append(fire(channels, squeezed, expand1, expand3, bypass=number in bypass))
        if number in pools:
            layers.append(nn.MaxPool2d(pool.kernel_size, pool.stride, ceil_mode=pool.ceil_mode))
        channels = expand1 + expand3
    return layers
