"""Object detection and key points, by models that give their losses in train mode, as torchvision's do.

In train mode such a model is called with a list of pictures and a list of targets, and returns losses by name; in eval
mode with the pictures, and returns for each a dict of `boxes`, `labels` and `scores` (and `keypoints`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchslim.errors import TrainingError
from torchslim.train.tasks.task import Task
from torchslim.utils.data import describe

_TYPES = {"boxes": torch.float32, "labels": torch.int64, "keypoints": torch.float32}
"""What torchvision's detectors insist on."""


@dataclass(frozen=True)
class Detection(Task):
    """Boxes and their classes; labels count from 1, since these models keep 0 for the background."""

    name: ClassVar[str] = "detection"
    metric: ClassVar[str] = "mAP"
    lr: ClassVar[float] = 0.01
    returns_losses: ClassVar[bool] = True
    keys: ClassVar[tuple[str, ...]] = ("boxes", "labels")

    @property
    def model_options(self) -> dict[str, int]:
        """See `Task`: the background is a class, too."""
        return {"num_classes": len(self.classes) + 1}

    def collate(self, items: Sequence[Any]) -> tuple[Any, Any]:
        """See `Task`: lists, since pictures differ in size and in their numbers of boxes."""
        return [item[0] for item in items], [item[1] for item in items]

    def loss(self, output: Any, targets: Any) -> Tensor:
        """See `Task`: the sum of the losses that the model gives."""
        losses = list(output.values()) if isinstance(output, Mapping) else [output]
        if not losses or not all(isinstance(loss, Tensor) and loss.ndim == 0 for loss in losses):
            raise TrainingError(f"the model gives {describe(output)} in train mode, wanted its losses by name, as "
                                "torchvision's detectors give them; for another model give loss=")
        return torch.stack(losses).sum()

    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """See `Task`."""
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision()
        metric.warn_on_many_detections = False  # COCO counts a picture's best 100 boxes; models may give more
        return {"mAP": metric}

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """See `Task`."""
        return ([{key: each[key] for key in ("boxes", "labels", "scores")} for each in output],
                [{key: each[key] for key in ("boxes", "labels")} for each in targets])

    def values(self, name: str, value: Any) -> dict[str, float]:
        """See `Task`: without a box in the data, nothing can be found."""
        if isinstance(value, Mapping):
            return {"mAP": max(float(value["map"]), 0.0), "mAP50": max(float(value["map_50"]), 0.0)}
        return super().values(name, value)

    def constant_score(self, targets: Sequence[Any]) -> float:
        """See `Task`."""
        return 0.0

    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        if not isinstance(target, Mapping) or not all(isinstance(target.get(key), Tensor) for key in self.keys):
            return f"has the target {describe(target)}, wanted a dict of tensors: {', '.join(self.keys)}"
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            return (f"has boxes {describe(boxes)} and labels {describe(labels)}, wanted (n, 4) and (n,): x1, y1, x2, "
                    "y2 in pixels")
        types = {key: target[key].dtype for key in self.keys}
        strange = next((key for key, kind in types.items() if kind is not _TYPES[key]), None)
        if strange is not None:
            return f"has {strange} {describe(target[strange])}, wanted {str(_TYPES[strange]).removeprefix('torch.')}"
        wrong = labels[(labels < 1) | (labels > len(self.classes))]
        if wrong.numel():
            return f"has a box of class {int(wrong[0])}, wanted 1 to {len(self.classes)}; number the classes from 1"
        flat = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)]
        if flat.numel():
            corners = [round(place, 1) for place in flat[0].tolist()]
            return f"has the box {corners}, wanted x1 < x2 and y1 < y2; leave it out"
        return "" if bool(boxes.isfinite().all()) else "has a box that is not finite, wanted pixels"

    def output_fault(self, output: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        wanted = (*self.keys, "scores")
        if isinstance(output, list) and len(output) == 1 and isinstance(output[0], Mapping) and all(
                key in output[0] for key in wanted):
            return ""
        return (f"gives {describe(output)} for a list of one picture in eval mode, wanted a list of one dict with "
                f"{', '.join(wanted)}, as torchvision's detectors give it")

    def model_fault(self, model: Any) -> str:
        """See `Task`: Ultralytics' own are called otherwise, and a YOLO's `train` starts its own trainer."""
        if type(model).__module__.partition(".")[0] != "ultralytics":
            return ""
        return (f"is Ultralytics' {type(model).__name__}, wanted a detector that is called as torchvision's are; give "
                "torchslim.integrations.ultralytics.detector(model)")

    def example(self, shape: Sequence[int], generator: torch.Generator) -> Any:
        """See `Task`."""
        return [torch.rand(*shape, generator=generator)]


@dataclass(frozen=True)
class Keypoints(Detection):
    """Boxes with key points.

    Attributes:
        points: number of points of an object.
    """

    points: int = 0
    name: ClassVar[str] = "keypoints"
    metric: ClassVar[str] = "PCK"
    keys: ClassVar[tuple[str, ...]] = ("boxes", "labels", "keypoints")

    @property
    def model_options(self) -> dict[str, int]:
        """See `Task`."""
        return {**super().model_options, **({"num_keypoints": self.points} if self.points else {})}

    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """See `Task`."""
        from torchslim.train.tasks.correct_keypoints import CorrectKeypoints

        return {"PCK": CorrectKeypoints(), **super().build_metrics(outputs)}

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """See `Task`."""
        boxes, wanted = super().prepared(output, targets)
        return ([{**each, "keypoints": given["keypoints"]} for each, given in zip(boxes, output, strict=True)],
                [{**each, "keypoints": target["keypoints"]} for each, target in zip(wanted, targets, strict=True)])

    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        if fault := super().target_fault(target, shape):
            return fault
        points, wanted = target["keypoints"], (len(target["boxes"]), self.points, 3)
        if points.ndim != 3 or points.shape[2] != 3 or (self.points and tuple(points.shape) != wanted):
            return f"has key points {describe(points)}, wanted (n, {self.points}, 3): x, y, visibility"
        return ""
