"""`package.module:factory` or `file.py:factory`: a function that returns `Data` or two datasets of any task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchslim.errors import TorchslimError
from torchslim.train.dataset import classes_of
from torchslim.train.datasets.augmentation import NOT_COUNTED
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data, describe
from torchslim.utils.importing import import_factory
from torchslim.utils.text import describe_error

_TARGETS = ("a class index (int), a float32 vector, an int64 mask of height x width, or a dict with boxes and labels")


def load(request: DataRequest) -> Data:
    """What a function of the user's own returns.

    Raises:
        RequestError: it can't be imported, fails, returns no datasets, or its targets are of no task or another.
    """
    if request.skip_broken:
        raise request.error(f"skip_broken={request.skip_broken:g} is for files that torchslim reads, and your function "
                            "reads its own; leave it out, and leave broken pictures out there")
    made, spec = _call(request), request.spec
    if isinstance(made, Data):
        if request.task not in (None, made.task):
            raise request.error(f"returned data for {made.task}, task={request.task!r} asked for; leave task out")
        return made
    if not (isinstance(made, tuple) and len(made) == 2 and all(hasattr(d, "__getitem__") for d in made)):
        raise request.error(f"returned {type(made).__name__}, wanted two datasets, to train on and to test on")
    train, test = made
    for part, dataset in (("train", train), ("test", test)):
        if len(dataset) == 0:
            raise request.error(f"the dataset to {part} on is empty; give it items")
    first = train[0]
    if not (isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[0], Tensor)):
        raise request.error(f"an item is {type(first).__name__}, wanted a pair (tensor, target)")
    task = request.check_task(*tasks_of(request, first[1]))
    return Data(spec, train, test, _classes(request, task, first[1], train, test), tuple(first[0].shape), task=task)


def _call(request: DataRequest) -> Any:
    spec = request.spec
    try:
        path = spec.rpartition(":")[0]
        if path.endswith(".py") and not Path(path).is_file():
            raise request.error(f"there is no file {path}; give that of your function, or another kind of data, such "
                                "as digits or folder:PATH")
        function = import_factory(spec)
        parameters = inspect.signature(function).parameters
        offered = {"size": request.size, "seed": request.seed, "channels": request.channels, "task": request.task}
        return function(**{key: value for key, value in offered.items() if key in parameters and value is not None})
    except TorchslimError:
        raise
    except Exception as error:
        raise request.error(f"failed with {describe_error(error)}") from error


def tasks_of(request: DataRequest, target: Any) -> tuple[str, ...]:
    """The tasks that a target may be of, by the table of `Data`; only a vector of 0 and 1 may be of two.

    Raises:
        RequestError: none, or two and the request names neither.
    """
    if isinstance(target, Mapping):
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            raise request.error(f"the first target has no {missing[0]!r}, wanted a dict with boxes (n, 4) and labels "
                                "(n,), and keypoints (n, points, 3) if there are some")
        return ("keypoints", "detection") if "keypoints" in target else ("detection",)
    if not isinstance(target, Tensor) or target.ndim == 0:
        try:
            if int(target) == float(target) and not (isinstance(target, Tensor) and target.is_floating_point()):
                return ("classification",)
        except (TypeError, ValueError):
            pass
    elif target.ndim == 1 and target.dtype == torch.float32:
        if not bool(((target == 0) | (target == 1)).all()):
            return ("regression",)
        if request.task is None:
            raise request.error(f"the first target is {describe(target)} of 0 and 1, which may be several classes or "
                                "predicted values; give task=\"multilabel\" or \"regression\", or return Data")
        return ("multilabel", "regression")
    elif target.ndim == 2 and target.dtype == torch.int64:
        return ("segmentation",)
    raise request.error(f"the first target is {describe(target)}, wanted {_TARGETS}")


def _classes(request: DataRequest, task: str, first: Any, train: Any, test: Any) -> tuple[str, ...]:
    """Names from the training dataset's `classes`, or numbers."""
    if task == "classification":
        return classes_of(request.spec, train, test)
    named = getattr(train, "classes", None)
    if task in ("multilabel", "regression"):
        names = tuple(map(str, range(len(first)) if named is None else named))
        if len(names) != len(first):
            raise request.error(f"{len(names)} names in `classes`, and targets of {len(first)} values; give one a "
                                "value")
        return names
    if named is not None:
        return tuple(map(str, named))
    targets = (dataset[index][1] for dataset in (train, test) for index in range(len(dataset)))
    if task == "segmentation":
        highest = max(int(torch.where(target == NOT_COUNTED, 0, target).max()) for target in targets)
        return tuple(map(str, range(highest + 1)))
    highest = max((int(target["labels"].max()) for target in targets if len(target["labels"])), default=0)
    if highest == 0:
        raise request.error("no boxes in any target; give some, with labels from 1")
    return tuple(map(str, range(1, highest + 1)))
