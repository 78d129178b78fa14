"""Where the time of a call goes: the time of each module by itself, beside what it costs on paper.

While the model runs, hooks look at the clock whenever a module begins or ends; the time since the last look belongs to
the innermost module that was running, as operations do in a profile. What the hooks cost is measured on a module that
does nothing, and deducted. On an accelerator each look waits until the work is done: layers can't overlap there as they
otherwise do.

A layer is marked where its multiply-adds do not explain its time: where it takes more than `SLOW` times what they would
take at the network's pace, and more than the mean layer. The pace is that of the network's median multiply-add.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchslim.costs.memory import accessed
from torchslim.costs.profiler import Layer, profiled
from torchslim.latency.timing import Latency, measure, waiter
from torchslim.rules import is_arithmetic, preserves_values
from torchslim.tracing.graph import Op
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs, arguments, unwrap
from torchslim.utils.modules import names_of_modules

SLOW = 3
"""How many times the time of its multiply-adds a layer takes that is marked."""
BOUND = 16
"""With fewer multiply-adds for each element that is read or written, a layer is called memory-bound."""
SMALL = 2**15
"""With fewer elements for each operation (and fewer than a million multiply-adds), calling it takes the time."""

REASONS = {
    "small ops": f"operations on few elements: fewer than {SMALL:,} each, so that calling them takes the time",
    "memory-bound": f"fewer than {BOUND} multiply-adds for each element that is read or written",
    "slow kernel": "neither multiply-adds nor memory explain the time: a kernel that suits these sizes badly",
    "element-wise": "no multiply-adds: arithmetic on each element",
    "moves data": "no multiply-adds: elements are copied, joined or reordered",
    "no MACs": "no multiply-adds: pooling, norms, reductions, resizing",
    "no ops": "Python code, and memory that is freed",
}
"""Why a layer's time is not that of its multiply-adds."""

_CALLS = 200  # of the module that does nothing


@dataclass(frozen=True)
class LayerTime:
    """One module by itself: its time, without that of the modules in it, beside its costs.

    Attributes:
        name: qualified name; "" is the model itself.
        kind: class name.
        ms: milliseconds of one call of the model, the median of the rounds; over all calls of the module.
        share: of the time of all layers, 0 to 1.
        macs: multiply-adds.
        macs_share: of the multiply-adds of all layers, 0 to 1.
        memory_access: elements that its operations read and write; views are free.
        calls: how often the module was called.
        reason: why its time is not that of its multiply-adds, a key of `REASONS`; empty for a layer that is not marked.
    """

    name: str
    kind: str
    ms: float
    share: float
    macs: int
    macs_share: float
    memory_access: int
    calls: int
    reason: str


@dataclass(frozen=True)
class LayerTimes:
    """The layers of a model, and what it cost to measure them.

    Attributes:
        layers: the slowest first.
        whole: the call of the model without hooks, in turns with those that were looked into.
        hooks_ms: what the hooks took of one call, and was deducted from the layers.
    """

    layers: tuple[LayerTime, ...]
    whole: Latency
    hooks_ms: float

    @property
    def total_ms(self) -> float:
        """The sum of the layers' times."""
        return sum(layer.ms for layer in self.layers)


def layer_times(model: nn.Module, inputs: Inputs, *, rounds: int = 20, warmup: int = 3,
                threads: int | None = None) -> tuple[LayerTime, ...]:
    """The time of each module by itself, the slowest first; see `timed_layers` for arguments and errors."""
    return timed_layers(model, inputs, rounds=rounds, warmup=warmup, threads=threads).layers


def timed_layers(model: nn.Module, inputs: Inputs, *, rounds: int = 20, warmup: int = 3,
                 threads: int | None = None) -> LayerTimes:
    """Time each module by itself, and the whole call without hooks in turns with that.

    The model runs eagerly, in eval mode and without gradients; modes, hooks and thread counts are put back.

    Args:
        model: any module; compiled and data-parallel wrappers are looked through.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        rounds: how often the model is timed with hooks, and without.
        warmup: calls that are not counted.
        threads: CPU threads of torch; None leaves them.

    Raises:
        TraceError: the model fails on these inputs.
        UnsupportedModel: scripted modules.
        RequestError: inputs of another kind, fewer than one round, warm-up call or thread.
    """
    model = unwrap(model)
    graph = trace(model, inputs, detect_width_reads=False)
    costs = {layer.name: layer for layer in profiled(model, graph).layers}
    operations: dict[str, list[Op]] = {}
    for op in graph.ops:
        if op.inputs and accessed(op):
            operations.setdefault(op.module, []).append(op)
    wait, nest = waiter(arguments(inputs)), _Nest()
    layers, hooks = Stopwatch(model, wait), Stopwatch(nest, wait)
    times = measure({"whole": model, "layers": layers, "plain": nest, "hooks": hooks}, inputs, rounds=rounds,
                    warmup=warmup, threads=threads, min_seconds=0, settle_seconds=0)
    inside, outside = _overhead(hooks.records[warmup:], times["plain"])
    records = layers.records[warmup:]
    seconds = {name: statistics.median(record[name].net(inside, outside) for record in records if name in record)
               for name in dict.fromkeys(name for record in records for name in record)}
    last = records[-1]
    kinds = {name: type(module).__name__ for module, name in layers.names.items()}
    return LayerTimes(_rows(seconds, last, kinds, costs, operations), times["whole"],
                      sum(spent.calls * inside + spent.children * outside for spent in last.values()) * 1e3)


