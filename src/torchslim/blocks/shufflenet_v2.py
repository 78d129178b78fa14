"""Channel split and the unit of ShuffleNetV2 (Ma et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, channels_per_part, keeps_size
from torchslim.blocks.convolution import ConvNormAct
from torchslim.blocks.shufflenet_v1 import channel_shuffle
from torchslim.errors import RequestError
from torchslim.formulas import Size


def channel_split(x: Tensor, parts: int = 2) -> list[Tensor]:
    """Equal parts of a tensor's channels, without copying.

    ShuffleNetV2 (Ma et al. 2018), section 3. No width is stored, so a pruned network splits equally, too.

    Args:
        x: (B, C, ...).
        parts: number of parts; where they don't divide C, the last are narrower, as in `torch.chunk`.

    Shape:
        (B, C, H, W) -> parts x (B, C / parts, H, W)
    """
    return list(x.chunk(parts, 1))


class ChannelSplit(nn.Module):
    """`channel_split` as a layer.

    Args:
        parts: number.

    Shape:
        (B, C, H, W) -> parts x (B, C / parts, H, W)
    """

    def __init__(self, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        return channel_split(x, self.parts)

    def extra_repr(self) -> str:
        """For `print`."""
        return f"parts={self.parts}"


class ShuffleUnitV2(nn.Module):
    """1x1, depthwise, 1x1 on one half of the channels, identity on the other; with a stride both branches read all.

    ShuffleNetV2 (Ma et al. 2018), section 3 and figure 3. The two branches, each half of the output, are concatenated
    and shuffled. With a stride, the other branch is depthwise, 1x1.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride: of the depthwise convolutions.
        middle: channels of the right branch before its last convolution; out_channels / 2 unless given. Variants for
            small images use `in_channels` in strided units.
        kernel_size: of the depthwise convolutions.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes the activations after 1x1 convolutions; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: an odd number of output channels, another number of input channels at stride 1, or as for
            `ConvNormAct`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, *, middle: int | None = None,
                 kernel_size: int = 3, bias: bool | None = None, norm: Norm = nn.BatchNorm2d,
                 act: Act = nn.ReLU) -> None:
        super().__init__()
        half = channels_per_part("ShuffleUnitV2", out_channels, 2)
        if keeps_size(stride) and in_channels != out_channels:
            raise RequestError(f"ShuffleUnitV2: {in_channels} to {out_channels} channels at stride 1 found, equal "
                               "numbers wanted, since one half passes; take stride=2")
        right_channels = half if keeps_size(stride) else in_channels
        middle = half if middle is None else middle

        def depthwise(channels: int) -> ConvNormAct:
            return ConvNormAct(channels, channels, kernel_size, stride, groups=channels, bias=bias, norm=norm, act=None)

        def pointwise(inputs: int, outputs: int) -> ConvNormAct:
            return ConvNormAct(inputs, outputs, 1, bias=bias, norm=norm, act=act)

        self.left = None if keeps_size(stride) else nn.Sequential(depthwise(in_channels), pointwise(in_channels, half))
        self.right = nn.Sequential(pointwise(right_channels, middle), depthwise(middle), pointwise(middle, half))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.left is None:
            left, right = channel_split(x)
        else:
            left, right = self.left(x), x
        return channel_shuffle(torch.cat([left, self.right(right)], 1), 2)
