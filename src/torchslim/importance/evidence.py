"""The evidence of criteria: weights, and if needed data, a loss and gradients; computed lazily and cached."""

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
from torchslim.utils.data import SAMPLED_INPUTS, inputs_and_targets, list_batches
from torchslim.utils.inputs import Inputs
from torchslim.utils.modules import BLOCK_ELEMENTS, tensors_of

Gains = Callable[[ChannelGroup], float]


def _unknown(group: ChannelGroup) -> float:
    raise RequestError(f"importance: nothing says what a channel of `{group.name}` costs; give Evidence(gains=...)")


@dataclass(eq=False)
class Evidence:
    """The inputs of criteria. Planning may score several times, so costly results are cached.

    Attributes:
        model: the network; must not be changed.
        inputs: the example inputs of `plan`, for tracing only.
        data: the caller's batches: of inputs, or with a loss of (inputs, targets).
        loss: of outputs and targets, to a scalar.
        seed: of random numbers.
        gains: from a group to the multiply-adds that removing one of its channels saves. The planner sets it again
            whenever the coupling of channels changes.
        memo: cache for results of criteria; keyed by names of tensors or modules, never by groups, which can differ
            between calls.
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
        """Tensors by name."""
        return tensors_of(self.model)

    @cached_property
    def listed(self) -> list[Any]:
        """The batches of `data`.

        Raises:
            RequestError: there are none.
        """
        return list_batches(self.data, self._wanted)

    @cached_property
    def batches(self) -> list[Inputs]:
        """The model's inputs of each batch, without targets.

        Raises:
            RequestError: there are none.
        """
        return self._inputs(self.listed)

    @cached_property
    def first_listed(self) -> list[Any]:
        """As `listed`, the first `SAMPLED_INPUTS` inputs, two batches at the least; the others are not read."""
        return list_batches(self.data, self._wanted, SAMPLED_INPUTS)

    @cached_property
    def first_batches(self) -> list[Inputs]:
        """As `batches`, of `first_listed`."""
        return self._inputs(self.first_listed)

    @property
    def _wanted(self) -> str:
        return "batches of inputs" if self.loss is None else "batches of (inputs, targets)"

    def _inputs(self, listed: list[Any]) -> list[Inputs]:
        if self.loss is None:
            return listed
        return [inputs_and_targets(batch, index)[0] for index, batch in enumerate(listed)]

    @cached_property
    def gradients(self) -> Gradients:
        """The loss's gradients.

        Raises:
            RequestError: the data are not batches of (inputs, targets), or the loss is not callable.
        """
        return Gradients(self.model, self.listed, self.loss)

    def sums(self, member: Member, power: int) -> Scores:
        """Sum of |w|^power over the weights at each channel of a member, shape (channels,)."""
        key = ("sums", member.name, member.dim, power)
        if key not in self.memo:
            self.memo[key] = _sums(self.state[member.name].detach(), member.dim, member.groups, power)
        return np.asarray(self.memo[key][member.indices].sum(axis=1))


def _sums(tensor: Tensor, dim: int, groups: int, power: int) -> Scores:
    """Sum of |w|^power at each index of a dimension; for grouped convolutions, see `totals`."""
    if groups > 1:
        return totals(_powers(tensor, power), dim, groups).double().cpu().numpy()
    rows = max(1, BLOCK_ELEMENTS * len(tensor) // max(tensor.numel(), 1))
    blocks = (_powers(block, power) for block in torch.split(tensor, rows))
    sums = [totals(block, dim).double() for block in blocks]
    total = torch.cat(sums) if dim == 0 else torch.stack(sums).sum(0)
    return total.cpu().numpy()


def _powers(tensor: Tensor, power: int) -> Tensor:
    return tensor.abs() if power == 1 else tensor.square()
