"""Settings of a sweep. Neither torch nor Optuna here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torchslim.errors import RequestError
from torchslim.pipeline.settings import Settings, option_name
from torchslim.utils.text import did_you_mean, quoted

OBJECTIVES = ("macs", "params", "latency")
KNEE = "knee"


@dataclass(frozen=True)
class SweepSettings(Settings):
    """One sweep. A trial is a run with these settings, in which the values of a point of the space replace some.

    Attributes:
        objective: the cost that is held against the metric: "macs", "params" or "latency", each as a share of the
            uncut network's.
        space: a TOML file that narrows the space that is searched.
        searched: the space, as JSON (see `torchslim.pipeline.sweep.space`).
        margin: by how much a trial's metric may be lower than a finished one's of no more cost at the same stage
            before it is stopped; see `torchslim.pipeline.sweep.front.dominating`.
        trials: finished trials in all, whoever ran them.
        timeout: seconds after which no trial is begun; None for no limit.
        storage: URL of a database; None for a file in the folder.
        study: the sweep's name in the storage.
        jobs: processes that run trials.
        best: what is picked in the end: "" for nothing, or as `parse_best` takes it.
    """

    macs: float | None = 1.0
    sparsify_epochs: int | None = 0
    finetune_epochs: int = 4
    nearest: bool = True
    export: bool = False
    objective: str = "macs"
    space: Path | None = None
    searched: str = "{}"
    margin: float = 0.1
    trials: int = 20
    timeout: float | None = None
    storage: str | None = None
    study: str = "sweep"
    jobs: int = 1
    best: str = ""

    _FREE: ClassVar[frozenset[str]] = frozenset({
        "trials", "timeout", "storage", "study", "jobs", "best", "margin", "searched"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise RequestError(f"--objective {quoted(self.objective)}: {did_you_mean(self.objective, OBJECTIVES)}")
        wanted = {
            "margin": (0 <= self.margin < math.inf, "0 or more; try 0.1"),
            "trials": (self.trials >= 1, "1 or more; try 20"),
            "timeout": (self.timeout is None or self.timeout > 0, "a number of seconds above 0"),
            "jobs": (self.jobs >= 1, "1 or more"),
            "study": (bool(self.study.strip()), "a name"),
        }
        for name, (good, text) in wanted.items():
            if not good:
                value = quoted(getattr(self, name)) if name == "study" else getattr(self, name)
                raise RequestError(f"{option_name(name)} {value}: wanted {text}")
        if self.best:
            parse_best(self.best, self.objective)

    def identity(self) -> dict[str, Any]:
        """Settings that must be equal to continue a sweep, as JSON values."""
        values = {**super().identity(), "space": self.searched}
        return {name: value for name, value in values.items() if name not in self._FREE}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {**super().to_dict(), "space": None if self.space is None else str(self.space)}

    def command(self) -> str:
        """The command line of these settings; without a storage's address, which may hold a password."""
        shown = replace(self, searched="{}", storage=None, best="")
        return Settings.command(shown).replace("torchslim slim", "torchslim sweep", 1)

    @property
    def journal(self) -> Path:
        """The file of the trials where no database is given."""
        return self.out / "sweep.journal"


def parse_best(text: str, objective: str) -> tuple[str, float]:
    """What `--best` picks from the front: ("knee", 0), or a metric or the cost with its limit.

    Raises:
        RequestError: anything else. Whether another name is the metric's is known once the data are.
    """
    name, _, number = text.partition(":")
    if text == KNEE:
        return KNEE, 0.0
    try:
        limit = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        limit = math.nan
    if not name or not math.isfinite(limit):
        raise RequestError(f"--best {quoted(text)}: wanted knee, a metric and the least of it such as accuracy:0.95, "
                           f"or the cost and the most of it, such as {objective}:0.3")
    if name in OBJECTIVES and name != objective:
        raise RequestError(f"--best {text}: the front of this sweep is in {objective}; wanted knee, "
                           f"{objective}:{number}, or --objective {name}")
    return name, limit
