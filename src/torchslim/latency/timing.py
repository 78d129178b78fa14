"""The one clock: how long models take, measured side by side.

Candidates take turns (A B A B ...), so that whatever slows the machine down for a while slows all of them;
compare two by the ratio of their times within each round, not by times of different moments. A turn begins with calls
that do not count: another candidate's data is in the caches, and its threads may be spinning. Runtimes let idle threads
spin for some milliseconds, which has doubled the time of the candidate that came next.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchslim.errors import RequestError
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, arguments, tensors_in

Candidate = nn.Module | Callable[..., Any]

_SETTLING = 0.1  # seconds; a while longer than the threads of torch, ONNX Runtime and OpenVINO spin


@dataclass(frozen=True)
class Latency:
    """Times of one call, in milliseconds.

    Attributes:
        median_ms: the median of the rounds.
        p10_ms: a tenth of the rounds was faster.
        p90_ms: a tenth of the rounds was slower.
        runs: the time of one call in each round, in order (a mean where a round made several calls).
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


def measure(models: Mapping[str, Candidate], inputs: Inputs, *, rounds: int = 20, warmup: int = 3,
            threads: int | None = None, min_seconds: float = 0.01,
            settle_seconds: float | None = None) -> dict[str, Latency]:
    """Time candidates on the same inputs, in turns.

    Modules run in eval mode, and everything without gradients; modes and thread counts are put back.

    Args:
        models: name to module, or to anything that can be called with `inputs`.
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        rounds: how often each candidate has its turn.
        warmup: calls of each candidate before the first round, which are not counted.
        threads: CPU threads of torch; None leaves them.
        min_seconds: a turn repeats the call until it lasts about this long, so that fast models are not lost
            in the clock's noise.
        settle_seconds: with several candidates, a turn begins with at least one call that is not counted, and with as
            many as take this long; None means 0.1 if one of them is no module and may have threads of its own, else 0.

    Returns:
        The latencies under the same names, in the same order.

    Raises:
        RequestError: no candidate, or fewer than one round, warm-up call or thread.
    """
    if not models:
        raise RequestError("measure: no candidate; give {'name': model}")
    for name, value in (("rounds", rounds), ("warmup", warmup), ("threads", threads)):
        if value is not None and value < 1:
            raise RequestError(f"measure: {name}={value} found, at least 1 wanted")
    args, kwargs = arguments(inputs)
    wait = waiter((args, kwargs))
    modules = [candidate for candidate in models.values() if isinstance(candidate, nn.Module)]
    if settle_seconds is None:
        settle_seconds = 0.0 if len(modules) == len(models) else _SETTLING
    times: dict[str, list[float]] = {name: [] for name in models}
    with conditions(*modules, threads=threads):
        calls = {}
        for name, candidate in models.items():
            each = min(_turn(candidate, args, kwargs, 1, wait) for _ in range(warmup))
            calls[name] = max(1, math.ceil(min_seconds / max(each, 1e-9)))
        for _ in range(rounds):
            for name, candidate in models.items():
                settled = 0.0  # a clock that stands still settles at once
                while len(models) > 1 and settled <= settle_seconds:
                    settled += _turn(candidate, args, kwargs, 1, wait) or math.inf
                times[name].append(_turn(candidate, args, kwargs, calls[name], wait) * 1e3)
    return {name: _summary(runs) for name, runs in times.items()}


def ratio(before: Latency, after: Latency) -> float:
    """How much of `before` the candidate `after` takes: the median over rounds of the ratio within a round.

    Below 1 is faster. Both must come from one call of `measure`.

    Raises:
        RequestError: the two have different numbers of rounds.
    """
    if len(before.runs) != len(after.runs):
        raise RequestError(f"ratio: {len(before.runs)} and {len(after.runs)} rounds found, "
                           "equally many wanted; measure both in one call")
    return statistics.median(b / a for a, b in zip(before.runs, after.runs, strict=True))


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


@contextmanager
def conditions(*models: nn.Module, threads: int | None = None) -> Iterator[None]:
    """How candidates run: in eval mode, without gradients, on so many threads of torch (None leaves them)."""
    with evaluating(*models), _threads(threads), torch.inference_mode():
        yield


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def waiter(inputs: Any) -> Callable[[], None]:
    """What waits for the accelerator that the inputs are on: its calls return before the work is done."""
    devices = {tensor.device for tensor in tensors_in(inputs) if tensor.device.type != "cpu"}

    def wait() -> None:
        for device in devices:
            torch.accelerator.synchronize(device)

    return wait


def _turn(candidate: Candidate, args: tuple[Any, ...], kwargs: dict[str, Any], calls: int,
          wait: Callable[[], None]) -> float:
    """Seconds of one call, as the mean of several."""
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        candidate(*args, **kwargs)
    wait()
    return (time.perf_counter() - start) / calls


def _summary(runs: list[float]) -> Latency:
    tenths = statistics.quantiles(runs, n=10, method="inclusive") if len(runs) > 1 else [runs[0]] * 9
    return Latency(statistics.median(runs), tenths[0], tenths[8], tuple(runs))
