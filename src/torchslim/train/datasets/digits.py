"""`digits`: scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchslim.errors import MissingExtra
from torchslim.train.dataset import stratified
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data, Item

_MEAN, _STD = 0.305, 0.323  # mean and standard deviation of the grey values at 32 pixels, 0 to 1


class _TensorImages(Dataset[Item]):
    """Images in memory."""

    def __init__(self, pictures: Tensor, targets: list[int], transform: Callable[[Any], Tensor] | None) -> None:
        self.pictures, self.targets, self.transform = pictures, targets, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        picture = self.pictures[index]
        return (picture if self.transform is None else self.transform(picture)), self.targets[index]


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    request.check_task("classification")
    channels, size = request.colours, request.size or 32
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "digits", "the data digits") from error
    from torchvision.transforms import InterpolationMode, v2

    bunch = load_digits()
    grey = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    grey = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    pictures = ((grey - _MEAN) / _STD).repeat(1, channels, 1, 1)
    targets = [int(target) for target in bunch.target]
    augment = v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1),
                              interpolation=InterpolationMode.BILINEAR, fill=-_MEAN / _STD)
    train, test = stratified(targets, request.held_out, request.seed)
    return Data("digits",
                _TensorImages(pictures[train], [targets[i] for i in train], augment),
                _TensorImages(pictures[test], [targets[i] for i in test], None),
                tuple(str(name) for name in bunch.target_names), (channels, size, size),
                (_MEAN,) * channels, (_STD,) * channels)
