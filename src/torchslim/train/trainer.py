"""One training: epochs of steps, scores, checkpoints."""

from __future__ import annotations

import math
import time
import warnings
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
from torchslim.train.batches import Batch, TrainingBatches
from torchslim.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from torchslim.train.evaluation import measured
from torchslim.train.freezing import freeze_statistics, frozen
from torchslim.train.hyperparameters import Hyperparameters
from torchslim.train.log import Reporting
from torchslim.train.losses import LossFunction
from torchslim.train.processes import Processes
from torchslim.train.progress import History, Progress
from torchslim.train.sparsity import Penalty
from torchslim.train.stepping import LossScale, Stepper, grouped, synchronised_norms
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
    penalty: Penalty | None
    teacher: nn.Module | None
    held_out: Any
    checkpoint: Path | None
    reporting: Reporting
    accelerator: Any
    processes: Processes = field(default_factory=Processes)
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
        with self.processes.file_of_first(self.checkpoint) as path, self.processes.agreed():
            if path is None:
                return TrainingState()
            return load_checkpoint(path, self.model, optimizer, self.identity(), self.parts)

    def train(self, optimizer: Optimizer, state: TrainingState, until: int) -> TrainingState:
        """Train until `until` epochs are done, or it is to end before."""
        options = self.hyperparameters
        self.processes.share(self.model)
        with synchronised_norms(self.model, self.accelerator):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*broadcast_buffers")  # which newer versions of torch rename
                wrapped, prepared = self.accelerator.prepare(self.model, optimizer)
            stepper = Stepper(options.step, wrapped, prepared, self.accelerator, self.scale)
            forward = torch.compile(wrapped) if options.step.compile else wrapped
            stop = False
            try:
                for epoch in range(state.epochs, until):
                    if stop or self._is_stale(state.score):
                        break
                    state, stop = self._recorded_epoch(forward, stepper, optimizer, epoch, state)
            finally:
                optimizer.zero_grad(set_to_none=True)
                self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # restores `forward` (autocast)
                vars(self.model).pop("_is_accelerate_prepared", None)
        return state

    def _recorded_epoch(self, forward: Any, stepper: Stepper, optimizer: Optimizer, epoch: int,
                        state: TrainingState) -> tuple[TrainingState, bool]:
        """Train one epoch, score, log, and write the checkpoint; whether the epoch is to be the last."""
        start = time.monotonic()
        loss, steps, stop = self._epoch(forward, stepper, epoch, state)
        metrics = self._metrics(state)
        score = metrics.get(self.task.metric)
        state = TrainingState(epoch + 1, (*state.loss, loss),
                              state.score if score is None else (*state.score, score), state.plans)
        with self.processes.agreed():
            self.reporting.epoch({"epoch": epoch + 1, "loss": loss, **metrics, "lr": optimizer.param_groups[0]["lr"],
                                  "seconds": round(time.monotonic() - start, 3)})
            if self.checkpoint is not None and self.processes.is_first:
                save_checkpoint(self.checkpoint, self.model, optimizer, state, self.identity(), self.parts)
        with self.processes.agreed():
            stop = self._tell(epoch, steps, loss, score, finished=True) or stop
        return state, self.processes.sums(float(stop))[0] > 0

    def _epoch(self, forward: Any, stepper: Stepper, epoch: int, state: TrainingState) -> tuple[float, int, bool]:
        """Train one epoch; its mean loss over processes and items, its steps, and whether it is to be the last."""
        total, items, step, stop = 0.0, 0.0, 0, False
        options, device = self.hyperparameters, self.accelerator.device
        with seeded(derive_seed(options.seed, epoch, self.processes.rank)):
            forward.train()
            freeze_statistics(self.model, options.freeze)
            groups = grouped(self.batches.epoch(epoch, device), options.step.accumulate)
            while True:
                with self.processes.agreed():
                    stop = (step > 0 and self._tell(epoch, step, total / items)) or stop
                    group = next(groups, None)
                if group is None:
                    break
                step += 1
                for entry in stepper.optimizer.param_groups:
                    entry["lr"] = options.rate.learning_rate(self._share_done(epoch, step))
                stepper.optimizer.zero_grad()
                for value, count in self._gradients(forward, stepper, group, epoch, step, state):
                    total, items = total + value * count, items + count
                stepper.step()
                self.average.update()
        if not step:
            raise TrainingError(f"epoch {epoch + 1}: the data gave no batch; give a dataset, a list of "
                                "batches or a DataLoader (an iterator can be read once only)")
        self.processes.share_buffers(self.model)  # each process's batch norms have seen its own items
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise TrainingError(f"epoch {epoch + 1}, step {step}: weights are no longer finite; try a lower learning "
                                f"rate than lr={options.rate.lr}{self._kept(state)}")
        total, items = self.processes.sums(total, items)
        return total / items, step, stop

    def _gradients(self, forward: Any, stepper: Stepper, group: list[Batch], epoch: int, step: int,
                   state: TrainingState) -> Iterator[tuple[float, float]]:
        """Add up the gradients of a step's batches; the loss of each, and as how many items it counts."""
        whole, world = sum(batch.total for batch in group), self.processes.world
        if self.penalty is not None:
            # Once a step, as the loss of all its batches counts once. Before any output: from then on torch takes
            # gradients of parameters that made none for an error where processes exchange them.
            stepper.backward(self.penalty())
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            with stepper.synchronised(last):
                with self.processes.agreed():  # before gradients are exchanged
                    loss = self._loss(forward, stepper, self.hyperparameters.step.arranged(batch.inputs), batch.targets)
                    value = float(loss.detach())
                    if not math.isfinite(value):  # before the step updates the weights
                        raise self._not_finite(epoch, step, index, value, state)
                # Gradients become their mean over processes, and here each item is to count the same.
                share = world * batch.count / whole
                loss = loss if share == 1 else loss * share
                stepper.backward(loss)
            yield value, batch.count

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
        if self.checkpoint is None or not state.epochs:
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
            found = measured(self.model, self.held_out, EVALUATION_BATCH, self.task, self.processes)
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

    def _tell(self, epoch: int, step: int, loss: float, score: float | None = None, finished: bool = False) -> bool:
        return self.reporting.step(Progress(epoch + 1, self.hyperparameters.epochs, step, self._steps, loss, score,
                                            self.task.metric, finished))

    def identity(self) -> dict[str, Any]:
        """Values that must be equal to resume from a checkpoint."""
        return {**self.extra_identity, **self.hyperparameters.flat(), "steps": self.batches.steps,
                "items": self.batches.count,
                "task": self.task.name, "teacher": self.teacher is not None,
                "pressed": list(self.penalty.names) if self.penalty else [],
                "processes": self.processes.world}


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
