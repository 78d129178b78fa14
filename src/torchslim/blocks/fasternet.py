"""Partial convolution in the block of FasterNet (Chen et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, channels_per_part, conv, expanded_channels
from torchslim.blocks.convolution import ConvNormAct


class PartialConv(nn.Module):
    """A convolution of the first 1/parts of the channels, leaving the others, then two 1x1 convolutions of all.

    FasterNet (Chen et al. 2023), sections 3.2 and 3.4: with 4 parts the first convolution has 1/16 of a full one's
    multiply-adds and 1/4 of its memory access.

    Args:
        in_channels, out_channels: at the input and at the output.
        kernel_size, dilation: of the partial convolution.
        parts: a divisor of `in_channels`.
        expansion: channels between the 1x1 convolutions per input channel, rounded.
        shortcut: whether the input is added if the channel counts are equal.
        bias: of the 1x1 convolutions; None for one where no norm follows. The partial convolution has none, nor has
            the last, as in the paper, unless this is True.
        norm: called with the channels, makes the norm between the 1x1 convolutions; None for none.
        act: called with nothing, makes the activation there; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W)

    Raises:
        RequestError: channels that can't be split into the parts, or what `ConvNormAct` refuses.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, parts: int = 4,
                 expansion: float = 2, dilation: int = 1, shortcut: bool = True, bias: bool | None = None,
                 norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        super().__init__()
        first = channels_per_part("PartialConv", in_channels, parts)
        wide = round(expanded_channels("PartialConv", in_channels, expansion))
        self.partial = conv(first, first, kernel_size, dilation=dilation, bias=False)
        self.body = nn.Sequential(
            ConvNormAct(in_channels, wide, 1, bias=bias, norm=norm, act=act),
            conv(wide, out_channels, bias=bool(bias)))
        self.shortcut = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        width = self.partial.in_channels  # the convolution's own width, which pruning updates
        first, others = torch.split(x, [width, x.shape[1] - width], 1)
        y: Tensor = self.body(torch.cat([self.partial(first), others], 1))
        return x + y if self.shortcut else y
