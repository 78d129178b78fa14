"""Weights of classes, from how often they occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchslim.errors import RequestError
from torchslim.train.dataset import targets_of
from torchslim.utils.data import Data, is_dataset
from torchslim.utils.seeding import seeded


def weights_of(given: Sequence[float] | str, data: Any) -> tuple[float, ...]:
    """The weights of classes, one a class; none where none were asked for.

    Args:
        given: one a class, or "balanced": n / (classes x items of the class), 1 for a class that does not occur.
        data: of the training.

    Raises:
        RequestError: "balanced" of data without class indices; another text; another number than of classes.
    """
    if not isinstance(given, str):
        if given and isinstance(data, Data) and len(given) != len(data.classes):
            raise RequestError(f"fit: class_weights: {len(given)} given, {data.name} has {len(data.classes)} classes; "
                               "give a weight for each")
        return tuple(map(float, given))
    if given != "balanced":
        raise RequestError(f"fit: class_weights={given!r} found, wanted 'balanced' or a weight for each class")
    counts = count_classes(data, "class_weights='balanced'").double()
    present = counts > 0
    weights = torch.where(present, counts.sum() / (present.sum() * counts), 1.0)
    return tuple(weights.tolist())


def count_classes(data: Any, purpose: str) -> Tensor:
    """How many training items each class has.

    Raises:
        RequestError: the data have no class indices to count.
    """
    part = data.train if isinstance(data, Data) else data
    if not is_dataset(part):
        raise RequestError(f"fit: {purpose} needs a dataset whose classes can be counted, not ready batches; give a "
                           "dataset")
    with seeded(0):
        targets = targets_of(part)
    try:
        labels = torch.tensor([int(target) for target in targets], dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"fit: {purpose} is for targets that are class indices; leave it out") from error
    return torch.bincount(labels, minlength=len(data.classes) if isinstance(data, Data) else 0)