# --- the clock in hooks -------------------------------------------------------------------------------------

@dataclass(slots=True)
class Spent:
    """What one call of the model took in one module: seconds by itself, its calls, and the calls it made."""

    seconds: float = 0.0
    calls: int = 0
    children: int = 0

    def net(self, inside: float, outside: float) -> float:
        """The seconds without what hooks take inside of a call, and outside of one."""
        return max(0.0, self.seconds - self.calls * inside - self.children * outside)


@dataclass
class Stopwatch:
    """A model that, called, notes what each of its modules took by itself.

    Attributes:
        records: what was noted, by name of the module, for each call of the model that came to its end.
    """

    model: nn.Module
    wait: Callable[[], None]
    records: list[Mapping[str, Spent]] = field(default_factory=list)
    names: Mapping[nn.Module, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = names_of_modules(self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, after noting."""
        names, wait, clock, thread = self.names, self.wait, time.perf_counter, threading.get_ident()
        found: dict[str, Spent] = {}
        running: list[tuple[nn.Module, Spent]] = []
        then = 0.0

        def enter(module: nn.Module, _args: Any) -> None:
            nonlocal then
            if module not in names or threading.get_ident() != thread:
                return
            wait()
            now = clock()
            if running:
                parent = running[-1][1]
                parent.seconds += now - then
                parent.children += 1
            spent = found.setdefault(names[module], Spent())
            spent.calls += 1
            running.append((module, spent))
            then = clock()

        def leave(module: nn.Module, _args: Any, _output: Any) -> None:
            nonlocal then
            if not running or running[-1][0] is not module or threading.get_ident() != thread:
                return
            wait()
            running.pop()[1].seconds += clock() - then
            then = clock()

        # Those of all modules: they run before a module's own, so that what these do counts as the module's.
        handles = [register_module_forward_pre_hook(enter)]
        try:
            handles.append(register_module_forward_hook(leave, always_call=True))
            output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self.records.append(found)
        return output


class _Nest(nn.Module):
    """Calls a module that does nothing, many times."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = _Empty()

    def forward(self, *_args: Any, **_kwargs: Any) -> None:
        for _ in range(_CALLS):
            self.empty(None)


class _Empty(nn.Module):
    def forward(self, _: None) -> None:
        return None


def _overhead(records: Sequence[Mapping[str, Spent]], plain: Latency) -> tuple[float, float]:
    """Seconds that the hooks add to a module's own time at each of its calls, and at each call that it makes."""
    inside = statistics.median(record["empty"].seconds for record in records) / _CALLS
    outside = statistics.median(record[""].seconds for record in records) / _CALLS
    return inside, max(0.0, outside - plain.median_ms / 1e3 / _CALLS)


# --- what the times say -------------------------------------------------------------------------------------

def _rows(seconds: Mapping[str, float], spent: Mapping[str, Spent], kinds: Mapping[str, str],
          costs: Mapping[str, Layer], operations: Mapping[str, Sequence[Op]]) -> tuple[LayerTime, ...]:
    total = sum(seconds.values())
    macs = {name: costs[name].macs if name in costs else 0 for name in seconds}
    all_macs, usual = sum(macs.values()), pace(seconds, macs)
    rows = []
    for name, time_ in seconds.items():
        memory = costs[name].memory_access if name in costs else 0
        slow = usual and time_ * len(seconds) > total and time_ > SLOW * usual * macs[name]
        reason = _reason(macs[name], memory, operations.get(name, ())) if slow else ""
        rows.append(LayerTime(name, kinds[name], time_ * 1e3, time_ / total if total else 0.0, macs[name],
                              macs[name] / all_macs if all_macs else 0.0, memory,
                              spent[name].calls if name in spent else 0, reason))
    return tuple(sorted(rows, key=lambda row: -row.ms))


def pace(seconds: Mapping[str, float], macs: Mapping[str, int]) -> float:
    """Seconds of the median multiply-add: half of all are in layers that need less for each of theirs; 0 without any.

    The median, and not the mean, because the few layers that waste their time are what is looked for.
    """
    paces = sorted((seconds[name] / count, count) for name, count in macs.items() if count)
    seen, half = 0, sum(macs.values()) / 2
    for each, count in paces:
        seen += count
        if seen >= half:
            return each
    return 0.0


def _reason(macs: int, memory: int, operations: Sequence[Op]) -> str:
    """A key of `REASONS`."""
    if not operations:
        return "no ops"
    if memory < SMALL * len(operations) and macs < 2**20 * len(operations):
        return "small ops"
    if macs:
        return "memory-bound" if macs < BOUND * memory else "slow kernel"
    if all(preserves_values(op) for op in operations):
        return "moves data"
    return "element-wise" if all(is_arithmetic(op) or "batch_norm" in op.name for op in operations) else "no MACs"
