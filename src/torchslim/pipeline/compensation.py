"""Training pictures for criteria and refits, and the refit of a cut network, kept only if it lowers the loss."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torchslim.compensation.compensate import compensate
from torchslim.errors import TorchslimError
from torchslim.surgery.plans import Plan
from torchslim.train import Data, labelled
from torchslim.train.evaluation import measured
from torchslim.train.tasks import Task
from torchslim.utils.eval_mode import evaluating

PICTURES, BATCH = 256, 32
"""Training pictures that rank channels and that a refit sees; batches are small, since each trial of a cut runs one."""


def training_pictures(data: Data, seed: int, count: int = PICTURES) -> list[tuple[Any, Any]]:
    """Batches of training pictures and targets: `count` pictures, or all if fewer, drawn by the seed.

    Datasets that differ from the held-out one in nothing but their `transform`, as those of `load_data` do, are read
    through that of the held-out one; others as they are, with their augmentation.
    """
    train: Any = data.train
    if type(train) is type(data.test) and "transform" in vars(train) and "transforms" not in vars(train):
        train = copy(train)
        train.transform = vars(data.test)["transform"]
    return labelled(replace(data, train=train), count, seed, BATCH)


def compensated(model: nn.Module, slim: nn.Module, plan: Plan, data: Data, task: Task,
                seed: int) -> tuple[nn.Module, str]:
    """The slim network refitted to the model's outputs, or as it was if that does no good; and a sentence about it.

    Refitted on `PICTURES` training pictures, judged by the mean loss on as many others (the same, if there are too few
    for that); by the task's main metric there, where models give their losses in train mode only.
    """
    drawn = training_pictures(data, seed, 2 * PICTURES)
    half = len(drawn) // 2 or 1
    seen, others = [pictures for pictures, _ in drawn[:half]], drawn[half:] or drawn
    try:
        better = compensate(model, slim, plan, seen)
    except TorchslimError as error:
        return slim, f"the cut network could not be refitted ({error})"
    before, after = (_measure(network, others, task) for network in (slim, better))
    pictures, count = sum(map(len, seen)), sum(len(batch) for batch, _ in others)
    what = task.metric if task.returns_losses else "mean loss"
    said = f"({what} on {count} others {before:.3f} before, {after:.3f} after)"
    if not (after >= before if task.returns_losses else after <= before):
        return slim, f"a refit on {pictures} training pictures made the cut network worse, and was left out {said}"
    return better, f"refitted to the uncut network's outputs on {pictures} training pictures {said}"


@torch.no_grad()
def _measure(model: nn.Module, batches: list[tuple[Any, Any]], task: Task) -> float:
    if task.returns_losses:
        return measured(model, batches, BATCH, task)[task.metric]
    with evaluating(model):
        losses = [task.losses(model(pictures), targets) for pictures, targets in batches]
    return float(torch.cat(losses).double().mean())
