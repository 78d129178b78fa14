"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torchslim.train.losses import answer, distillation, over_heads
from torchslim.train.tasks.task import Task
from torchslim.utils.data import describe
from torchslim.utils.text import format_shape

NOT_COUNTED = 255
"""The index of pixels that are neither learnt nor counted."""


@dataclass(frozen=True)
class Segmentation(Task):
    """A class for every pixel, by cross entropy; targets are maps of class indices.

    Scores of another size than the target are resized to it. A model of two classes may give one map: the score of the
    second class.
    """

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "mIoU"

    def losses(self, output: Any, targets: Any) -> Tensor:
        """See `Task`: the mean over the pixels of each item."""

        def loss(scores: Tensor, classes: Tensor) -> Tensor:
            counted = (classes != NOT_COUNTED).flatten(1)
            pixels = F.cross_entropy(_resized(scores, classes), classes, ignore_index=NOT_COUNTED, reduction="none")
            return pixels.flatten(1).sum(dim=1) / counted.sum(dim=1).clamp(min=1)

        return over_heads(loss, output, targets)

    def loss(self, output: Any, targets: Any) -> Tensor:
        """See `Task`: the mean over all pixels."""

        def loss(scores: Tensor, classes: Tensor) -> Tensor:
            total = F.cross_entropy(_resized(scores, classes), classes, ignore_index=NOT_COUNTED, reduction="sum")
            return total / (classes != NOT_COUNTED).sum().clamp(min=1)

        return over_heads(loss, output, targets)

    def distillation(self, output: Any, teacher_output: Any, temperature: float) -> Tensor:
        """See `Task`."""
        return distillation(_both(answer(output)), _both(answer(teacher_output)), temperature)

    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """See `Task`."""
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        count = max(outputs, 2)
        return {"mIoU": MulticlassJaccardIndex(count, ignore_index=NOT_COUNTED),
                "accuracy": MulticlassAccuracy(count, average="micro", ignore_index=NOT_COUNTED)}

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """See `Task`."""
        return _resized(answer(output), targets), targets

    def constant_score(self, targets: Sequence[Any]) -> float:
        """See `Task`: the most frequent class everywhere, of all that occur."""
        pixels = torch.bincount(torch.cat([torch.as_tensor(target).flatten() for target in targets]).long(),
                                minlength=NOT_COUNTED + 1)[:NOT_COUNTED]
        return float(pixels.max() / pixels.sum().clamp(min=1) / (pixels > 0).sum().clamp(min=1))

    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        size = tuple(shape[-2:])
        if not isinstance(target, Tensor) or tuple(target.shape) != size or target.dtype != torch.int64:
            return f"has the target {describe(target)}, wanted class indices, tensor {format_shape(size)} int64"
        wrong = target[(target != NOT_COUNTED) & ((target < 0) | (target >= len(self.classes)))]
        if wrong.numel():
            return (f"has a pixel of class {int(wrong[0])}, wanted 0 to {len(self.classes) - 1}, or {NOT_COUNTED} for "
                    "what is not counted; number the classes from 0")
        return ""

    def output_fault(self, output: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        scores, wanted = answer(output), len(self.classes)
        if scores.ndim == 4 and (scores.shape[1] >= wanted or (scores.shape[1] == 1 and wanted == 2)):
            return ""
        return (f"gives scores of shape {format_shape(scores.shape)} for a picture, {{data}} has masks of {wanted} "
                "classes; give a model with a map for each")


def _both(scores: Tensor) -> Tensor:
    """Scores of both classes, where only the second has one."""
    return torch.cat([torch.zeros_like(scores), scores], dim=1) if scores.shape[1] == 1 else scores


def _resized(scores: Tensor, classes: Tensor) -> Tensor:
    scores = _both(scores)
    if scores.shape[2:] == classes.shape[1:]:
        return scores
    return F.interpolate(scores, size=classes.shape[1:], mode="bilinear", align_corners=False)
