"""Wall-clock time of callables, measured in turns.

Callables take turns (A B A B ...), so that temporary slowdowns of the machine affect all; compare two by the ratio of
their times within each round. A turn begins with calls that are not counted: the caches hold another callable's data,
and its threads may still be spinning. Idle threads of runtimes spin for some milliseconds, which has doubled the time
of the next callable.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from torchslim.errors import RequestError
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, arguments, tensors_in

Runnable = nn.Module | Callable[..., Any]

SETTLE_SECONDS = 0.1
"""Longer than idle threads of torch, ONNX Runtime and OpenVINO spin."""


@dataclass(frozen=True)
class Latency:
    """Times of one call, in milliseconds.

    Attributes:
        median_ms: the median of the rounds.
        p10_ms: the 10th percentile.
        p90_ms: the 90th percentile.
        runs: the time of one call in each round, in order (the mean if a round has several calls).
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: tuple[float, ...]

    def throughput(self, batch: int = 1) -> float:
        """Images a second, for calls on `batch` images."""
        return batch * 1e3 / self.median_ms if self.median_ms else math.inf

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms ({self.p10_ms:.3g} to {self.p90_ms:.3g}, {len(self.runs)} rounds)"


def measure(models: Mapping[str, Runnable], inputs: Inputs, *, rounds: int = 20, warmup: int = 3,
            threads: int | None = None, min_seconds: float = 0.01,
            settle_seconds: float | None = None) -> dict[str, Latency]:
    """Time models on the same inputs, in turns.

    Modules run in eval mode, and everything without gradients; modes and thread counts are restored.

    Args:
        models: name to module, or to anything callable with `inputs`.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        rounds: turns of each model.
        warmup: calls of each model before the first round, which are not counted.
        threads: CPU threads of torch; None leaves them.
        min_seconds: a turn repeats the call for about this long, since the clock is too coarse for a single call of a
            fast model.
        settle_seconds: with several models, each turn begins with uncounted calls: at least one, and for this long;
            None means 0.1 if one of them is not a module and may have its own threads, else 0.

    Returns:
        The latencies under the same names, in the same order.

    Raises:
        RequestError: no model, or fewer than one round, warm-up call or thread.
    """
    if not models:
        raise RequestError("measure: no candidate; give {'name': model}")
    for name, value in (("rounds", rounds), ("warmup", warmup), ("threads", threads)):
        if value is not None and value < 1:
            raise RequestError(f"measure: {name}={value} found, at least 1 wanted")
    args, kwargs = arguments(inputs)
    modules = [model for model in models.values() if isinstance(model, nn.Module)]
    if len(models) == 1:
        settle_seconds = None
    elif settle_seconds is None:
        settle_seconds = 0.0 if len(modules) == len(models) else SETTLE_SECONDS
    with inference_conditions(*modules, threads=threads):
        times = time_in_turns([partial(model, *args, **kwargs) for model in models.values()], rounds=rounds,
                              warmup=warmup, min_seconds=min_seconds, settle_seconds=settle_seconds,
                              synchronize=synchronizer(inputs))
    return {name: _summarize([seconds * 1e3 for seconds in runs]) for name, runs in zip(models, times, strict=True)}


def ratio(before: Latency, after: Latency) -> float:
    """Median over the rounds of `after`'s time divided by `before`'s; below 1 is faster.

    Both must come from one call of `measure`.

    Raises:
        RequestError: the two have different numbers of rounds.
    """
    if len(before.runs) != len(after.runs):
        raise RequestError(f"ratio: {len(before.runs)} and {len(after.runs)} rounds found, "
                           "equally many wanted; measure both in one call")
    return statistics.median(b / a for a, b in zip(before.runs, after.runs, strict=True))


def time_in_turns(calls: Sequence[Callable[[], object]], *, rounds: int, warmup: int = 1, min_calls: int = 1,
                  min_seconds: float = 0.0, max_seconds: float = math.inf, settle_seconds: float | None = None,
                  synchronize: Callable[[], object] = lambda: None) -> list[list[float]]:
    """Seconds of one call of each callable in each round, in which each has one turn.

    Args:
        calls: to time.
        rounds: maximum number.
        warmup: calls of each before the first round, which are not counted.
        min_calls: minimum calls per turn; their mean counts.
        min_seconds: approximate minimum length of a turn.
        max_seconds: see `limited_rounds`.
        settle_seconds: length of uncounted calls at the beginning of a turn, at least one; None for no call.
        synchronize: waits for the accelerator.
    """
    times: list[list[float]] = [[] for _ in calls]
    repeats = []
    for call in calls:
        fastest = min(_time(call, 1, synchronize) for _ in range(warmup))
        repeats.append(max(min_calls, math.ceil(min_seconds / max(fastest, 1e-9))))
    for _ in limited_rounds(rounds, max_seconds):
        for call, repeat, runs in zip(calls, repeats, times, strict=True):
            settled = 0.0
            while settle_seconds is not None and settled <= settle_seconds:
                settled += _time(call, 1, synchronize) or math.inf  # one call if the clock shows 0
            runs.append(_time(call, repeat, synchronize))
    return times


def limited_rounds(rounds: int, max_seconds: float) -> Iterator[int]:
    """Indices of rounds; ends early after `max_seconds`, but not before three rounds."""
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > max_seconds:
            return
        yield number


def processor() -> str:
    """The CPU's name, if the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


@contextmanager
def inference_conditions(*models: nn.Module, threads: int | None = None) -> Iterator[None]:
    """Eval mode, no gradients, and torch's CPU threads (None leaves them)."""
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with evaluating(*models), torch.inference_mode():
            yield
    finally:
        if threads is not None:
            torch.set_num_threads(threads_before)


def synchronizer(inputs: Any) -> Callable[[], None]:
    """A callable that waits for the inputs' accelerators, where calls are asynchronous."""
    devices = {tensor.device for tensor in tensors_in(inputs) if tensor.device.type != "cpu"}

    def synchronize() -> None:
        for device in devices:
            torch.accelerator.synchronize(device)

    return synchronize


def _time(call: Callable[[], object], repeats: int, synchronize: Callable[[], object]) -> float:
    """Mean seconds of one call."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def _summarize(runs: list[float]) -> Latency:
    tenths = statistics.quantiles(runs, n=10, method="inclusive") if len(runs) > 1 else [runs[0]] * 9
    return Latency(statistics.median(runs), tenths[0], tenths[8], tuple(runs))
