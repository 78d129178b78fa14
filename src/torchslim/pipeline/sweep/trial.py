"""One trial: the phases `plan`, `cut`, `compensate` and `finetune` of a run, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchslim
from torchslim.latency.timing import measure, ratio
from torchslim.pipeline import phases
from torchslim.pipeline.context import RunContext
from torchslim.pipeline.run_folder import RunFolder
from torchslim.pipeline.sweep.front import Stage
from torchslim.pipeline.sweep.settings import SweepSettings
from torchslim.pipeline.sweep.space import trial_settings
from torchslim.train import Progress
from torchslim.utils.files import write_text

BASELINE, SLIM, PLAN, FOLDER = "baseline.safetensors", "finetuned.safetensors", "plan.json", "trials"


class TrialFolder(RunFolder):
    """A trial's folder, which reads the baseline of the sweep."""

    def __init__(self, sweep: RunFolder, number: int) -> None:
        super().__init__(trial_path(sweep.path, number))
        self._sweep = sweep
        self.found = {"baseline": sweep.found["baseline"]}

    def file(self, name: str) -> Path:
        """A file's path."""
        return self._sweep.file(name) if name == BASELINE else self.path / name

    def finish(self, phase: str, results: Mapping[str, Any]) -> None:
        """Keep a phase's results, in memory."""
        self.found[phase] = dict(results)


@dataclass(frozen=True)
class Measured:
    """What a trial has found.

    Attributes:
        cost: the objective's, as a share of the uncut network's.
        costs: all that were counted or measured, likewise.
        metrics: of the fine-tuned network on held-out data.
        error: of the proof.
    """

    cost: float
    costs: dict[str, float]
    metrics: dict[str, float]
    error: float


def trial_path(sweep: Path, number: int) -> Path:
    """The folder of a trial."""
    return sweep / FOLDER / f"{number:04d}"


def run_trial(sweep: RunContext, number: int, values: Mapping[str, Any],
              watch: Callable[[float, dict[str, float], Stage], None]) -> Measured:
    """Plan, cut, prove, refit, fine-tune and measure.

    Args:
        sweep: with the finished baseline.
        number: of the trial.
        values: of its settings.
        watch: called with the cost, all costs and each stage; it may raise to stop the trial.

    Raises:
        TorchslimError: a phase failed.
    """
    assert isinstance(sweep.settings, SweepSettings)
    folder = TrialFolder(sweep.folder, number)
    folder.path.mkdir(parents=True, exist_ok=True)
    settings = trial_settings(sweep.settings, values)
    metric, known = sweep.task.metric, {"cost": 1.0}
    costs: dict[str, float] = {}

    def after_epoch(at: Progress) -> None:
        if at.finished and at.score is not None:
            watch(known["cost"], costs, (at.epoch / at.epochs, at.score))

    run = RunContext(settings, folder, sweep.threads, after_epoch)
    # The data are those of the sweep, whatever the values.
    vars(run).update(data=sweep.data, task=sweep.task, source=sweep.source, inputs=sweep.inputs)
    write_text(folder.file(PLAN), phases.choose(run)[-1].to_json())
    folder.finish("cut", phases.cut(run))
    costs |= _costs(run, settings.objective)
    known["cost"] = costs[settings.objective]
    last = "cut"
    if settings.compensate:
        folder.finish("compensate", phases.compensate(run))
        last = "compensate"
    watch(known["cost"], costs, (0.0, folder.found[last]["metrics"][metric]))
    folder.finish("finetune", phases.finetune(run))
    for path in folder.path.iterdir():
        if path.name not in (SLIM, PLAN):
            path.unlink()
    return Measured(known["cost"], costs, folder.found["finetune"]["metrics"], folder.found["cut"]["error"])


def delete_trial(sweep: Path, number: int) -> None:
    """Delete what a trial has written."""
    shutil.rmtree(trial_path(sweep, number), ignore_errors=True)


def _costs(run: RunContext, objective: str) -> dict[str, float]:
    """Shares of the uncut network's costs; of the latency, measured in turns, only where it is the objective."""
    before, after = run.model(BASELINE), run.model("cut.safetensors")
    old, new = (torchslim.profile(model, run.inputs) for model in (before, after))
    costs = {name: getattr(new, name) / getattr(old, name) for name in ("macs", "params")}
    if objective == "latency":
        times = measure({"before": before, "after": after}, run.inputs, rounds=30, threads=run.threads)
        costs["latency"] = ratio(times["before"], times["after"])
    return costs
