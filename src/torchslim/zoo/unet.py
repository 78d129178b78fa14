"""U-Net (Ronneberger et al. 2015), and lighter variants ("rungs") of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from torchslim.blocks import AsymmetricPair, ConvNormAct, DepthwiseSeparable
from torchslim.zoo.common import check_positive_ints, check_width, look_up

WIDTHS = (64, 128, 256, 512, 1024)
DEPTHWISE = 0


class Conv(NamedTuple):
    """A convolution of a stage, with batch norm and ReLU; "dw pw" is a depthwise 3x3 and a 1x1.

    `width`: output channels, as stage's input or output.
    """

    kernel: Literal["3x3", "1x1", "1x3 3x1", "dw pw"]
    width: Literal["in", "out"] = "out"
    groups: int = 1


Row = tuple[Conv, ...]
PLAIN: Row = (Conv("3x3"), Conv("3x3"))
SEPARABLE: Row = (Conv("dw pw"), Conv("dw pw"))
# Each rung: convolutions of an encoder stage, of a decoder stage, and of the head without its last.
RUNGS: dict[int | str, tuple[Row, Row, Row]] = {
    0: (PLAIN,
        PLAIN, PLAIN),
    1: ((Conv("3x3", "in"), Conv("1x1"), Conv("3x3")),
        PLAIN, PLAIN),
    2: ((Conv("3x3", "in"), Conv("1x1"), Conv("3x3")),
        (Conv("1x1"), Conv("3x3"), Conv("3x3")), PLAIN),
    3: ((Conv("3x3", "in"), Conv("1x1"), Conv("3x3", groups=4)),
        (Conv("1x1", groups=4), Conv("3x3", groups=4), Conv("3x3", groups=4)), PLAIN),
    4: ((Conv("1x3 3x1", "in"), Conv("1x1"), Conv("1x3 3x1", groups=4)),
        (Conv("1x1", groups=4), Conv("1x3 3x1", groups=4), Conv("1x3 3x1", groups=4)), PLAIN),
    5: ((Conv("1x3 3x1", "in"), Conv("1x1"), Conv("1x3 3x1", groups=DEPTHWISE)),
        (Conv("1x1", groups=4), Conv("1x3 3x1", groups=DEPTHWISE), Conv("1x3 3x1", groups=DEPTHWISE)), PLAIN),
    "separable": (SEPARABLE, SEPARABLE, PLAIN),
    "separable-head": (SEPARABLE, SEPARABLE, SEPARABLE),
}


class UNet(nn.Module):
    """An encoder, and a decoder with skip connections; the head is its last stage. See `unet`."""

    def __init__(self, in_channels: int, num_classes: int, rows: tuple[Row, Row, Row], widths: tuple[int, ...], *,
                 dead: bool) -> None:
        super().__init__()
        encoder, decoder, last = rows
        self.encoder = nn.ModuleList(make_stage(m, n, encoder) for m, n in pairwise((in_channels, *widths)))
        self.pool = nn.MaxPool2d(3, 2, 1)
        upwards = tuple(pairwise(widths[::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(m, n, 2, 2) for m, n in upwards)
        m, n = upwards[-1]
        head = nn.Sequential(*make_stage(m, n, last), nn.Conv2d(n, num_classes, 3))
        self.decoder = nn.ModuleList([*(make_stage(*pair, decoder) for pair in upwards[:-1]), head])
        self.dead = make_stage(m, n, decoder) if dead else None

    def forward(self, x: Tensor) -> Tensor:
        """See `unet`."""
        skips: list[Tensor] = []
        for number, layers in enumerate(self.encoder):
            x = layers(self.pool(x) if number else x)
            skips.append(x)
        skips.pop()
        for up, layers in zip(self.up, self.decoder):  # noqa: B905  # TorchScript has no strict=
            skip = skips.pop()
            x = layers(torch.cat([skip, pad_to(up(x), skip)], 1))
        return x


def unet(num_classes: int = 2, *, in_channels: int = 3, rung: int | str = 0, width: float = 1.0,
         dead: bool = True) -> UNet:
    """A U-Net of unpadded convolutions with batch norm, plain or in one of the lighter variants.

    U-Net (Ronneberger et al. 2015), with batch norm, a max-pool of 3x3, stride 2 and padding 1, and the upsampled map
    zero-padded to the size of the encoder's, while the paper crops the latter. All convolutions have biases.

        rung    input          parameters              MACs    never run    change
        0       3x256x256      31,155,586    35,625,950,464      110,976    plain
        1       3x256x256      28,719,900    34,135,523,908      110,976    encoder: 3x3, 1x1 to the width, 3x3
        2       3x256x256      26,285,660    30,221,124,164       82,496    decoder: 1x1 to the width, 3x3, 3x3
        3       3x256x256      11,635,292    15,342,322,244       21,056    4 groups: encoder's last 3x3, decoder
        4       3x256x256       9,035,594    13,296,976,748       15,296    1x3 and 3x1 for each 3x3 but the head's
        5       3x256x256       5,919,434    10,207,360,364        3,776    depthwise for each grouped 1x3 and 3x1

    Though sometimes called depthwise separable, only rung 5 has depthwise convolutions. Two more rungs have depthwise
    3x3, batch norm, ReLU, 1x1 for each 3x3 of the plain network (MobileNet, Howard et al. 2017):

        rung            width   input          parameters              MACs
        separable       1       3x256x256       6,123,686    11,379,343,596    all but the head's
        separable-head  1       3x256x256       6,027,686     5,375,406,828    also the head's but the last
        separable-head  0.5     3x256x256       1,530,086     1,431,659,436

    Args:
        num_classes, in_channels: at the output and at the input.
        rung: 0 to 5, "separable" or "separable-head".
        width: multiplies all channels, any positive number; the first stage has a multiple of 4, each later one twice
            as many as the one before.
        dead: whether there is a fourth decoder stage, which never runs, since the head replaces it. Teaching material
            has it, and the counts above include it (column "never run": its parameters). With False outputs are the
            same, and data-parallel training needs no `find_unused_parameters`.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes, H', W'), 256x256 to 246x246. H and W are at least 125.

    Raises:
        RequestError: another rung, a width that is not positive, classes or channels below 1.
    """
    check_positive_ints("unet", num_classes=num_classes, in_channels=in_channels)
    rows = look_up("unet", "rung", rung, RUNGS)
    first = max(4, 4 * round(WIDTHS[0] * check_width("unet", width) / 4))  # rungs 3 to 5 have four groups
    widths = tuple(first * n // WIDTHS[0] for n in WIDTHS)
    return UNet(in_channels, num_classes, rows, widths, dead=dead)


def make_stage(in_channels: int, out_channels: int, row: Row) -> nn.Sequential:
    """A row's unpadded convolutions, each with a bias, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for kernel, width, groups in row:
        n = in_channels if width == "in" else out_channels
        groups = groups or n
        if kernel == "dw pw":
            layers.append(DepthwiseSeparable(in_channels, n, 3, padding=0, bias=True))
        elif kernel == "1x3 3x1":
            layers.append(AsymmetricPair(in_channels, n, 3, padding=0, groups=groups, bias=True))
        else:
            layers.append(ConvNormAct(in_channels, n, int(kernel[0]), padding=0, groups=groups, bias=True))
        in_channels = n
    return nn.Sequential(*layers)


def pad_to(x: Tensor, other: Tensor) -> Tensor:
    """Pad a map with zeros to the height and width of another.

    Shape:
        (B, C, h, w), (B, D, H, W) -> (B, C, H, W)
    """
    down, across = other.shape[2] - x.shape[2], other.shape[3] - x.shape[3]
    return pad(x, [across // 2, across - across // 2, down // 2, down - down // 2])
