"""How long layers take by themselves, and networks as a whole, in each backend.

Layers are timed many in one go, each once a round: so their weights are as cold as in a network, where all others have
passed through the caches since the last call. Runtimes time them themselves, in one file that holds them all, so that
what they do to lay out its inputs does not count: in a network the layer before has done it. What else runs on a
machine only ever adds time; so it is the fastest runs that count.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import ExportError, RequestError
from torchslim.latency.backends import BACKENDS, prepared, require
from torchslim.latency.timing import conditions, measure, processor
from torchslim.latency.workloads import Geometry
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, map_tensors, tensors_in

NAMES = (*BACKENDS, "cuda")
"""What a plan may be made for: the backends of `bench`, and eager runs on an NVIDIA GPU."""

_ROUNDS = 15
_SECONDS = 3.0  # after which layers that are timed together get no further round, if they had three
_BYTES = 2**26  # of weights and activations that are timed together: more than caches hold
_IN_A_ROW = 10  # calls between two looks at the clock on an accelerator: to wait for one would be most of its time
_NETWORK_ROUNDS = 40
_TURN = 0.03  # seconds that a network is called for in its turn: one call of a small one is too short for the clock


@dataclass(frozen=True)
class Watch:
    """The clock of one backend on this machine.

    Attributes:
        name: one of `NAMES`.
        device: where torch runs.
        threads: CPU threads.
    """

    name: str
    device: torch.device
    threads: int

    @property
    def setting(self) -> Mapping[str, str]:
        """All that times depend on beside the layers."""
        packages = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",)}.get(self.name, ())
        gpu = {"gpu": torch.cuda.get_device_name(self.device)} if self.device.type == "cuda" else {}
        return {"backend": self.name, "processor": processor(), "threads": str(self.threads),
                "device": self.device.type, **gpu, "torch": torch.__version__,
                **{package: version(package) for package in packages}}

    def layers(self, wanted: Sequence[Geometry]) -> list[float]:
        """The nanoseconds of each layer by itself."""
        timed = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}.get(self.name)
        found: list[float] = []
        for part in _portions(wanted):
            if timed is not None:
                found += timed(part, self.threads)
            else:
                found += _in_torch(part, self.device, self.threads, last=self.name == "channels-last")
        return found

    def networks(self, models: Sequence[nn.Module], inputs: Inputs) -> list[list[float]]:
        """The nanoseconds of a call of each network in each round, measured in turns.

        Raises:
            ExportError: the backend can't run a network.
        """
        if self.name == "cuda":
            models = [copy_model(model).to(self.device) for model in models]
            inputs = map_tensors(lambda tensor: tensor.to(self.device), inputs)
        backend = "eager" if self.name == "cuda" else self.name
        candidates = {str(place): prepared(model, inputs, backend, threads=self.threads)
                      for place, model in enumerate(models)}
        found = measure(candidates, inputs, rounds=_NETWORK_ROUNDS, min_seconds=_TURN, threads=self.threads)
        return [[run * 1e6 for run in latency.runs] for latency in found.values()]


def watch(name: str, inputs: Inputs) -> Watch:
    """The clock of a backend by its name, for a network that takes these inputs.

    Raises:
        MissingExtra: a package that it needs is not installed.
        RequestError: there is no such backend, or it can't run here or on the device of the inputs.
    """
    if name not in NAMES:
        raise RequestError(f"backend {name!r}: there is none of that name; wanted one of {', '.join(NAMES)}")
    device = next((t.device for t in tensors_in(inputs) if t.device.type != "cpu"), torch.device("cpu"))
    if name == "cuda":
        if not torch.cuda.is_available():
            raise RequestError("backend cuda: torch finds no CUDA device here; plan where there is one, or choose "
                               f"another of {', '.join(BACKENDS)}")
        return Watch(name, device if device.type == "cuda" else torch.device("cuda"), torch.get_num_threads())
    require(name, device.type)
    return Watch(name, device, torch.get_num_threads())


def _portions(wanted: Sequence[Geometry]) -> Iterator[list[Geometry]]:
    """The layers in parts that are timed together."""
    part: list[Geometry] = []
    held = 0
    for geometry in wanted:
        own = 4 * (prod(geometry.weight_shape) + prod(geometry.input_shape) * (1 + geometry.makes / geometry.reads))
        if part and held + own > _BYTES:
            yield part
            part, held = [], 0
        part.append(geometry)
        held += int(own)
    if part:
        yield part


def _rounds(call: Callable[[], object]) -> None:
    """Make the rounds of calls that are timed: fewer where they take long."""
    start = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= 3 and time.perf_counter() - start > _SECONDS:
            break
        call()


def _fastest(times: Sequence[float]) -> float:
    """The mean of the fastest quarter: of short times some digits more than the fastest alone."""
    return fmean(sorted(times)[: max(1, len(times) // 4)])


# --- torch --------------------------------------------------------------------------------------------------

def _in_torch(part: Sequence[Geometry], device: torch.device, threads: int, last: bool) -> list[float]:
    calls = [_call(geometry, device, last) for geometry in part]
    on_cpu = device.type == "cpu"
    times: list[list[float]] = [[] for _ in part]

    def once() -> None:
        for call, own in zip(calls, times, strict=True):
            repeats = 1 if on_cpu else _IN_A_ROW
            start = time.perf_counter_ns()
            for _ in range(repeats):
                call()
            if not on_cpu:
                torch.accelerator.synchronize(device)
            own.append((time.perf_counter_ns() - start) / repeats)

    with conditions(threads=threads):
        once()
        for own in times:
            own.clear()  # the first round chooses kernels and fills pools of memory
        _rounds(once)
    return [_fastest(own) for own in times]


def _call(geometry: Geometry, device: torch.device, last: bool) -> Callable[[], Tensor]:
    dtype = getattr(torch, geometry.dtype)

    def full(*shape: int) -> Tensor:
        tensor = torch.full(shape, 0.01, dtype=dtype, device=device)
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if last else None
        return tensor if layout is None else tensor.contiguous(memory_format=layout)

    x, weight = full(*geometry.input_shape), full(*geometry.weight_shape)
    bias = full(geometry.makes) if geometry.bias else None
    if geometry.kind == "linear":
        return lambda: nn.functional.linear(x, weight, bias)
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.kind == "transposed",
               geometry.output_padding or (0,) * len(geometry.map), geometry.groups)
    return lambda: torch.convolution(x, weight, bias, *options)


# --- runtimes -----------------------------------------------------------------------------------------------

_NAME = re.compile(r"layer(\d+)_")
_OPENVINO_KINDS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
                   "Deconvolution", "FullyConnected", "MatMul")


def _in_onnxruntime(part: Sequence[Geometry], threads: int) -> list[float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    times: list[list[float]] = [[] for _ in part]
    with TemporaryDirectory(prefix="torchslim-", ignore_cleanup_errors=True) as folder:
        options.profile_file_prefix = str(Path(folder) / "times")
        session = onnxruntime.InferenceSession(_file(part), options, providers=["CPUExecutionProvider"])
        feeds = _feeds(part)
        _rounds(lambda: session.run(None, feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        found = _NAME.match(event["name"])
        if found and event["name"].endswith("_kernel_time") and "Reorder" not in event["args"]["op_name"]:
            times[int(found[1])].append(event["dur"] * 1e3)
    return _checked(times, "onnxruntime")


def _in_openvino(part: Sequence[Geometry], threads: int) -> list[float]:
    import openvino

    core = openvino.Core()
    model = core.read_model(_file(part))
    for operation in model.get_ops():  # some lose their names where the file is read
        source = operation.input_value(0).get_node() if operation.get_input_size() else None
        if source is not None and source.get_type_name() == "Parameter":
            operation.set_friendly_name(f"layer{source.get_friendly_name()[1:]}_")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": "YES",
               "INFERENCE_NUM_THREADS": str(threads)}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    feeds = _feeds(part)
    times: list[list[float]] = [[] for _ in part]

    def once() -> None:
        request.infer(feeds)
        for entry in request.profiling_info:
            found = _NAME.match(entry.node_name)
            if found and entry.node_type in _OPENVINO_KINDS:
                times[int(found[1])].append(entry.real_time.total_seconds() * 1e9)

    _rounds(once)
    return _checked(times, "openvino")


def _checked(times: Sequence[Sequence[float]], backend: str) -> list[float]:
    if not all(times):
        missing = sum(not own for own in times)
        raise ExportError(f"backend {backend}: {missing} of {len(times)} layers were not timed; another version of it "
                          "may name them otherwise; choose another backend")
    return [_fastest(own) for own in times]


def _feeds(part: Sequence[Geometry]) -> dict[str, Any]:
    import numpy as np

    return {f"x{place}": np.full(geometry.input_shape, 0.01, dtype=geometry.dtype)
            for place, geometry in enumerate(part)}


def _file(part: Sequence[Geometry]) -> bytes:
    """An ONNX file of layers side by side, the n-th node named `layer{n}_`, reading `x{n}`."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}
    nodes, inputs, outputs, held = [], [], [], []
    for place, geometry in enumerate(part):
        if geometry.dtype not in kinds:
            raise RequestError(f"latency: a layer in {geometry.dtype} found, which runtimes for files are not timed "
                               "in; plan for backend='eager'")
        names = [f"x{place}", f"w{place}", *([f"b{place}"] if geometry.bias else [])]
        held += [numpy_helper.from_array(np.full(shape, 0.01, dtype=geometry.dtype), name)
                 for name, shape in zip(names[1:], (geometry.weight_shape, (geometry.makes,)), strict=False)]
        inputs.append(helper.make_tensor_value_info(names[0], kinds[geometry.dtype], geometry.input_shape))
        outputs.append(helper.make_tensor_value_info(f"layer{place}_y", kinds[geometry.dtype], None))
        nodes.append(helper.make_node(*_node(geometry)[:1], names, [f"layer{place}_y"], name=f"layer{place}_",
                                      **_node(geometry)[1]))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = model.SerializeToString()
    return made


def _node(geometry: Geometry) -> tuple[str, dict[str, Any]]:
    """The ONNX operator of a layer, and its attributes."""
    if geometry.kind == "linear":
        return "Gemm", {"transB": 1}
    options = {"kernel_shape": geometry.kernel, "strides": geometry.stride, "dilations": geometry.dilation,
               "pads": geometry.padding * 2, "group": geometry.groups}
    if geometry.kind == "transposed":
        return "ConvTranspose", {**options, "output_padding": geometry.output_padding}
    return "Conv", options


