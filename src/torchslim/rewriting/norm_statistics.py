"""Running statistics of the batch norms behind replaced layers, moved to what the new layers give.

A fit loses part of a layer's variance, but the norms that follow would still divide by the old one, and the loss would
add up from layer to layer. The running statistics are moved by as much as means and variances have moved on the data:
a norm whose input has not changed stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchslim.compensation.layerwise import has_running_statistics
from torchslim.compensation.moments import ChannelStatistics

INITIAL_BIAS = 2.0
"""The bias of a fresh norm, in standard deviations: the ReLU behind it passes nearly all, so that the parts start out
linear, which is what the old weights were factored for."""


def running_norms(model: nn.Module) -> dict[str, Any]:
    """Batch norms with running statistics, by name."""
    return {name: module for name, module in model.named_modules()
            if has_running_statistics(module)}


def collect_statistics(model: nn.Module) -> tuple[dict[str, ChannelStatistics], list[RemovableHandle]]:
    """Input statistics of all norms, and the hooks that collect them while the model runs."""
    statistics = {name: ChannelStatistics() for name in running_norms(model)}
    return statistics, [norm.register_forward_pre_hook(lambda _, args, name=name: statistics[name].add(args[0]))
                        for name, norm in running_norms(model).items()]


def move_statistics(model: nn.Module, before: Mapping[str, ChannelStatistics], moved: set[str],
                    until: nn.Module | None = None) -> list[RemovableHandle]:
    """Hooks that move the norms' running statistics while the model runs on the batches that `before` was collected on.

    A norm's statistics are moved by all its input so far, before it normalises.

    Args:
        model: whose norms are changed in place.
        before: input statistics in the old model, by name of the norm.
        moved: names of norms that are left as they are; those that were moved are added.
        until: what runs in a forward pass after this module first runs is ignored.
    """
    ignoring = False

    def set_ignoring(value: bool) -> None:
        nonlocal ignoring
        ignoring = value

    def register(name: str, norm: Any) -> RemovableHandle:
        tally, mean, var = ChannelStatistics(), norm.running_mean.clone(), norm.running_var.clone()

        def move(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if ignoring:
                return
            tally.add(args[0])
            moved.add(name)
            (new_mean, new_var), (old_mean, old_var) = tally.moments, before[name].moments
            norm.running_mean.copy_(mean + (new_mean - old_mean))
            norm.running_var.copy_(var * (new_var / old_var))

        handle: RemovableHandle = norm.register_forward_pre_hook(move)
        return handle

    handles = [register(name, norm) for name, norm in running_norms(model).items()
               if name not in moved and name in before and before[name].count]
    if handles and until is not None:
        handles += [model.register_forward_pre_hook(lambda *_: set_ignoring(False)),
                    until.register_forward_pre_hook(lambda *_: set_ignoring(True))]
    return handles


@torch.no_grad()
def initialise_norms(chain: nn.Sequential, batches: Sequence[Tensor]) -> None:
    """Give each norm in a chain of layers the statistics of its input, and the bias `INITIAL_BIAS`."""
    norm: Any
    for index, norm in enumerate(chain):
        if has_running_statistics(norm):
            tally = ChannelStatistics()
            for x in batches:
                tally.add(chain[:index](x))
            mean, var = tally.moments
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.bias.fill_(INITIAL_BIAS)
