"""Labelled images by specification: `digits`, a folder, a torchvision dataset on disk, or a factory.

Augmentation uses torch's global generator only. `fit` seeds it for every item from the seed, the epoch and the item's
index, so augmentation is the same in a resumed run and with any number of workers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchslim.errors import MissingExtra, RequestError, TorchslimError
from torchslim.train.dataset import HELD_OUT, classes_of, stratified
from torchslim.train.image_files import folder, torchvision
from torchslim.utils.data import Data, Item
from torchslim.utils.importing import import_factory
from torchslim.utils.text import describe_error

FORMS = "digits, folder:PATH, torchvision:NAME@ROOT, package.module:factory or file.py:factory"
Transform = Callable[[Any], Tensor]


def load_data(spec: str, *, size: int | None = None, seed: int = 0, held_out: float = HELD_OUT) -> Data:
    """The data that a specification names. Nothing is downloaded.

    Args:
        spec: `digits` (scikit-learn's 1,797), `folder:PATH` (a folder per class, or `train/` and `val/` or
            `test/` with a folder per class each), `torchvision:NAME@ROOT` (on disk already), or
            `package.module:factory` or `file.py:factory`, a function that returns a training and a test dataset of
            `(tensor, class index)`; it gets `size` and `seed` if it has these parameters.
        size: height and width in pixels; by default 32 for digits, 224 for folders, the images' own for small ones.
        seed: of the split.
        held_out: share of each class that is held out if the data has no split.

    Raises:
        RequestError: an unknown form, a missing folder or file, a class without images, fewer than two classes, an
            unreadable image.
        MissingExtra: digits without scikit-learn.
    """
    if size is not None and size < 8:
        raise RequestError(f"{spec}: size {size} found, at least 8 pixels wanted; try 32")
    if not 0 < held_out < 1:
        raise RequestError(f"{spec}: held_out {held_out} found, a share between 0 and 1 wanted; "
                           f"try {HELD_OUT}")
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return _digits(size or 32, seed, held_out)
    if kind == "folder" and rest:
        return folder(spec, Path(rest).expanduser(), size or 224, seed, held_out)
    if kind == "torchvision" and rest:
        return torchvision(spec, rest, size)
    if ":" in spec and spec.rpartition(":")[2].isidentifier():
        return _factory(spec, size, seed)
    raise RequestError(f"{spec}: names no data; give {FORMS}")


# --- digits -------------------------------------------------------------------------------------------------

_DIGITS_MEAN, _DIGITS_STD = 0.305, 0.323  # mean and standard deviation of the grey values at 32 pixels, 0 to 1


class _TensorImages(Dataset[Item]):
    """Images in memory."""

    def __init__(self, pictures: Tensor, targets: list[int], transform: Transform | None) -> None:
        self.pictures, self.targets, self.transform = pictures, targets, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        picture = self.pictures[index]
        return (picture if self.transform is None else self.transform(picture)), self.targets[index]


def _digits(size: int, seed: int, held_out: float) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "digits", "the data digits") from error
    from torchvision.transforms import InterpolationMode, v2

    bunch = load_digits()
    grey = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    grey = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    pictures = ((grey - _DIGITS_MEAN) / _DIGITS_STD).repeat(1, 3, 1, 1)
    targets = [int(target) for target in bunch.target]
    augment = v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1),
                              interpolation=InterpolationMode.BILINEAR, fill=-_DIGITS_MEAN / _DIGITS_STD)
    train, test = stratified(targets, held_out, seed)
    return Data("digits",
                _TensorImages(pictures[train], [targets[i] for i in train], augment),
                _TensorImages(pictures[test], [targets[i] for i in test], None),
                tuple(str(name) for name in bunch.target_names), (3, size, size),
                (_DIGITS_MEAN,) * 3, (_DIGITS_STD,) * 3)


# --- factories ----------------------------------------------------------------------------------------------

def _factory(spec: str, size: int | None, seed: int) -> Data:
    try:
        path = spec.rpartition(":")[0]
        if path.endswith(".py") and not Path(path).is_file():
            raise RequestError(f"{spec}: there is no file {path}; give {FORMS}")
        factory = import_factory(spec)
        parameters = inspect.signature(factory).parameters
        offered = {"size": size, "seed": seed}
        made = factory(**{key: value for key, value in offered.items()
                          if key in parameters and value is not None})
    except TorchslimError:
        raise
    except Exception as error:
        raise RequestError(f"{spec}: failed with {describe_error(error)}") from error
    if isinstance(made, Data):
        return made
    if not (isinstance(made, tuple) and len(made) == 2 and all(hasattr(d, "__getitem__") for d in made)):
        raise RequestError(f"{spec}: returned {type(made).__name__}, wanted two datasets, "
                           "to train on and to test on")
    train, test = made
    for part, dataset in (("train", train), ("test", test)):
        if len(dataset) == 0:
            raise RequestError(f"{spec}: the dataset to {part} on is empty; give it items")
    first = train[0]
    if not (isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[0], Tensor)):
        raise RequestError(f"{spec}: an item is {type(first).__name__}, wanted a pair (tensor, class index)")
    return Data(spec, train, test, classes_of(spec, train, test), tuple(first[0].shape))
