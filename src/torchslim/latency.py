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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.calling import Inputs, arguments, tensors_in
from torchslim.errors import CheckpointError, MissingExtra, RequestError
from torchslim.wording import dims, first_line

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


def onnx_runner(path: str | Path, inputs: Inputs, threads: int | None = None) -> Callable[..., list[Any]]:
    """An ONNX file as a candidate for `measure`: a callable that runs it in ONNX Runtime, on the CPU.

    Args:
        path: the file.
        inputs: as the model takes them; their tensors are fed in order. The callable ignores its arguments.
        threads: threads within an operation; None leaves it to ONNX Runtime.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
        CheckpointError: the file can't be run.
        RequestError: the inputs are not as many as the file's.
    """
    if find_spec("onnxruntime") is None:
        raise MissingExtra("onnxruntime", "onnx", "running ONNX files")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it: {first_line(error)}") from error
    entries = session.get_inputs()
    shapes = {entry.name: [size if isinstance(size, int) else None for size in entry.shape] for entry in entries}
    tensors = _fitting(path, inputs, shapes)
    feeds = {name: tensor.detach().cpu().numpy() for name, tensor in zip(shapes, tensors, strict=True)}

    def run(*_args: Any, **_kwargs: Any) -> list[Any]:
        outputs: list[Any] = session.run(None, feeds)
        return outputs

    return run


def openvino_runner(path: str | Path, inputs: Inputs, threads: int | None = None) -> Callable[..., list[Any]]:
    """A file as a candidate for `measure`: a callable that runs it in OpenVINO, on the CPU, in float32.

    The arrays that the callable returns hold their values until its next call.

    Args:
        path: the file, .xml or .onnx.
        inputs: as the model takes them; their tensors are fed in order. The callable ignores its arguments.
        threads: CPU threads; None leaves them to OpenVINO.

    Raises:
        MissingExtra: OpenVINO is not installed.
        CheckpointError: the file can't be run.
        RequestError: the inputs are not those of the file.
    """
    if find_spec("openvino") is None:
        raise MissingExtra("openvino", "openvino", "running a file in OpenVINO")
    import openvino

    # without the first hint OpenVINO computes in bfloat16 where the processor can
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        compiled = openvino.Core().compile_model(path, "CPU", options)
    except Exception as error:
        raise CheckpointError(f"{path}: OpenVINO cannot open it: {first_line(error)}") from error
    shapes = {port.any_name: [dim.get_length() if dim.is_static else None for dim in port.partial_shape]
              for port in compiled.inputs}
    feeds = [tensor.detach().cpu().numpy() for tensor in _fitting(path, inputs, shapes)]
    request, ports = compiled.create_infer_request(), compiled.outputs

    def run(*_args: Any, **_kwargs: Any) -> list[Any]:
        result = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [result[port] for port in ports]

    return run


def _fitting(path: str | Path, inputs: Inputs, shapes: Mapping[str, Sequence[int | None]]) -> list[Tensor]:
    """The tensors of `inputs` for a file's inputs of these names and shapes (None: any size)."""
    tensors = in_order(inputs, list(shapes))
    if len(shapes) != len(tensors):
        raise RequestError(f"{path}: {len(tensors)} input tensors found, wanted {len(shapes)}: "
                           f"{', '.join(shapes)}")
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        known = shape or [None] * tensor.ndim  # none at all where the file leaves even their number open
        if len(known) != tensor.ndim or any(a not in (None, b) for a, b in zip(known, tensor.shape, strict=True)):
            wanted = "x".join("N" if size is None else str(size) for size in shape)
            raise RequestError(f"{path}: {dims(tensor.shape)} found for its input {name}, {wanted} wanted; the file "
                               "has fixed sizes: give those, or export it anew")
    return tensors


def in_order(inputs: Inputs, names: list[str]) -> list[Tensor]:
    """The tensors of `inputs` in the order of a file's input names, else in their own order."""
    if isinstance(inputs, Mapping) and set(inputs) == set(names):
        return [inputs[name] for name in names]
    return list(tensors_in(arguments(inputs)))


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
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside, and every submodule's own mode again outside."""
    # Not model.train(mode): a user's override of it may do more than set the flag.
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


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
