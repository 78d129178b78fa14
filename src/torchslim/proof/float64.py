"""Run a network in float64 throughout, whatever its code says.

`model.double()` converts what the model holds. Code that casts (`x.float()`, `softmax(..., dtype=torch.float32)`) or
creates tensors would fall back to float32, or fail where both meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NARROWER_TYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


class _Float64Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces narrower floating-point types in the arguments of operations by float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _NARROWER_TYPES:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """In this context floating-point tensors are created in, and converted to, float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64Mode():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
