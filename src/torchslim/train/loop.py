"""Train a model: on Hugging Face Accelerate, resumable with bit-identical results.

An epoch depends only on the state before it, the seed and its number. So the state after each epoch is enough to
resume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from torchslim.errors import MissingExtra, RequestError, TrainingError
from torchslim.planning.options import as_patterns
from torchslim.train.batches import TrainingBatches
from torchslim.train.class_weights import count_classes, weights_of
from torchslim.train.hyperparameters import HyperparameterKeywords, Hyperparameters
from torchslim.train.log import FOLDER, Record, Reporting, check_tracker, log_writer
from torchslim.train.losses import LossFunction
from torchslim.train.mixing import Mix
from torchslim.train.progress import History, Progress
from torchslim.train.sparsity import Slimming
from torchslim.train.tasks import Task, task_for
from torchslim.train.trainer import Trainer
from torchslim.utils.data import Data
from torchslim.utils.files import check_writable

__all__ = ["History", "Progress", "build_trainer", "fit"]


def fit(model: nn.Module, data: Any, *, loss: LossFunction | None = None, sparsity: float | Slimming = 0.0,
        teacher: nn.Module | None = None, held_out: Any = None, checkpoint: str | Path | None = None,
        progress: Callable[[Progress], object] | None = None,
        log: str | Path | Callable[[Record], object] | None = None, tracker: Any = None, workers: int = 0,
        task: str | None = None, **hyperparameters: Unpack[HyperparameterKeywords]) -> History:
    """Train a model in place; its modes, its device and what is trainable are restored.

    Args:
        model: the model.
        data: a dataset of `(inputs, target)`, a `Data`, or a re-iterable of batches `(inputs, targets)` (a list, a
            `DataLoader`). Targets are described in `torchslim.train.Data`.
        loss: `(outputs, targets)` to a scalar, instead of the task's: cross entropy, binary cross entropy of several
            labels, squared errors of a regression, and of detection the losses that the model gives in train mode, when
            it is called with inputs and targets.
        sparsity: weight of an L1 penalty on all scales of batch norms, or a `Slimming` of this model.
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
        CheckpointError: the checkpoint is damaged, belongs to another training, or can't be written; one that was there
            before is intact then.
        MissingExtra: Accelerate is not installed.
    """
    trainer = build_trainer(**{**locals(), "hyperparameters": hyperparameters})
    with trainer.on_device(model):
        return trainer.run()


def build_trainer(model: nn.Module, data: Any, *, loss: LossFunction | None, sparsity: float | Slimming,
                  teacher: nn.Module | None, held_out: Any, checkpoint: str | Path | None,
                  progress: Callable[[Progress], object] | None,
                  log: str | Path | Callable[[Record], object] | None, tracker: Any, workers: int, task: str | None,
                  hyperparameters: Mapping[str, Any]) -> Trainer:
    """The trainer for the arguments of `fit`, which it validates."""
    if isinstance(sparsity, Slimming):
        penalty: Slimming | None = sparsity
    else:
        penalty = Slimming(model, weight=sparsity) if sparsity else None
    given = {**hyperparameters, "freeze": as_patterns(hyperparameters.get("freeze", ()), "freeze"),
             "class_weights": weights_of(hyperparameters.get("class_weights", ()), data)}
    options = replace(Hyperparameters.of(given), sparsity=penalty.weight if penalty else 0.0)
    kind = task_for(data, task, label_smoothing=options.label_smoothing, class_weights=options.class_weights)
    if teacher is not None and kind.returns_losses:
        raise RequestError(f"fit: a teacher in a task of {kind.name}, whose models give losses in place of answers "
                           "when they are trained; leave it out")
    if loss is None and (fault := kind.model_fault(model)):
        raise RequestError(f"fit: the model {fault}")
    mix = _mix(options, kind, data)
    if isinstance(data, Data):
        data, held_out = data.train, data.test if held_out is None else held_out
    if held_out is None and (options.keep_best or options.patience):
        raise RequestError("fit: keep_best and patience go by the score on held-out data, and there are none; give "
                           "held_out=, or leave them out")
    accelerator = _accelerator(tracker)
    options.step.check_device(accelerator.device, accelerator.mixed_precision)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = TrainingBatches(data, options.batch_size, options.seed, rank, world, workers, kind.collate, mix)
    path = None if checkpoint is None else check_writable(Path(checkpoint), "training.safetensors")
    reporting = Reporting(progress, log_writer(log), accelerator)
    return Trainer(model, options, batches, kind, loss, penalty, teacher, held_out, path, reporting, accelerator)


def _mix(options: Hyperparameters, kind: Task, data: Any) -> Mix | None:
    """What mixes pictures, for classification alone."""
    if not (options.mixing.mixup or options.mixing.cutmix):
        return None
    if kind.name != "classification":
        raise RequestError(f"fit: mixup and cutmix are for classification, the task is {kind.name}; leave them out")
    classes = len(data.classes) if isinstance(data, Data) else len(count_classes(data, "mixup or cutmix"))
    return options.mixing.build(classes)


def _accelerator(tracker: Any) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtra("accelerate", "train", "training") from error
    accelerator = Accelerator(log_with=check_tracker(tracker), project_dir=FOLDER)
    requested = int(os.environ.get("WORLD_SIZE", "1"))
    if requested > accelerator.num_processes:
        raise TrainingError(f"fit: {requested} processes were asked for, {accelerator.num_processes} train "
                            "together; start them with torchrun")
    return accelerator
