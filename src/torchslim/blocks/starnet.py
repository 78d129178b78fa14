"""The star block: two branches multiplied element by element, of StarNet (Ma et al. 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, activation, conv, expanded_channels, keeps_shape
from torchslim.blocks.convolution import ConvNormAct
from torchslim.formulas import Size


class StarBlock(nn.Module):
    """Depthwise; two 1x1 convolutions, one of them activated, multiplied; 1x1, depthwise; the input added.

    Rewrite the Stars (Ma et al. 2024), section 3: the product of two linear maps of C inputs is linear in
    about C^2 / 2 products of these, at the cost of C.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride: of the first depthwise convolution.
        expansion: channels of the product per input channel, rounded.
        kernel_size, dilation: of both depthwise convolutions.
        shortcut: whether the input is added if shapes agree.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes the norms after the first depthwise and after the third 1x1 convolution;
            None for none.
        act: called with nothing, makes the activation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: as for `ConvNormAct`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, expansion: float = 4, *,
                 kernel_size: int = 7, dilation: int = 1, shortcut: bool = True, bias: bool | None = None,
                 norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU6) -> None:
        super().__init__()
        wide, plain = round(expanded_channels("StarBlock", in_channels, expansion)), bias is not False
        self.before = ConvNormAct(in_channels, in_channels, kernel_size, stride, dilation=dilation, groups=in_channels,
                                  bias=bias, norm=norm, act=None)
        self.left, self.right = conv(in_channels, wide, bias=plain), conv(in_channels, wide, bias=plain)
        self.act = activation(act)
        self.after = nn.Sequential(
            ConvNormAct(wide, out_channels, 1, bias=bias, norm=norm, act=None),
            conv(out_channels, out_channels, kernel_size, dilation=dilation, groups=out_channels, bias=plain))
        self.shortcut = shortcut and keeps_shape(stride, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features = self.before(x)
        y: Tensor = self.after(self.act(self.left(features)) * self.right(features))
        return x + y if self.shortcut else y
