"""Latency budgets: parsing, planning with a predictor, and its correction by measuring the cut network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from torchslim.coupling.coupling import Coupling
from torchslim.errors import RequestError
from torchslim.latency.backends import Backend
from torchslim.latency.cache import LatencyCache, checked_times
from torchslim.latency.local_backend import LOCAL_BACKENDS, LocalBackend
from torchslim.latency.predictor import LatencyPredictor, required_workloads
from torchslim.surgery.plans import CLOCK_TOLERANCE, Plan
from torchslim.tracing.graph import Graph
from torchslim.utils.formatting import milliseconds
from torchslim.utils.inputs import Inputs

MAX_SPREAD = 0.05
"""A measurement whose quarters differ by more than this share is noisy and not cached."""
_MAX_REPEATS = 3  # measurements of one network, until one is not noisy
_CORRECTIONS = 0.5, 2.0  # bounds: factors outside are measurement errors of a busy machine
_MAX_PLANS = 4  # each with the correction from the measurement of the one before

_UNITS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9}


def parse_latency(requested: object) -> float | int:
    """A latency budget: a share of the uncut network's time, a float in (0, 1], or nanoseconds, an int.

    Args:
        requested: a float in (0, 1], an int of nanoseconds, or a text with a unit such as "3ms", "250us" or "0.1 s".

    Raises:
        RequestError: another value.
    """
    value = requested
    if isinstance(requested, str):
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ns|us|µs|μs|ms|s)", requested.strip())
        value = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    raise RequestError(f"latency={requested!r}: wanted a float in (0, 1], the share kept of today, an int of "
                       "nanoseconds, or a time with its unit such as '3ms' or '250us'")


def to_nanoseconds(requested: object, baseline_ns: int) -> int:
    """A latency budget in nanoseconds.

    Raises:
        RequestError: it is invalid (see `parse_latency`), or above the uncut network's time.
    """
    value = parse_latency(requested)
    if isinstance(value, float):
        return int(baseline_ns * value)
    if value > baseline_ns:
        raise RequestError(f"latency={requested!r}: the network takes {milliseconds(baseline_ns / 1e6)} as it is, "
                           "which is less; ask for a shorter time, or for a share of it such as 0.5")
    return value


@dataclass(frozen=True)
class LatencyTarget:
    """The backend of a plan, its latency budget, and the correction of its predictions.

    Attributes:
        model, inputs: the uncut network and its inputs.
        backend: see `Backend`.
        cache: of its measured times.
        baseline_ns: nanoseconds of the uncut network.
        network_key: of the uncut network in the cache.
        budget_ns: requested nanoseconds; None if latency is minimised under other budgets.
        correction: see `LatencyPredictor`.
        plans_measured: number of plans measured for the correction.
    """

    model: nn.Module
    inputs: Inputs
    backend: Backend
    cache: LatencyCache
    baseline_ns: int
    network_key: str
    budget_ns: int | None = None
    correction: float = 1.0
    plans_measured: int = 0

    def predictor(self, coupling: Coupling) -> LatencyPredictor:
        """The predictor for a coupling of the network; measures layers that are not cached."""
        return LatencyPredictor(coupling, self.cache.layer_times(required_workloads(coupling)), self.baseline_ns,
                                self.correction)

    def measure_and_update(self, plan: Plan, make_slim: Callable[[], nn.Module]) -> tuple[Plan, LatencyTarget | None]:
        """Compare a plan's predicted time with the cut network's measured one.

        Args:
            plan: made with this target's predictor.
            make_slim: makes the cut network; called only if its time is not cached.

        Returns:
            The plan with a note of the measured time, which is the first one, and the time in the budget, if it misses
            that; and a target with a better correction to plan again with, or None if the plan is accepted.
        """
        if self.budget_ns is None or not plan.kept:
            return plan, None
        ratio, spread = self._measured(plan, make_slim)
        measured_ns, predicted_ns = self.baseline_ns * ratio, plan.predicted["latency"]
        noted = self._with_measurement(plan, measured_ns, self._note(measured_ns, spread, predicted_ns))
        plans = self.plans_measured + 1
        saving = (self.baseline_ns - predicted_ns) / self.correction
        # A noisy measurement counts only if it differs by more than its spread.
        tolerance = max(CLOCK_TOLERANCE * self.budget_ns, spread * measured_ns if spread > MAX_SPREAD else 0.0)
        if abs(measured_ns - predicted_ns) <= tolerance or plans == _MAX_PLANS or saving <= 0:
            return noted, None
        correction = min(max((self.baseline_ns - measured_ns) / saving, _CORRECTIONS[0]), _CORRECTIONS[1])
        return noted, replace(self, correction=correction, plans_measured=plans)

    @staticmethod
    def _with_measurement(plan: Plan, measured_ns: float, note: str) -> Plan:
        """The plan with what there is to say of a measured time; it counts where it or the prediction is too long."""
        predicted = next(budget for budget in plan.budgets if budget.resource == "latency")
        measured = replace(predicted, met=round(measured_ns))
        if predicted.is_met and measured.is_met:
            return replace(plan, notes=(*plan.notes, note))
        plan = replace(plan, budgets=tuple(measured if budget is predicted else budget for budget in plan.budgets))
        if not predicted.is_met:  # the first note says so
            return replace(plan, notes=(*plan.notes, note))
        asked = measured.format_count(measured.asked)
        missed = f"latency: missed, asked for at most {asked}; {note.removeprefix('latency: ')}"
        return replace(plan, notes=(missed, *plan.notes))

    def _measured(self, plan: Plan, make_slim: Callable[[], nn.Module]) -> tuple[float, float]:
        """Ratio of the cut network's time to the original's, and the measurement's spread (0 if cached)."""
        widths = [f"{name} {dim} {len(index)}" for name, dims in plan.kept.items() for dim, index in dims.items()]
        key = f"cut {self.network_key} {_digest(widths)}"
        if key in self.cache.entries:
            return self.cache.entries[key], 0.0
        slim, results = make_slim(), list[tuple[float, float]]()
        while len(results) < _MAX_REPEATS and all(spread > MAX_SPREAD for _, spread in results):
            results.append(_ratio_and_spread(*_time_networks(self.backend, [self.model, slim], self.inputs)))
        ratio, spread = min(results, key=lambda result: result[1])
        if spread <= MAX_SPREAD:
            self.cache.add({key: ratio})
        return ratio, spread

    def _note(self, measured_ns: float, spread: float, predicted_ns: float) -> str:
        note = (f"latency: {milliseconds(measured_ns / 1e6)} measured in {self.backend.name}, "
                f"{measured_ns / self.baseline_ns:.1%} of the original's, side by side")
        if spread > MAX_SPREAD:
            return (f"{note}; the clock was unsteady (its quarters differ by {spread:.0%}): plan again when the "
                    "machine is idle")
        if abs(measured_ns - predicted_ns) > MAX_SPREAD * predicted_ns:
            return f"{note}; {milliseconds(predicted_ns / 1e6)} were foreseen"
        return note


