"""Run a network in float64 throughout, whatever its code says.

`model.double()` converts what the model holds. Code that casts (`x.float()`, `softmax(..., dtype=torch.float32)`) or
makes tensors of its own would fall back to float32, or fail where both meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NARROWER = frozenset({torch.float32, torch.float16, torch.bfloat16})


class _Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that are told a narrower type are told float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _NARROWER:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """While this lasts, floating-point tensors are made, and converted to, in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Casts():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
