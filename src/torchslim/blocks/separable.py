"""Depthwise separable convolutions, of MobileNet (Howard et al. 2017)."""

from __future__ import annotations

from torch import nn

from torchslim.blocks.common import Act, Norm, Padding, option_pair
from torchslim.blocks.convolution import ConvNormAct
from torchslim.formulas import Size


class DepthwiseSeparable(nn.Sequential):
    """A depthwise convolution, then a 1x1 convolution: 1/N + 1/K^2 of the standard one's parameters and MACs.

    MobileNet (Howard et al. 2017), section 3.1. `bias`, `norm` and `act` are for both convolutions, or pairs:
    (depthwise, pointwise).

    Args:
        in_channels, out_channels: M and N.
        kernel_size, stride, padding, dilation: of the depthwise convolution, as in `ConvNormAct`.
        multiplier: channels between the two per input channel.
        bias: of the convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes an activation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) where padding is "same".

    Raises:
        RequestError: as for `ConvNormAct`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1,
                 padding: Padding = "same", dilation: Size = 1, *, multiplier: int = 1,
                 bias: bool | tuple[bool | None, bool | None] | None = None,
                 norm: Norm | tuple[Norm, Norm] = nn.BatchNorm2d, act: Act | tuple[Act, Act] = nn.ReLU) -> None:
        biases, norms, acts = option_pair(bias), option_pair(norm), option_pair(act)
        between = in_channels * multiplier
        super().__init__(
            ConvNormAct(in_channels, between, kernel_size, stride, padding, dilation, groups=in_channels,
                        bias=biases[0], norm=norms[0], act=acts[0]),
            ConvNormAct(between, out_channels, 1, bias=biases[1], norm=norms[1], act=acts[1]))


class DWConv(DepthwiseSeparable):
    """Depthwise, norm, pointwise, norm, hard-swish: a light replacement of a 3x3 convolution and its activation.

    MobileNet (Howard et al. 2017), section 3.1, with the activation of MobileNetV3 (Howard et al. 2019), section 5.2,
    only at its end.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, norm: as in `DepthwiseSeparable`.
        act: at the end; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) where padding is "same".

    Raises:
        RequestError: as for `ConvNormAct`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1,
                 padding: Padding = "same", dilation: Size = 1, *, bias: bool | None = None,
                 norm: Norm = nn.BatchNorm2d, act: Act = nn.Hardswish) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         bias=bias, norm=norm, act=(None, act))
