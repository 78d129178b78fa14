"""What can be known of a request before the first file is written: data, model, training step, criterion, budget."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.errors import RequestError, TorchslimError
from torchslim.pipeline.context import RunContext, TrainingContext
from torchslim.pipeline.phases import initial_model, plan_for
from torchslim.train import Data, fit
from torchslim.train.dataset import listed_targets
from torchslim.train.log import check_tracker
from torchslim.train.tasks import Task
from torchslim.utils.copying import copy_model
from torchslim.utils.data import describe
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import arguments
from torchslim.utils.seeding import seeded
from torchslim.utils.text import describe_error, format_shape


def check_request(run: RunContext) -> None:
    """Raise what would fail later.

    Raises:
        RequestError: data, model, criterion or budget do not fit each other.
    """
    model = initial_model(run)
    settings = run.settings
    trained = bool(settings.baseline_epochs or settings.pressing_epochs or settings.finetune_epochs)
    run.team.works["check"] = partial(check_training, run)
    run.team.do("check", {"model": (model, None)}, run.source, trained=trained)
    scaled = any(isinstance(m, _BatchNorm) and m.weight is not None for m in model.modules())
    if settings.pressing_epochs and not scaled:
        raise RequestError(f"{settings.model}: no batch norm with a scale to press; "
                           "leave that out with --sparsify-epochs 0 --importance l2")
    plan_for(run, model)


def check_training(run: TrainingContext, model: nn.Module, trained: bool = True) -> None:
    """Check the data, and that the model takes them, answers as the task asks, and can be trained with these settings.

    Raises:
        RequestError: they do not fit each other.
    """
    with run.processes.agreed():
        check_data(run.data, run.task)
        _check_outputs(run, model)
        if trained:
            _check_step(run, model)
    if trained:
        fit(copy_model(model), run.data, **{**run.fit_options, "milestones": run.settings.milestones, "epochs": 0,
                                            "tracker": None})
        check_tracker(run.settings.tracker)


def check_data(data: Data, task: Task) -> None:
    """Check that each part has items, that the first and the last are what training reads, and known classes.

    Raises:
        RequestError: they are not.
    """
    if len(data.shape) < 3:
        raise RequestError(f"{data.name}: items are of {format_shape(data.shape)}, wanted pictures, channels first, "
                           "such as 3x32x32")
    for name, part in (("train", data.train), ("test", data.test)):
        where = f"{data.name}: the dataset to {name} on"
        dataset: Any = part
        try:
            count = len(dataset)
        except TypeError as error:
            raise RequestError(f"{where} has no length; give it a `__len__`") from error
        if not count:
            raise RequestError(f"{where} is empty; give it items")
        for index in sorted({0, count - 1}):
            try:
                with seeded(0):
                    item = dataset[index]
            except TorchslimError:
                raise
            except Exception as error:
                raise RequestError(f"{where}: item {index} can't be read: {describe_error(error)}; mend it or leave it "
                                   "out") from error
            _check_item(data, task, f"{where}: item {index}", item)
        listed = listed_targets(dataset) if data.task == "classification" else None
        wrong = [target for target in listed or () if not 0 <= target < len(data.classes)]
        if wrong:
            raise RequestError(f"{where}: class {wrong[0]} found, wanted 0 to {len(data.classes) - 1}; number the "
                               "classes from 0")


def _check_item(data: Data, task: Task, where: str, item: Any) -> None:
    if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Tensor)):
        wanted = "class index" if data.task == "classification" else "target"
        raise RequestError(f"{where} is {describe(item)}, wanted a pair (tensor, {wanted})")
    picture, target = item
    if tuple(picture.shape) != tuple(data.shape):
        raise RequestError(f"{where} is a picture of {format_shape(picture.shape)}, wanted {format_shape(data.shape)} "
                           "as the first one to train on; bring all to one size")
    if not picture.is_floating_point() or not bool(picture.isfinite().all()):
        what = "values that are not finite" if picture.is_floating_point() else describe(picture)
        raise RequestError(f"{where} has {what}, wanted finite numbers such as float32; convert it")
    if fault := task.target_fault(target, picture.shape):
        raise RequestError(f"{where} {fault}")


def _check_outputs(run: TrainingContext, model: nn.Module) -> None:
    """The model takes a picture, and answers as the task asks."""
    shape = run.data.shape
    if fault := run.task.model_fault(model):
        raise RequestError(f"{run.settings.model}: {fault}")
    try:
        args, kwargs = arguments(run.inputs)
        with torch.no_grad(), evaluating(model):
            output = model(*args, **kwargs)
    except Exception as error:
        channels = _channels_taken(model, run)
        remedy = (f"it takes pictures of {channels} channels, {run.settings.data} has pictures of {shape[0]}; "
                  "give a model or data of as many" if channels else "try another --size")
        raise RequestError(f"{run.settings.model}: fails on a picture of {format_shape((1, *shape))}: "
                           f"{describe_error(error)}; {remedy}") from error
    if fault := run.task.output_fault(output, shape):
        raise RequestError(f"{run.settings.model}: {fault.replace('{data}', run.settings.data)}")


def _channels_taken(model: nn.Module, run: TrainingContext) -> int:
    """The number of channels with which the model would run, if it is 1, 3 or 4 and not the pictures'; else 0."""
    for channels in {1, 3, 4} - {run.data.shape[0]}:
        try:
            args, kwargs = arguments(run.task.example((channels, *run.data.shape[1:]), torch.Generator()))
            with torch.no_grad(), evaluating(model):
                model(*args, **kwargs)
        except Exception:  # it fails with these, too
            continue
        return channels
    return 0


def _check_step(run: TrainingContext, model: nn.Module) -> None:
    """A training step runs, on a copy."""
    data: Any = run.data.train
    count = min(2, run.settings.batch_size, len(data))
    trained = copy_model(model).train()
    try:
        with seeded(0):
            items = [data[index] for index in range(count)]
            inputs, targets = run.task.collate(items)
            args, kwargs = arguments(inputs)
            loss = run.task.loss(trained(*args, *([targets] if run.task.returns_losses else []), **kwargs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
    except TorchslimError:
        raise
    except Exception as error:
        raise RequestError(f"{run.settings.model}: a training step on {count} pictures of {run.settings.data} fails: "
                           f"{describe_error(error)}; give a model that can be trained, or a larger --batch-size"
                           ) from error
    if not math.isfinite(float(loss.detach())):
        raise RequestError(f"{run.settings.model}: the loss on {count} pictures of {run.settings.data} is "
                           f"{float(loss.detach())}; look for bad values in the weights or the data")
