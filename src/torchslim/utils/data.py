"""Data that is given as a dataset, in batches, or as a set of pictures divided in two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

EVALUATION_BATCH = 64  # keeps a ResNet at 224 pixels well below a gigabyte

Item = tuple[Tensor, int]


@dataclass(frozen=True)
class Data:
    """Pictures to train on and pictures held out.

    Attributes:
        name: the specification it came from.
        train: items `(input, class index)`, augmented.
        test: held-out items, as they are.
        classes: the names of the classes.
        shape: channels, height and width of an input.
        mean: what was taken off each channel, to show the pictures again; empty where it is not known.
        std: what each channel was divided by.
    """

    name: str
    train: Dataset[Item]
    test: Dataset[Item]
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def is_dataset(data: Any) -> bool:
    """Whether `data` gives items by number; what is iterated over (lists, loaders) gives batches."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__")