def latency_target(model: nn.Module, inputs: Inputs, graph: Graph, latency: float | str | None,
                   backend: str | Backend | None, folder: Path | None = None) -> LatencyTarget | None:
    """The target of a plan; None without a latency budget or a backend. Times the network if that is not cached.

    Args:
        model: the network.
        inputs: of the model.
        graph: its trace.
        latency: the budget, if any.
        backend: one of `LOCAL_BACKENDS`, or a custom backend; None means "eager".
        folder: of the cache; None means the user's cache folder.

    Raises:
        RequestError: the backend can't run here, or the latency is invalid.
        ExportError: the network can't be run in the backend.
    """
    if latency is None and backend is None:
        return None
    if latency is not None:
        parse_latency(latency)  # before anything is measured
    requested = "eager" if backend is None else backend
    timer: Backend = LocalBackend.create(requested, inputs) if isinstance(requested, str) else requested
    missing = [name for name in ("name", "environment", "time_layers", "time_networks") if not hasattr(timer, name)]
    if missing:
        raise RequestError(f"backend: got {type(timer).__name__} without {', '.join(missing)}; wanted one of "
                           f"{', '.join(LOCAL_BACKENDS)}, or a backend of your own "
                           "(`torchslim.latency.backends.Backend`)")
    cache = LatencyCache(timer, folder)
    network_key = _digest([f"{op.name} {op.args} {dict(op.kwargs)}" for op in graph.ops])
    fastest = cache.entries.get(f"network {network_key}")
    if fastest is None:
        [times] = _time_networks(timer, [model], inputs)
        fastest = min(times)
        if _ratio_and_spread([fastest] * len(times), times)[1] <= MAX_SPREAD:
            cache.add({f"network {network_key}": fastest})
    baseline_ns = max(1, round(fastest))
    budget_ns = None if latency is None else to_nanoseconds(latency, baseline_ns)
    return LatencyTarget(model, inputs, timer, cache, baseline_ns, network_key, budget_ns)


def _time_networks(backend: Backend, models: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
    """Nanoseconds of each network in each round, equally many for all."""
    source = f"backend {backend.name}: time_networks()"
    given = backend.time_networks(models, inputs)
    times = [checked_times(runs, f"{source} for a network") for runs in given] if isinstance(given, Iterable) else []
    if len(times) != len(models) or len({len(runs) for runs in times}) != 1:
        raise RequestError(f"{source} gave times of {len(times)} networks in {[len(runs) for runs in times]} rounds, "
                           f"wanted those of {len(models)}, each in equally many rounds")
    return times


def _ratio_and_spread(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Ratio of the second network's time to the first's, and its relative spread over quarters of the rounds.

    The fastest rounds count, since other programs only add time.
    """
    size = max(1, len(before) // 4)
    starts = range(0, len(before) - size + 1, size)
    quarters = [min(after[start:start + size]) / min(before[start:start + size]) for start in starts]
    ratio = min(after) / min(before)
    return ratio, (max(quarters) - min(quarters)) / ratio


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
