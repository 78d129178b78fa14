"""Networks, one a file, each a table of rows like its paper's; `torchslim.create_model` builds them by name.

    squeezenet1_0, squeezenet1_1, squeezenet_cifar              SqueezeNet, 2016
    mobilenet_v1, mobilenet_v1_cifar            width           MobileNet, 2017
    mobilenet_v2                                width           MobileNetV2, 2018
    mobilenet_v2_cifar
    mobilenet_v3_large, mobilenet_v3_small      width           MobileNetV3, 2019
    shufflenet_v1, shufflenet_v1_cifar          groups          ShuffleNet, 2018
    shufflenet_v2, shufflenet_v2_cifar          width           ShuffleNetV2, 2018
    unet                                        rung, width     U-Net, 2015, and lighter ones

Heavy ones, which papers on pruning cut:

    vgg_cifar                                   depth, scale    VGG, 2015, with batch norm
    resnet_cifar                                depth, shortcut ResNet, 2016
    preresnet_cifar                             depth, scale    pre-activation ResNet, 2016
    densenet_cifar                              depth, growth, scale    DenseNet, 2017

All take `num_classes` and `in_channels`. Weights are random; `from_torchvision` gives those of torchvision's networks
the names that they have here.
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
from torchslim.zoo.states import from_torchvision
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
