"""The training loop, on Hugging Face Accelerate, resumable with bit-identical results.

An epoch depends only on the state before it, the seed and its number. So the state after each epoch is enough to
resume.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import MissingExtra, TrainingError
from torchslim.train.batches import TrainingBatches
from torchslim.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from torchslim.train.evaluation import count_correct
from torchslim.train.hyperparameters import WARMUP, Hyperparameters
from torchslim.train.losses import LossFunction, cross_entropy, distillation
from torchslim.train.sparsity import Slimming
from torchslim.utils.data import EVALUATION_BATCH, Data
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.files import check_writable
from torchslim.utils.inputs import arguments
from torchslim.utils.modules import device_of
from torchslim.utils.seeding import derive_seed, seeded


@dataclass(frozen=True)
class History:
    """A training's curves.

    Attributes:
        loss: the mean loss of each epoch, without the penalty on scales.
        accuracy: the held-out accuracy after each epoch, 0 to 1; empty without held-out data.
    """

    loss: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Progress of a training: sent after every step, and once more at the end of an epoch.

    Attributes:
        epoch: the epoch, from 1.
        epochs: number of epochs.
        step: steps done in this epoch.
        steps: steps of this epoch; None for data of unknown length.
        loss: mean loss of the epoch so far, without the penalty on scales.
        accuracy: held-out accuracy; None before the end of the epoch, and without held-out data.
        finished: whether the epoch is done and its checkpoint, if any, written.
    """

    epoch: int
    epochs: int
    step: int
    steps: int | None
    loss: float
    accuracy: float | None = None
    finished: bool = False


def fit(model: nn.Module, data: Any, *, epochs: int = 10, lr: float = 0.05, batch_size: int = 64,
        weight_decay: float = 5e-4, optimizer: str = "sgd", warmup: float | None = None,
        milestones: Sequence[float] = (), label_smoothing: float = 0.0,
        loss: LossFunction | None = None, sparsity: float | Slimming = 0.0, teacher: nn.Module | None = None,
        temperature: float = 4.0, alpha: float = 0.5, seed: int = 0, held_out: Any = None,
        checkpoint: str | Path | None = None, progress: Callable[[Progress], None] | None = None,
        workers: int = 0) -> History:
    """Train a model in place; its modes and its device are restored.

    Args:
        model: the model.
        data: a dataset of `(inputs, target)`, a `Data`, or a re-iterable of batches `(inputs, targets)` (a list, a
            `DataLoader`).
        epochs: passes over the data.
        lr: the highest learning rate; it rises to this over `warmup`, and falls to 0 along half a cosine.
        batch_size: of a dataset, per process; ready batches are not changed.
        weight_decay: for all but biases and scales.
        optimizer: "sgd" (momentum 0.9, Nesterov) or "adamw".
        warmup: a share of the epochs; by default 0.2, or none where there are milestones.
        milestones: shares of the epochs at which the rate is divided by 10, instead of the cosine: (0.5, 0.75).
        label_smoothing: of the cross entropy.
        loss: `(outputs, targets)` to a scalar, instead of the cross entropy.
        sparsity: weight of an L1 penalty on all scales of batch norms, or a `Slimming` of this model.
        teacher: a model for knowledge distillation, with the share `alpha` of the loss.
        temperature: of the distillation.
        alpha: see `teacher`.
        seed: of the order, the augmentation and dropout; the caller's generators are unchanged.
        held_out: a dataset or batches for the accuracy after each epoch; a `Data` has its own.
        checkpoint: a file with the state after the last finished epoch. If it exists, training resumes from it and
            ends with the same weights, to the bit, as an uninterrupted one.
        progress: called after every step.
        workers: processes that load items; results do not depend on it.

    Returns:
        Losses and accuracies of all epochs, including those before an interruption.

    Raises:
        TrainingError: a loss that is not finite, or no data.
        RequestError: an invalid argument, or a checkpoint in a folder that does not exist.
        CheckpointError: the checkpoint is damaged or belongs to another training.
        MissingExtra: Accelerate is not installed.
    """
    trainer = build_trainer(**locals())
    with trainer.on_device(model):
        return trainer.run()


