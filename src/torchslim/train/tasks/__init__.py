"""Tasks: what is predicted, by which loss, and how well. One file a kind, `task.py` has the base class.

In comes a task's name with its classes, or the first batch; out goes a `Task`. Metrics are those of torchmetrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchslim.errors import RequestError
from torchslim.train.tasks.classification import Classification, Multilabel
from torchslim.train.tasks.detection import Detection, Keypoints
from torchslim.train.tasks.regression import Regression
from torchslim.train.tasks.segmentation import Segmentation
from torchslim.train.tasks.task import Task
from torchslim.utils.data import Data, is_dataset
from torchslim.utils.seeding import seeded
from torchslim.utils.text import did_you_mean

__all__ = ["TASKS", "Task", "task_for", "task_named"]

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (
    Classification, Multilabel, Segmentation, Detection, Keypoints, Regression)}


def task_named(name: str, classes: tuple[str, ...] = (), **options: Any) -> Task:
    """A task by its name.

    Args:
        name: one of `TASKS`.
        classes: names of the classes, or of the predicted values.
        options: fields of the task.

    Raises:
        RequestError: an unknown name, or an option that the task does not have.
    """
    if name not in TASKS:
        raise RequestError(f"task {name!r}: no such task; {did_you_mean(str(name), list(TASKS))}")
    given = {option: value for option, value in options.items() if value}
    unknown = next((option for option in given if option not in TASKS[name].__dataclass_fields__), None)
    if unknown is not None:
        raise RequestError(f"{unknown}={given[unknown]!r} found in a task of {name}, which has none; leave it out")
    return TASKS[name](classes, **given)


def task_for(data: Any, name: str | None = None, **options: Any) -> Task:
    """The task of data.

    Args:
        data: a `Data`, which says it; a dataset, whose first item's target tells; or batches. Of batches that a loader
            makes, its dataset tells; of others that can't be looked at without taking one, nothing.
        name: of the task; None for what the data tell. Vectors of floats are taken for soft labels of classes.
        options: fields of the task.

    Raises:
        RequestError: see `task_named`.
    """
    if isinstance(data, Data):
        kind, part, classes = name or data.task, data.test, data.classes
    else:
        kind, part, classes = name or "", data, ()
    with seeded(0):  # items may be drawn
        target = None if kind in TASKS and kind != Keypoints.name else _first_target(part)
    kind = kind or _named_by(target)
    if kind == Keypoints.name and isinstance(target, Mapping) and "keypoints" in target:
        options["points"] = target["keypoints"].shape[1]
    return task_named(kind, classes, **options)


def _first_target(data: Any) -> Any:
    """The target of the first item, or those of the first batch; None where it can't be had without taking it."""
    source: Any = data if hasattr(data, "__getitem__") else getattr(data, "dataset", None)
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__") or not len(source):
        return None
    first = source[0]
    target: Any = first[1] if isinstance(first, tuple | list) and len(first) == 2 else None
    items = is_dataset(source) and isinstance(target, Tensor)
    target = target[None] if items else target
    return target[0] if isinstance(target, list | tuple) and target else target


def _named_by(target: Any) -> str:
    if isinstance(target, Mapping) and "boxes" in target:
        return Keypoints.name if "keypoints" in target else Detection.name
    if isinstance(target, Tensor) and target.ndim == 3 and not target.is_floating_point():
        return Segmentation.name
    return Classification.name
