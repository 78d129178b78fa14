"""State that the phases of a run share: settings, folder, data and models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torchslim.pipeline.outcome import HeldOut
from torchslim.pipeline.run_folder import LOG, RunFolder
from torchslim.pipeline.settings import Settings
from torchslim.pipeline.training_settings import TrainingSettings
from torchslim.store.loading import load, picture_channels
from torchslim.store.saving import save
from torchslim.surgery.plans import Plan
from torchslim.train import Data, History, Progress, fit, load_data
from torchslim.train.log import append_line
from torchslim.train.tasks import Task, task_for
from torchslim.utils.seeding import derive_seed
from torchslim.zoo import sources


@dataclass
class TrainingContext:
    """What is trained, and on what."""

    settings: TrainingSettings

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


@dataclass
class RunContext(TrainingContext):
    """State of all phases."""

    settings: Settings
    folder: RunFolder
    threads: int
    on_progress: Callable[[Progress], None]

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

    def train(self, model: nn.Module, phase: str, number: int, **options: Any) -> History:
        """Train, from the phase's checkpoint if there is one."""
        self.folder.claim([LOG])
        log = self.folder.file(LOG)
        return fit(model, self.data, **{
            **self.fit_options, "milestones": self.milestones(phase), "progress": self.on_progress,
            "seed": derive_seed(self.settings.seed, number), "checkpoint": self.folder.file(f"{phase}.checkpoint"),
            "log": lambda record: append_line(log, {"phase": phase, **record}), **options})
