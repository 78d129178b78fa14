"""Pictures and their targets, brought to one size; in training at random, through torch's global generator only.

Whole pictures have transforms of torchvision. Where a target has places in the picture (masks, boxes, key points), a
`Placement` maps both: the proportions stay, the longer side is the size (letterbox), what is left over is filled. In
training the scale and the place are random, so parts may be cut off, and the picture is mirrored half of the time.
torchvision's own transforms know key points only from 0.23 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torchslim.utils.data import Item

# Mean and standard deviation of ImageNet by the number of channels; grey is 0.299 red + 0.587 green + 0.114 blue.
IMAGENET = {1: ((0.459,), (0.226,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
NOT_COUNTED = 255
"""The value of a mask where no class is asked for."""
SMALL = 96  # pictures up to this size are padded and cropped; of larger ones a random crop is resized
_STRIP = 100  # of a picture that is more times as long as wide only the middle is resized, as only that is seen
_WITH_PLACES = frozenset({"segmentation", "detection", "keypoints"})
_SCALES = (0.6, 1.4)  # of the letterbox, in training
_LEAST_SHARE = 0.1  # of its area that a box keeps where the picture is cut off, or it goes
_COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}

Transform = Callable[[Any, Any], Item]
"""A picture of PIL and its target -> an item."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def normalization(task: str, channels: int) -> Statistics:
    """Mean and standard deviation: ImageNet's; none for boxes and key points, whose networks normalise themselves."""
    return ((0.0,) * channels, (1.0,) * channels) if task in ("detection", "keypoints") else IMAGENET[channels]


def transforms(task: str, size: int, channels: int, *, flip: bool = True,
               pairs: Sequence[int] | None = None) -> tuple[Transform, Transform]:
    """To train with, and to test with.

    Args:
        task: one of `TASKS`.
        size: height and width of what comes out.
        channels: 1 or 3.
        flip: whether a mirrored picture is as good.
        pairs: for key points, the point that each one becomes in a mirrored picture; None if that is not known, and
            then none is mirrored.
    """
    if task in _WITH_PLACES:
        flip = flip and (task != "keypoints" or pairs is not None)
        return (_Placed(task, size, channels, True, flip, tuple(pairs or ())),
                _Placed(task, size, channels, False, False, ()))
    from torchvision.transforms import v2

    mirror = [v2.RandomHorizontalFlip()] if flip else []
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalization(task, channels))]
    fit = [v2.Resize((size, size))]
    if task == "regression":  # a value may be a place, a size or an angle
        return _Whole(v2.Compose([*fit, v2.ColorJitter(0.2, 0.2), *finish])), _Whole(v2.Compose([*fit, *finish]))
    if size <= SMALL:
        return (_Whole(v2.Compose([*fit, v2.RandomCrop(size, padding=size // 8), *mirror, *finish])),
                _Whole(v2.Compose([*fit, *finish])))
    if task == "multilabel":  # a class may be at the edge
        return (_Whole(v2.Compose([v2.RandomResizedCrop(size, scale=(0.6, 1.0)), *mirror, *finish])),
                _Whole(v2.Compose([*fit, *finish])))
    return (_Whole(v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0)), *mirror, *finish])),
            _Whole(v2.Compose([_middle, v2.Resize(round(size / 0.875)), v2.CenterCrop(size), *finish])))


@dataclass(frozen=True)
class _Whole:
    """A transform of the picture alone."""

    transform: Callable[[Any], Tensor]

    def __call__(self, picture: Any, target: Any) -> Item:
        return self.transform(picture), target


def _middle(picture: Any) -> Any:
    """The middle of a strip: resized whole, one of a single row would fill the memory."""
    from torchvision.transforms.v2 import functional

    longest = _STRIP * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    return functional.center_crop(picture, [min(side, longest) for side in reversed(picture.size)])


