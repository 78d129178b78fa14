"""Channel shuffle, grouped convolutions and the unit of ShuffleNet (Zhang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import channel_shuffle as _shuffle

from torchslim.blocks.common import Act, Norm, Padding, activation, keeps_size, size_pair
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError
from torchslim.formulas import Size


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of groups, so that each following group gets channels of all.

    ShuffleNet (Zhang et al. 2018), section 3.1. Torch's function, named as the blocks.

    Args:
        x: (B, C, H, W), or any shape of at least three dimensions.
        groups: a divisor of C.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        RuntimeError: the channels can't be split into the groups.
    """
    return _shuffle(x, groups)


class ChannelShuffle(nn.ChannelShuffle):
    """`channel_shuffle` as a layer.

    Args:
        groups: a divisor of the channels.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """


class GroupedConv(nn.Sequential):
    """A grouped convolution, its norm, its activation, and optionally a channel shuffle.

    Without a shuffle, each output channel depends on one group of inputs only, even after several such layers.
    ShuffleNet (Zhang et al. 2018), section 3.1; grouped convolutions: AlexNet (Krizhevsky et al. 2012).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, norm, act: as in `ConvNormAct`.
        groups: a divisor of both channel numbers.
        shuffle: whether the output's channels are shuffled over the groups.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) where padding is "same".

    Raises:
        RequestError: as for `ConvNormAct`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1,
                 padding: Padding = "same", dilation: Size = 1, *, groups: int = 4, shuffle: bool = False,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        super().__init__(
            ConvNormAct(in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=bias,
                        norm=norm, act=act),
            *([ChannelShuffle(groups)] if shuffle else []))


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; at stride 1 plus the input, else concatenated with its pool.

    ShuffleNet (Zhang et al. 2018), section 3.2 and figure 2. With a stride, out_channels - in_channels new channels
    are concatenated with the 3x3 average pool of the input.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride: of the depthwise convolution and of the pool.
        groups: of the 1x1 convolutions.
        grouped_first: whether the first 1x1 convolution is grouped; not in the paper's first unit, whose input has few
            channels.
        bottleneck: channels between the 1x1 convolutions; a quarter of `out_channels`, rounded down, unless given.
        kernel_size: of the depthwise convolution.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes the activations: after the first 1x1 convolution, and after the sum or the
            concatenation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: widths that don't allow the sum or the concatenation, or as for `ConvNormAct`, such as a
            bottleneck that is not divisible by the groups.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, *, groups: int = 3,
                 grouped_first: bool = True, bottleneck: int | None = None, kernel_size: int = 3,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        super().__init__()
        if keeps_size(stride) and in_channels != out_channels:
            raise RequestError(f"ShuffleUnitV1: {in_channels} to {out_channels} channels at stride 1 found, equal "
                               "numbers wanted for the sum; take stride=2, which concatenates")
        if not keeps_size(stride) and in_channels >= out_channels:
            raise RequestError(f"ShuffleUnitV1: {in_channels} to {out_channels} channels at stride {stride} found, "
                               "more at the output wanted, since the input's pool is a part of it")
        middle = out_channels // 4 if bottleneck is None else bottleneck
        new_channels = out_channels if keeps_size(stride) else out_channels - in_channels
        self.body = nn.Sequential(
            ConvNormAct(in_channels, middle, 1, groups=groups if grouped_first else 1, bias=bias, norm=norm, act=act),
            ChannelShuffle(groups),
            ConvNormAct(middle, middle, kernel_size, stride, groups=middle, bias=bias, norm=norm, act=None),
            ConvNormAct(middle, new_channels, 1, groups=groups, bias=bias, norm=norm, act=None))
        self.pool = None if keeps_size(stride) else nn.AvgPool2d(3, size_pair(stride), 1)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.body(x)
        out: Tensor = self.act(x + y if self.pool is None else torch.cat([self.pool(x), y], 1))
        return out
