"""Sparsity before the cut: an L1 penalty that presses the scales of batch norms toward zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.errors import RequestError
from torchslim.plans import Plan


class Slimming:
    """`weight` times the sum of the absolute scales of batch norms; call it for the penalty.

    With it, training sorts channels into those that matter and those whose scale goes toward zero, which a
    global threshold then finds (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
    Slimming").

    Args:
        model: the model that is trained.
        plan: None for every batch norm with a scale, or a plan: those whose scales it cuts.
        weight: of the penalty, per unit of scale.

    Attributes:
        names: the parameters that are pressed.

    Raises:
        RequestError: a weight that is negative or no number, a model without such scales, or a plan that cuts
            none of them.
    """

    def __init__(self, model: nn.Module, plan: Plan | None = None, weight: float = 1e-4) -> None:
        if not (weight >= 0 and math.isfinite(weight)):
            raise RequestError(f"Slimming: weight={weight} found, a number from 0 wanted; try 1e-4")
        # named_modules gives a shared module once, so that it is not pressed twice
        scales = {f"{name}.weight".lstrip("."): module.weight for name, module in model.named_modules()
                  if isinstance(module, _BatchNorm) and module.weight is not None}
        if not scales:
            raise RequestError(f"Slimming: {type(model).__name__} has no batch norm with a scale, so nothing "
                               "can be pressed; train without sparsity and score by importance='l2'")
        if plan is not None:
            scales = {name: scale for name, scale in scales.items() if name in plan.kept}
            if not scales:
                raise RequestError("Slimming: the plan cuts no scale of a batch norm of this model; "
                                   "give the plan that was made for it, or none")
        self.weight = weight
        self.names = tuple(scales)
        self._scales = list(scales.values())

    def __call__(self) -> Tensor:
        """The penalty, a scalar with gradient."""
        return self.weight * torch.stack([scale.abs().sum() for scale in self._scales]).sum()
