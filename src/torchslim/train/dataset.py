"""Splits, batches and class names of labelled datasets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from torchslim.errors import RequestError
from torchslim.train.tasks import task_for
from torchslim.utils.data import Data

HELD_OUT = 0.2


def stratified(targets: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Stratified split into training and held-out indices, determined by the seed.

    A class of two or more has at least one item on each side; a class of one is for training.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(targets)
    train: list[int] = []
    test: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)].tolist()
        out = 0 if len(members) < 2 else min(max(round(share * len(members)), 1), len(members) - 1)
        test += members[:out]
        train += members[out:]
    return sorted(train), sorted(test)


def labelled(data: Data, count: int, seed: int = 0, batch: int = 64) -> list[tuple[Any, Any]]:
    """Batches of training inputs and targets: `count` items, or all if fewer, drawn by the seed.

    Shape:
        (batch, *data.shape) and (batch,) each, where the targets are classes; lists for detection. The last batch may
        be smaller. The caller's random state is unchanged.
    """
    items: Any = data.train
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        chosen = [items[index] for index in torch.randperm(len(items))[:count].tolist()]
    collate = task_for(data).collate
    return [collate(chosen[start:start + batch]) for start in range(0, len(chosen), batch)]


def classes_of(spec: str, *datasets: Any) -> tuple[str, ...]:
    """The datasets' class names, or class indices."""
    named = getattr(datasets[0], "classes", None)
    if named is not None:
        names = tuple(str(name) for name in named)
    else:
        top = max(target for dataset in datasets for target in map(int, targets_of(dataset)))
        names = tuple(str(target) for target in range(top + 1))
    if len(names) < 2:
        raise RequestError(f"{spec}: {len(names)} class found, at least 2 wanted")
    return names


def targets_of(dataset: Any) -> list[Any]:
    """The targets of all items: listed class indices, or as the items have them."""
    listed = listed_targets(dataset)
    return [dataset[index][1] for index in range(len(dataset))] if listed is None else list(listed)


def listed_targets(dataset: Any) -> list[int] | None:
    """The class indices of all items, if the dataset lists them; None if it must be gone through."""
    for listed in (*(getattr(dataset, name, None) for name in ("targets", "labels", "_labels")),
                   *getattr(dataset, "tensors", ())[-1:]):
        with suppress(TypeError, ValueError, RuntimeError):  # no numbers: names of classes, several labels an item
            targets = torch.as_tensor(listed)
            if targets.shape == (len(dataset),) and not targets.is_floating_point():
                return [int(target) for target in targets.tolist()]
    return None