def build_trainer(model: nn.Module, data: Any, *, epochs: int, lr: float, batch_size: int, weight_decay: float,
                  optimizer: str, warmup: float | None, milestones: Sequence[float], label_smoothing: float,
                  loss: LossFunction | None, sparsity: float | Slimming, teacher: nn.Module | None,
                  temperature: float, alpha: float, seed: int, held_out: Any, checkpoint: str | Path | None,
                  progress: Callable[[Progress], None] | None, workers: int) -> Trainer:
    """The trainer for the arguments of `fit`, which it validates."""
    if isinstance(sparsity, Slimming):
        penalty: Slimming | None = sparsity
    else:
        penalty = Slimming(model, weight=sparsity) if sparsity else None
    if warmup is None:
        warmup = 0.0 if milestones else WARMUP
    hyperparameters = Hyperparameters(epochs, lr, batch_size, weight_decay, optimizer, warmup,
                                      label_smoothing, penalty.weight if penalty else 0.0, temperature, alpha, seed,
                                      tuple(milestones))
    if isinstance(data, Data):
        data, held_out = data.train, data.test if held_out is None else held_out
    accelerator = _accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = TrainingBatches(data, batch_size, seed, rank, world, workers)
    path = None if checkpoint is None else check_writable(Path(checkpoint), "training.safetensors")
    return Trainer(model, hyperparameters, batches, loss or cross_entropy(label_smoothing), penalty, teacher,
                   held_out, path, progress, accelerator)


