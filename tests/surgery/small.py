"""A small network that has one of each kind of layer that is cut differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers import random_statistics


class Small(nn.Module):
    """A convolution, a grouped one, a norm and a head, with tied biases and a hook on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Conv2d(16, 5, 1)
        self.note = {"kept": ["as", "it", "is"]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.bn(self.stem(x)).relu()).relu())


INPUTS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    return random_statistics(Small()).eval()
