"""Sparsity training: an L1 penalty on the scales of batch norms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.surgery.plans import Plan


@runtime_checkable
class Penalty(Protocol):
    """What is added to the loss of each step.

    Attributes:
        weight: of the penalty.
        names: of the parameters that it presses.
        parameters: these.
    """

    weight: float
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]

    def __call__(self) -> Tensor:
        """The penalty, a scalar with gradient."""
        ...


class Slimming:
    """L1 penalty: `weight` times the sum of the absolute scales of batch norms.

    It moves the scales of unimportant channels toward zero, where a global threshold separates them from the rest
    (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming").

    Args:
        model: the model that is trained.
        plan_or_groups: None for all batch norms with scales; a plan, for those that it cuts; or channel groups
            (`torchslim.groups`), for those of channels that can be cut.
        weight: of the penalty, per unit of scale.

    Attributes:
        names: of the penalised parameters.
        parameters: these.

    Raises:
        RequestError: a weight that is negative or not finite, a model without such scales, or a plan or groups without
            any of them.
    """

    def __init__(self, model: nn.Module, plan_or_groups: Plan | Iterable[ChannelGroup] | None = None,
                 weight: float = 1e-4) -> None:
        if not (weight >= 0 and math.isfinite(weight)):
            raise RequestError(f"Slimming: weight={weight} found, a number from 0 wanted; try 1e-4")
        # named_modules yields a shared module once, so it is penalised once
        scales = {f"{name}.weight".lstrip("."): module.weight for name, module in model.named_modules()
                  if isinstance(module, _BatchNorm) and module.weight is not None}
        if not scales:
            raise RequestError(f"Slimming: {type(model).__name__} has no batch norm with a scale, so nothing "
                               "can be pressed; train without sparsity and score by importance='l2'")
        if plan_or_groups is not None:
            named = _parameter_names(plan_or_groups)
            scales = {name: scale for name, scale in scales.items() if name in named}
            if not scales:
                raise RequestError("Slimming: the plan or the groups cut no scale of a batch norm of this model; "
                                   "give those that were made for it, or none")
        self.weight = weight
        self.names = tuple(scales)
        self.parameters: tuple[Tensor, ...] = tuple(scales.values())

    def __call__(self) -> Tensor:
        """The penalty, a scalar with gradient."""
        return self.weight * torch.stack([scale.abs().sum() for scale in self.parameters]).sum()


def _parameter_names(plan_or_groups: Plan | Iterable[ChannelGroup]) -> set[str]:
    if isinstance(plan_or_groups, Plan):
        return set(plan_or_groups.kept)
    return {member.name for group in plan_or_groups if not group.frozen for member in group.members if member.scale}
