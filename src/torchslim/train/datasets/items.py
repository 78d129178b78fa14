"""`Data` of samples and a function that reads one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from torchslim.train.dataset import stratified
from torchslim.train.datasets.augmentation import Transform, normalization, transforms
from torchslim.train.datasets.pictures import read_picture
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data, Item

PICTURE_SIZE = 224
"""Height and width where nothing says another."""
_BOX_PICTURE_SIZE = 320  # small objects need more

Sample = tuple[Any, Any]
"""Where a picture is, and its target or what tells it."""
Reader = Callable[[Any, Any], tuple[Image.Image, Any]]
"""A sample's two parts -> the picture and its target in the picture's own pixels."""


class Pictures(Dataset[Item]):
    """Pictures that are read and transformed when asked for; `targets` lists classes, for `listed_targets`."""

    def __init__(self, samples: Sequence[Sample], read: Reader, transform: Transform, task: str) -> None:
        self.samples, self.read, self.transform = samples, read, transform
        if task == "classification":
            self.targets = [target for _, target in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return self.transform(*self.read(*self.samples[index]))


@dataclass(frozen=True)
class FileReader:
    """Reads a picture's file; its target is as in the sample."""

    channels: int

    def __call__(self, path: Path, target: Any) -> tuple[Image.Image, Any]:
        """The picture and the same target."""
        return read_picture(path, self.channels), target


def make_data(request: DataRequest, task: str, classes: Sequence[str], train: Sequence[Sample],
              test: Sequence[Sample], read: Reader, *, size: int | None = None, flip: bool = True,
              pairs: Sequence[int] | None = None) -> Data:
    """The data of a request, brought to one size.

    Raises:
        RequestError: nothing to train on or to test on.
    """
    for part, samples in (("train", train), ("test", test)):
        if not samples:
            raise request.error(f"no pictures to {part} on; add some")
    size = request.size or size or (_BOX_PICTURE_SIZE if task in ("detection", "keypoints") else PICTURE_SIZE)
    augment, plain = transforms(task, size, request.colours, flip=flip, pairs=pairs)
    return Data(request.spec, Pictures(train, read, augment, task), Pictures(test, read, plain, task), tuple(classes),
                (request.colours, size, size), *normalization(task, request.colours), task=task)


def split(request: DataRequest, task: str, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and to test on, drawn by the seed: of each class the same share, or of all.

    Raises:
        RequestError: too few to hold any out.
    """
    if task == "classification":
        train, test = stratified([target for _, target in samples], request.held_out, request.seed)
        if not test:
            raise request.error("one picture in each class, so none can be held out; add pictures")
    else:
        if len(samples) < 2:
            raise request.error(f"{len(samples)} picture found, so none can be held out; at least 2 wanted")
        generator = torch.Generator().manual_seed(request.seed)
        order = torch.randperm(len(samples), generator=generator).tolist()
        out = min(max(round(request.held_out * len(samples)), 1), len(samples) - 1)
        train, test = sorted(order[out:]), sorted(order[:out])
    return [samples[index] for index in train], [samples[index] for index in test]
