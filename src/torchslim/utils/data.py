"""Readers of `data=`: batches as a list, pairs of inputs and targets, datasets; and pictures divided in two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from torchslim.errors import RequestError, TorchslimError
from torchslim.utils.inputs import Inputs, arguments, map_tensors, tensors_in
from torchslim.utils.text import describe_error, format_shape

EVALUATION_BATCH = 64  # keeps a ResNet at 224 pixels well below a gigabyte
SAMPLED_INPUTS = 256
"""Inputs at which `list_batches` stops where a sample is enough."""

Item = tuple[Tensor, Any]


@dataclass(frozen=True)
class Data:
    """Pictures to train on and pictures held out.

    The target of an item depends on the task:

    | task | target |
    |---|---|
    | classification | class index, int |
    | multilabel | float32 tensor of 0 and 1, one a class |
    | segmentation | int64 tensor (height, width) of class indices; 255 is not counted |
    | detection | dict: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels, `labels` int64 (n,) from 1 |
    | keypoints | the same with `keypoints` float32 (n, points, 3) as x, y, visibility (0: not labelled) |
    | regression | float32 tensor, one value a name in `classes` |

    Attributes:
        name: the specification it came from.
        train: items `(input, target)`, augmented.
        test: held-out items, as they are.
        classes: the names of the classes, without a background for boxes; of the predicted values in a regression.
        shape: channels, height and width of an input.
        mean: what was taken off each channel, to show the pictures again; empty where it is not known.
        std: what each channel was divided by.
        task: what is predicted; see the table.
    """

    name: str
    train: Dataset[Item]
    test: Dataset[Item]
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: str = "classification"


def is_dataset(data: Any) -> bool:
    """Whether `data` gives items by number; what is iterated over (lists, loaders) gives batches."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__")


def iterate_batches(data: Any, wanted: str = "batches of inputs") -> Iterable[Any]:
    """The batches of a dataset of items, or those that an iterable gives, as they come.

    Raises:
        RequestError: it is a single batch, or nothing that can be gone through.
    """
    if is_dataset(data):
        return DataLoader(data, EVALUATION_BATCH)
    if isinstance(data, Tensor | Mapping | str | bytes) or not isinstance(data, Iterable):
        remedy = "[x]" if isinstance(data, Tensor) else "[torch.randn(8, 3, 32, 32)]"
        raise RequestError(f"data: got {describe(data)}, wanted an iterable of {wanted}; try data={remedy}")
    return data


def list_batches(data: Any, wanted: str = "batches of inputs", inputs: int | None = None) -> list[Any]:
    """The batches of `data=`, as they come; tensors of inference mode as ordinary ones, for gradients and writes.

    Args:
        data: see `iterate_batches`.
        wanted: what it should hold, for the message.
        inputs: stop when there are so many, and two batches; None for all.

    Raises:
        RequestError: it is a single batch, or can't be gone through, or holds none.
    """
    batches: list[Any] = []
    count = 0
    try:  # first: a generator may be in inference mode itself
        for batch in iterate_batches(data, wanted):
            batches.append(batch)
            count += batch_length(batch)
            if inputs is not None and count >= inputs and len(batches) > 1:
                break
    except TorchslimError:
        raise
    except Exception as error:  # whatever a loader of the user's own raises
        raise RequestError(f"data: could not be gone through: {describe_error(error)}; wanted an iterable of "
                           f"{wanted}") from error
    with torch.inference_mode(False):
        batches = [_ordinary(batch) for batch in batches]
    if not batches:
        raise RequestError(f"data: no batch in it; wanted an iterable of {wanted}, such as a list")
    return batches


def batch_length(batch: Any) -> int:
    """How many inputs a batch holds: the length of its first tensor, or 1."""
    first = next(tensors_in(batch), None)
    return len(first) if first is not None and first.dim() else 1


def _ordinary(batch: Any) -> Any:
    if not any(tensor.is_inference() for tensor in tensors_in(batch)):
        return batch
    return map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, batch)


def inputs_and_targets(batch: Any, index: int | None = None) -> tuple[Any, Any]:
    """The two parts of a labelled batch.

    Raises:
        RequestError: it is no pair.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise RequestError(f"data: {'a batch' if index is None else f'batch {index}'} is {describe(batch)}, wanted a "
                           "pair (inputs, targets)")
    return batch[0], batch[1]


def call_on_batch(model: nn.Module, batch: Inputs, index: int) -> Any:
    """What a model gives on one of the batches of `data=`.

    Raises:
        RequestError: it fails; the message names the batch.
    """
    try:
        args, kwargs = arguments(batch)
    except RequestError as error:
        raise RequestError(f"data: batch {index} is {describe(batch)}; {error}") from None
    try:
        return model(*args, **kwargs)
    except TorchslimError:
        raise
    except Exception as error:  # whatever a model raises for what it can't take
        is_pair = isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], Tensor)
        remedy = ("where batches are (inputs, targets), try data=(x for x, *_ in loader)" if is_pair
                  else "try one batch with a plain call of the model in eval mode")
        raise RequestError(f"data: batch {index} is {describe(batch)}, on which the model fails: "
                           f"{describe_error(error)}; wanted what the model is called with; {remedy}") from error


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
