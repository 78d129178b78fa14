"""The Ghost module of GhostNet (Han et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, Padding, channels_per_part
from torchslim.blocks.convolution import ConvNormAct
from torchslim.formulas import Size


class GhostModule(nn.Module):
    """A convolution makes 1/ratio of the maps, and a depthwise one of these makes the others ("ghost" maps).

    GhostNet (Han et al. 2020), section 3.1: nearly `ratio` times cheaper than a full convolution.

    Args:
        in_channels, out_channels: at the input and at the output.
        kernel_size, stride, padding, dilation: of the first convolution, as in `ConvNormAct`.
        ratio: s, a divisor of `out_channels`: s - 1 ghost maps per map.
        cheap_kernel: kernel size of the depthwise convolution.
        bias: of both convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes an activation after each; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) where padding is "same".

    Raises:
        RequestError: output channels that can't be split by the ratio, or what `ConvNormAct` refuses.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 1, stride: Size = 1,
                 padding: Padding = "same", dilation: Size = 1, *, ratio: int = 2, cheap_kernel: Size = 3,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        super().__init__()
        first = channels_per_part("GhostModule", out_channels, ratio)
        self.primary = ConvNormAct(in_channels, first, kernel_size, stride, padding, dilation, bias=bias, norm=norm,
                                   act=act)
        self.cheap = None if ratio == 1 else ConvNormAct(first, out_channels - first, cheap_kernel, groups=first,
                                                         bias=bias, norm=norm, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        maps: Tensor = self.primary(x)
        return maps if self.cheap is None else torch.cat([maps, self.cheap(maps)], 1)