# --- targets with places --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Placement:
    """Where a picture lies in a square; widths come before heights.

    Attributes:
        source: width and height of the picture.
        scaled: what they become.
        offset: of the scaled picture's left upper corner from the square's; negative where it is cut off.
        size: of the square.
        mirrored: left and right change places, in the end.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    size: int
    mirrored: bool = False

    def picture(self, picture: Image.Image, fill: Any, resample: Image.Resampling) -> Image.Image:
        """The square with the picture in it; `fill` is what is around it."""
        lows = [max(offset, 0) for offset in self.offset]
        highs = [min(offset + side, self.size) for offset, side in zip(self.offset, self.scaled, strict=True)]
        edges = [min((edge - self.offset[axis]) * self.source[axis] / self.scaled[axis], self.source[axis])
                 for ends in (lows, highs) for axis, edge in enumerate(ends)]
        seen = picture.resize((highs[0] - lows[0], highs[1] - lows[1]), resample, box=tuple(edges))  # type: ignore[arg-type]
        square = Image.new(picture.mode, (self.size, self.size), fill)
        square.paste(seen, (lows[0], lows[1]))
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else square

    def points(self, points: Tensor) -> Tensor:
        """Where points x, y of the picture are in the square, even outside of it; shape (..., 2)."""
        scale = torch.tensor([scaled / source for scaled, source in zip(self.scaled, self.source, strict=True)])
        moved = points * scale + torch.tensor(self.offset)
        return torch.stack([self.size - moved[..., 0], moved[..., 1]], -1) if self.mirrored else moved

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes x1, y1, x2, y2; shape (n, 4)."""
        corners = self.points(boxes.reshape(-1, 2, 2))
        return torch.cat([corners.amin(1), corners.amax(1)], 1)


def letterbox(source: tuple[int, int], size: int, scale: float = 1.0) -> Placement:
    """In the middle, with the longer side as long as the square's times `scale`."""
    factor = scale * size / max(source)
    width, height = (max(round(side * factor), 1) for side in source)
    return Placement(source, (width, height), ((size - width) // 2, (size - height) // 2), size)


def _random_placement(source: tuple[int, int], size: int, flip: bool) -> Placement:
    scale, left, upper, side = torch.rand(4).tolist()
    placement = letterbox(source, size, _SCALES[0] + scale * (_SCALES[1] - _SCALES[0]))
    # From one end to the other: of what is free, or of what is cut off.
    offset = tuple(round(share * (size - scaled)) for share, scaled in zip((left, upper), placement.scaled,
                                                                           strict=True))
    return replace(placement, offset=offset, mirrored=flip and side < 0.5)


class _Placed:
    """A picture with its mask, or with its boxes and key points."""

    def __init__(self, task: str, size: int, channels: int, augment: bool, flip: bool, pairs: tuple[int, ...]) -> None:
        from torchvision.transforms import v2

        mean, std = normalization(task, channels)
        grey = 114 / 255 if not any(mean) else None  # Ultralytics' grey; else what is 0 once normalised
        fill = tuple(round(255 * (value if grey is None else grey)) for value in mean)
        self.fill: Any = fill[0] if channels == 1 else fill
        self.size, self.augment, self.flip, self.pairs = size, augment, flip, list(pairs)
        self.finish = v2.Compose([v2.PILToTensor(), *([v2.ColorJitter(**_COLOURS)] if augment else []),
                                  v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def __call__(self, picture: Any, target: Any) -> Item:
        placement = (_random_placement(picture.size, self.size, self.flip) if self.augment
                     else letterbox(picture.size, self.size))
        placed = self.finish(placement.picture(picture, self.fill, Image.Resampling.BILINEAR))
        if isinstance(target, Image.Image):
            from torchvision.transforms.v2 import functional

            mask = placement.picture(target, NOT_COUNTED, Image.Resampling.NEAREST)
            return placed, functional.pil_to_tensor(mask)[0].long()
        return placed, self._target(placement, target)

    def _target(self, placement: Placement, target: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = placement.boxes(target["boxes"])
        boxes = whole.clamp(0, placement.size)
        kept = torch.ones(len(boxes), dtype=torch.bool)
        if self.augment:
            sides = boxes[:, 2:] - boxes[:, :2]
            kept = (sides >= 1).all(1) & (sides.prod(1) >= _LEAST_SHARE * (whole[:, 2:] - whole[:, :2]).prod(1))
        placed = {"boxes": boxes[kept], "labels": target["labels"][kept]}
        if "keypoints" in target:
            placed["keypoints"] = self._key_points(placement, target["keypoints"][kept])
        return placed

    def _key_points(self, placement: Placement, points: Tensor) -> Tensor:
        """Those outside the square are not labelled any more."""
        places = placement.points(points[..., :2])
        inside = ((places >= 0) & (places <= placement.size)).all(-1) & (points[..., 2] > 0)
        moved = torch.cat([places, points[..., 2:]], -1) * inside[..., None]
        return moved[:, self.pairs] if placement.mirrored else moved
