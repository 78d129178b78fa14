"""Squeeze-and-excitation (Hu et al. 2018), and the bottleneck of SE-ResNet."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from torchslim.blocks.common import Act, Norm, activation, are_positive_ints, keeps_shape
from torchslim.blocks.convolution import ConvNormAct
from torchslim.errors import RequestError
from torchslim.formulas import Size


class SqueezeExcite(SqueezeExcitation):  # type: ignore[misc]  # torchvision has no types
    """Scale channels by the output of two layers on their means: torchvision's, optionally without biases.

    Squeeze-and-Excitation Networks (Hu et al. 2018), section 3, without biases in ResNets.

    Args:
        channels: at the input and at the output.
        reduction: channels // reduction, at least 1, between the two layers; 16 in the paper, 4 in MobileNetV3.
        squeezed: the exact number, instead of `reduction`.
        bias: of both layers.
        linear: whether they are `nn.Linear`, as in the paper's formulas, or equivalent 1x1 convolutions.
        act: called with nothing, makes the activation between the two.
        gate: called with nothing, makes the last activation, which gives the scales.

    Shape:
        (B, channels, H, W) -> (B, channels, H, W)

    Raises:
        RequestError: no channels, a reduction below 1, or an activation or gate that can't be called like this.
    """

    def __init__(self, channels: int, reduction: int = 16, *, squeezed: int | None = None, bias: bool = False,
                 linear: bool = False, act: Act = nn.ReLU, gate: Act = nn.Sigmoid) -> None:
        if not are_positive_ints(channels, reduction, 1 if squeezed is None else squeezed):
            raise RequestError(f"SqueezeExcite: channels={channels}, reduction={reduction}, squeezed={squeezed} found, "
                               "whole numbers of at least 1 wanted")
        squeezed = max(1, channels // reduction) if squeezed is None else squeezed
        last = [activation(gate, "gate"), *([nn.Unflatten(1, (-1, 1, 1))] if linear else [])]
        super().__init__(channels, squeezed, lambda: activation(act), lambda: nn.Sequential(*last))
        if linear:
            self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc1, self.fc2 = nn.Linear(channels, squeezed, bias), nn.Linear(squeezed, channels, bias)
        elif not bias:
            self.fc1.register_parameter("bias", None)
            self.fc2.register_parameter("bias", None)


class SEBottleneck(nn.Module):
    """The bottleneck of SE-ResNet: 1x1, 3x3, 1x1, squeeze-and-excitation, and the shortcut added.

    Squeeze-and-Excitation Networks (Hu et al. 2018), section 3.3, on the bottleneck of ResNet (He et al. 2016) with
    the stride in its 3x3 convolution. Where stride or width change, the shortcut is a 1x1 convolution with its norm.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride, dilation, groups: of the 3x3 convolution.
        middle: its channels; a quarter of `out_channels` unless given.
        reduction: as in `SqueezeExcite`, of `out_channels`.
        se_bias: of the two layers that make the scales.
        bias: of all convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes an activation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        RequestError: as for `ConvNormAct` and `SqueezeExcite`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size = 1, *, middle: int | None = None,
                 dilation: int = 1, groups: int = 1, reduction: int = 16, se_bias: bool = False,
                 bias: bool | None = None, norm: Norm = nn.BatchNorm2d, act: Act = nn.ReLU) -> None:
        super().__init__()
        middle = out_channels // 4 if middle is None else middle
        self.body = nn.Sequential(
            ConvNormAct(in_channels, middle, 1, bias=bias, norm=norm, act=act),
            ConvNormAct(middle, middle, 3, stride, dilation=dilation, groups=groups, bias=bias, norm=norm, act=act),
            ConvNormAct(middle, out_channels, 1, bias=bias, norm=norm, act=None),
            SqueezeExcite(out_channels, reduction, bias=se_bias))
        self.shortcut = None if keeps_shape(stride, in_channels, out_channels) else ConvNormAct(
            in_channels, out_channels, 1, stride, bias=bias, norm=norm, act=None)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = self.act(shortcut + self.body(x))
        return out
