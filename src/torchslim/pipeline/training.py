"""A model trained on data by its task, and saved: `torchslim train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from torchslim.pipeline.checks import check_training
from torchslim.pipeline.context import TrainingContext
from torchslim.pipeline.training_settings import TrainingSettings
from torchslim.store.loading import build
from torchslim.store.saving import save
from torchslim.train import History, Progress, fit
from torchslim.train.processes import join_processes
from torchslim.utils.seeding import derive_seed, seeded


@dataclass(frozen=True)
class TrainedModel:
    """What a training gave: its curves, and all metrics of the saved model on held-out data."""

    history: History
    metrics: dict[str, float]


def train_model(settings: TrainingSettings, epochs: int, checkpoint: Path | None = None, log: Path | None = None,
                progress: Callable[[Progress], object] | None = None) -> TrainedModel:
    """Train the model of the settings, and save it as `settings.out`; under torchrun in all processes together.

    Args:
        settings: of the training.
        epochs: passes over the data.
        checkpoint, log, progress: see `torchslim.train.fit`.

    Raises:
        RequestError: model, data or settings do not fit each other; nothing was written then.
        TorchslimError: as `fit` and `save`.
    """
    processes = join_processes()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = TrainingContext(settings, processes=processes)
    with processes.connected():
        return _train(run, epochs, checkpoint, log, progress)


def _train(run: TrainingContext, epochs: int, checkpoint: Path | None, log: Path | None,
           progress: Callable[[Progress], object] | None) -> TrainedModel:
    settings = run.settings
    with run.processes.agreed(), seeded(derive_seed(settings.seed, 1)):
        model = build(run.source)
    check_training(run, model)
    history = fit(model, run.data, **{
        **run.fit_options, "epochs": epochs, "lr": run.rate, "milestones": settings.milestones,
        "seed": settings.seed, "checkpoint": checkpoint, "log": log, "progress": progress})
    with run.processes.agreed():
        if run.processes.is_first:
            save(model.eval(), settings.out, source=run.source)
    return TrainedModel(history, run.scores(model.eval()))
