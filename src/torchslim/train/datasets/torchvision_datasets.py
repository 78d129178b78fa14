"""`torchvision:NAME@ROOT`: a dataset of torchvision that is on disk already."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from PIL import Image

from torchslim.errors import RequestError
from torchslim.train.dataset import classes_of, listed_targets
from torchslim.train.datasets.augmentation import SMALL
from torchslim.train.datasets.broken import Look, usable
from torchslim.train.datasets.items import PICTURE_SIZE, Sample, make_data
from torchslim.train.datasets.pictures import UnreadablePicture, as_channels
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data
from torchslim.utils.text import describe_error, did_you_mean

# A mirrored digit or letter has another label, or none.
_NO_FLIP = frozenset({"MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "GTSRB", "Omniglot"})


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: no such dataset, not on disk, without pictures or parts.
    """
    from torchvision import datasets

    request.check_task("classification")
    spec, reader = request.spec, _Reader(request.colours)
    name, at, root = request.rest.partition("@")
    if not at or not root:
        raise RequestError(f"{spec}: no root folder; give torchvision:NAME@ROOT, "
                           "such as torchvision:CIFAR10@data")
    known = [n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))]
    if name not in known:
        hint = did_you_mean(name, known, "names are written as torchvision does")
        raise RequestError(f"{spec}: torchvision has no dataset {name!r}; {hint}")
    kind = getattr(datasets, name)
    train = _open(spec, kind, root, ("train",))
    test = _open(spec, kind, root, ("test", "val", "valid"))
    classes = classes_of(spec, train)
    parts = usable(request, "classification", _samples(train), _samples(test), _look(request, reader), classes=classes)
    return make_data(request, "classification", classes, *parts, reader, size=_image_size(spec, train),
                     flip=name not in _NO_FLIP)


@dataclass(frozen=True)
class _Reader:
    channels: int

    def __call__(self, place: tuple[Any, int], target: Any) -> tuple[Image.Image, int]:
        dataset, index = place
        picture, found = dataset[index]
        return as_channels(picture, self.channels), int(found)


def _look(request: DataRequest, reader: _Reader) -> Look:
    """Reads an item whole where broken ones may be left out; else torchvision reads its files at their turn."""
    def look(sample: Sample) -> None:
        try:
            reader(*sample)
        except Exception as error:  # of torchvision, of PIL
            raise UnreadablePicture(f"item {sample[0][1]}", describe_error(error)) from error

    return look if request.skip_broken else lambda sample: None


def _samples(dataset: Any) -> list[Sample]:
    targets: list[Any] = listed_targets(dataset) or [None] * len(dataset)
    return [((dataset, index), target) for index, target in enumerate(targets)]


def _open(spec: str, kind: Any, root: str, splits: tuple[str, ...]) -> Any:
    """One split of a dataset on disk; torchvision's classes take `train=` or `split=`."""
    parameters = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        choices: list[dict[str, Any]] = [{"train": splits == ("train",)}]
    elif "split" in parameters:
        choices = [{"split": split} for split in splits]
    else:
        raise RequestError(f"{spec}: {kind.__name__} has no parts to train and to test on; "
                           "write a function that returns two datasets and give file.py:function")
    for choice in choices:
        try:
            part = kind(root, **choice, **options)
        except ValueError as error:  # no such part
            failure: Exception = error
        except Exception as error:
            raise RequestError(f"{spec}: cannot be read from {root} ({describe_error(error)}); put the "
                               "dataset there first: torchslim downloads nothing") from error
        else:
            return part
    raise RequestError(f"{spec}: has no part {' or '.join(splits)} ({describe_error(failure)}); "
                       "write a function that returns two datasets and give file.py:function") from failure


def _image_size(spec: str, dataset: Any) -> int:
    """The size of small images if all are equal; else 224."""
    pictures = [dataset[i][0] for i in range(min(4, len(dataset)))]
    if not pictures or not all(hasattr(picture, "convert") for picture in pictures):
        raise RequestError(f"{spec}: holds no pictures to classify; "
                           "write a function that returns two datasets and give file.py:function")
    sizes = {max(picture.size) for picture in pictures}
    return sizes.pop() if len(sizes) == 1 and max(sizes) <= SMALL else PICTURE_SIZE
