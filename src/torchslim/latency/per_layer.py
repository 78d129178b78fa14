"""The time of each module without its submodules, with its multiply-adds and memory accesses.

Hooks read the clock when a module begins or ends; the time since the last reading belongs to the innermost running
module. The time of the hooks is measured on an empty module and subtracted. On an accelerator each reading
synchronises, so layers don't overlap as they otherwise do.

A layer is marked if its multiply-adds do not explain its time: if it takes more than `SLOW` times as long as they would
at the network's median time per multiply-add, and more than the mean layer.
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
from torchslim.latency.timing import Latency, measure, synchronizer
from torchslim.rules import is_arithmetic, preserves_values
from torchslim.tracing.graph import Op
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs, arguments, unwrap
from torchslim.utils.modules import names_of_modules

SLOW = 3
"""A layer is marked above this multiple of its multiply-adds' time."""
BOUND = 16
"""A layer with fewer multiply-adds per element read or written is memory-bound."""
SMALL = 2**15
"""With fewer elements per operation (and under a million multiply-adds), call overhead dominates."""

REASONS = {
    "small ops": f"operations on few elements: fewer than {SMALL:,} each, so that calling them takes the time",
    "memory-bound": f"fewer than {BOUND} multiply-adds for each element that is read or written",
    "slow kernel": "neither multiply-adds nor memory explain the time: a kernel that suits these sizes badly",
    "element-wise": "no multiply-adds: arithmetic on each element",
    "moves data": "no multiply-adds: elements are copied, joined or reordered",
    "no MACs": "no multiply-adds: pooling, norms, reductions, resizing",
    "no ops": "Python code, and memory that is freed",
}
"""Why multiply-adds do not explain a layer's time."""

_CALLS = 200  # of the empty module


@dataclass(frozen=True)
class LayerTime:
    """Time of one module, without that of its submodules, and its costs.

    Attributes:
        name: qualified name; "" is the model itself.
        kind: class name.
        ms: milliseconds of one call of the model, the median of the rounds; over all calls of the module.
        share: of the time of all layers, 0 to 1.
        macs: multiply-adds.
        macs_share: of the multiply-adds of all layers, 0 to 1.
        memory_access: elements that its operations read and write; 0 for views.
        calls: of the module.
        reason: why multiply-adds do not explain its time, a key of `REASONS`; empty for a layer that is not marked.
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
    """The times of a model's layers.

    Attributes:
        layers: the slowest first.
        whole: calls of the model without hooks, in turns with those with hooks.
        hooks_ms: the time of the hooks in one call, subtracted from the layers.
    """

    layers: tuple[LayerTime, ...]
    whole: Latency
    hooks_ms: float

    @property
    def total_ms(self) -> float:
        """The sum of the layers' times."""
        return sum(layer.ms for layer in self.layers)


def time_modules(model: nn.Module, inputs: Inputs, *, rounds: int = 20, warmup: int = 3,
                 threads: int | None = None) -> LayerTimes:
    """Time each module without its submodules, in turns with the whole model.

    The model runs eagerly, in eval mode and without gradients; modes, hooks and thread counts are restored.

    Args:
        model: any module; compiled and data-parallel wrappers are removed.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        rounds: how often the model is timed with hooks, and without.
        warmup: calls before, not counted.
        threads: CPU threads of torch; None leaves them.

    Raises:
        TraceError: the model fails on these inputs.
        UnsupportedModel: scripted modules.
        RequestError: inputs of another type, fewer than one round, warm-up call or thread.
    """
    model = unwrap(model)
    graph = trace(model, inputs, detect_width_reads=False)
    costs = {layer.name: layer for layer in profiled(model, graph).layers}
    operations: dict[str, list[Op]] = {}
    for op in graph.ops:
        if op.inputs and accessed(op):
            operations.setdefault(op.module, []).append(op)
    synchronize, empty_calls = synchronizer(arguments(inputs)), _EmptyCalls()
    timer, overhead_timer = HookTimer(model, synchronize), HookTimer(empty_calls, synchronize)
    latencies = measure({"model": model, "hooked": timer, "empty": empty_calls, "hooked empty": overhead_timer},
                        inputs, rounds=rounds, warmup=warmup, threads=threads, min_seconds=0, settle_seconds=0)
    overhead = _hook_overhead(overhead_timer.records[warmup:], latencies["empty"])
    records = timer.records[warmup:]
    seconds = {name: statistics.median(record[name].without(overhead) for record in records if name in record)
               for name in dict.fromkeys(name for record in records for name in record)}
    last = records[-1]
    kinds = {name: type(module).__name__ for module, name in timer.names.items()}
    hooks = sum(time.calls * overhead.in_module + time.children * overhead.in_caller for time in last.values())
    return LayerTimes(_rows(seconds, last, kinds, costs, operations), latencies["model"], hooks * 1e3)


