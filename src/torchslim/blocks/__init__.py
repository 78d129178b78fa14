"""Light blocks as `nn.Module`s, one paper per file, listed in docs/blocks.md.

Options are named as in `nn.Conv2d`; `padding="same"` is d(k - 1)/2, also with strides and dilation. `norm` is a
factory from channels to a norm (`nn.BatchNorm2d`, `lambda c: nn.GroupNorm(8, c)`), `act` a factory of an activation
without arguments; None for none. `bias=None` is a bias where no norm follows. Open `convolution.py` first.
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
