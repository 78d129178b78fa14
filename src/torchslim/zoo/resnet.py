"""ResNet (He et al. 2016a) with basic blocks for 32x32 images, such as ResNet-56."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.blocks import ConvNormAct
from torchslim.zoo.common import Network, blocks_per_stage, check_positive_ints, classifier, initialise_weights, look_up

STEM = 16
WIDTHS = (16, 32, 64)


class Padded(nn.Module):
    """Subsampling by 2, and zero channels before and after the others (option A).

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2))
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.zeros = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x[:, :, ::2, ::2]
        zeros = torch.zeros(x.shape[0], self.zeros, x.shape[2], x.shape[3], dtype=x.dtype, device=x.device)
        return torch.cat([zeros, x, zeros], 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the shortcut.

    Args:
        in_channels, out_channels: at the input and at the output.
        stride: of the first convolution.
        projected: where sizes differ, whether the shortcut is a 1x1 convolution; else it is `Padded`.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(ConvNormAct(in_channels, out_channels, 3, stride),
                                      ConvNormAct(out_channels, out_channels, 3, act=None))
        if stride == 1 and in_channels == out_channels:
            self.shortcut: nn.Module = nn.Identity()
        elif projected:
            self.shortcut = ConvNormAct(in_channels, out_channels, 1, stride, act=None)
        else:
            self.shortcut = Padded(in_channels, out_channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.act(self.residual(x) + self.shortcut(x))
        return out


def resnet_cifar(num_classes: int = 10, *, depth: int = 56, shortcut: str = "padded", in_channels: int = 3) -> Network:
    """ResNet for 32x32 images, of basic blocks: ResNet-56.

    Deep Residual Learning (He et al. 2016), section 4.2 and table 6: ResNet-56 has 0.85M parameters, with padded
    shortcuts (option A). Implementations often have projections (option B).

        depth   shortcut    input          parameters           MACs
        56      padded      3x32x32           853,018    125,485,696
        56      projected   3x32x32           855,770    125,747,840

    Args:
        num_classes, in_channels: at the output and at the input.
        depth: layers with weights on the longest path: 6n + 2, with n blocks in each of three stages.
        shortcut: "padded" or "projected", where the sizes differ.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes)

    Raises:
        RequestError: a depth other than 6n + 2, another shortcut, classes or channels below 1.
    """
    check_positive_ints("resnet_cifar", num_classes=num_classes, in_channels=in_channels)
    projected = look_up("resnet_cifar", "shortcut", shortcut, {"padded": False, "projected": True})
    blocks = blocks_per_stage("resnet_cifar", depth, 6, 2)
    features: list[nn.Module] = [ConvNormAct(in_channels, STEM, 3)]
    channels = STEM
    for stage, width in enumerate(WIDTHS):
        for block in range(blocks):
            features.append(BasicBlock(channels, width, 2 if stage and not block else 1, projected))
            channels = width
    return initialise_weights(classifier(features, channels, num_classes))
