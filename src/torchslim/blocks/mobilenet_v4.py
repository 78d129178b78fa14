"""The universal inverted bottleneck of MobileNetV4 (Qin et al. 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from torchslim.blocks.common import Act, Norm, expanded_channels, keeps_shape, keeps_size, make_divisible
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError
from torchslim.formulas import Size


class UniversalInvertedBottleneck(nn.Module):
    """1x1 expansion and projection, with a depthwise convolution before, between, both or neither.

    MobileNetV4 (Qin et al. 2024), "Universal Inverted Bottlenecks". Two optional kernels make four blocks:

        start   middle
        None    3 or 5  inverted bottleneck, the default
        3 or 5  None    as in ConvNeXt: depthwise before expansion
        3 or 5  3 or 5  "ExtraDW": cheaply deeper, larger receptive field
        None    None    feed-forward network: two 1x1 convolutions

    Args:
        in_channels, out_channels: at the input and at the output.
        stride: of the depthwise convolution in the middle, else of the one at the start.
        expansion: channels in the middle per input channel; the product is rounded to a multiple of 8.
        start, middle: kernel sizes of the two depthwise convolutions; None for none.
        dilation: of both.
        shortcut: whether the input is added if shapes agree.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes the activation after the expansion and after the depthwise convolution in the
            middle; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: a stride without depthwise convolution, or what `ConvNormAct` refuses.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, expansion: float = 4, *,
                 start: int | None = None, middle: int | None = 3, dilation: int = 1, shortcut: bool = True,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        super().__init__()
        if not keeps_size(stride) and start is None and middle is None:
            raise RequestError(f"UniversalInvertedBottleneck: stride {stride} found and no depthwise convolution that "
                               "could have it; give start= or middle=")
        wide = make_divisible(expanded_channels("UniversalInvertedBottleneck", in_channels, expansion))
        layers: list[nn.Module] = []
        if start is not None:
            layers.append(ConvNormAct(in_channels, in_channels, start, stride if middle is None else 1,
                                      dilation=dilation, groups=in_channels, bias=bias, norm=norm, act=None))
        layers.append(ConvNormAct(in_channels, wide, 1, bias=bias, norm=norm, act=act))
        if middle is not None:
            layers.append(ConvNormAct(wide, wide, middle, stride, dilation=dilation, groups=wide, bias=bias, norm=norm,
                                      act=act))
        layers.append(ConvNormAct(wide, out_channels, 1, bias=bias, norm=norm, act=None))
        self.body = nn.Sequential(*layers)
        self.shortcut = shortcut and keeps_shape(stride, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y
