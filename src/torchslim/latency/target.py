"""Budgets of time: what was asked for, the table that it is planned by, and the clock that has the last word."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import nn

from torchslim.coupling.coupling import Coupling
from torchslim.errors import RequestError
from torchslim.latency.cache import Stopwatch, Timetable, times_of
from torchslim.latency.layer_benchmark import NAMES, watch
from torchslim.latency.predictor import ClockMeter, needs
from torchslim.surgery.plans import Plan
from torchslim.tracing.graph import Graph
from torchslim.utils.formatting import milliseconds
from torchslim.utils.inputs import Inputs

NEAR = 0.02
"""How far from the time that was foreseen a cut network may be without another plan: a share of what was asked for."""
UNSTEADY = 0.05
"""Where the quarters of a measurement differ by more than this share, it is not kept, nor believed any closer."""
_TRIES = 3  # measurements of one network, until one is steady
_GAINS = 0.5, 2.0  # what is beyond was a busy machine, and would spoil the plans that follow
_PLANS = 4  # at the most, each with the gain that the one before was seen to have

_UNITS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9}


class Backend(Stopwatch, Protocol):
    """What times layers and networks: a clock of one's own, of a phone on the desk, say, is an object with these."""

    def networks(self, models: Sequence[nn.Module], inputs: Inputs) -> Sequence[Sequence[float]]:
        """The nanoseconds of a call of each network in each round, measured in turns."""
        ...


def parsed(asked: object) -> float | int:
    """A budget of time: a share of today as a float in (0, 1], else nanoseconds as an int.

    Args:
        asked: a float in (0, 1], an int of nanoseconds, or a text with its unit such as "3ms", "250us" or "0.1 s".

    Raises:
        RequestError: it is none of these.
    """
    found = asked
    if isinstance(asked, str):
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ns|us|µs|μs|ms|s)", asked.strip())
        found = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    whole = isinstance(found, int) and not isinstance(found, bool) and found >= 1
    if not whole and not (isinstance(found, float) and 0 < found <= 1):
        raise RequestError(f"latency={asked!r}: wanted a float in (0, 1], the share kept of today, an int of "
                           "nanoseconds, or a time with its unit such as '3ms' or '250us'")
    assert isinstance(found, int | float)
    return found


def nanoseconds(asked: object, today: int) -> int:
    """A budget of time in nanoseconds.

    Raises:
        RequestError: it is no time (see `parsed`), or above what the network takes today.
    """
    found = parsed(asked)
    if isinstance(found, float):
        return int(today * found)
    if found > today:
        raise RequestError(f"latency={asked!r}: the network takes {milliseconds(today / 1e6)} as it is, which is less; "
                           "ask for a shorter time, or for a share of it such as 0.5")
    return found


@dataclass
class Deadline:
    """The clock of one plan. Mutable: what a cut network was seen to take sets the next plan's meter.

    Attributes:
        model, inputs: what is planned for.
        backend: what measures.
        table: what was measured.
        today: nanoseconds of the uncut network.
        key: of the uncut network in the table.
        most: nanoseconds that were asked for; None where other budgets are to be met in a way that saves time.
        gain: see `ClockMeter`.
        seen: nanoseconds of the last network that was measured.
        doubt: by how much the quarters of that measurement differ, as a share.
        plans: how many were.
    """

    model: nn.Module
    inputs: Inputs
    backend: Backend
    table: Timetable
    today: int
    key: str
    most: int | None = None
    gain: float = 1.0
    seen: float | None = None
    doubt: float = 0.0
    plans: int = 0

    def meter(self, coupling: Coupling) -> ClockMeter:
        """The meter for a coupling of the network."""
        return ClockMeter(coupling, self.table.times(needs(coupling)), self.today, self.gain)

    def confirmed(self, slim: Callable[[], nn.Module], plan: Plan, meter: ClockMeter) -> bool:
        """Whether the cut network takes the time that was foreseen; else the next meter is set by what it took.

        Args:
            slim: makes the network.
            plan: its plan.
            meter: which it was planned by.
        """
        if self.most is None or not plan.kept:
            return True
        self.plans += 1
        self._look(slim, plan)
        assert self.seen is not None
        foreseen = plan.predicted["latency"]
        saving = (self.today - foreseen) / meter.gain
        # What an unsteady clock says is believed where it is further off than it is unsteady.
        near = max(NEAR * self.most, self.doubt * self.seen if self.doubt > UNSTEADY else 0.0)
        if abs(self.seen - foreseen) <= near or self.plans == _PLANS or saving <= 0:
            return True
        self.gain = min(max((self.today - self.seen) / saving, _GAINS[0]), _GAINS[1])
        return False

    def _look(self, slim: Callable[[], nn.Module], plan: Plan) -> None:
        """What the cut network takes beside the original, measured or remembered."""
        sizes = [f"{name} {dim} {len(index)}" for name, dims in plan.kept.items() for dim, index in dims.items()]
        key = f"cut {self.key} {_digest(sizes)}"
        known = self.table.known.get(key)
        share, self.doubt = self._measured(slim()) if known is None else (known, 0.0)
        if known is None and self.doubt <= UNSTEADY:
            self.table.keep({key: share})
        self.seen = self.today * share

    def _measured(self, slim: nn.Module) -> tuple[float, float]:
        """What a network takes of the original's time, and how far that is in doubt: of some tries the steadiest."""
        found: list[tuple[float, float]] = []
        while len(found) < _TRIES and all(doubt > UNSTEADY for _, doubt in found):
            found.append(_share(*_rounds(self.backend, [self.model, slim], self.inputs)))
        return min(found, key=lambda each: each[1])

    def noted(self, plan: Plan) -> Plan:
        """The plan with what was measured."""
        if self.seen is None:
            return plan
        note = (f"latency: {milliseconds(self.seen / 1e6)} measured in {self.backend.name}, "
                f"{self.seen / self.today:.1%} of the original's, side by side")
        foreseen = plan.predicted["latency"]
        if self.doubt > UNSTEADY:
            note += (f"; the clock was unsteady (its quarters differ by {self.doubt:.0%}): plan again when the machine "
                     "is idle")
        elif abs(self.seen - foreseen) > UNSTEADY * foreseen:
            note += f"; {milliseconds(foreseen / 1e6)} were foreseen"
        return replace(plan, notes=(*plan.notes, note))


