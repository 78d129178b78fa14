"""Convolution, norm, activation: most blocks are made of these."""

from __future__ import annotations

from torch import nn

from torchslim.blocks.common import Act, Norm, Padding, activation_layers, conv, norm_layers
from torchslim.errors import RequestError
from torchslim.formulas import Size


class ConvNormAct(nn.Sequential):
    """A convolution, its norm and its activation; only a stride changes the map's size.

    Batch normalisation after the convolution and before the activation: Ioffe and Szegedy 2015, section 3.2.

    Args:
        in_channels, out_channels: at the input and at the output.
        kernel_size: an int, or (height, width).
        stride, dilation: likewise.
        padding: on each side, an int or (height, width); "same" is d(k - 1)/2.
        groups: of the convolution; a divisor of both channel numbers.
        bias: of the convolution; None for one if no norm follows, whose shift has the same effect.
        norm: called with the channels, makes the norm; None for none.
        act: called with nothing, makes the activation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) where padding is "same".

    Raises:
        RequestError: inconsistent numbers, or a norm or activation that can't be called like this.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1,
                 padding: Padding = "same", dilation: Size = 1, *, groups: int = 1, bias: bool | None = None,
                 norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        if bias not in (None, True, False):
            raise RequestError(f"bias={bias!r} found, True, False or None wanted; None is a bias where no norm follows")
        plain = norm is None or norm is False
        super().__init__(
            conv(in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation,
                 groups=groups, bias=plain if bias is None else bool(bias)),
            *norm_layers(norm, out_channels), *activation_layers(act))
