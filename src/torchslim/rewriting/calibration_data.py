"""The batches of `data=`: unlabelled inputs that the model takes, some held out to measure on."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError
from torchslim.utils.data import call_on_batch, describe, list_batches
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, tensors_in

HELD_OUT_FRACTION = 5
"""One batch in so many is held out: measured on, not fitted to."""

Split = tuple[list[Inputs], list[Inputs]]
"""Batches to fit to, and held-out batches; none of these where there is a single batch that can't be split."""


def split_batches(model: nn.Module, data: Any) -> Split:
    """The batches, each checked by running the model; the last fifth of them, but at least one, is held out.

    Of a single batch that is a tensor the last fifth of its items is; another single batch can't be split.

    Raises:
        RequestError: no batches, or some that the model does not take.
    """
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise RequestError("data: needs a model with weights, and this one is on the meta device, which has "
                           "none; leave data= out, or load the weights first")
    batches = list_batches(data, "batches of inputs without labels")
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
    for tensor in tensors_in(batch):
        if not tensor.numel():
            raise RequestError(f"data: batch {index} has an empty {describe(tensor)}; leave it out")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RequestError(f"data: batch {index} has infinite values, or values that are no numbers, in a "
                               f"{describe(tensor)}; leave it out")
    with evaluating(model), torch.no_grad():
        call_on_batch(model, batch, index)


def _runs(model: nn.Module, batch: Inputs) -> bool:
    try:
        _check_batch(model, batch, 0)
    except RequestError:
        return False
    return True
