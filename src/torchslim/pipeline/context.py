"""State that the phases of a run share: settings, folder, data and models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torchslim.pipeline.run_folder import RunFolder
from torchslim.pipeline.settings import Settings
from torchslim.store.loading import load
from torchslim.store.saving import save
from torchslim.surgery.plans import Plan
from torchslim.train import Data, History, Progress, fit, load_data
from torchslim.utils.seeding import derive_seed
from torchslim.zoo import sources


@dataclass
class RunContext:
    """State of all phases."""

    settings: Settings
    folder: RunFolder
    threads: int
    on_progress: Callable[[Progress], None]

    @cached_property
    def data(self) -> Data:
        """The data."""
        return load_data(self.settings.data, size=self.settings.size, seed=self.settings.seed)

    @cached_property
    def source(self) -> sources.Source:
        """The model's source, with the data's number of classes."""
        return sources.resolve(self.settings.model).with_defaults(num_classes=len(self.data.classes))

    @property
    def steps(self) -> int:
        """Training steps in an epoch."""
        return -(-len(self.data.train) // self.settings.batch_size)  # type: ignore[arg-type]

    @cached_property
    def inputs(self) -> torch.Tensor:
        """A random input image, for tracing and verification."""
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, 0))
        return torch.randn(1, *self.data.shape, generator=generator)

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
        settings = self.settings
        return fit(model, self.data, batch_size=settings.batch_size, label_smoothing=settings.label_smoothing,
                   weight_decay=settings.weight_decay, milestones=self.milestones(phase),
                   seed=derive_seed(settings.seed, number), checkpoint=self.folder.file(f"{phase}.checkpoint"),
                   progress=self.on_progress, workers=settings.workers, **options)
