"""How well a model does on data with targets: the metrics of its task."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from torchslim.errors import MissingExtra, RequestError, TrainingError
from torchslim.train.batches import batches_of
from torchslim.train.processes import ALONE, Processes
from torchslim.train.sharded import is_sharded
from torchslim.train.tasks import Task, task_for
from torchslim.utils.data import EVALUATION_BATCH, Data
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import arguments, tensors_in
from torchslim.utils.modules import device_of
from torchslim.utils.seeding import seeded


def evaluate(model: nn.Module, data: Any, batch_size: int = EVALUATION_BATCH, *, task: str | None = None) -> float:
    """The main metric of a model on data: its accuracy, 0 to 1, where it names one class an item.

    The mean intersection over union of segmentation, the mean average precision of detection, and so on; see `metrics`.

    Args:
        model: on any device; its modes are restored.
        data: a dataset of `(input, target)`, a `Data` (its held-out part), or batches `(inputs, targets)`.
        batch_size: of a dataset.
        task: "classification", "multilabel", "segmentation", "detection", "keypoints" or "regression"; None for that of
            a `Data`, otherwise as the first target tells, where vectors of floats are taken for soft labels.

    Raises:
        TrainingError: no data, or an output that the metrics can not be taken from.
        RequestError: an unknown task, or a model that is called otherwise than its task asks.
        MissingExtra: torchmetrics is not installed.
    """
    return next(iter(metrics(model, data, batch_size, task=task).values()))


def metrics(model: nn.Module, data: Any, batch_size: int = EVALUATION_BATCH, *,
            task: str | None = None) -> dict[str, float]:
    """All metrics of a model on data, by name, the main one first.

    | task | metrics, of torchmetrics |
    |---|---|
    | classification | accuracy, F1 (mean over classes) |
    | multilabel | F1 (mean over classes), accuracy |
    | segmentation | mIoU (mean over classes, of all pixels), accuracy |
    | detection | mAP (COCO), mAP50 |
    | keypoints | PCK (share of points within a tenth of the box's longer side), mAP, mAP50 |
    | regression | R2, MAE |

    Args, Raises: see `evaluate`.
    """
    kind = task_for(data, task)
    if fault := kind.model_fault(model):
        raise RequestError(f"evaluate: the model {fault}")
    found = measured(model, data.test if isinstance(data, Data) else data, batch_size, kind)
    if not found:
        raise TrainingError("evaluate: no data; give a dataset or batches that are not empty")
    return found


def measured(model: nn.Module, data: Any, batch_size: int, task: Task,
             processes: Processes = ALONE) -> dict[str, float]:
    """The metrics of a model; none without data. With several processes, each scores its part, and all get the whole.

    All must call it then, with the same model and data.
    """
    device = device_of(model)
    built: Mapping[str, Any] = {}
    # Seeded, so that random datasets give the same result each time and the caller's generators are unchanged.
    with torch.inference_mode(), evaluating(model), seeded(0):
        with processes.agreed():
            batches = iter(batches_of(data, batch_size, device, processes, task.collate))
            first = next(batches, None)
            outputs = 0 if first is None else _outputs(_answers(model, first[0]))
        found = processes.gather(outputs)
        if not any(found):
            return {}
        if not all(found):  # too few for each to have one, so that each takes all
            if is_sharded(data):
                raise TrainingError(f"evaluate: process {found.index(0)} of {processes.world} has no batch of its own; "
                                    "give each some, or the same data to all")
            return measured(model, data, batch_size, task)
        try:
            built = task.build_metrics(max(found))
        except ImportError as error:
            raise MissingExtra("torchmetrics", "train", "the metrics of a task") from error
        with processes.agreed():
            for inputs, targets in () if first is None else chain((first,), batches):
                predictions, wanted = task.prepared(_answers(model, inputs), targets)
                for metric in built.values():
                    _update(metric.to(device), predictions, wanted, task)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that do not occur
            return _computed(built, task, processes.world)


def _answers(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def _outputs(output: Any) -> int:
    """The number of classes or values that a model gives."""
    first = next(tensors_in(output), None)
    return first.shape[1] if first is not None and first.ndim > 1 else 1


def _update(metric: Any, predictions: Any, targets: Any, task: Task) -> None:
    try:
        metric.update(predictions, targets)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise TrainingError(f"evaluate: no {task.metric} of these outputs and targets: {error}; wanted those of a task "
                            f"of {task.name}") from error


def _computed(metrics: Mapping[str, Any], task: Task, world: int) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, metric in metrics.items():
        metric.sync_on_compute = world > 1
        result |= task.values(name, metric.compute())
    return result
