"""Accuracy on labelled data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchslim.errors import TrainingError
from torchslim.train.batches import batches_of
from torchslim.train.losses import logits
from torchslim.utils.data import EVALUATION_BATCH, Data
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import arguments
from torchslim.utils.modules import device_of
from torchslim.utils.seeding import seeded


def evaluate(model: nn.Module, data: Any, batch_size: int = EVALUATION_BATCH) -> float:
    """The share of labels that the model predicts correctly, 0 to 1; its modes are restored.

    Args:
        model: on any device.
        data: a dataset of `(inputs, target)`, a `Data` (its held-out part), or batches `(inputs, targets)`.
        batch_size: of a dataset.

    Raises:
        TrainingError: no data.
    """
    correct, total = count_correct(model, data.test if isinstance(data, Data) else data, batch_size)
    if not total:
        raise TrainingError("evaluate: no data; give a dataset or batches that are not empty")
    return correct / total


def count_correct(model: nn.Module, data: Any, batch_size: int, rank: int = 0, world: int = 1) -> tuple[int, int]:
    """Numbers of correct predictions and of labels in one process's share of the data."""
    device = device_of(model)
    correct = total = 0
    # Seeded, so that random datasets give the same score each time and the caller's generators are unchanged.
    with torch.inference_mode(), evaluating(model), seeded(0):
        for inputs, targets in batches_of(data, batch_size, device, rank, world):
            args, kwargs = arguments(inputs)
            predictions = logits(model(*args, **kwargs)).argmax(dim=1)
            correct += int((predictions == targets).sum())
            total += targets.numel()
    return correct, total
