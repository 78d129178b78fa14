"""A detector of Ultralytics' that is called as torchvision's are, so that it is trained and scored like those.

It is Ultralytics' own class with one more way to be called: its layers, their names and its files are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from torchslim.errors import MissingExtra, RequestError, TrainingError
from torchslim.utils.data import describe
from torchslim.utils.inputs import Inputs, arguments

try:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.modules import Detect
    from ultralytics.nn.tasks import DetectionModel
except ImportError as error:
    raise MissingExtra("ultralytics", "ultralytics", "a model of Ultralytics'") from error
try:
    from ultralytics.utils.nms import non_max_suppression
except ImportError:  # of versions before 8.3.200
    from ultralytics.utils.ops import non_max_suppression

LEAST_SCORE, SAME_OBJECT, MOST_BOXES = 0.001, 0.7, 300
"""What Ultralytics' validator takes: the score of a box that counts, the overlap (IoU) of two that are one, boxes of a
picture."""
_GREY = 114 / 255  # of what is added beside a picture, as Ultralytics fills it


class UltralyticsDetector(DetectionModel):  # type: ignore[misc]  # without types
    """A detector of Ultralytics', which takes lists of pictures and targets beside what it takes anyway.

    In train mode `model(pictures, targets)` gives its losses by name: a picture's mean, with Ultralytics' weights.
    Without targets it gives the maps that these are made of. In eval mode `model(pictures)` gives for each picture a
    dict of `boxes`, `labels` and `scores`, the best first: after non-maximum suppression, or of an end-to-end head.

    Shape:
        pictures: a list of (channels, height, width) with values from 0 to 1, in any sizes; those that Ultralytics'
            strides do not divide get grey at their right and lower edges. Boxes are (n, 4): x1, y1, x2, y2 in pixels
            of the given pictures. Labels (n,) count from 1.
    """

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """What the class says for a list of pictures; for a tensor or a dict what Ultralytics' own does."""
        if not isinstance(x, list):
            return super().forward(x, *args, **kwargs)
        output = super().forward(_batch(x, int(self.stride.max())))
        if self.training:
            return self._losses(x, output, *args, **kwargs)
        return self._detections(x, output)

    def export_form(self, inputs: Inputs) -> tuple[Any, Tensor]:
        """What a file for another runtime holds, and its input, one tensor (see `torchslim.export`).

        Shape:
            input: (batch, channels, height, width); the predictions, as Ultralytics exports them without suppression:
            (batch, 4 + classes, places), or (batch, boxes, 6) of an end-to-end head.
        """
        plain: Any = deepcopy(self)
        plain.__class__ = DetectionModel
        plain.model[-1].export = True
        (pictures, *_), _ = arguments(inputs)
        return plain, _batch(pictures, int(self.stride.max())) if isinstance(pictures, list) else pictures

    def _losses(self, pictures: Sequence[Tensor], output: Any, targets: Sequence[Mapping[str, Tensor]] | None = None,
                ) -> dict[str, Any]:
        if targets is None:
            return _without_features(output)
        # Made anew for each batch: it remembers devices and sizes, and a model that holds it can't be copied or saved.
        losses, _ = self.init_criterion()(output, self._labels(pictures, targets))
        names = ("box", "cls", "dfl") if losses.ndim else ("loss",)
        return dict(zip(names, losses.reshape(-1) / len(pictures), strict=True))

    def _labels(self, pictures: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Targets as Ultralytics' criterion takes them: boxes as shares of the batch, classes from 0."""
        classes = self.model[-1].nc
        labels = torch.cat([target["labels"] for target in targets])
        wrong = labels[(labels < 1) | (labels > classes)]
        if wrong.numel():
            raise TrainingError(f"the targets have a box of label {int(wrong[0])}, wanted 1 to {classes}; number "
                                f"labels from 1, or build the model with num_classes={int(labels.max()) + 1}")
        height, width = _padded_size(pictures, int(self.stride.max()))
        boxes = box_convert(torch.cat([target["boxes"] for target in targets]), "xyxy", "cxcywh")
        counts = torch.tensor([len(target["labels"]) for target in targets], device=labels.device)
        return {"batch_idx": torch.arange(len(targets), device=labels.device).repeat_interleave(counts).float(),
                "cls": labels[:, None] - 1.0,
                "bboxes": boxes / boxes.new_tensor([width, height, width, height])}

    def _detections(self, pictures: Sequence[Tensor], output: Any) -> list[dict[str, Tensor]]:
        predictions = output[0] if isinstance(output, tuple) else output
        # Without a limit of time, after which pictures would have no boxes.
        kept = non_max_suppression(predictions, LEAST_SCORE, SAME_OBJECT, multi_label=True, max_det=MOST_BOXES,
                                   nc=self.model[-1].nc, max_time_img=math.inf, end2end=bool(self.end2end))
        return [{"boxes": clip_boxes_to_image(rows[:, :4], picture.shape[-2:]), "labels": rows[:, 5].long() + 1,
                 "scores": rows[:, 4]} for rows, picture in zip(kept, pictures, strict=True)]


def build(description: Mapping[str, Any], num_classes: int | None = None) -> UltralyticsDetector:
    """A detector from the content of a yaml file of Ultralytics'.

    Args:
        description: with the entries that Ultralytics adds ("scale", "yaml_file").
        num_classes: with the background, so one more than Ultralytics' `nc`; None for those of the description.

    Raises:
        RequestError: fewer than two classes.
    """
    check_num_classes(num_classes)
    classes = {} if num_classes is None else {"nc": num_classes - 1}
    model = UltralyticsDetector(deepcopy({**description, **classes}), ch=description.get("channels", 3), verbose=False)
    return _ready(model)


def check_num_classes(num_classes: Any) -> None:
    """Refuse a number of classes that leaves none beside the background.

    Raises:
        RequestError: it is one.
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise RequestError(f"num_classes={num_classes!r} found, wanted 2 or more: the background is one of them")


def as_detector(network: Any) -> UltralyticsDetector:
    """A copy of a network of Ultralytics' that is called as torchvision's detectors are.

    Raises:
        RequestError: it finds no boxes, or is fused, so that it can't be trained.
    """
    kind = type(network)
    if kind not in (DetectionModel, UltralyticsDetector) or not isinstance(network.model[-1], Detect):
        raise RequestError(f"integrations.ultralytics.detector: got {describe(network)}, wanted a detector of "
                           "Ultralytics' (YOLOv8, 10, 11, 12, 26); cut others by integrations.ultralytics.prune, and "
                           "train them by Ultralytics' own trainer")
    if network.is_fused():
        raise RequestError("integrations.ultralytics.detector: got a fused network, which can't be trained; give the "
                           "one before `fuse` or `predict`, such as YOLO('best.pt')")
    model: Any = deepcopy(network).float()
    model.__class__ = UltralyticsDetector
    model.criterion = None
    for parameter in model.parameters():
        parameter.requires_grad = True
    return _ready(model)


def _ready(model: Any) -> UltralyticsDetector:
    model.args = get_cfg()  # the weights of the losses; a trainer may have left others, or a dict without them
    # Places are computed anew each time: those of the last run would be stored in files, and are wrong after a copy
    # onto another device, or a run that only looks at shapes.
    model.model[-1].dynamic = True
    return model  # type: ignore[no-any-return]


def _without_features(output: Any) -> dict[str, Any]:
    """The maps of boxes and scores, of each head of a network that has two. The features serve only for their sizes."""
    return {key: _without_features(value) if isinstance(value, Mapping) else value
            for key, value in output.items() if key != "feats"}


def _padded_size(pictures: Sequence[Tensor], stride: int) -> tuple[int, int]:
    """The least height and width that hold all pictures and are multiples of the stride."""
    height, width = (-(-max(picture.shape[dim] for picture in pictures) // stride) * stride for dim in (-2, -1))
    return height, width


def _batch(pictures: Sequence[Tensor], stride: int) -> Tensor:
    height, width = _padded_size(pictures, stride)
    return torch.stack([
        picture if picture.shape[-2:] == (height, width) else
        F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]), value=_GREY)
        for picture in pictures])
