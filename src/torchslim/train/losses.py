"""Losses: cross entropy, with auxiliary heads, and distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torchslim.errors import TrainingError
from torchslim.utils.inputs import tensors_in

LossFunction = Callable[[Any, Any], Tensor]
AUXILIARY = 0.3
"""Weight of auxiliary heads, as in GoogLeNet's paper."""


def answer(output: Any) -> Tensor:
    """The first tensor of a model's output: class scores, or predicted values.

    Raises:
        TrainingError: there is none.
    """
    first = next(tensors_in(output), None)
    if first is None:
        raise TrainingError(f"the model's output is {type(output).__name__}, wanted a tensor of scores or values; give "
                            "loss= for anything else")
    return first


def over_heads(loss: LossFunction, output: Any, targets: Any) -> Tensor:
    """The loss of the first output, plus a weighted one of each auxiliary head."""
    main = answer(output)
    total = loss(main, targets)
    for scores in tensors_in(output):
        if scores is not main and scores.ndim == main.ndim:
            total = total + AUXILIARY * loss(scores, targets)
    return total


def cross_entropy(label_smoothing: float = 0.0, class_weights: Sequence[float] = ()) -> LossFunction:
    """Cross entropy of the first output, plus a weighted one of each auxiliary head."""

    def loss(output: Any, targets: Tensor) -> Tensor:
        scores = answer(output)
        if class_weights and scores.shape[1] != len(class_weights):
            raise TrainingError(f"class_weights: {len(class_weights)} given, the model has scores of {scores.shape[1]} "
                                "classes; give a weight for each")
        if targets.is_floating_point() and targets.shape[1] < scores.shape[1]:  # of classes that do not occur
            targets = F.pad(targets, (0, scores.shape[1] - targets.shape[1]))
        weight = scores.new_tensor(class_weights) if class_weights else None
        return over_heads(partial(F.cross_entropy, weight=weight, label_smoothing=label_smoothing), output, targets)

    return loss


def distillation(output: Any, teacher_output: Any, temperature: float) -> Tensor:
    """KL divergence between softened teacher and student scores (Hinton, Vinyals and Dean 2015).

    The mean over items, and over positions where there are such. The square of the temperature keeps gradients at the
    scale of the plain loss.
    """
    student = F.log_softmax(answer(output) / temperature, dim=1)
    teacher = F.log_softmax(answer(teacher_output) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1).mean()
