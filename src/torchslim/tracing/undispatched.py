"""What no dispatched operation shows: `tensor.data = ...`, and tensors handed to code outside torch.

A call of these becomes an operation of the graph all the same, without an overload and named after the call
("Tensor.numpy"). Which parameters an operation writes into is told by the memory that they lie in: a write through a
view or through `.data` names another tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ASSIGNED = "Tensor.data"
"""The operation after which a tensor has the elements of the last value that it reads; the first is its old one."""

READ_OUTSIDE = frozenset({"Tensor.numpy", "Tensor.__array__", "Tensor.tolist", "Tensor.__dlpack__",
                          "Tensor.untyped_storage", "Tensor.storage"})
"""Calls that give a tensor's elements to code outside torch. Those that give one number are left out: one number has
no channels, and what computes it does."""


_OUTSIDE_NAMES = frozenset(name.removeprefix("Tensor.") for name in READ_OUTSIDE)


class UndispatchedCalls(TorchFunctionMode):
    """Reports the calls above; `assign(target, source)` also does the assignment."""

    def __init__(self, assign: Callable[[Tensor, Tensor], None], read_outside: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._assign = assign
        self._read_outside = read_outside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name == "__set__" and func.__self__ is torch.Tensor.data:
            return self._assign(*args)
        if name in _OUTSIDE_NAMES and isinstance(args[0], Tensor):
            self._read_outside(f"Tensor.{name}", args[0])
        return func(*args, **kwargs) if kwargs else func(*args)


class StateMemory:
    """The tensors that a model holds, by the memory that they lie in."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._held: dict[int, list[Tensor]] = {}
        self._ids: set[int] = set()
        for tensor in tensors:
            self._ids.add(id(tensor))
            self.add(tensor, tensor)

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether this very tensor is held by the model."""
        return id(tensor) in self._ids

    def add(self, tensor: Tensor, held: Tensor) -> None:
        """Take the memory of `tensor` for that of `held`."""
        key = _memory(tensor)
        if key is not None and all(held is not other for other in self._held.setdefault(key, [])):
            self._held[key].append(held)

    def at(self, tensor: Tensor) -> list[Tensor]:
        """The held tensors in the memory of this one."""
        key = _memory(tensor)
        return [] if key is None else self._held.get(key, [])


def _memory(tensor: Tensor) -> int | None:
    """A number for the memory of a tensor; None if it has none of its own (sparse ones, wrappers)."""
    with torch._C.DisableTorchFunction():  # this is no call of the model's
        return int(tensor.untyped_storage()._cdata) if torch._C._has_storage(tensor) else None


def same_elements(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one by their memory, with or without data."""
    with torch._C.DisableTorchFunction():
        return (_memory(a) is not None and _memory(a) == _memory(b) and a.dtype == b.dtype and a.shape == b.shape
                and a.stride() == b.stride() and int(a.storage_offset()) == int(b.storage_offset()))
