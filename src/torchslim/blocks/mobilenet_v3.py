"""The inverted residual with squeeze-and-excitation, of MobileNetV3 (Howard et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, are_positive_ints, expanded_channels, keeps_shape, make_divisible
from torchslim.blocks.convolution import ConvNormAct
from torchslim.blocks.squeeze_excite import SqueezeExcite
from torchslim.errors import RequestError
from torchslim.formulas import Size


class InvertedResidualSE(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection; plus the input if shapes agree.

    MobileNetV3 (Howard et al. 2019), sections 3 and 5.2 (hard-swish) and 5.3 (squeeze-and-excitation). With other
    activations it is the block of EfficientNet (Tan and Le 2019): act=nn.SiLU, gate=nn.Sigmoid,
    squeezed=in_channels // 4.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride, kernel_size, dilation: of the depthwise convolution.
        expansion: its channels per input channel, rounded; no 1x1 expansion if they are equal.
        expanded: the exact number, as in the paper's tables, instead of `expansion`.
        reduction: squeeze to expanded / reduction channels, rounded to a multiple of 8; None for no
            squeeze-and-excitation.
        squeezed: the exact number, instead of `reduction`.
        shortcut: whether the input is added if shapes agree.
        bias: of all convolutions but squeeze-and-excitation's, which have one; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes an activation; None or False for none. The projection has none.
        gate: called with nothing, makes the gate of squeeze-and-excitation.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: a reduction below 1, or as for `ConvNormAct` and `SqueezeExcite`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, expansion: float = 4, *,
                 expanded: int | None = None, kernel_size: int = 3, dilation: int = 1, reduction: int | None = 4,
                 squeezed: int | None = None, shortcut: bool = True, bias: bool | None = None,
                 norm: Norm = nn.BatchNorm2d, act: Act = nn.Hardswish, gate: Act = nn.Hardsigmoid) -> None:
        super().__init__()
        if reduction is not None and not are_positive_ints(reduction):
            raise RequestError(f"InvertedResidualSE: reduction={reduction} found, a whole number of at least 1 wanted; "
                               "None leaves squeeze-and-excitation out")
        wide = round(expanded_channels("InvertedResidualSE", in_channels, expansion)) if expanded is None else expanded
        layers: list[nn.Module] = []
        if wide != in_channels:
            layers.append(ConvNormAct(in_channels, wide, 1, bias=bias, norm=norm, act=act))
        layers.append(ConvNormAct(wide, wide, kernel_size, stride, dilation=dilation, groups=wide, bias=bias,
                                  norm=norm, act=act))
        if squeezed is None and reduction is not None:
            squeezed = make_divisible(wide // reduction)
        if squeezed is not None:
            layers.append(SqueezeExcite(wide, squeezed=squeezed, bias=True, gate=gate))
        layers.append(ConvNormAct(wide, out_channels, 1, bias=bias, norm=norm, act=None))
        self.body = nn.Sequential(*layers)
        self.shortcut = shortcut and keeps_shape(stride, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y
