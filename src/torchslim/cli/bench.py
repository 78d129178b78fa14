"""`bench`: times of whole models in several backends, and of one model layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.loading import check_runs, example_inputs
from torchslim.cli.options import MAX_THREADS, Json, Shapes
from torchslim.cli.output import print_json, print_table, say, wrapped
from torchslim.errors import CheckpointError, RequestError, TorchslimError
from torchslim.utils.text import quoted

if TYPE_CHECKING:
    from torch import nn

    from torchslim.latency.per_layer import LayerTime, LayerTimes
    from torchslim.zoo.sources import Source

ONNX = ".onnx"
ALL = "all"


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", show_default=False,
                                                help="Models as elsewhere, or ONNX files.")],
    backends: Annotated[list[str] | None, typer.Option(
        "--backend", metavar="NAME", show_default=False,
        help="eager, channels-last, compiled, onnxruntime, openvino or all that are installed; again for each "
             "further one, or joined by commas; default: eager.")] = None,
    shapes: Shapes = None,
    batch: Annotated[int | None, typer.Option(
        min=1, max=2**20, show_default=False, help="Images in the input.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 20,
    threads: Annotated[int | None, typer.Option(
        min=1, max=MAX_THREADS, show_default=False,
        help="CPU threads of every backend; default: as many as torch takes.")] = None,
    device: Annotated[str, typer.Option(help="Where torch runs: cpu, cuda, cuda:1, ...")] = "cpu",
    per_layer: Annotated[bool, typer.Option("--per-layer", help=(
        "Time one model layer by layer, and mark what its multiply-adds do not explain."))] = False,
    as_json: Json = False,
) -> None:
    """Time models side by side, in turns.

    Each is compared with the first within each round, so that a busy machine slows both.
    """
    import torch

    from torchslim.utils.inputs import map_tensors

    available = _backends(backends, _device_type(device))
    if per_layer and (len(models) > 1 or models[0].endswith(ONNX) or backends):
        raise RequestError("bench: --per-layer times one model, eagerly; give one that is no ONNX file, and no "
                           "--backend")
    inputs = map_tensors(lambda tensor: tensor.to(device), example_inputs(_first_source(models, shapes),
                                                                             shapes, batch=batch))
    threads = threads or torch.get_num_threads()
    if per_layer:
        _bench_layers(models[0], inputs, device, rounds, threads, as_json)
        return
    candidates = _candidates(models, available, inputs, shapes, device, threads, lenient=ALL in _split(backends))
    _bench(candidates, inputs, device, rounds, threads, as_json)


# --- candidates ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Entry:
    """A model in a backend; `run` is what is timed."""

    model: str
    backend: str
    run: Any


def _split(backends: Sequence[str] | None) -> list[str]:
    return [name.strip() for text in backends or ("eager",) for name in text.split(",")]


def _backends(backends: Sequence[str] | None, device: str) -> list[str]:
    """The names asked for, each once; for `all` those that can run here, with a remark on the others."""
    from torchslim.latency.backends import backend_problems

    names = list(dict.fromkeys(_split(backends)))
    if "" in names:
        raise RequestError(f"--backend {','.join(backends or ())}: a name is missing between commas; give names such "
                           "as eager,onnxruntime")
    if ALL not in names:
        for name in names:
            _check_backend(name, device)
        return names
    reasons = backend_problems(device)
    for name in names:
        if name != ALL and name not in reasons:
            _check_backend(name, device)
    for reason in filter(None, reasons.values()):
        say(f"left out: {reason}")
    return [name for name, reason in reasons.items() if not reason]


def _check_backend(name: str, device: str) -> None:
    from torchslim.latency.backends import check_backend

    try:
        check_backend(name, device)
    except RequestError as error:
        error.args = (f"--{error}",)
        raise


def _device_type(device: str) -> str:
    """The type of a device, such as cpu or cuda.

    Raises:
        RequestError: torch can't use it here.
    """
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise RequestError(f"--device {quoted(device)}: no device of torch's; wanted cpu, cuda, cuda:1, ...") from error
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    counts = {"cpu": 1, **({accelerator.type: torch.accelerator.device_count()} if accelerator else {})}
    if index >= counts.get(kind, 0):
        names = ", ".join(counts)
        raise RequestError(f"--device {device}: torch finds no such device here, only {names}; leave --device out to "
                           "run on the CPU")
    return kind


def _first_source(models: list[str], shapes: list[str] | None) -> Source:
    """The first model that is no ONNX file: the input is of its usual size."""
    from torchslim.store.loading import default_input
    from torchslim.zoo.misplaced_files import check_file
    from torchslim.zoo.sources import Source, resolve

    sources = [resolve(spec) for spec in models if not spec.endswith(ONNX)]
    if not shapes and not sources:
        raise RequestError(f"bench: ONNX files alone do not tell their input; give --input 1x3x224x224 for {models[0]}")
    for spec in models:
        if spec.endswith(ONNX):
            check_file(spec)
    if not shapes and len({default_input(source) for source in sources}) > 1:
        say(f"note: the models have different usual inputs; all get that of {sources[0]}, --input chooses")
    return sources[0] if sources else Source("file", "")


def _candidates(models: Sequence[str], backends: Sequence[str], inputs: Any, shapes: list[str] | None, device: str,
                threads: int, lenient: bool) -> list[_Entry]:
    """Every model in every backend; lenient, without those that fail."""
    from torchslim.latency.backends import FILE_RUNTIMES, prepare_model
    from torchslim.zoo.sources import resolve

    entries: list[_Entry] = []
    for number, spec in enumerate(models, start=1):
        name = spec if spec not in models[:number - 1] else f"{spec} ({number})"
        if spec.endswith(ONNX):
            if device != "cpu":
                raise RequestError(f"{spec}: ONNX files run on the CPU here, --device {device} found; leave it out")
            readers = [backend for backend in backends if backend in FILE_RUNTIMES] or ["onnxruntime"]
            entries += [_Entry(name, backend, _opened(FILE_RUNTIMES[backend].open, spec, inputs, threads))
                        for backend in readers]
            continue
        model = _built(spec, device)
        check_runs(model, inputs, resolve(spec), shapes)
        for backend in backends:
            if backend not in ("eager", "channels-last"):
                say(f"preparing {name}: {backend}")
            try:
                entries.append(_Entry(name, backend, prepare_model(model, inputs, backend, threads=threads)))
            except TorchslimError as error:
                if not lenient or backend == "eager":
                    raise
                say(f"left out: {name}: {error}")
    return entries


def _opened(open_file: Any, path: str, inputs: Any, threads: int) -> Any:
    """An ONNX file in a runtime; one that the runtime can't read is a wrong request."""
    try:
        return open_file(path, inputs, threads)
    except CheckpointError as error:
        raise RequestError(f"{error}; give an ONNX file, such as `torchslim export` writes") from error


