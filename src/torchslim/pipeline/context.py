"""State that the phases of a run share: settings, folder, data and models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torchslim.errors import TrainingError
from torchslim.pipeline.outcome import HeldOut
from torchslim.pipeline.processes import Team
from torchslim.pipeline.run_folder import LOG, RunFolder
from torchslim.pipeline.settings import Settings
from torchslim.pipeline.training_settings import TrainingSettings
from torchslim.store.loading import load, picture_channels
from torchslim.store.saving import save
from torchslim.surgery.plans import Plan
from torchslim.train import Data, History, Progress, fit, load_data
from torchslim.train.evaluation import measured
from torchslim.train.log import append_line
from torchslim.train.processes import ALONE, Processes
from torchslim.train.tasks import Task, task_for
from torchslim.utils.data import EVALUATION_BATCH
from torchslim.utils.seeding import derive_seed
from torchslim.zoo import sources


@dataclass
class TrainingContext:
    """What is trained, on what, and by which processes."""

    settings: TrainingSettings
    processes: Processes = field(default=ALONE, kw_only=True)

    @cached_property
    def data(self) -> Data:
        """The data, with as many channels as the model reads."""
        channels = picture_channels(sources.resolve(self.settings.model).with_defaults(num_classes=2, num_keypoints=1))
        return load_data(self.settings.data, size=self.settings.size, seed=self.settings.seed, channels=channels,
                         task=self.settings.task, skip_broken=self.settings.skip_broken)

    @cached_property
    def task(self) -> Task:
        """What is learnt, with its loss and its metrics."""
        return task_for(self.data, label_smoothing=self.label_smoothing)

    @property
    def rate(self) -> float:
        """The highest learning rate of the baseline."""
        return self.task.lr if self.settings.lr is None else self.settings.lr

    @property
    def label_smoothing(self) -> float:
        """Of the cross entropy of classes; other tasks have none."""
        return self.settings.label_smoothing if self.data.task == "classification" else 0.0

    @cached_property
    def source(self) -> sources.Source:
        """The model's source, with as many outputs as the data ask for."""
        source, settings = sources.resolve(self.settings.model), self.settings
        if settings.weights is not None:
            source = source.with_weights(settings.weights, settings.new_head)
        return source.with_defaults(**self.task.model_options)

    @cached_property
    def inputs(self) -> Any:
        """A random input, for tracing and verification."""
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, 0))
        return self.task.example(self.data.shape, generator)

    @property
    def fit_options(self) -> dict[str, Any]:
        """Keywords of `fit` that are the same in every phase."""
        return {**self.settings.fit_options, "batch_size": self.settings.batch_size,
                "label_smoothing": self.label_smoothing, "workers": self.settings.workers}

    def scores(self, model: nn.Module) -> dict[str, float]:
        """All metrics on held-out data, of which each process takes its part; all of them call this.

        Raises:
            TrainingError: no data, or outputs that the metrics can't be taken from.
        """
        with self.processes.connected():
            found = measured(model, self.data.test, EVALUATION_BATCH, self.task, self.processes)
        if not found:
            raise TrainingError(f"{self.settings.data}: nothing to score on; give the part to test on some items")
        return found

    def train_together(self, model: nn.Module, teacher: nn.Module | None = None, phase: str = "",
                       **options: Any) -> History:
        """Train on the data, in a phase of a run; with several processes, all of them call this."""
        return fit(model, self.data, **{**self.fit_options, "teacher": teacher, **options})


@dataclass
class RunContext(TrainingContext):
    """State of all phases."""

    settings: Settings
    folder: RunFolder
    threads: int
    on_progress: Callable[[Progress], None]
    team: Team = field(default_factory=Team)

    def __post_init__(self) -> None:
        self.processes = self.team.processes
        self.team.works |= {"train": self.train_together, "score": self.scores}

    @property
    def steps(self) -> int:
        """Training steps in an epoch."""
        batches = -(-len(self.data.train) // self.settings.batch_size)  # type: ignore[arg-type]
        return -(-batches // self.settings.accumulate)

    @property
    def held_out(self) -> HeldOut:
        """What scores are measured on."""
        return HeldOut(**self.folder.found["baseline"]["held_out"])

    def model(self, name: str) -> nn.Module:
        """The model stored under a name."""
        # The caller asked for this model, so its source is trusted.
        return load(self.folder.file(name), trust_source=True)

    def plan(self) -> Plan:
        """The plan."""
        return Plan.from_json(self.folder.file("plan.json").read_bytes())

    def store(self, model: nn.Module, name: str, plan: Plan | None = None) -> None:
        """Save a model under a name."""
        save(model, self.folder.file(name), plan=plan, source=self.source)

    def milestones(self, phase: str) -> tuple[float, ...]:
        """Shares of a phase at which the learning rate drops."""
        later = self.settings.later_milestones
        return self.settings.milestones if phase == "baseline" or later is None else later

    def metrics(self, model: nn.Module, plan: Plan | None = None) -> dict[str, float]:
        """All metrics of a model, which was cut by a plan, on held-out data."""
        found: dict[str, float] = self.team.do("score", {"model": (model, plan)}, self.source)
        return found

    def train(self, model: nn.Module, phase: str, number: int, plan: Plan | None = None,
              teacher: nn.Module | None = None, **options: Any) -> History:
        """Train a model, which was cut by a plan, from the phase's checkpoint if there is one."""
        self.folder.claim([LOG])
        models = {"model": (model, plan)} | ({} if teacher is None else {"teacher": (teacher, None)})
        history: History = self.team.do("train", models, self.source, phase=phase, **{
            "milestones": self.milestones(phase), "seed": derive_seed(self.settings.seed, number), **options})
        return history

    def train_together(self, model: nn.Module, teacher: nn.Module | None = None, phase: str = "",
                       **options: Any) -> History:
        """See `TrainingContext`; in the first process, which alone keeps files and tells of it."""
        log = self.folder.file(LOG)
        return super().train_together(model, teacher, phase, **{
            "progress": self.on_progress, "checkpoint": self.folder.file(f"{phase}.checkpoint"),
            "log": lambda record: append_line(log, {"phase": phase, **record}), **options})
