"""A K x K convolution as 1 x K and K x 1, of Inception-v3 (Szegedy et al. 2016)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from torchslim.blocks.common import Act, Norm, option_pair
from torchslim.blocks.convolution import ConvNormAct


class AsymmetricPair(nn.Sequential):
    """A 1 x K convolution, then a K x 1 one: K (M C + C N) weights instead of K K M N.

    Inception-v3 (Szegedy et al. 2016), section 3.2. `bias`, `norm` and `act` are for both convolutions, or pairs.

    Args:
        in_channels, out_channels: M and N.
        kernel_size: K.
        stride, dilation: of the replaced K x K convolution: along the width in the first, along the height in the
            second.
        padding: likewise, an int; "same" is d(k - 1)/2.
        groups: of both convolutions.
        middle: C, channels between the two; N unless given.
        bias: of the convolutions; None for one where no norm follows.
        norm: called with the channels, makes a norm; None for none.
        act: called with nothing, makes an activation; None or False for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) where padding is "same".

    Raises:
        RequestError: as for `ConvNormAct`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1,
                 padding: int | Literal["same"] = "same", dilation: int = 1, *, groups: int = 1,
                 middle: int | None = None, bias: bool | tuple[bool | None, bool | None] | None = None,
                 norm: Norm | tuple[Norm, Norm] = nn.BatchNorm2d, act: Act | tuple[Act, Act] = nn.ReLU) -> None:
        biases, norms, acts = option_pair(bias), option_pair(norm), option_pair(act)
        across, down = (padding, padding) if padding == "same" else ((0, padding), (padding, 0))
        middle = out_channels if middle is None else middle
        super().__init__(
            ConvNormAct(in_channels, middle, (1, kernel_size), (1, stride), across, (1, dilation), groups=groups,
                        bias=biases[0], norm=norms[0], act=acts[0]),
            ConvNormAct(middle, out_channels, (kernel_size, 1), (stride, 1), down, (dilation, 1), groups=groups,
                        bias=biases[1], norm=norms[1], act=acts[1]))
