"""Operations of a run on shapes alone: real tensors of the model are stood in for, constants are computed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchslim.tracing.arguments import flat, map_arguments, operation_name
from torchslim.tracing.graph import Value
from torchslim.tracing.meta_shapes import infer_on_meta
from torchslim.tracing.undispatched import StateMemory

# Operations whose result, or its shape, depends on the data of their arguments.
_READS_DATA = frozenset({
    "aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero",
    "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.bincount", "aten.repeat_interleave",
    "torchvision.nms", "aten._assert_async",
})

SMALL_CONSTANT = 4096
"""Computations with no more elements of buffers than these are done on the meta device, too: their data may decide what
the model does next."""


class MetaOperations:
    """Does the operations of one run on the meta device.

    Attributes:
        needs_data: what of the run can't be done on shapes alone; empty if nothing.
    """

    def __init__(self, memory: StateMemory, value_of: Callable[[Tensor], Value]) -> None:
        self.needs_data = ""
        self._memory = memory
        self._value_of = value_of
        self._copies: dict[int, Tensor] = {}
        self._originals: dict[int, Tensor] = {}

    def note(self, reason: str) -> None:
        """Note what can't be done on shapes; the first reason counts."""
        self.needs_data = self.needs_data or reason

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation: shapes, or what constants give."""
        name = operation_name(func)
        result = None if kwargs else infer_on_meta(name, args)
        if result is not None:
            return result
        tensors = flat((*args, *kwargs.values()))
        if tensors and not any(t.is_meta for t in tensors):
            if not any(t in self._memory or self._value_of(t).name for t in tensors):
                return func(*args, **kwargs)  # plain constants: their data may matter, and costs little
            if self._are_small_constants(tensors) and not func._schema.is_mutable:
                return map_arguments(self._apart_from_state, (func(*args, **kwargs),))[0]
        if name in _READS_DATA and tensors:
            # The run goes on: most of these operations fail on the meta device, and the result is discarded anyway.
            self.note(f"{func} reads data")
        result = func(*map_arguments(self._meta_copy, args),
                      **{key: map_arguments(self._meta_copy, (item,))[0] for key, item in kwargs.items()})
        return map_arguments(self._original, (result,))[0]

    def _are_small_constants(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a computation is one with a model's own numbers, such as the strides of a detector's maps."""
        return sum(t.numel() for t in tensors) <= SMALL_CONSTANT and all(self._value_of(t).fixed for t in tensors)

    def _apart_from_state(self, tensor: Tensor) -> Tensor:
        """A copy of what shares memory with the model's tensors: the run writes into shapes, and not into these."""
        held = self._memory.at(tensor)
        if not held:
            return tensor
        copy = tensor.clone()
        for one in held:
            self._memory.add(copy, one)
        return copy

    def _meta_copy(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        copy = self._copies.get(id(tensor))
        if copy is None:
            self._value_of(tensor)  # keeps it alive
            copy = self._copies[id(tensor)] = torch.empty_like(tensor, device="meta", requires_grad=False)
            self._originals[id(copy)] = tensor
            for held in self._memory.at(tensor):
                self._memory.add(copy, held)
        return copy

    def _original(self, tensor: Tensor) -> Tensor:
        """In-place operations on a tensor with a meta copy must give the tensor itself back to the model."""
        original = self._originals.get(id(tensor), tensor)
        if original.shape != tensor.shape:
            self.note("a tensor that is not on the meta device is resized in place")
            return tensor
        return original
