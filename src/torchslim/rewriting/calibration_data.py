"""The batches of `data=`: unlabelled inputs that the model takes, some kept back to measure on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, arguments, tensors_in
from torchslim.utils.text import dims, first_line

KEPT_BACK = 5
"""One batch in so many is measured on, and not fitted to."""

Split = tuple[list[Inputs], list[Inputs]]
"""Batches to fit to, and batches to measure on; none of these where there is but one batch that has no parts."""

_WANTED = "wanted an iterable of inputs without labels, each what the model is called with"


def taken(model: nn.Module, data: Any) -> Split:
    """The batches, each of which the model was run on; the last fifth of them, but one at least, is to measure on.

    Of a single batch that is a tensor the last fifth of its items is; another single batch can't be parted.

    Raises:
        RequestError: no batches, or some that the model does not take.
    """
    if isinstance(data, Tensor):
        raise RequestError(f"lighten: data= is a single {told(data)}; {_WANTED}; try data=[x]")
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | Mapping):
        raise RequestError(f"lighten: data= is {told(data)}; {_WANTED}, such as [torch.randn(8, 3, 32, 32)]")
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise RequestError("lighten: data= needs a model with weights, and this one is on the meta device, which has "
                           "none; leave data= out, or load the weights first")
    try:
        batches: list[Inputs] = list(data)
    except Exception as error:
        raise RequestError(f"lighten: data= could not be gone through: {first_line(error)}; {_WANTED}") from error
    if not batches:
        raise RequestError("lighten: data= has no batch; give an iterable of inputs, or leave it out")
    for place, batch in enumerate(batches):
        _check(model, batch, place)
    if len(batches) > 1:
        kept = max(1, len(batches) // KEPT_BACK)
        return batches[:-kept], batches[-kept:]
    (only,) = batches
    if isinstance(only, Tensor) and only.dim() > 1 and len(only) > 1:
        kept = max(1, len(only) // KEPT_BACK)
        if all(_runs(model, part) for part in (only[:-kept], only[-kept:])):
            return [only[:-kept]], [only[-kept:]]
        # It is one item, and its first dimension is something else.
    return batches, []


def _check(model: nn.Module, batch: Any, place: int) -> None:
    where = f"lighten: data= batch {place}"
    tensors = list(tensors_in(batch))
    if not tensors:
        raise RequestError(f"{where} is {told(batch)}; {_WANTED}")
    for tensor in tensors:
        if not tensor.numel():
            raise RequestError(f"{where} has an empty {told(tensor)}; {_WANTED}; leave it out")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RequestError(f"{where} has infinite values, or values that are no numbers, in a {told(tensor)}; "
                               "leave it out")
    try:
        _run(model, batch)
    except Exception as error:
        known = isinstance(batch, list | tuple) and isinstance(batch[0], Tensor) and _runs(model, batch[0])
        remedy = ("; try data=(x for x, *_ in loader)" if known
                  else "; try one batch with a plain call of the model in eval mode")
        raise RequestError(f"{where} is {told(batch)}, on which the model fails: {first_line(error)}; {_WANTED}"
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


def told(item: Any) -> str:
    """What something is, in a few words: `list of 2 (tensor 8x3x32x32 float32, tensor 8 int64)`."""
    if isinstance(item, Tensor):
        return f"tensor {dims(item.shape)} {str(item.dtype).removeprefix('torch.')}"
    if isinstance(item, list | tuple):
        return f"{type(item).__name__} of {len(item)} ({_some(item)})"
    if isinstance(item, Mapping):
        return f"{type(item).__name__} of {', '.join(map(repr, list(item)[:3]))}"
    return f"{type(item).__name__} {item!r}" if isinstance(item, int | float | str | None) else type(item).__name__


def _some(items: Sequence[Any]) -> str:
    return ", ".join([told(item) for item in items[:3]] + ["..."] * (len(items) > 3))
