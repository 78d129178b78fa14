"""Strong random variations of the pictures of a batch, without labels: crops, mirror images and mixtures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SMALLEST = 0.25
"""Smallest area of a crop, as a share of the picture."""
STRETCH = 4 / 3
"""Largest ratio by which a crop's sides differ from the picture's."""
MIXED = 0.5
"""Share of the crops that are mixed with another of the batch."""


def varied(pictures: Tensor) -> Tensor:
    """Random crops of pictures, (B, C, H, W), at their size; half of them mirrored, half mixed with another crop.

    A mixture is a weighted mean of two crops (mixup, Zhang et al. 2018) or has a rectangle of the other one in it
    (CutMix, Yun et al. 2019). Random numbers come from torch's global generator on the CPU.
    """
    return _mixed(_crops(pictures))


def _crops(pictures: Tensor) -> Tensor:
    count = len(pictures)
    side = torch.empty(count).uniform_(SMALLEST, 1).sqrt()
    stretch = torch.empty(count).uniform_(-1, 1).mul(math.log(STRETCH) / 2).exp()
    size = torch.stack([side * stretch, side / stretch], 1).clamp(max=1)
    center = torch.empty(count, 2).uniform_(-1, 1) * (1 - size)
    mirrored = torch.stack([torch.randint(2, (count,)) * 2.0 - 1, torch.ones(count)], 1)
    boxes = torch.cat([torch.diag_embed(size * mirrored), center.unsqueeze(2)], 2).to(pictures)
    grid = F.affine_grid(boxes, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mixed(crops: Tensor) -> Tensor:
    count, (height, width) = len(crops), crops.shape[2:]
    share = torch.rand(count, 1, 1)
    # A rectangle whose area is the share of the other crop.
    sides, center = (1 - share).sqrt(), torch.rand(count, 2, 1, 1)
    rows = (torch.linspace(0, 1, height).view(1, -1, 1) - center[:, 0]).abs() <= sides / 2
    columns = (torch.linspace(0, 1, width).view(1, 1, -1) - center[:, 1]).abs() <= sides / 2
    weights = torch.where(torch.rand(count, 1, 1) < 0.5, share.expand(-1, height, width), (~(rows & columns)).float())
    weights = torch.where(torch.rand(count, 1, 1) < MIXED, weights, 1.0).unsqueeze(1).to(crops)
    return weights * crops + (1 - weights) * crops[torch.randperm(count).to(crops.device)]
