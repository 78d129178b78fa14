"""What a sweep has found, as plain values. Neither torch nor Optuna here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchslim.errors import RequestError
from torchslim.pipeline.sweep.front import Finished, best_within, cheapest_with, knee, pareto_front
from torchslim.pipeline.sweep.settings import KNEE, parse_best
from torchslim.utils.formatting import format_metric, percent

STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
COSTS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


@dataclass(frozen=True)
class SweepTrial:
    """One trial.

    Attributes:
        number: from 0, in the order in which trials are begun.
        state: "complete", "stopped", "failed", "running" or "waiting".
        settings: what was searched.
        score: the task's main metric; of a stopped trial, when it was stopped.
        cost: the objective, as a share of the uncut network's.
        costs: all costs, likewise.
        metrics: all metrics of a complete trial.
        stages: pairs of the share of the fine-tuning done and the score then.
        reason: why it was stopped or failed.
        seconds: that it took.
        place: where its files are.
    """

    number: int
    state: str
    settings: dict[str, Any]
    score: float | None = None
    cost: float | None = None
    costs: dict[str, float] | None = None
    metrics: dict[str, float] | None = None
    stages: tuple[tuple[float, float], ...] = ()
    reason: str = ""
    seconds: float | None = None
    place: str = ""

    @staticmethod
    def of(trial: Any, objective: str) -> SweepTrial:
        """A trial of Optuna."""
        noted: Mapping[str, Any] = trial.user_attrs
        stages = tuple((done, score) for done, score in noted.get("stages", ()))
        costs = noted.get("costs")
        score = trial.values[0] if trial.values else stages[-1][1] if stages else None
        return SweepTrial(trial.number, STATES[trial.state.name], noted.get("settings", {}), score,
                          costs[objective] if costs else None, costs, noted.get("metrics"), stages,
                          noted.get("error", noted.get("stopped", "")), noted.get("seconds"), noted.get("folder", ""))

    @property
    def finished(self) -> Finished | None:
        """The trial as the front takes it; None if it is not complete."""
        if self.state != "complete" or self.score is None or self.cost is None:
            return None
        return Finished(self.number, self.score, self.cost, self.stages)

    def settings_text(self) -> str:
        """The settings in one line."""
        return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in self.settings.items())


def front_of(trials: Iterable[SweepTrial]) -> list[Finished]:
    """The front of complete trials."""
    return pareto_front([trial.finished for trial in trials if trial.finished is not None])


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep.

    Attributes:
        title: the model and the data.
        command: that goes on.
        metric: the task's main metric.
        objective: the cost on the front.
        baseline: the uncut network's score.
        macs, params: its costs.
        trials: in the order of their numbers.
        best: the number of the picked trial; None if none was picked.
    """

    title: str
    command: str
    metric: str
    objective: str
    baseline: float
    macs: int
    params: int
    trials: tuple[SweepTrial, ...]
    best: int | None = None

    @property
    def front(self) -> list[SweepTrial]:
        """The trials on the front, by rising cost."""
        numbers = {trial.number: trial for trial in self.trials}
        return [numbers[finished.number] for finished in front_of(self.trials)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "front": [trial.number for trial in self.front]}

    def line(self, trial: SweepTrial) -> str:
        """A trial in one line."""
        found = [f"{self.metric} {format_metric(self.metric, trial.score)}"] if trial.score is not None else []
        found += [f"{COSTS[self.objective]} {percent(trial.cost)}"] if trial.cost is not None else []
        reason = f": {trial.reason}" if trial.reason else ""
        return f"trial {trial.number} {trial.state}{reason}; {', '.join(found) or 'nothing measured'}; " \
               f"{trial.settings_text()}"


def check_best(text: str, metric: str, objective: str) -> None:
    """Check what is to be picked.

    Raises:
        RequestError: the name of another metric or cost.
    """
    name, _ = parse_best(text, objective)
    if name not in (KNEE, metric, objective):
        raise RequestError(f"--best {text}: the front of this sweep is {metric} against {objective}; wanted knee, "
                           f"{metric}:{text.partition(':')[2]} or {objective}:{text.partition(':')[2]}")


def pick(result: SweepResult, text: str) -> SweepTrial:
    """The trial that `--best` asks for.

    Raises:
        RequestError: none does.
    """
    front = front_of(result.trials)
    name, limit = parse_best(text, result.objective)
    if not front:
        raise RequestError(f"--best {text}: no trial is complete; run more with --trials")
    found = (knee(front) if name == KNEE else
             cheapest_with(front, limit) if name == result.metric else best_within(front, limit))
    if found is None:
        nearest = (f"the highest {result.metric} is {front[-1].score:.4g}" if name == result.metric else
                   f"the least {COSTS[result.objective]} are {front[0].cost:.4g}")
        raise RequestError(f"--best {text}: no trial on the front; {nearest}; ask for that, or run more with --trials")
    return next(trial for trial in result.trials if trial.number == found.number)
