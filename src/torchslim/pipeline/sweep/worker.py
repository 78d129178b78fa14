"""A worker: takes trials of the study until enough are done, and keeps the folder in order."""

from __future__ import annotations

import json
import math
import socket
import time
import uuid
from collections.abc import Callable
from functools import cached_property
from typing import Any

import optuna
from filelock import FileLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

import torchslim
from torchslim.errors import TorchslimError, TrainingError
from torchslim.pipeline.context import RunContext
from torchslim.pipeline.sweep.front import Finished, Stage, dominating
from torchslim.pipeline.sweep.page import render
from torchslim.pipeline.sweep.result import SweepResult, SweepTrial, front_of
from torchslim.pipeline.sweep.settings import SweepSettings
from torchslim.pipeline.sweep.space import dimensions
from torchslim.pipeline.sweep.study import Workers, has_ended, open_study, retry_lost
from torchslim.pipeline.sweep.trial import BASELINE, delete_trial, run_trial
from torchslim.utils.files import write_text

TRIALS, PAGE, PLACE, LOCK = "trials.jsonl", "front.html", "place", "sweep.lock"


class Worker:
    """Runs trials in one process.

    Args:
        sweep: with the finished baseline.
        settings: of the sweep.
        tell: is given a line after each trial.
        study: where it is open already.
    """

    def __init__(self, sweep: RunContext, settings: SweepSettings, tell: Callable[[str], None],
                 study: Study | None = None) -> None:
        self._sweep, self._settings, self._tell = sweep, settings, tell
        work = settings.out / "work"
        self._lock = FileLock(work / LOCK)
        with self._lock:
            if not (work / PLACE).exists():
                write_text(work / PLACE, uuid.uuid4().hex)
            self._study = study or open_study(settings)
        self._workers = Workers(work, (work / PLACE).read_text(encoding="utf-8"), uuid.uuid4().hex[:12])

    def run(self, deadline: float) -> None:
        """Run trials until so many are done or running as were asked for, or the time is over.

        Args:
            deadline: of `time.time`.
        """
        with self._workers:
            while time.time() < deadline and self._run_next():
                pass

    def _run_next(self) -> bool:
        try:
            self._lock.acquire()  # until the trial is this worker's: see _objective
            retry_lost(self._study, self._workers, self._forget, self._settings.storage is None)
            trials = self._study.get_trials(deepcopy=False)
            taken = sum(has_ended(trial) or trial.state == TrialState.RUNNING for trial in trials)
            if taken >= self._settings.trials:
                return False
            self._study.optimize(self._objective, n_trials=1, catch=(TorchslimError,), callbacks=[self._after])
        finally:
            self._lock.release(force=True)
        return True

    def _after(self, _: Study, trial: FrozenTrial) -> None:
        result = self.write()
        self._tell(result.line(SweepTrial.of(trial, self._settings.objective)))

    def _objective(self, trial: Trial) -> tuple[float, float]:
        values = {dimension.name: dimension.suggest(trial)
                  for dimension in dimensions(json.loads(self._settings.searched))}
        folder = f"{socket.gethostname()}:{self._settings.out.resolve()}"
        for name, value in (("settings", values), ("place", self._workers.place), ("folder", folder),
                            ("worker", self._workers.name)):
            trial.set_user_attr(name, value)
        self._lock.release()
        begun, metric, stages = time.time(), self._sweep.task.metric, []

        def watch(cost: float, costs: dict[str, float], stage: Stage) -> None:
            stages.append(stage)
            trial.set_user_attr("stages", stages)
            trial.set_user_attr("costs", costs)
            if other := dominating(cost, stage, self._finished(), self._settings.margin):
                trial.set_user_attr("stopped", f"trial {other.number} costs no more and is ahead")
                raise optuna.TrialPruned

        done = False
        try:
            measured = run_trial(self._sweep, trial.number, values, watch)
            score = measured.metrics[metric]
            if not math.isfinite(score):
                raise TrainingError(f"trial {trial.number}: the {metric} is {score}; narrow --space")
            done = True
        except TorchslimError as error:
            trial.set_user_attr("error", str(error))
            raise
        finally:
            trial.set_user_attr("seconds", round(time.time() - begun, 3))
            if not done:
                self._forget(trial.number)
        trial.set_user_attr("metrics", measured.metrics)
        trial.set_user_attr("proof_error", measured.error)
        return score, measured.cost

    def _finished(self) -> list[Finished]:
        return [trial.finished for trial in self.trials() if trial.finished is not None]

    def _forget(self, number: int) -> None:
        delete_trial(self._settings.out, number)

    def trials(self) -> list[SweepTrial]:
        """All trials."""
        return [SweepTrial.of(trial, self._settings.objective) for trial in self._study.get_trials(deepcopy=False)]

    @cached_property
    def _uncut(self) -> Any:
        return torchslim.profile(self._sweep.model(BASELINE), self._sweep.inputs)

    def result(self, best: int | None = None) -> SweepResult:
        """What was found so far."""
        settings, metric = self._settings, self._sweep.task.metric
        return SweepResult(f"{self._sweep.source.name} on {settings.data}", settings.command(), metric,
                           settings.objective, self._sweep.folder.found["baseline"]["metrics"][metric],
                           self._uncut.macs, self._uncut.params, tuple(self.trials()), best)

    def write(self, best: int | None = None) -> SweepResult:
        """Write the trials and the page, and delete the networks that are no longer on the front."""
        with self._lock:
            result = self.result(best)
            kept = {finished.number for finished in front_of(result.trials)}
            for trial in result.trials:
                if trial.state in ("complete", "stopped", "failed") and trial.number not in kept:
                    self._forget(trial.number)
            out = self._settings.out
            write_text(out / TRIALS, "".join(json.dumps(trial) + "\n" for trial in result.to_dict()["trials"]))
            write_text(out / PAGE, render(result))
        return result
