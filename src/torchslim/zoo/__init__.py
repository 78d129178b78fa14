"""Networks by name: light ones and those of pruning papers, one per file, as rows of a table like the paper's.

All take `num_classes` and `in_channels`; weights are random, `from_torchvision` converts torchvision's.
Open `catalogue.py` first for the list, `sources.py` for models from names and specifications, `libraries.py` for
torchvision, timm and Ultralytics. docs/zoo.md lists their costs.
"""

from torchslim.zoo.catalogue import NETWORKS, Entry
from torchslim.zoo.common import Network
from torchslim.zoo.densenet import densenet_cifar
from torchslim.zoo.mobilenet_v1 import mobilenet_v1, mobilenet_v1_cifar
from torchslim.zoo.mobilenet_v2 import mobilenet_v2, mobilenet_v2_cifar
from torchslim.zoo.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from torchslim.zoo.preresnet import preresnet_cifar
from torchslim.zoo.resnet import resnet_cifar
from torchslim.zoo.shufflenet_v1 import shufflenet_v1, shufflenet_v1_cifar
from torchslim.zoo.shufflenet_v2 import shufflenet_v2, shufflenet_v2_cifar
from torchslim.zoo.squeezenet import squeezenet1_0, squeezenet1_1, squeezenet_cifar
from torchslim.zoo.torchvision_weights import from_torchvision
from torchslim.zoo.unet import UNet, unet
from torchslim.zoo.vgg import vgg_cifar

__all__ = [
    "NETWORKS",
    "Entry",
    "Network",
    "UNet",
    "densenet_cifar",
    "from_torchvision",
    "mobilenet_v1",
    "mobilenet_v1_cifar",
    "mobilenet_v2",
    "mobilenet_v2_cifar",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "preresnet_cifar",
    "resnet_cifar",
    "shufflenet_v1",
    "shufflenet_v1_cifar",
    "shufflenet_v2",
    "shufflenet_v2_cifar",
    "squeezenet1_0",
    "squeezenet1_1",
    "squeezenet_cifar",
    "unet",
    "vgg_cifar",
]
