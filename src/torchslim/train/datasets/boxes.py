"""Boxes from annotations of any kind, as the table of `Data` has them: in pixels, inside the picture, with an area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from torchslim.errors import RequestError
from torchslim.train.datasets.files import warn_once
from torchslim.utils.text import first_names

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Box:
    """One object.

    Attributes:
        corners: x1, y1, x2, y2 in pixels.
        label: from 1.
        points: x, y and visibility of its key points.
        where: where it is written, for messages.
    """

    corners: tuple[float, float, float, float]
    label: int
    where: str
    points: Sequence[Sequence[float]] = ()


@dataclass
class LeftOut:
    """Boxes that are left out, by the reason."""

    boxes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Note a box."""
        self.boxes.setdefault(reason, []).append(where)

    def warn(self, spec: str, path: Path) -> None:
        """One warning for each reason, with the number and the first few."""
        for reason, places in self.boxes.items():
            warn_once(f"{spec}: {len(places)} boxes not read, {reason}: {first_names(places, 3)}", path)


NO_AREA = "as they have no area in the picture"


def clip(spec: str, box: Box, size: tuple[float, float]) -> Box | None:
    """The part of a box that is in its picture of this width and height; None where that has no area.

    Raises:
        RequestError: its middle is outside the picture, or a number is not finite.
    """
    left, upper, right, lower = box.corners
    width, height = size
    if not (-_REACH <= (left + right) / 2 <= width + _REACH and -_REACH <= (upper + lower) / 2 <= height + _REACH):
        raise RequestError(f"{spec}: {box.where}: a box from ({left:g}, {upper:g}) to ({right:g}, {lower:g}) is not in "
                           f"its picture of {width:g}x{height:g}; look at the order and the unit of its numbers")
    left, right = (min(max(value, 0.0), width) for value in (left, right))
    upper, lower = (min(max(value, 0.0), height) for value in (upper, lower))
    if right <= left or lower <= upper:
        return None
    return Box((left, upper, right, lower), box.label, box.where, box.points)


_REACH = 1.0  # pixels by which a middle may be outside


def target_of(boxes: Sequence[Box], points: int | None, scale: tuple[float, float] = (1.0, 1.0)) -> Target:
    """The target of a picture.

    Args:
        boxes: its objects; none for a picture without.
        points: key points of each; None for a detection. Objects with fewer have others that are not labelled.
        scale: pixels to a unit of the boxes and points, in width and height.
    """
    target = {"boxes": torch.tensor([box.corners for box in boxes]).reshape(-1, 4) * torch.tensor(scale * 2),
              "labels": torch.tensor([box.label for box in boxes], dtype=torch.int64)}
    if points is not None:
        target["keypoints"] = torch.zeros(len(boxes), points, 3)
        for index, box in enumerate(boxes):
            if box.points:
                target["keypoints"][index, :len(box.points)] = torch.tensor(box.points) * torch.tensor((*scale, 1.0))
        target["keypoints"] *= target["keypoints"][..., 2:] > 0
    return target