# --- timing with hooks --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class HookOverhead:
    """Seconds that hooks add, per call of a module, to its own time and to its caller's."""

    in_module: float
    in_caller: float


@dataclass(slots=True)
class ModuleTime:
    """Seconds in one module, without submodules, during one call of the model; its calls, and calls of submodules.
    """

    seconds: float = 0.0
    calls: int = 0
    children: int = 0

    def without(self, overhead: HookOverhead) -> float:
        """The seconds without the hooks'."""
        return max(0.0, self.seconds - self.calls * overhead.in_module - self.children * overhead.in_caller)


@dataclass
class HookTimer:
    """A callable that runs the model and records the time of each module without its submodules.

    Attributes:
        records: times by module name, for each successful call of the model.
    """

    model: nn.Module
    synchronize: Callable[[], None]
    records: list[Mapping[str, ModuleTime]] = field(default_factory=list)
    names: Mapping[nn.Module, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = names_of_modules(self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        names, synchronize, clock, thread = self.names, self.synchronize, time.perf_counter, threading.get_ident()
        record: dict[str, ModuleTime] = {}
        running: list[tuple[nn.Module, ModuleTime]] = []
        last_reading = 0.0

        def enter(module: nn.Module, _args: Any) -> None:
            nonlocal last_reading
            if module not in names or threading.get_ident() != thread:
                return
            synchronize()
            now = clock()
            if running:
                caller = running[-1][1]
                caller.seconds += now - last_reading
                caller.children += 1
            module_time = record.setdefault(names[module], ModuleTime())
            module_time.calls += 1
            running.append((module, module_time))
            last_reading = clock()

        def leave(module: nn.Module, _args: Any, _output: Any) -> None:
            nonlocal last_reading
            if not running or running[-1][0] is not module or threading.get_ident() != thread:
                return
            synchronize()
            running.pop()[1].seconds += clock() - last_reading
            last_reading = clock()

        # Global hooks run before a module's own, so the time of those counts as the module's.
        handles = [register_module_forward_pre_hook(enter)]
        try:
            handles.append(register_module_forward_hook(leave, always_call=True))
            output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self.records.append(record)
        return output


class _EmptyCalls(nn.Module):
    """Calls an empty module many times."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = _Empty()

    def forward(self, *_args: Any, **_kwargs: Any) -> None:
        for _ in range(_CALLS):
            self.empty(None)


class _Empty(nn.Module):
    def forward(self, _: None) -> None:
        return None


def _hook_overhead(records: Sequence[Mapping[str, ModuleTime]], plain: Latency) -> HookOverhead:
    """The overhead by `_EmptyCalls` with hooks and without."""
    in_module = statistics.median(record["empty"].seconds for record in records) / _CALLS
    in_caller = statistics.median(record[""].seconds for record in records) / _CALLS
    return HookOverhead(in_module, max(0.0, in_caller - plain.median_ms / 1e3 / _CALLS))


# --- times beside costs -------------------------------------------------------------------------------------

def _rows(seconds: Mapping[str, float], module_times: Mapping[str, ModuleTime], kinds: Mapping[str, str],
          costs: Mapping[str, Layer], operations: Mapping[str, Sequence[Op]]) -> tuple[LayerTime, ...]:
    total = sum(seconds.values())
    macs = {name: costs[name].macs if name in costs else 0 for name in seconds}
    all_macs, pace = sum(macs.values()), seconds_per_mac(seconds, macs)
    rows = []
    for name, times in seconds.items():
        memory = costs[name].memory_access if name in costs else 0
        slow = pace and times * len(seconds) > total and times > SLOW * pace * macs[name]
        reason = _reason(macs[name], memory, operations.get(name, ())) if slow else ""
        rows.append(LayerTime(name, kinds[name], times * 1e3, times / total if total else 0.0, macs[name],
                              macs[name] / all_macs if all_macs else 0.0, memory,
                              module_times[name].calls if name in module_times else 0, reason))
    return tuple(sorted(rows, key=lambda row: -row.ms))


def seconds_per_mac(seconds: Mapping[str, float], macs: Mapping[str, int]) -> float:
    """Median over all multiply-adds of the time per multiply-add; 0 without any.

    The median, unlike the mean, is not affected by a few slow layers.
    """
    paces = sorted((seconds[name] / count, count) for name, count in macs.items() if count)
    counted, half = 0, sum(macs.values()) / 2
    for pace, count in paces:
        counted += count
        if counted >= half:
            return pace
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
