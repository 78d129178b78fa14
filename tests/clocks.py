"""A backend whose times are arithmetic: tests of latency budgets look at no real clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from torchslim.latency.workloads import Workload


def blocks(width: int) -> int:
    """What a kernel that works on sixteen channels at once makes of a width."""
    return ceil(width / 16) * 16


def nanoseconds(rows: int, kernel: int, reads: int, makes: int, groups: int) -> float:
    """A layer: some time to call it, and its multiply-adds in blocks; widths that are no multiple of 8 are slow."""
    slow = 1.5 if reads % 8 and reads > 16 else 1.0
    inside = blocks(makes) if groups == reads else blocks(reads) * blocks(makes) / groups
    return (500 + rows * kernel * inside / 100) * slow


@dataclass
class Blocky:
    """The backend: times of layers by their geometries, of networks by hooks on their modules.

    Attributes:
        fixed: nanoseconds of a network that are in no layer.
        rounds: how much longer than it need a network takes in each round.
        true: which part of what layers save the network saves.
        asked: how many layers were measured, and how many networks.
    """

    fixed: float = 0.0
    true: float = 1.0
    rounds: tuple[float, ...] = (1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.2, 1.0)
    asked: list[int] = field(default_factory=lambda: [0, 0])
    whole: float = 0.0

    @property
    def name(self) -> str:
        return "blocky"

    @property
    def environment(self) -> Mapping[str, str]:
        return {"backend": "blocky", "fixed": str(self.fixed), "true": str(self.true)}

    def time_layers(self, workloads: Sequence[Workload]) -> list[float]:
        self.asked[0] += len(workloads)
        return [nanoseconds(w.batch * prod(w.input_size), prod(w.spec.kernel), w.spec.inputs, w.spec.outputs,
                            w.spec.groups) for w in workloads]

    def time_networks(self, models: Sequence[nn.Module], inputs: Tensor) -> list[list[float]]:
        self.asked[1] += len(models)
        times = [time_of(model, inputs) + self.fixed for model in models]
        self.whole = self.whole or times[0]  # the first network ever asked for is the uncut one
        # Now and then something disturbs a run: no run is faster for it.
        return [[(self.whole - self.true * (self.whole - time)) * slower for slower in self.rounds] for time in times]


def time_of(model: nn.Module, inputs: Tensor) -> float:
    """The sum over the layers that a network calls, at the widths that it has."""
    found: list[float] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        x = args[0]
        if isinstance(module, _ConvNd):
            found.append(nanoseconds(x.shape[0] * prod(x.shape[2:]), prod(module.kernel_size), module.in_channels,
                                     module.out_channels, module.groups))
        elif isinstance(module, nn.Linear):
            found.append(nanoseconds(prod(x.shape[:-1]), 1, module.in_features, module.out_features, 1))

    handles = [module.register_forward_hook(look) for module in model.modules()]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return sum(found)
