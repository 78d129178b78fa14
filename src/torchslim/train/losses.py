"""Losses: cross entropy, with auxiliary heads, and distillation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torchslim.errors import TrainingError
from torchslim.utils.inputs import tensors_in

LossFunction = Callable[[Any, Any], Tensor]
_AUXILIARY = 0.3  # weight of auxiliary heads, as in GoogLeNet's paper


def logits(output: Any) -> Tensor:
    """The first tensor of a model's output: the logits.

    Raises:
        TrainingError: there is none.
    """
    first = next(tensors_in(output), None)
    if first is None:
        raise TrainingError(f"the model's output is {type(output).__name__}, wanted a tensor of class "
                            "scores; give loss= for anything else")
    return first


def cross_entropy(label_smoothing: float = 0.0) -> LossFunction:
    """Cross entropy of the first output, plus a weighted one of each auxiliary head."""

    def loss(output: Any, targets: Tensor) -> Tensor:
        main = logits(output)
        heads = [scores for scores in tensors_in(output) if scores is not main]
        total = F.cross_entropy(main, targets, label_smoothing=label_smoothing)
        for scores in heads:
            total = total + _AUXILIARY * F.cross_entropy(scores, targets, label_smoothing=label_smoothing)
        return total

    return loss


def distillation(output: Any, teacher_output: Any, temperature: float) -> Tensor:
    """KL divergence between softened teacher and student outputs (Hinton, Vinyals and Dean 2015), mean over items.

    The square of the temperature keeps gradients at the scale of the plain loss.
    """
    student = F.log_softmax(logits(output) / temperature, dim=1)
    teacher = F.log_softmax(logits(teacher_output) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
