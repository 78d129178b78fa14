"""The inverted residual with a linear bottleneck, of MobileNetV2 (Sandler et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, expanded_channels, keeps_shape
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError
from torchslim.formulas import Size


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation; plus the input if shapes agree.

    MobileNetV2 (Sandler et al. 2018), sections 3.2 and 3.3. `LinearBottleneck` is another name for it.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride, kernel_size, dilation: of the depthwise convolution.
        expansion: t, its channels per input channel, rounded.
        expand: whether there is an expansion; None for one unless t is 1. The paper's block of t = 1 has none,
            variants for small images keep it.
        shortcut: whether the input is added if shapes agree.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes an activation; None or False for none. The projection has none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: no expansion where t is not 1, or what `ConvNormAct` refuses.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, expansion: float = 6, *,
                 kernel_size: int = 3, dilation: int = 1, expand: bool | None = None, shortcut: bool = True,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU6) -> None:
        super().__init__()
        wide = round(expanded_channels("InvertedResidual", in_channels, expansion))
        if expand is False and wide != in_channels:
            raise RequestError(f"InvertedResidual: expand=False found where {in_channels} channels become {wide}, an "
                               "expansion of 1 wanted; leave expand out")
        first = [ConvNormAct(in_channels, wide, 1, bias=bias, norm=norm, act=act)]
        self.body = nn.Sequential(
            *(first if expand or (expand is None and wide != in_channels) else []),
            ConvNormAct(wide, wide, kernel_size, stride, dilation=dilation, groups=wide, bias=bias, norm=norm, act=act),
            ConvNormAct(wide, out_channels, 1, bias=bias, norm=norm, act=None))
        self.shortcut = shortcut and keeps_shape(stride, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


LinearBottleneck = InvertedResidual
