"""The share of key points that are found (PCK, Yang and Ramanan 2013, "Articulated Human Detection")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

NEAR = 0.1
"""A point is found within this share of the longer side of its object's box."""
SAME_OBJECT = 0.5
"""The least overlap (IoU) of the box that is taken for an object's."""


class CorrectKeypoints(Metric):
    """Share of the labelled key points that are found, 0 to 1.

    Each object is compared with the highest-scored predicted box of its class that overlaps its own by half or more;
    without one, all of its points are missed.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    found: Tensor
    total: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("found", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Count the points of a batch; both are lists of dicts of `boxes`, `labels`, `keypoints` (and `scores`)."""
        for given, target in zip(predictions, targets, strict=True):
            labelled = target["keypoints"][:, :, 2] > 0
            self.total += labelled.sum()
            if not len(given["boxes"]) or not len(target["boxes"]):
                continue
            same = (box_iou(target["boxes"], given["boxes"]) >= SAME_OBJECT) & (
                target["labels"][:, None] == given["labels"][None])
            score, best = torch.where(same, given["scores"][None], -1.0).max(dim=1)
            away = (given["keypoints"][best, :, :2] - target["keypoints"][:, :, :2]).norm(dim=2)
            side = (target["boxes"][:, 2:] - target["boxes"][:, :2]).max(dim=1).values
            self.found += (labelled & (away <= NEAR * side[:, None]) & (score >= 0)[:, None]).sum()

    def compute(self) -> Tensor:
        """The share."""
        return self.found / self.total.clamp(min=1)
