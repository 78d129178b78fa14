"""What criteria look at: the weights, and what data and a loss say beyond them; each made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchslim.coupling.groups import ChannelGroup, Member
from torchslim.errors import RequestError
from torchslim.importance.gradients import Gradients, Loss, totals
from torchslim.importance.types import Scores
from torchslim.utils.data import inputs_and_targets, list_batches
from torchslim.utils.inputs import Inputs
from torchslim.utils.modules import BLOCK_ELEMENTS, tensors_of

Gains = Callable[[ChannelGroup], float]


def _unknown(group: ChannelGroup) -> float:
    raise RequestError(f"importance: nothing says what a channel of `{group.name}` costs; give Evidence(gains=...)")


@dataclass(eq=False)
class Evidence:
    """What criteria may look at. Planning may score several times: what is costly is kept.

    Attributes:
        model: the network; to be left as it was.
        inputs: what it is called with, as `plan` got it: shapes to trace on, not pictures to judge by.
        data: as the caller gave it: batches of inputs, or where there is a loss of (inputs, targets).
        loss: of outputs and targets, to a scalar.
        seed: of what is random.
        gains: from a group to the multiply-adds that go when one of its channels goes. The planner sets it anew
            whenever it couples channels in another way.
        memo: for what criteria find out and may be asked for again; by names of tensors or modules, never by groups,
            which may be others the next time.
    """

    model: nn.Module
    inputs: Inputs
    data: Iterable[Any] | None = None
    loss: Loss | None = None
    seed: int = 0
    gains: Gains = _unknown
    memo: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The network's tensors by name."""
        return tensors_of(self.model)

    @cached_property
    def listed(self) -> list[Any]:
        """The batches of `data`, as given.

        Raises:
            RequestError: there are none.
        """
        return list_batches(self.data, "batches of inputs" if self.loss is None else "batches of (inputs, targets)")

    @cached_property
    def batches(self) -> list[Inputs]:
        """The inputs of each batch, without targets: what the model is called with.

        Raises:
            RequestError: there are none.
        """
        if self.loss is None:
            return self.listed
        return [inputs_and_targets(batch, index)[0] for index, batch in enumerate(self.listed)]

    @cached_property
    def gradients(self) -> Gradients:
        """What the loss says of the weights.

        Raises:
            RequestError: the data are no batches of (inputs, targets), or the loss is no function.
        """
        return Gradients(self.model, self.listed, self.loss)

    def sums(self, member: Member, power: int) -> Scores:
        """Sum of |w|^power over the weights at each channel of a member, shape (channels,)."""
        key = ("sums", member.name, member.dim, power)
        if key not in self.memo:
            self.memo[key] = _sums(self.state[member.name].detach(), member.dim, member.groups, power)
        return np.asarray(self.memo[key][member.indices].sum(axis=1))


def _sums(tensor: Tensor, dim: int, groups: int, power: int) -> Scores:
    """Sum of |w|^power at each index of one dimension; over all groups' inputs for a grouped convolution."""
    if groups > 1:
        return totals(_powers(tensor, power), dim, groups).double().cpu().numpy()
    rows = max(1, BLOCK_ELEMENTS * len(tensor) // max(tensor.numel(), 1))
    blocks = (_powers(block, power) for block in torch.split(tensor, rows))
    sums = [totals(block, dim).double() for block in blocks]
    total = torch.cat(sums) if dim == 0 else torch.stack(sums).sum(0)
    return total.cpu().numpy()


def _powers(tensor: Tensor, power: int) -> Tensor:
    return tensor.abs() if power == 1 else tensor.square()
