"""Batch norms whose running statistics lag behind the weights get the statistics of training pictures.

A running statistic keeps 0.9 of itself in a step, so that after few steps, or while scales move fast, it is that of
other weights than the network has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchslim.compensation.layerwise import has_running_statistics
from torchslim.compensation.recalibration import recalibrated
from torchslim.errors import RequestError
from torchslim.train import Data, labelled
from torchslim.train.tasks import Task
from torchslim.utils.data import EVALUATION_BATCH
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.text import describe_error

MOST_PICTURES, FEWEST_PICTURES = 512, 8
_PIXELS = EVALUATION_BATCH * 224**2  # of the pictures that run at once


def with_recent_statistics(model: nn.Module, data: Data, task: Task, seed: int) -> tuple[nn.Module, str]:
    """The model and "", or a copy with new statistics and a sentence about it.

    Statistics are taken from training pictures, and kept if the mean loss on as many others is lower by more than two
    standard errors of the difference. Models that give their losses in train mode only are left as they are.
    """
    if task.returns_losses or not any(has_running_statistics(module) for module in model.modules()):
        return model, ""
    most = max(EVALUATION_BATCH, min(MOST_PICTURES, _PIXELS // (data.shape[1] * data.shape[2])))
    count = min(most, len(data.train) // 2)  # type: ignore[arg-type]
    if count < FEWEST_PICTURES:
        return model, ""
    pictures, targets = (torch.cat(parts) for parts in zip(*labelled(data, 2 * count, seed), strict=True))
    try:
        other = recalibrated(model, torch.split(pictures[:count], EVALUATION_BATCH))
    except RequestError as error:
        return model, f"the batch norms' statistics could not be taken again ({describe_error(error)})"
    before, after = (_losses(each, task, pictures[count:], targets[count:]) for each in (model, other))
    gain = before - after
    if not gain.mean() > 2 * gain.std() / count**0.5:
        return model, ""
    return other, (f"the running statistics of batch norms lagged; they are now those of {count} training pictures "
                   f"(mean loss on {count} others {before.mean():.3f} before, {after.mean():.3f} after)")


@torch.no_grad()
def _losses(model: nn.Module, task: Task, pictures: Tensor, targets: Tensor) -> Tensor:
    with evaluating(model):
        return torch.cat([task.losses(model(part), target).double()
                          for part, target in zip(torch.split(pictures, EVALUATION_BATCH),
                                                  torch.split(targets, EVALUATION_BATCH), strict=True)])
