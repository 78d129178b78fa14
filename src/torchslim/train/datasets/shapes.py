"""`shapes` and `shapes:TASK`: coloured circles, squares, triangles and bars on textured backgrounds, drawn by number.

500 pictures for every task, the last 100 to test on; each depends on the seed and its number only. Made for tests and
examples: a small network learns each task in a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from torchslim.train.datasets.items import Sample, make_data
from torchslim.train.datasets.request import DataRequest
from torchslim.train.tasks import TASKS
from torchslim.utils.data import Data
from torchslim.utils.text import did_you_mean

SHAPES = ("circle", "square", "triangle", "bar")
TRIANGLE, BAR = SHAPES.index("triangle"), SHAPES.index("bar")
_COUNT, _TEST = 500, 100
_SIZE = 64
_SINGLE = ("classification", "regression")  # tasks of one shape; others have up to three, in quarters of the picture
_CORNERS = ((0.0, -1.0), (0.6, 0.8), (-0.6, 0.8))  # of a triangle: tip, right, left, before it is turned
_MIRRORED = (0, 2, 1)
_BAR = 0.22  # half the width of a bar whose half length is 1
_SQUARE = 0.7
_CLASSES = {"classification": SHAPES, "multilabel": SHAPES, "segmentation": ("background", *SHAPES),
            "detection": SHAPES, "keypoints": ("triangle",), "regression": ("cos", "sin")}

Values = NDArray[Any]


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: no such task.
    """
    if request.rest and request.rest not in TASKS:
        raise request.error(f"no task {request.rest!r}; {did_you_mean(request.rest, TASKS)}")
    task = request.check_task(*([request.rest] if request.rest else TASKS))
    size = request.size or _SIZE
    least = 16 if task in _SINGLE else 32  # below that, a bar may cover no pixel
    if size < least:
        raise request.error(f"size {size} found, at least {least} pixels wanted for {task}; leave it out for {_SIZE}")
    samples: list[Sample] = [(number, number % len(SHAPES)) for number in range(_COUNT)]
    return make_data(request, task, _CLASSES[task], samples[:-_TEST], samples[-_TEST:],
                     _Drawer(task, size, request.seed, request.colours), size=size, pairs=_MIRRORED)

# For each shape whether it covers a point: how far that is from the axis, and how far down it, in units of the radius.
_INSIDE: tuple[Callable[[Values, Values], Values], ...] = (
    lambda across, down: across**2 + down**2 <= 1,
    lambda across, down: np.maximum(across, np.abs(down)) <= _SQUARE,
    lambda across, down: (down <= 0.8) & (across <= (down + 1) / 3),
    lambda across, down: (across <= 1) & (np.abs(down) <= _BAR))


@dataclass(frozen=True)
class _Shape:
    """A shape in a circle around its middle; the angle turns x toward y."""

    kind: int
    x: float
    y: float
    radius: float
    angle: float

    def covers(self, size: int) -> Values:
        """Which pixels have their middles in it, shape (size, size)."""
        y, x = _middles(size)
        x, y = x - self.x, y - self.y
        cos, sin = math.cos(self.angle) / self.radius, math.sin(self.angle) / self.radius
        across, down = np.abs(x * cos + y * sin), y * cos - x * sin
        return np.asarray(_INSIDE[self.kind](across, down))

    def corners(self) -> list[list[float]]:
        """Tip, right and left of a triangle: x, y and visibility."""
        cos, sin = math.cos(self.angle) * self.radius, math.sin(self.angle) * self.radius
        return [[self.x + across * cos - down * sin, self.y + across * sin + down * cos, 2.0]
                for across, down in _CORNERS]


@dataclass(frozen=True)
class _Drawer:
    """Reads the picture of a number."""

    task: str
    size: int
    seed: int
    channels: int

    def __call__(self, number: int, kind: int) -> tuple[Image.Image, Any]:
        random = np.random.default_rng((self.seed, number))
        if self.task in _SINGLE:
            shapes = [self._place(random, BAR if self.task == "regression" else kind, 0.0, 0.0, self.size)]
        else:
            half = self.size / 2
            cells = random.permutation(4)[:random.integers(1, 4)].tolist()
            kinds = [TRIANGLE if self.task == "keypoints" else int(random.integers(len(SHAPES))) for _ in cells]
            shapes = [self._place(random, kind, cell % 2 * half, cell // 2 * half, half)
                      for kind, cell in zip(kinds, cells, strict=True)]
        covered = [shape.covers(self.size) for shape in shapes]
        values = _background(random, self.size)
        for pixels in covered:
            values[pixels] = _colour(random)
        values += random.standard_normal((self.size, self.size, 1), dtype=np.float32) * 12
        picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        return picture if self.channels == 3 else picture.convert("L"), self._target(shapes, covered, kind)

    def _place(self, random: np.random.Generator, kind: int, left: float, upper: float, side: float) -> _Shape:
        """Somewhere in a square of this side."""
        radius = side * random.uniform(0.28, 0.45)
        x, y = random.uniform(radius, side - radius, 2)
        return _Shape(kind, left + x, upper + y, radius, random.uniform(0, 2 * math.pi))

    def _target(self, shapes: list[_Shape], covered: list[Values], kind: int) -> Any:
        if self.task == "classification":
            return kind
        if self.task == "regression":  # a bar and one turned by half a turn are the same
            return torch.tensor([math.cos(2 * shapes[0].angle), math.sin(2 * shapes[0].angle)])
        if self.task == "multilabel":
            present = {shape.kind for shape in shapes}
            return torch.tensor([float(index in present) for index in range(len(SHAPES))])
        if self.task == "segmentation":
            mask = np.zeros((self.size, self.size), np.uint8)
            for shape, pixels in zip(shapes, covered, strict=True):
                mask[pixels] = shape.kind + 1
            return Image.fromarray(mask)
        target = {"boxes": torch.tensor([_box(pixels) for pixels in covered]),
                  "labels": torch.tensor([1 if self.task == "keypoints" else shape.kind + 1 for shape in shapes])}
        if self.task == "keypoints":
            target["keypoints"] = torch.tensor([shape.corners() for shape in shapes], dtype=torch.float32)
        return target


@lru_cache(maxsize=4)
def _middles(size: int) -> tuple[Values, Values]:
    along = np.arange(size, dtype=np.float32) + 0.5
    return along[:, None], along[None, :]


def _background(random: np.random.Generator, size: int) -> Values:
    """Two waves over a dark colour, shape (size, size, 3)."""
    y, x = _middles(size)
    colour = random.uniform(40, 90, 3).astype(np.float32)
    first, second = random.uniform(-20, 20, (2, 2)) / size
    waves = np.sin(first[0] * x + first[1] * y) + np.sin(second[0] * x + second[1] * y)
    return np.asarray(colour + 18 * waves[..., None], np.float32)


def _colour(random: np.random.Generator) -> Values:
    """A light colour: one channel full, one empty, the third between."""
    return np.asarray(random.permutation([240, 60, random.uniform(60, 240)]), np.float32)


def _box(pixels: Values) -> list[float]:
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
