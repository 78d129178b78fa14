"""Weight times gradient of a loss: its change if weights are set to zero, per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchslim.coupling.groups import ChannelGroup, Member
from torchslim.errors import RequestError
from torchslim.utils.copying import copy_model
from torchslim.utils.data import inputs_and_targets
from torchslim.utils.inputs import arguments
from torchslim.utils.modules import named_modules, tensors_of
from torchslim.utils.text import describe_error

Loss = Callable[[Any, Any], Tensor]
Key = tuple[str, int, int]
Table = NDArray[np.float64]


class Gradients:
    """Products of weights and their gradients, summed over all but one dimension, for each batch of labelled data.

    Args:
        model: run in eval mode, as a copy; it is left as it was.
        data: batches of (inputs, targets).
        loss: of the model's outputs and the targets, to a scalar.
    """

    def __init__(self, model: nn.Module, data: Sequence[Any], loss: Loss | None) -> None:
        if not callable(loss):
            raise RequestError(f"loss: got {type(loss).__name__}, wanted a callable(outputs, targets); try "
                               "torch.nn.functional.cross_entropy")
        self.model, self.loss = model, loss
        self.batches = [inputs_and_targets(batch, index) for index, batch in enumerate(data)]
        self._tables: dict[Key, tuple[Table, Table]] = {}

    def prepare(self, groups: Sequence[ChannelGroup]) -> None:
        """Run the batches once for all of these groups."""
        keys = {(m.name, m.dim, m.groups) for group in groups for m in _readers(group)}
        if not keys <= self._tables.keys():
            self._tables = self._run(sorted(keys))

    def changes(self, group: ChannelGroup) -> Table:
        """First-order decrease of the loss when each channel is silenced, shape (batches, channels).

        Setting the weights that read the channel to zero silences it; the decrease is the sum of weight times gradient
        over them.
        """
        return self._sum(group, 0)

    def squares(self, group: ChannelGroup) -> Table:
        """Sum of (weight x gradient)^2 over the weights that read each channel, shape (batches, channels)."""
        return self._sum(group, 1)

    def _sum(self, group: ChannelGroup, which: int) -> Table:
        readers = [m for m in _readers(group) if (m.name, m.dim, m.groups) in self._tables]
        if not readers:
            raise RequestError(f"importance: no gradient reaches weights that read the channels of `{group.name}`; "
                               "leave it alone with exclude=, or use importance='l2'")
        return np.asarray(np.sum([self._tables[m.name, m.dim, m.groups][which][:, m.indices].sum(2) for m in readers],
                                 axis=0))

    def _run(self, keys: Sequence[Key]) -> dict[Key, tuple[Table, Table]]:
        model = copy_model(self.model)
        for _, module in named_modules(model):
            module.training = False
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        state = tensors_of(model)
        tables: dict[Key, tuple[list[Table], list[Table]]] = {}
        for index, (inputs, targets) in enumerate(self.batches):
            model.zero_grad()
            self._backward(model, inputs, targets, index)
            for key in keys:
                name, dim, groups = key
                if state[name].grad is not None:
                    product = state[name].detach().double() * state[name].grad.double()  # type: ignore[union-attr]
                    sums, squares = tables.setdefault(key, ([], []))
                    sums.append(totals(product, dim, groups).cpu().numpy())
                    squares.append(totals(product.square(), dim, groups).cpu().numpy())
        return {key: (np.stack(sums), np.stack(squares)) for key, (sums, squares) in tables.items()
                if len(sums) == len(self.batches)}

    def _backward(self, model: nn.Module, inputs: Any, targets: Any, index: int) -> None:
        args, kwargs = arguments(inputs)
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                value = self.loss(model(*args, **kwargs), targets)
                if not (isinstance(value, Tensor) and value.numel() == 1):
                    raise RequestError(f"loss: gave {type(value).__name__}"
                                       f"{f' of {value.numel()} numbers' if isinstance(value, Tensor) else ''}, wanted "
                                       "a scalar tensor; take its mean")
                if not torch.isfinite(value).all():
                    raise RequestError(f"loss: {float(value.detach())} on batch {index} of data; wanted a finite "
                                       "number: check the pictures and the targets")
                value.sum().backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise RequestError(f"data: batch {index} fails: {describe_error(error)}; wanted (inputs, targets) that the "
                               "model and the loss take") from error


def totals(tensor: Tensor, dim: int, groups: int = 1) -> Tensor:
    """Sums over all but one dimension; with groups, one per input channel of a grouped convolution."""
    if groups > 1:
        return tensor.reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1).sum((1, 3)).reshape(-1)
    others = [d for d in range(tensor.dim()) if d != dim]
    return tensor.sum(others) if others else tensor


def _readers(group: ChannelGroup) -> list[Member]:
    return [member for member in group.members if member.role == "reads"]