def deadline(model: nn.Module, inputs: Inputs, graph: Graph, latency: float | str | None,
             backend: str | Backend | None, folder: Path | None = None) -> Deadline | None:
    """The clock of a plan; None where neither a time nor a backend is asked for.

    Args:
        model: the network.
        inputs: what it is called with.
        graph: its run.
        latency: the time asked for, if any.
        backend: a name of `stopwatches.NAMES`, or a clock of one's own; None means "eager".
        folder: where to keep times; None means the user's folder for caches.

    Raises:
        RequestError: the backend can't run here, or the time is no time.
        ExportError: the network can't be run in the backend.
    """
    if latency is None and backend is None:
        return None
    if latency is not None:
        parsed(latency)  # what is no time is said before anything is measured
    asked = "eager" if backend is None else backend
    clock: Backend = watch(asked, inputs) if isinstance(asked, str) else asked
    missing = [name for name in ("name", "setting", "layers", "networks") if not hasattr(clock, name)]
    if missing:
        raise RequestError(f"backend: got {type(clock).__name__} without {', '.join(missing)}; wanted one of "
                           f"{', '.join(NAMES)}, or a clock of your own (`torchslim.latency.target.Backend`)")
    table = Timetable(clock, folder)
    key = _digest([f"{op.name} {op.args} {dict(op.kwargs)}" for op in graph.ops])
    known = table.known.get(f"network {key}")
    if known is None:
        [runs] = _rounds(clock, [model], inputs)
        known = min(runs)
        if _share([known] * len(runs), runs)[1] <= UNSTEADY:
            table.keep({f"network {key}": known})
    today = max(1, round(known))
    most = None if latency is None else nanoseconds(latency, today)
    return Deadline(model, inputs, clock, table, today, key, most)


def _rounds(clock: Backend, models: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
    """The nanoseconds of each network in each round, as many for all."""
    source = f"backend {clock.name}: networks()"
    given = clock.networks(models, inputs)
    found = [times_of(times, f"{source} for a network") for times in given] if isinstance(given, Iterable) else []
    if len(found) != len(models) or len({len(times) for times in found}) != 1:
        raise RequestError(f"{source} gave times of {len(found)} networks in {[len(times) for times in found]} rounds, "
                           f"wanted those of {len(models)}, each in equally many rounds")
    return found


def _share(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """What the second of two networks takes of the first's time, and by how much quarters of the rounds differ in that.

    The fastest rounds count: whatever disturbs a run adds to it.
    """
    size = max(1, len(before) // 4)
    starts = range(0, len(before) - size + 1, size)
    quarters = [min(after[start:start + size]) / min(before[start:start + size]) for start in starts]
    share = min(after) / min(before)
    return share, (max(quarters) - min(quarters)) / share


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


