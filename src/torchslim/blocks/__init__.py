"""Light blocks, each a plain `nn.Module` that drops into any network; one paper, one file.

    ConvNormAct                     convolution, norm, activation                       Ioffe and Szegedy 2015
    GroupedConv                     in groups, perhaps shuffled                         Krizhevsky et al. 2012
    DepthwiseSeparable, DWConv      depthwise, then 1x1                                 MobileNet, 2017
    AsymmetricPair                  1 x K, then K x 1                                   Inception-v3, 2016
    Fire                            squeeze, expand on two sides                        SqueezeNet, 2016
    SqueezeExcite, SEBottleneck     channels scaled by their means                      SENet, 2018
    InvertedResidual                expand, depthwise, project (or LinearBottleneck)    MobileNetV2, 2018
    InvertedResidualSE              with squeeze-and-excitation and hard-swish          MobileNetV3, 2019
    UniversalInvertedBottleneck     with a depthwise convolution before it, too         MobileNetV4, 2024
    ChannelShuffle, ShuffleUnitV1   grouped 1x1 convolutions that mix their groups      ShuffleNet, 2018
    ChannelSplit, ShuffleUnitV2     one half of the channels passes                     ShuffleNetV2, 2018
    GhostModule                     half of the maps made of the other half             GhostNet, 2020
    RepBlock                        branches for training, one convolution after it     RepVGG 2021, MobileOne 2023
    PartialConv                     a quarter of the channels convolved                 FasterNet, 2023
    StarBlock                       two branches multiplied                             StarNet, 2024

`channel_shuffle` and `channel_split` are functions. Hard-swish is `torch.nn.Hardswish`.

Options have the names of `nn.Conv2d`'s; `padding="same"` is d(k - 1)/2, with strides and dilation as well. `norm` is
called with the channels and makes a norm (`nn.BatchNorm2d`, `lambda c: nn.GroupNorm(8, c)`), `act` with nothing and
makes an activation (`nn.ReLU`, `lambda: nn.LeakyReLU(0.1)`); None leaves it out. `bias=None` is a bias where no norm
follows.
"""

from torchslim.blocks.asymmetric import AsymmetricPair
from torchslim.blocks.convolution import ConvNormAct
from torchslim.blocks.fasternet import PartialConv
from torchslim.blocks.ghostnet import GhostModule
from torchslim.blocks.mobilenet_v2 import InvertedResidual, LinearBottleneck
from torchslim.blocks.mobilenet_v3 import InvertedResidualSE
from torchslim.blocks.mobilenet_v4 import UniversalInvertedBottleneck
from torchslim.blocks.repvgg import RepBlock
from torchslim.blocks.separable import DepthwiseSeparable, DWConv
from torchslim.blocks.shufflenet_v1 import ChannelShuffle, GroupedConv, ShuffleUnitV1, channel_shuffle
from torchslim.blocks.shufflenet_v2 import ChannelSplit, ShuffleUnitV2, channel_split
from torchslim.blocks.squeeze_excite import SEBottleneck, SqueezeExcite
from torchslim.blocks.squeezenet import Fire
from torchslim.blocks.starnet import StarBlock

__all__ = [
    "AsymmetricPair",
    "ChannelShuffle",
    "ChannelSplit",
    "ConvNormAct",
    "DWConv",
    "DepthwiseSeparable",
    "Fire",
    "GhostModule",
    "GroupedConv",
    "InvertedResidual",
    "InvertedResidualSE",
    "LinearBottleneck",
    "PartialConv",
    "RepBlock",
    "SEBottleneck",
    "ShuffleUnitV1",
    "ShuffleUnitV2",
    "SqueezeExcite",
    "StarBlock",
    "UniversalInvertedBottleneck",
    "channel_shuffle",
    "channel_split",
]