def _built(spec: str, device: str) -> nn.Module:
    from torchslim.store.loading import build

    return build(spec).to(device)


# --- whole models -------------------------------------------------------------------------------------------

def _bench(candidates: Sequence[_Entry], inputs: Any, device: str, rounds: int, threads: int,
           as_json: bool) -> None:
    from torchslim.latency.timing import measure, ratio
    from torchslim.utils.formatting import format_number

    times = list(measure({str(index): candidate.run for index, candidate in enumerate(candidates)}, inputs,
                         rounds=rounds, threads=threads).values())
    results = [(candidate, time, ratio(times[0], time)) for candidate, time in zip(candidates, times, strict=True)]
    used = list(dict.fromkeys(candidate.backend for candidate in candidates))
    setting = _setting(used, inputs, device, rounds, threads)
    batch = setting["batch"]
    if as_json:
        print_json({**setting, "candidates": [
            {"model": candidate.model, "backend": candidate.backend, "median_ms": time.median_ms,
             "p10_ms": time.p10_ms, "p90_ms": time.p90_ms, "runs_ms": time.runs,
             "images_per_second": time.throughput(batch), "ratio": share} for candidate, time, share in results]})
        return
    _print_setting(setting, f"{used[0]}; " if len(used) == 1 else "")
    rows, last = [], ""
    for candidate, time, share in results:
        if len(used) > 1 and candidate.model != last:
            rows.append((candidate.model, *[""] * 5))
        last = candidate.model
        rows.append((f"  {candidate.backend}" if len(used) > 1 else candidate.model,
                     *map(format_number, (time.median_ms, time.p10_ms, time.p90_ms, time.throughput(batch))),
                     f"{share:.1%}"))
    print_table(("model", "median ms", "p10", "p90", "images/s", "of first"), rows, tight=True)


def _setting(backends: Sequence[str], inputs: Any, device: str, rounds: int, threads: int) -> dict[str, Any]:
    """What a measurement was made with, and on."""
    from importlib.metadata import version

    import torch

    from torchslim.latency.timing import processor
    from torchslim.utils.inputs import tensors_in

    tensors = list(tensors_in(inputs))
    runtimes = [name for name in backends if name in ("onnxruntime", "openvino")]
    on_gpu = torch.device(device).type == "cuda"
    return {
        "versions": {"torch": torch.__version__, **{name: version(name) for name in runtimes}},
        "device": device, "accelerator": torch.cuda.get_device_name(device) if on_gpu else "",
        "processor": processor(), "threads": threads,
        "batch": len(inputs) if isinstance(inputs, list) else tensors[0].shape[0],
        "inputs": [list(tensor.shape) for tensor in tensors], "rounds": rounds,
    }


