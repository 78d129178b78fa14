"""Run a network in float64 throughout, whatever its code says.

`model.double()` converts what the model holds. Code that casts (`x.float()`, `softmax(..., dtype=torch.float32)`) or
creates tensors would fall back to float32, or fail where both meet; so would tensors that modules hold as plain
attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torchslim.tracing.arguments import written_arguments
from torchslim.utils.dispatch import DispatchMode
from torchslim.utils.inputs import Inputs, map_tensors, tensors_in

_WIDER_TYPE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
               torch.complex64: torch.complex128, torch.complex32: torch.complex128}


class _Float64Mode(DispatchMode):  # type: ignore[no-untyped-call]
    """Replaces narrower floating-point types in the arguments of operations by float64.

    Narrower tensors, too: those that are no parameters or buffers are not converted with the model. A tensor that an
    operation writes into stays as it is.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        if dtype in _WIDER_TYPE:
            kwargs = {**kwargs, "dtype": _WIDER_TYPE[dtype]}
        if any(tensor.dtype in _WIDER_TYPE for tensor in tensors_in((args, kwargs))):
            written = {name for _, name in written_arguments(func)}
            args = tuple(item if argument.name in written else map_tensors(_widened, item)
                         for argument, item in zip(func._schema.arguments, args, strict=False))
            kwargs = {name: item if name in written else map_tensors(_widened, item) for name, item in kwargs.items()}
        return func(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(_WIDER_TYPE.get(tensor.dtype, tensor.dtype))


def inputs_in_float64(inputs: Inputs) -> Inputs:
    """A model's inputs with floating-point tensors converted to float64."""
    converted: Inputs = map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)
    return converted


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
