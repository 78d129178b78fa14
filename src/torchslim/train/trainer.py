"""One training: epochs of steps, scores, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchslim.errors import TrainingError
from torchslim.train.averaging import Average, KeptState
from torchslim.train.batches import TrainingBatches
from torchslim.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from torchslim.train.evaluation import measured
from torchslim.train.freezing import freeze_statistics, frozen
from torchslim.train.hyperparameters import Hyperparameters
from torchslim.train.log import Reporting
from torchslim.train.losses import LossFunction
from torchslim.train.progress import History, Progress
from torchslim.train.sparsity import Slimming
from torchslim.train.stepping import LossScale, Stepper, grouped
from torchslim.train.tasks import Task
from torchslim.utils.data import EVALUATION_BATCH
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import arguments
from torchslim.utils.modules import device_of
from torchslim.utils.seeding import derive_seed, seeded


@dataclass
class Trainer:
    """One call of `fit`, or the stretch of a gradual training between two cuts."""

    model: nn.Module
    hyperparameters: Hyperparameters
    batches: TrainingBatches
    task: Task
    loss_function: LossFunction | None
    penalty: Slimming | None
    teacher: nn.Module | None
    held_out: Any
    checkpoint: Path | None
    reporting: Reporting
    accelerator: Any
    extra_identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = self.hyperparameters.step
        self.average, self.best = Average(self.model, options.ema), KeptState(self.model)
        self.scale = LossScale(options)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint has beside the model and the optimizer, by name."""
        return {"average": self.average, "best": self.best, "scale": self.scale}

    @contextmanager
    def on_device(self, model: nn.Module) -> Iterator[None]:
        """Move the model and the teacher to the training device, freeze what is frozen, open trackers; and undo it."""
        options = self.hyperparameters
        device = self.accelerator.device
        with (self.reporting.tracking(options.flat()), _on_device(model, device), _on_device(self.teacher, device),
              frozen(model, options.freeze), options.step.arranging(model)):
            yield

    def run(self) -> History:
        """Train from the checkpoint, if there is one, to the end."""
        optimizer = self.build_optimizer()
        state = self.resumed(optimizer)
        state = self.train(optimizer, state, self.hyperparameters.epochs)
        (self.best if self.best.tensors else self.average).give()
        return History(state.loss, state.score, self.task.metric)

    def build_optimizer(self) -> Optimizer:
        """The optimizer of the model's parameters."""
        return self.hyperparameters.choice.build(self.model, self.hyperparameters.rate.lr)

    def resumed(self, optimizer: Optimizer) -> TrainingState:
        """The state of the checkpoint, which the model and the optimizer take over; of the beginning without one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return TrainingState()
        return load_checkpoint(self.checkpoint, self.model, optimizer, self.identity(), self.parts)

    def train(self, optimizer: Optimizer, state: TrainingState, until: int) -> TrainingState:
        """Train until `until` epochs are done, or it is to end before."""
        options = self.hyperparameters
        wrapped, prepared = self.accelerator.prepare(self.model, optimizer)
        stepper = Stepper(options.step, wrapped, prepared, self.accelerator, self.scale)
        forward = torch.compile(wrapped) if options.step.compile else wrapped
        stop = False
        try:
            for epoch in range(state.epochs, until):
                if stop or self._is_stale(state.score):
                    break
                start = time.monotonic()
                loss, steps, stop = self._epoch(forward, stepper, epoch, state)
                metrics = self._metrics(state)
                score = metrics.get(self.task.metric)
                state = TrainingState(epoch + 1, (*state.loss, loss),
                                      state.score if score is None else (*state.score, score), state.plans)
                self.reporting.epoch({"epoch": epoch + 1, "loss": loss, **metrics,
                                      "lr": optimizer.param_groups[0]["lr"],
                                      "seconds": round(time.monotonic() - start, 3)})
                if self.checkpoint is not None and self.accelerator.is_main_process:
                    save_checkpoint(self.checkpoint, self.model, optimizer, state, self.identity(), self.parts)
                self.accelerator.wait_for_everyone()
                stop = self._tell(epoch, steps, loss, score, finished=True) or stop
                stop = self._sum_over_processes(float(stop))[0] > 0
        finally:
            optimizer.zero_grad(set_to_none=True)
            self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # restores `forward` (autocast)
            vars(self.model).pop("_is_accelerate_prepared", None)
        return state

    def _epoch(self, forward: Any, stepper: Stepper, epoch: int, state: TrainingState) -> tuple[float, int, bool]:
        """Train one epoch; its mean loss over processes and items, its steps, and whether it is to be the last."""
        total, items, step, stop = 0.0, 0.0, 0, False
        options, device = self.hyperparameters, self.accelerator.device
        with seeded(derive_seed(options.seed, epoch, self.accelerator.process_index)):
            forward.train()
            freeze_statistics(self.model, options.freeze)
            for step, group in enumerate(grouped(self.batches.epoch(epoch, device), options.step.accumulate), start=1):
                for entry in stepper.optimizer.param_groups:
                    entry["lr"] = options.rate.learning_rate(self._share_done(epoch, step))
                stepper.optimizer.zero_grad()
                counts = [_count(targets) for _, targets in group]
                for index, (inputs, targets) in enumerate(group):
                    last = index == len(group) - 1
                    with stepper.synchronised(last):
                        loss = self._loss(forward, stepper, options.step.arranged(inputs), targets)
                        value = float(loss.detach())
                        if not math.isfinite(value):  # before the step updates the weights
                            raise self._not_finite(epoch, step, index, value, state)
                        loss = loss * (counts[index] / sum(counts)) if len(group) > 1 else loss
                        # Once a step, as the loss of all its batches counts once.
                        stepper.backward(loss + self.penalty() if last and self.penalty is not None else loss)
                    total, items = total + value * counts[index], items + counts[index]
                stepper.step()
                self.average.update()
                stop = self._tell(epoch, step, total / items) or stop
        if not step:
            raise TrainingError(f"epoch {epoch + 1}: the data gave no batch; give a dataset, a list of "
                                "batches or a DataLoader (an iterator can be read once only)")
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise TrainingError(f"epoch {epoch + 1}, step {step}: weights are no longer finite; try a lower learning "
                                f"rate than lr={options.rate.lr}{self._kept(state)}")
        total, items = self._sum_over_processes(total, items)
        return total / items, step, stop

    def _loss(self, forward: Any, stepper: Stepper, inputs: Any, targets: Any) -> Tensor:
        args, kwargs = arguments(inputs)
        given = (*args, targets) if self.task.returns_losses and self.loss_function is None else args
        with stepper.autocast():
            output = forward(*given, **kwargs)
            teacher_output = None
            if self.teacher is not None:
                with torch.no_grad(), evaluating(self.teacher):
                    teacher_output = stepper.in_float32(self.teacher(*args, **kwargs))
        output = stepper.in_float32(output)
        loss = (self.loss_function or self.task.loss)(output, targets)
        if self.teacher is not None:
            alpha, temperature = self.hyperparameters.alpha, self.hyperparameters.temperature
            loss = (1 - alpha) * loss + alpha * self.task.distillation(output, teacher_output, temperature)
        return loss

    def _not_finite(self, epoch: int, step: int, index: int, value: float, state: TrainingState) -> TrainingError:
        """The error for a loss, with the batch that gave it."""
        accumulate = self.hyperparameters.step.accumulate
        batch = (step - 1) * accumulate + index + 1
        where = f"epoch {epoch + 1}, step {step}" + (f", batch {batch}" if accumulate > 1 else "")
        if items := self.batches.items(epoch, batch):
            where += f" (items {', '.join(map(str, items[:8]))}{', ...' if len(items) > 8 else ''})"
        return TrainingError(f"{where}: the loss is {value}; try a lower learning rate than "
                             f"lr={self.hyperparameters.rate.lr}, or look for bad values in the data"
                             f"{self._kept(state)}")

    def _kept(self, state: TrainingState) -> str:
        """Where the state of the epoch before is, for a message."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return ""
        return f"; {self.checkpoint} has the state after epoch {state.epochs}"

    @property
    def _steps(self) -> int | None:
        """Steps of an epoch, if known."""
        batches = self.batches.steps
        return None if batches is None else -(-batches // self.hyperparameters.step.accumulate)

    def _share_done(self, epoch: int, step: int) -> float:
        """Share of the training done in the middle of a step; of the epoch, if its number of steps is unknown."""
        within = (step - 0.5) / self._steps if self._steps else 0.5
        return (epoch + min(within, 1.0)) / self.hyperparameters.epochs

    def _metrics(self, state: TrainingState) -> dict[str, float]:
        """The metrics on held-out data, if there are any, of the weights that count; the best are kept."""
        if self.held_out is None:
            return {}
        with self.average.held():
            found = measured(self.model, self.held_out, EVALUATION_BATCH, self.task, self.accelerator)
            if not found:
                raise TrainingError("held_out: no data; give a dataset or batches that are not empty, or None")
            if self.hyperparameters.keep_best and found[self.task.metric] > max(state.score, default=-math.inf):
                self.best.take()
        return found

    def _is_stale(self, scores: tuple[float, ...]) -> bool:
        """Whether the score has not risen for too many epochs."""
        patience = self.hyperparameters.patience
        return patience is not None and len(scores) - scores.index(max(scores, default=0.0)) > patience \
            if scores else False

    def _sum_over_processes(self, *values: float) -> list[float]:
        """The sums of numbers over all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        local = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return [float(value) for value in self.accelerator.reduce(local, "sum").tolist()]

    def _tell(self, epoch: int, step: int, loss: float, score: float | None = None, finished: bool = False) -> bool:
        return self.reporting.step(Progress(epoch + 1, self.hyperparameters.epochs, step, self._steps, loss, score,
                                            self.task.metric, finished))

    def identity(self) -> dict[str, Any]:
        """Values that must be equal to resume from a checkpoint."""
        return {**self.extra_identity, **self.hyperparameters.flat(), "steps": self.batches.steps,
                "items": self.batches.count,
                "task": self.task.name, "teacher": self.teacher is not None,
                "pressed": list(self.penalty.names) if self.penalty else [],
                "processes": self.accelerator.num_processes}


def _count(targets: Any) -> int:
    """The items of a batch."""
    return len(targets) if isinstance(targets, list) or (isinstance(targets, Tensor) and targets.ndim > 0) else 1


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