def _print_setting(setting: dict[str, Any], mode: str) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    device = setting["device"] if setting["device"] != "cpu" else ""
    hardware = ", ".join(filter(None, (setting["accelerator"] or device, setting["processor"] or "cpu")))
    shapes = ", ".join(dict.fromkeys("x".join(map(str, shape)) for shape in setting["inputs"]))
    threads, rounds = (f"{setting[key]} {key if setting[key] != 1 else key[:-1]}" for key in ("threads", "rounds"))
    text = f"{versions}; {mode}{hardware}, {threads}; input {shapes}, batch {setting['batch']}; {rounds}"
    print(wrapped(text, hanging="  "), end="\n\n")


# --- one model, layer by layer ------------------------------------------------------------------------------

def _bench_layers(spec: str, inputs: Any, device: str, rounds: int, threads: int, as_json: bool) -> None:
    from dataclasses import asdict

    from torchslim.latency.per_layer import time_modules

    times = time_modules(_built(spec, device), inputs, rounds=rounds, threads=threads)
    setting = _setting((), inputs, device, rounds, threads)
    if as_json:
        print_json({"model": spec, **setting, "whole_ms": times.whole.median_ms, "p10_ms": times.whole.p10_ms,
                    "p90_ms": times.whole.p90_ms, "layers_ms": times.total_ms, "hooks_ms": times.hooks_ms,
                    "layers": [asdict(layer) for layer in times.layers]})
        return
    _print_setting(setting, "eager; ")
    _print_layers(times)


MIN_SHARE = 0.01
"""Layers with a smaller share of the time are summed in one row, unless they are marked."""


def _print_layers(times: LayerTimes) -> None:
    from torchslim.latency.per_layer import REASONS, SLOW
    from torchslim.utils.formatting import format_number, format_share

    shown = [layer for layer in times.layers if layer.reason or layer.share >= MIN_SHARE]
    rest = [layer for layer in times.layers if layer not in shown]
    rows = [_row(layer.name or "(model)", layer.kind, [layer], layer.reason) for layer in shown]
    if rest:
        rows.append(_row(f"{len(rest)} others", "", rest, ""))
    print_table(_LAYERS, _fitted(rows), text=(0, 1, 7), tight=True)
    total, marked = times.whole, [layer for layer in times.layers if layer.reason]
    print()
    print(wrapped(f"sum of the layers {format_number(times.total_ms)} ms ({format_number(times.hooks_ms)} ms of hooks "
                  f"deducted), the whole call {format_number(total.median_ms)} ms ({format_number(total.p10_ms)} to "
                  f"{format_number(total.p90_ms)})", hanging="  "))
    if marked:
        time, macs = (format_share(sum(shares)) for shares in zip(*((row.share, row.macs_share) for row in marked),
                                                             strict=True))
        print(wrapped(f"marked: {time} of the time, {macs} of the MACs; each of these takes over {SLOW} times what "
                      "its MACs would at the pace of the network's median MAC, and more than the mean layer",
                      hanging="  "))
    for reason in dict.fromkeys(layer.reason for layer in marked):
        print(wrapped(f"{reason}: {REASONS[reason]}", "  ", hanging="  "))


_LAYERS = ("layer", "kind", "ms", "share", "MACs", "share", "memory", "marked")


def _row(name: str, kind: str, layers: Sequence[LayerTime], reason: str) -> tuple[str, ...]:
    from torchslim.utils.formatting import format_count, format_number, format_share

    macs = sum(layer.macs for layer in layers)
    return (name, kind, format_number(sum(layer.ms for layer in layers)),
            format_share(sum(layer.share for layer in layers)), format_count(macs, ""),
            format_share(sum(layer.macs_share for layer in layers)) if macs else "",
            format_count(sum(layer.memory_access for layer in layers), ""), reason)


def _fitted(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows whose kinds are cut short where the table would be wider than the terminal."""
    widths = [max(map(len, column)) for column in zip(_LAYERS, *rows, strict=True)]
    room = max(6, shutil.get_terminal_size().columns - sum(widths) - 2 * (len(widths) - 1) + widths[1])
    return [(name, kind if len(kind) <= room else f"{kind[:room - 1]}\N{HORIZONTAL ELLIPSIS}", *numbers)
            for name, kind, *numbers in rows]
