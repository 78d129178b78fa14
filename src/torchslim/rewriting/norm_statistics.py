"""Batch norms behind rewritten layers: their statistics follow what the new layers give.

A fit loses part of what a layer gave, and so of its variance; the norms that follow still divide by that of before, and
what is too small here is smaller still a layer further. The running statistics are moved by as much as the data say
that means and variances have moved, so that a norm that reads what it read before stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from torchslim.compensation.moments import Tally

OPEN = 2.0
"""A fresh norm's bias, in deviations: so much lets the ReLU behind it through nearly all, as if the parts were linear,
which is where the old weights fit."""


def norms(model: nn.Module) -> dict[str, Any]:
    """Batch norms with running statistics, by name."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None}


def counting(model: nn.Module) -> tuple[dict[str, Tally], list[RemovableHandle]]:
    """Tallies of all norms, and the hooks that fill them while the model runs."""
    tallies = {name: Tally() for name in norms(model)}
    return tallies, [norm.register_forward_pre_hook(lambda _, args, name=name: tallies[name].add(args[0]))
                     for name, norm in norms(model).items()]


def following(model: nn.Module, before: Mapping[str, Tally], settled: set[str]) -> list[RemovableHandle]:
    """Hooks that move the statistics of the norms that are not settled yet while the model runs on the same batches.

    Each norm is settled on all that it has read so far before it norms; those that run are added to `settled`.
    """
    def hook(name: str, norm: Any) -> RemovableHandle:
        tally, mean, var = Tally(), norm.running_mean.clone(), norm.running_var.clone()

        def follow(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            tally.add(args[0])
            settled.add(name)
            found, old = tally.moments, before[name].moments
            norm.running_mean.copy_(mean + (found[0] - old[0]))
            norm.running_var.copy_(var * (found[1] / old[1]))

        handle: RemovableHandle = norm.register_forward_pre_hook(follow)
        return handle

    return [hook(name, norm) for name, norm in norms(model).items()
            if name not in settled and name in before and before[name].count]


@torch.no_grad()
def settle(chain: nn.Sequential, batches: Sequence[Tensor]) -> None:
    """Give each norm in a chain of layers the statistics of what it reads, and a bias that leaves what follows open."""
    for place, norm in enumerate(chain):
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            tally = Tally()
            for x in batches:
                tally.add(chain[:place](x))
            mean, var = tally.moments
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.bias.fill_(OPEN)
