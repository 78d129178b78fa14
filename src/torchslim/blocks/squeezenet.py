"""The Fire module of SqueezeNet (Iandola et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError


class Fire(nn.Module):
    """A 1x1 squeeze convolution, then parallel 1x1 and 3x3 expand convolutions.

    SqueezeNet (Iandola et al. 2016), section 3.2; the bypass, section 6.

    Args:
        in_channels: at the input.
        squeezed: channels after the squeeze.
        expand1x1, expand3x3: output channels of each.
        bypass: adds the input to the output after the activations, the paper's "simple bypass".
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None, as in the paper, for none.
        act: called with nothing, makes an activation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, expand1x1 + expand3x3, H, W)

    Raises:
        RequestError: a bypass with unequal input and output channels, or as for `ConvNormAct`.
    """

    def __init__(self, in_channels: int, squeezed: int, expand1x1: int, expand3x3: int, *, bypass: bool = False,
                 bias: bool | None = None, norm: Norm = None, act: Act = nn.ReLU) -> None:
        super().__init__()
        if bypass and in_channels != expand1x1 + expand3x3:
            raise RequestError(f"Fire: a bypass from {in_channels} to {expand1x1 + expand3x3} channels found, equal "
                               f"numbers wanted; take bypass=False, or {in_channels} = expand1x1 + expand3x3")
        self.squeeze = ConvNormAct(in_channels, squeezed, 1, bias=bias, norm=norm, act=act)
        self.expand1x1 = ConvNormAct(squeezed, expand1x1, 1, bias=bias, norm=norm, act=act)
        self.expand3x3 = ConvNormAct(squeezed, expand3x3, 3, bias=bias, norm=norm, act=act)
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        squeezed = self.squeeze(x)
        expanded = torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], 1)
        return x + expanded if self.bypass else expanded
