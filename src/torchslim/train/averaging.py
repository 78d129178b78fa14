"""States of a model that are kept beside it: an exponential average, and that of the best epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_UPDATES = "updates"


class KeptState:
    """A copy of a model's weights and buffers.

    Args:
        model: whose; nothing is copied before `take`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.tensors: dict[str, Tensor] = {}

    def _own(self) -> dict[str, Tensor]:
        """The model's tensors, by name; those that state dicts leave out, too."""
        buffers = dict(self._model.named_buffers())
        return {name: tensor.detach() for name, tensor in (*self._model.named_parameters(), *buffers.items())}

    @torch.no_grad()
    def take(self) -> None:
        """Copy the model's state."""
        self.tensors = {name: tensor.clone() for name, tensor in self._own().items()}

    @torch.no_grad()
    def give(self) -> None:
        """Put the copy into the model; without a copy nothing changes."""
        own = self._own()
        for name, tensor in self.tensors.items():
            own[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """The copy, for a checkpoint."""
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the copy of a checkpoint."""
        own = self._own()
        self.tensors = {name: tensor.to(own[name].device) for name, tensor in state.items()}


class Average(KeptState):
    """An exponential average of a model's weights and buffers; of what are no floats, the last values.

    Args:
        model: whose.
        decay: share of the average that stays at each update, once there were many.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's state after a step."""
        if not self._decay:
            return
        if not self.tensors:
            self.take()
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, tensor in self._own().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The model has the average inside, and its own state again outside."""
        if not self.tensors:
            yield
            return
        own = KeptState(self._model)
        own.take()
        self.give()
        try:
            yield
        finally:
            own.give()

    def state_dict(self) -> dict[str, Tensor]:
        """See `KeptState`."""
        return {**super().state_dict(), _UPDATES: torch.tensor(self._updates)} if self.tensors else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `KeptState`."""
        self._updates = int(state[_UPDATES]) if state else 0
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != _UPDATES})
