"""Splits, batches and class names of labelled datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchslim.errors import RequestError
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


def labelled(data: Data, count: int, seed: int = 0, batch: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Batches of training inputs and classes: `count` items, or all if fewer, drawn by the seed.

    Shape:
        (batch, *data.shape) and (batch,) each; the last may be smaller. The caller's random state is unchanged.
    """
    items: Any = data.train
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        chosen = [items[index] for index in torch.randperm(len(items))[:count].tolist()]
    inputs, targets = torch.stack([item[0] for item in chosen]), torch.tensor([int(item[1]) for item in chosen])
    return [(inputs[start:start + batch], targets[start:start + batch]) for start in range(0, len(inputs), batch)]


def classes_of(spec: str, *datasets: Any) -> tuple[str, ...]:
    """The datasets' class names, or class indices."""
    named = getattr(datasets[0], "classes", None)
    if named is not None:
        names = tuple(str(name) for name in named)
    else:
        top = max(int(target) for dataset in datasets for target in _targets(dataset))
        names = tuple(str(target) for target in range(top + 1))
    if len(names) < 2:
        raise RequestError(f"{spec}: {len(names)} class found, at least 2 wanted")
    return names


def _targets(dataset: Any) -> Sequence[Any]:
    for name in ("targets", "labels", "_labels"):
        targets = getattr(dataset, name, None)
        if targets is not None:
            return targets  # type: ignore[no-any-return]
    if hasattr(dataset, "tensors"):
        return dataset.tensors[-1]  # type: ignore[no-any-return]
    return [dataset[index][1] for index in range(len(dataset))]
