"""The networks by name: builder, input size, and the torchvision network with the same layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from torchslim.zoo.densenet import densenet_cifar
from torchslim.zoo.mobilenet_v1 import mobilenet_v1, mobilenet_v1_cifar
from torchslim.zoo.mobilenet_v2 import mobilenet_v2, mobilenet_v2_cifar
from torchslim.zoo.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from torchslim.zoo.preresnet import preresnet_cifar
from torchslim.zoo.resnet import resnet_cifar
from torchslim.zoo.shufflenet_v1 import shufflenet_v1, shufflenet_v1_cifar
from torchslim.zoo.shufflenet_v2 import shufflenet_v2, shufflenet_v2_cifar
from torchslim.zoo.squeezenet import squeezenet1_0, squeezenet1_1, squeezenet_cifar
from torchslim.zoo.unet import unet
from torchslim.zoo.vgg import vgg_cifar


@dataclass(frozen=True)
class Entry:
    """One network.

    Attributes:
        build: makes it, from its options.
        size: height and width of its standard input.
        torchvision: the name of torchvision's network with the same layers, by `width`; 1 for networks without that
            option.
    """

    build: Callable[..., nn.Module]
    size: int = 224
    torchvision: Mapping[float, str] = field(default_factory=dict)


NETWORKS: dict[str, Entry] = {
    "densenet_cifar":      Entry(densenet_cifar, 32),
    "mobilenet_v1":        Entry(mobilenet_v1),
    "mobilenet_v1_cifar":  Entry(mobilenet_v1_cifar, 32),
    "mobilenet_v2":        Entry(mobilenet_v2, torchvision={1: "mobilenet_v2"}),
    "mobilenet_v2_cifar":  Entry(mobilenet_v2_cifar, 32),
    "mobilenet_v3_large":  Entry(mobilenet_v3_large, torchvision={1: "mobilenet_v3_large"}),
    "mobilenet_v3_small":  Entry(mobilenet_v3_small, torchvision={1: "mobilenet_v3_small"}),
    "preresnet_cifar":     Entry(preresnet_cifar, 32),
    "resnet_cifar":        Entry(resnet_cifar, 32),
    "shufflenet_v1":       Entry(shufflenet_v1),
    "shufflenet_v1_cifar": Entry(shufflenet_v1_cifar, 32),
    "shufflenet_v2":       Entry(shufflenet_v2, torchvision={0.5: "shufflenet_v2_x0_5", 1: "shufflenet_v2_x1_0",
                                                             1.5: "shufflenet_v2_x1_5", 2: "shufflenet_v2_x2_0"}),
    "shufflenet_v2_cifar": Entry(shufflenet_v2_cifar, 32),
    "squeezenet1_0":       Entry(squeezenet1_0, torchvision={1: "squeezenet1_0"}),
    "squeezenet1_1":       Entry(squeezenet1_1, torchvision={1: "squeezenet1_1"}),
    "squeezenet_cifar":    Entry(squeezenet_cifar, 32),
    "unet":                Entry(unet, 256),
    "vgg_cifar":           Entry(vgg_cifar, 32),
}