@dataclass
class Trainer:
    """One call of `fit`, or the stretch of a gradual training between two cuts."""

    model: nn.Module
    hyperparameters: Hyperparameters
    batches: TrainingBatches
    loss_function: LossFunction
    penalty: Slimming | None
    teacher: nn.Module | None
    held_out: Any
    checkpoint: Path | None
    progress: Callable[[Progress], None] | None
    accelerator: Any
    extra_identity: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> History:
        """Train from the checkpoint, if there is one, to the end."""
        optimizer = self.hyperparameters.build_optimizer(self.model)
        state = TrainingState()
        if self.checkpoint is not None and self.checkpoint.exists():
            state = load_checkpoint(self.checkpoint, self.model, optimizer, self.identity())
        state = self.train(optimizer, state, self.hyperparameters.epochs)
        return History(state.loss, state.accuracy)

    @contextmanager
    def on_device(self, model: nn.Module) -> Iterator[None]:
        """Move the model and the teacher to the training device; afterwards restore devices and modes."""
        with _on_device(model, self.accelerator.device), _on_device(self.teacher, self.accelerator.device):
            yield

    def train(self, optimizer: torch.optim.Optimizer, state: TrainingState, until: int) -> TrainingState:
        """Train until `until` epochs are done."""
        wrapped, stepper = self.accelerator.prepare(self.model, optimizer)
        try:
            for epoch in range(state.epochs, until):
                loss, steps = self._epoch(wrapped, stepper, epoch)
                accuracy = self._accuracy()
                state = TrainingState(epoch + 1, (*state.loss, loss),
                                    state.accuracy if accuracy is None else (*state.accuracy, accuracy),
                                    state.plans)
                if self.checkpoint is not None and self.accelerator.is_main_process:
                    save_checkpoint(self.checkpoint, self.model, optimizer, state, self.identity())
                self.accelerator.wait_for_everyone()
                self._report_progress(epoch, steps, loss, accuracy, finished=True)
        finally:
            optimizer.zero_grad(set_to_none=True)
            self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # restores `forward` (autocast)
            vars(self.model).pop("_is_accelerate_prepared", None)
        return state

    def _epoch(self, wrapped: nn.Module, stepper: Any, epoch: int) -> tuple[float, int]:
        """Train one epoch; return its mean loss over processes and steps."""
        total, items, step = 0.0, 0.0, 0
        device = self.accelerator.device
        with seeded(derive_seed(self.hyperparameters.seed, epoch, self.accelerator.process_index)):
            wrapped.train()
            for step, (inputs, targets) in enumerate(self.batches.epoch(epoch, device), start=1):
                for group in stepper.param_groups:
                    group["lr"] = self.hyperparameters.learning_rate(self._share_done(epoch, step))
                loss, value = self._loss(wrapped, inputs, targets, f"epoch {epoch + 1}, step {step}")
                stepper.zero_grad()
                self.accelerator.backward(loss)
                stepper.step()
                count = len(targets) if isinstance(targets, Tensor) and targets.ndim else 1
                total, items = total + value * count, items + count
                self._report_progress(epoch, step, total / items)
        if not step:
            raise TrainingError(f"epoch {epoch + 1}: the data gave no batch; give a dataset, a list of "
                                "batches or a DataLoader (an iterator can be read once only)")
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise TrainingError(f"epoch {epoch + 1}, step {step}: weights are no longer finite; try a lower learning "
                                f"rate than lr={self.hyperparameters.lr}")
        total, items = self._sum_over_processes(total, items)
        return total / items, step

    def _loss(self, wrapped: nn.Module, inputs: Any, targets: Any, where: str) -> tuple[Tensor, float]:
        args, kwargs = arguments(inputs)
        output = wrapped(*args, **kwargs)
        loss = self.loss_function(output, targets)
        if self.teacher is not None:
            with torch.no_grad(), evaluating(self.teacher):
                teacher_output = self.teacher(*args, **kwargs)
            alpha, temperature = self.hyperparameters.alpha, self.hyperparameters.temperature
            loss = (1 - alpha) * loss + alpha * distillation(output, teacher_output, temperature)
        value = float(loss.detach())
        if self.penalty is not None:
            loss = loss + self.penalty()
        if not math.isfinite(value):  # before the step updates the weights
            raise TrainingError(f"{where}: the loss is {value}; try a lower learning rate than "
                                f"lr={self.hyperparameters.lr}, or look for bad values in the data")
        return loss, value

    def _share_done(self, epoch: int, step: int) -> float:
        """Share of the training done in the middle of a step; of the epoch, if its number of steps is unknown."""
        within = (step - 0.5) / self.batches.steps if self.batches.steps else 0.5
        return (epoch + min(within, 1.0)) / self.hyperparameters.epochs

    def _accuracy(self) -> float | None:
        if self.held_out is None:
            return None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        counts = count_correct(self.model, self.held_out, EVALUATION_BATCH, rank, world)
        correct, total = self._sum_over_processes(*counts)
        if not total:
            raise TrainingError("held_out: no data; give a dataset or batches that are not empty, or None")
        return correct / total

    def _sum_over_processes(self, *values: float) -> list[float]:
        """The sums of numbers over all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        local = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return [float(value) for value in self.accelerator.reduce(local, "sum").tolist()]

    def _report_progress(self, epoch: int, step: int, loss: float, accuracy: float | None = None,
              finished: bool = False) -> None:
        if self.progress is not None and self.accelerator.is_main_process:
            self.progress(Progress(epoch + 1, self.hyperparameters.epochs, step, self.batches.steps, loss, accuracy,
                                   finished))

    def identity(self) -> dict[str, Any]:
        """Values that must be equal to resume from a checkpoint."""
        return {**self.extra_identity, **asdict(self.hyperparameters), "steps": self.batches.steps,
                "teacher": self.teacher is not None, "pressed": list(self.penalty.names) if self.penalty else [],
                "processes": self.accelerator.num_processes}


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtra("accelerate", "train", "training") from error
    accelerator = Accelerator()
    requested = int(os.environ.get("WORLD_SIZE", "1"))
    if requested > accelerator.num_processes:
        raise TrainingError(f"fit: {requested} processes were asked for, {accelerator.num_processes} train "
                            "together; start them with torchrun")
    return accelerator


@contextmanager
def _on_device(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Move a model to a device; afterwards restore its device and the mode of each of its modules."""
    if model is None:
        yield
        return
    previous_device = device_of(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.to(device)
        yield
    finally:
        model.to(previous_device)
        for module, mode in modes:
            module.training = mode
