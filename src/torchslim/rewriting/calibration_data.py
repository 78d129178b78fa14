"""The batches of `data=`: unlabelled inputs that the model takes, some held out to measure on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, arguments, tensors_in
from torchslim.utils.text import describe_error, format_shape

HELD_OUT_FRACTION = 5
"""One batch in so many is held out: measured on, not fitted to."""

Split = tuple[list[Inputs], list[Inputs]]
"""Batches to fit to, and held-out batches; none of these where there is a single batch that can't be split."""

_WANTED = "wanted an iterable of inputs without labels, each what the model is called with"


def split_batches(model: nn.Module, data: Any) -> Split:
    """The batches, each checked by running the model; the last fifth of them, but at least one, is held out.

    Of a single batch that is a tensor the last fifth of its items is; another single batch can't be split.

    Raises:
        RequestError: no batches, or some that the model does not take.
    """
    if isinstance(data, Tensor):
        raise RequestError(f"lighten: data= is a single {describe(data)}; {_WANTED}; try data=[x]")
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | Mapping):
        raise RequestError(f"lighten: data= is {describe(data)}; {_WANTED}, such as [torch.randn(8, 3, 32, 32)]")
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise RequestError("lighten: data= needs a model with weights, and this one is on the meta device, which has "
                           "none; leave data= out, or load the weights first")
    try:
        batches: list[Inputs] = list(data)
    except Exception as error:
        raise RequestError(f"lighten: data= could not be gone through: {describe_error(error)}; {_WANTED}") from error
    if not batches:
        raise RequestError("lighten: data= has no batch; give an iterable of inputs, or leave it out")
    for index, batch in enumerate(batches):
        _check_batch(model, batch, index)
    if len(batches) > 1:
        held_out = max(1, len(batches) // HELD_OUT_FRACTION)
        return batches[:-held_out], batches[-held_out:]
    (batch,) = batches
    if isinstance(batch, Tensor) and batch.dim() > 1 and len(batch) > 1:
        held_out = max(1, len(batch) // HELD_OUT_FRACTION)
        if all(_runs(model, part) for part in (batch[:-held_out], batch[-held_out:])):
            return [batch[:-held_out]], [batch[-held_out:]]
        # Its first dimension is no batch dimension.
    return batches, []


def _check_batch(model: nn.Module, batch: Any, index: int) -> None:
    where = f"lighten: data= batch {index}"
    tensors = list(tensors_in(batch))
    if not tensors:
        raise RequestError(f"{where} is {describe(batch)}; {_WANTED}")
    for tensor in tensors:
        if not tensor.numel():
            raise RequestError(f"{where} has an empty {describe(tensor)}; {_WANTED}; leave it out")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RequestError(f"{where} has infinite values, or values that are no numbers, in a {describe(tensor)}; "
                               "leave it out")
    try:
        _run(model, batch)
    except Exception as error:
        is_pair = isinstance(batch, list | tuple) and isinstance(batch[0], Tensor) and _runs(model, batch[0])
        remedy = ("; try data=(x for x, *_ in loader)" if is_pair
                  else "; try one batch with a plain call of the model in eval mode")
        raise RequestError(f"{where} is {describe(batch)}, on which the model fails: {describe_error(error)}; {_WANTED}"
                           f"{remedy}") from error


def _runs(model: nn.Module, batch: Inputs) -> bool:
    try:
        _run(model, batch)
    except Exception:
        return False
    return True


def _run(model: nn.Module, batch: Inputs) -> None:
    args, kwargs = arguments(batch)
    with evaluating(model), torch.no_grad():
        model(*args, **kwargs)


def describe(item: Any) -> str:
    """Type and size of a value: `list of 2 (tensor 8x3x32x32 float32, tensor 8 int64)`."""
    if isinstance(item, Tensor):
        return f"tensor {format_shape(item.shape)} {str(item.dtype).removeprefix('torch.')}"
    if isinstance(item, list | tuple):
        return f"{type(item).__name__} of {len(item)} ({_describe_first(item)})"
    if isinstance(item, Mapping):
        return f"{type(item).__name__} of {', '.join(map(repr, list(item)[:3]))}"
    return f"{type(item).__name__} {item!r}" if isinstance(item, int | float | str | None) else type(item).__name__


def _describe_first(items: Sequence[Any]) -> str:
    return ", ".join([describe(item) for item in items[:3]] + ["..."] * (len(items) > 3))
