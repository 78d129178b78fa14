"""Train a model: on Hugging Face Accelerate, in one process or several, resumable with bit-identical results.

An epoch depends only on the state before it, the seed and its number. So the state after each epoch is enough to
resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.errors import RequestError
from torchslim.planning.options import as_patterns
from torchslim.train.batches import TrainingBatches
from torchslim.train.class_weights import count_classes, weights_of
from torchslim.train.hyperparameters import HyperparameterKeywords, Hyperparameters
from torchslim.train.log import FOLDER, Record, Reporting, check_tracker, log_writer
from torchslim.train.losses import LossFunction
from torchslim.train.mixing import Mix
from torchslim.train.processes import Processes, join_processes
from torchslim.train.progress import History, Progress
from torchslim.train.sharded import Sharded
from torchslim.train.sparsity import Penalty, Slimming
from torchslim.train.tasks import Task, task_for
from torchslim.train.trainer import Trainer
from torchslim.utils.data import Data, describe
from torchslim.utils.files import check_writable

__all__ = ["History", "Progress", "build_trainer", "fit", "together"]


def fit(model: nn.Module, data: Any, *, loss: LossFunction | None = None, sparsity: float | Penalty = 0.0,
        teacher: nn.Module | None = None, held_out: Any = None, checkpoint: str | Path | None = None,
        progress: Callable[[Progress], object] | None = None,
        log: str | Path | Callable[[Record], object] | None = None, tracker: Any = None, workers: int = 0,
        task: str | None = None, **hyperparameters: Unpack[HyperparameterKeywords]) -> History:
    """Train a model in place; its modes, its device and what is trainable are restored.

    Under torchrun every process calls it with the same arguments, and has the same model in the end; see
    docs/distributed.md.

    Args:
        model: the model; the first process's weights count.
        data: a dataset of `(inputs, target)`, a `Data`, or a re-iterable of batches `(inputs, targets)` (a list, a
            `DataLoader`). Targets are described in `torchslim.train.Data`. The same in all processes, or `Sharded`.
        loss: `(outputs, targets)` to a scalar, instead of the task's: cross entropy, binary cross entropy of several
            labels, squared errors of a regression, and of detection the losses that the model gives in train mode, when
            it is called with inputs and targets.
        sparsity: weight of an L1 penalty on all scales of batch norms, or a `Slimming` or `GroupLasso` of this model.
        teacher: a model for knowledge distillation, with the share `alpha` of the loss.
        held_out: a dataset or batches for the score after each epoch; a `Data` has its own.
        checkpoint: a file with the state after the last finished epoch. If it exists, training resumes from it and
            ends with the same weights, to the bit, as an uninterrupted one.
        progress: called after every step, and at the end of each epoch; if it returns True, the training ends with the
            epoch. With the same checkpoint a later call goes on.
        log: a file to which each epoch appends a line of JSON (epoch, loss, metrics, lr, seconds), or what is called
            with such a dict. It is written before the checkpoint: of an epoch that was repeated, the last line counts.
        tracker: where the same goes by one of Accelerate's trackers, such as "tensorboard", "wandb" or "mlflow" (files
            in `runs`), or one of your own (a `GeneralTracker`).
        workers: processes that load items; results do not depend on it.
        task: what is predicted, as in `torchslim.train.evaluate`; None for what the data tell.
        hyperparameters: epochs=10, batch_size=64, seed=0; lr=0.05, schedule="cosine", warmup=None, milestones=();
            optimizer="sgd", momentum=None, weight_decay=5e-4; precision="fp32", accumulate=1, clip=None, ema=0.0,
            channels_last=False, compile=False; mixup=0.0, cutmix=0.0, label_smoothing=0.0, class_weights=();
            temperature=4.0, alpha=0.5; freeze=(), patience=None, keep_best=False. `Hyperparameters` and the classes
            that it names describe each.

    Returns:
        Losses and scores of all epochs, including those before an interruption.

    Raises:
        TrainingError: no data, or a loss that is not finite: it stops before the weights change, and the message names
            the step and its items. The checkpoint keeps the epoch before; running statistics of the model in memory may
            have seen the bad batch.
        RequestError: an invalid argument, or a checkpoint in a folder that does not exist.
        CheckpointError: the checkpoint is damaged, belongs to another training, one by another number of processes
            too, or can't be written; one that was there before is intact then.
        MissingExtra: Accelerate is not installed.
    """
    given = {**locals(), "hyperparameters": hyperparameters}
    with together() as processes:
        trainer = build_trainer(processes=processes, **given)
        with trainer.on_device(model):
            return trainer.run()


@contextmanager
def together() -> Iterator[Processes]:
    """The processes that train, joined; an error in one line where one of them ends before the others."""
    processes = join_processes()
    with processes.connected():
        yield processes


def build_trainer(model: nn.Module, data: Any, *, processes: Processes, tracker: Any, **given: Any) -> Trainer:
    """The trainer for the arguments of `fit`, which it validates."""
    accelerator = _accelerator(tracker)
    with processes.agreed():
        trainer = _build(model, data, processes=processes, accelerator=accelerator, **given)
    trainer.batches.check_same()
    return trainer


def _build(model: nn.Module, data: Any, *, loss: LossFunction | None, sparsity: float | Penalty,
           teacher: nn.Module | None, held_out: Any, checkpoint: str | Path | None,
           progress: Callable[[Progress], object] | None, log: str | Path | Callable[[Record], object] | None,
           workers: int, task: str | None, hyperparameters: Mapping[str, Any], processes: Processes,
           accelerator: Any) -> Trainer:
    penalty = _penalty(model, sparsity)
    batches_only = data.batches if isinstance(data, Sharded) else data
    given = {**hyperparameters, "freeze": as_patterns(hyperparameters.get("freeze", ()), "freeze"),
             "class_weights": weights_of(hyperparameters.get("class_weights", ()), batches_only)}
    options = replace(Hyperparameters.of(given), sparsity=penalty.weight if penalty else 0.0)
    kind = task_for(batches_only, task, label_smoothing=options.label_smoothing, class_weights=options.class_weights)
    if teacher is not None and kind.returns_losses:
        raise RequestError(f"fit: a teacher in a task of {kind.name}, whose models give losses in place of answers "
                           "when they are trained; leave it out")
    if loss is None and (fault := kind.model_fault(model)):
        raise RequestError(f"fit: the model {fault}")
    mix = _mix(options, kind, batches_only)
    if isinstance(data, Data):
        data, held_out = data.train, data.test if held_out is None else held_out
    if held_out is None and (options.keep_best or options.patience):
        raise RequestError("fit: keep_best and patience go by the score on held-out data, and there are none; give "
                           "held_out=, or leave them out")
    options.step.check_device(accelerator.device, accelerator.mixed_precision)
    least = 2 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1
    batches = TrainingBatches(data, options.batch_size, options.seed, processes, workers, kind.collate, mix, least)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and processes.is_first:
        check_writable(path, "training.safetensors")
    reporting = Reporting(progress, log_writer(log) if processes.is_first else None, accelerator)
    return Trainer(model, options, batches, kind, loss, penalty, teacher, held_out, path, reporting, accelerator,
                   processes)


def _penalty(model: nn.Module, sparsity: float | Penalty) -> Penalty | None:
    """What presses parameters of the model; None for a weight of 0."""
    if isinstance(sparsity, int | float):
        return Slimming(model, weight=sparsity) if sparsity else None
    if not isinstance(sparsity, Penalty):
        raise RequestError(f"fit: sparsity={describe(sparsity)} found, wanted a weight, a Slimming or a GroupLasso; "
                           "try 1e-4")
    own = {id(parameter) for parameter in model.parameters()}
    for name, parameter in zip(sparsity.names, sparsity.parameters, strict=False):
        if id(parameter) not in own:
            raise RequestError(f"fit: sparsity is a {type(sparsity).__name__} of another model, whose {name} is not "
                               "trained here; make it of the model that is given to fit")
    return sparsity


def _mix(options: Hyperparameters, kind: Task, data: Any) -> Mix | None:
    """What mixes pictures, for classification alone."""
    if not (options.mixing.mixup or options.mixing.cutmix):
        return None
    if kind.name != "classification":
        raise RequestError(f"fit: mixup and cutmix are for classification, the task is {kind.name}; leave them out")
    classes = len(data.classes) if isinstance(data, Data) else len(count_classes(data, "mixup or cutmix"))
    return options.mixing.build(classes)


def _accelerator(tracker: Any) -> Any:
    """Accelerate's, whose models need not use all of their parameters in each step, as auxiliary heads."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)]
    return Accelerator(log_with=check_tracker(tracker), project_dir=FOLDER, kwargs_handlers=handlers)
