"""The time of single layers, in each backend.

Many layers are timed together, each once per round, so their weights are not in the caches, as in a network. Runtimes
profile the layers of one file with all of them, which excludes converting the inputs' layout: in a network the previous
layer has done it. Other programs can only add time, so the fastest runs count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import ExportError, RequestError
from torchslim.latency.backends import to_channels_last
from torchslim.latency.timing import inference_conditions, limited_rounds, time_in_turns
from torchslim.latency.workloads import Workload

_ROUNDS = 15
_MAX_SECONDS = 3.0  # for layers that are timed together
_MAX_BYTES = 2**26  # of weights and activations that are timed together: more than caches hold
_CALLS_ON_ACCELERATOR = 10  # per reading of the clock: synchronising after each call would dominate its time


def time_layers(workloads: Sequence[Workload], backend: str, device: torch.device, threads: int) -> list[float]:
    """Nanoseconds of each single layer.

    Args:
        workloads: the layers.
        backend: one of `LOCAL_BACKENDS`.
        device: of torch.
        threads: CPU threads.

    Raises:
        RequestError: a runtime does not support a layer's dtype.
        ExportError: a runtime reports no time for a layer.
    """
    times: list[float] = []
    for batch in _batches(workloads):
        if backend in LAYER_TIMERS:
            runs = LAYER_TIMERS[backend](batch, threads)
        else:
            runs = _time_in_torch(batch, device, threads, channels_last=backend == "channels-last")
        if not all(runs):
            raise ExportError(f"backend {backend}: {sum(not each for each in runs)} of {len(runs)} layers were not "
                              "timed; another version of it may name them otherwise; choose another backend")
        times += [_fastest(each) for each in runs]
    return times


def _batches(workloads: Sequence[Workload]) -> Iterator[list[Workload]]:
    """Lists of layers that are timed together."""
    batch: list[Workload] = []
    total = 0
    for workload in workloads:
        ratio = workload.spec.outputs / workload.spec.inputs
        size = 4 * (prod(workload.weight_shape) + prod(workload.input_shape) * (1 + ratio))
        if batch and total + size > _MAX_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(workload)
        total += int(size)
    if batch:
        yield batch


def _fastest(times: Sequence[float]) -> float:
    """The mean of the fastest quarter, which is less noisy than the minimum."""
    return fmean(sorted(times)[: max(1, len(times) // 4)])


# --- torch --------------------------------------------------------------------------------------------------

def _time_in_torch(workloads: Sequence[Workload], device: torch.device, threads: int,
                   channels_last: bool) -> list[list[float]]:
    calls = [_torch_call(workload, device, channels_last) for workload in workloads]
    accelerated = device.type != "cpu"
    with inference_conditions(threads=threads):
        # The warm-up call selects kernels and allocates memory.
        times = time_in_turns(calls, rounds=_ROUNDS, max_seconds=_MAX_SECONDS,
                              min_calls=_CALLS_ON_ACCELERATOR if accelerated else 1,
                              synchronize=lambda: torch.accelerator.synchronize(device) if accelerated else None)
    return [[seconds * 1e9 for seconds in runs] for runs in times]


def _torch_call(workload: Workload, device: torch.device, channels_last: bool) -> Callable[[], Tensor]:
    dtype, spec = getattr(torch, workload.dtype), workload.spec

    def full(*shape: int) -> Tensor:
        tensor = torch.full(shape, 0.01, dtype=dtype, device=device)
        return to_channels_last(tensor) if channels_last else tensor

    x, weight = full(*workload.input_shape), full(*workload.weight_shape)
    bias = full(spec.outputs) if spec.bias else None
    if workload.kind == "linear":
        return lambda: nn.functional.linear(x, weight, bias)
    options: tuple[Any, ...] = (spec.stride, spec.padding, spec.dilation, spec.transposed,
                                spec.output_padding or (0,) * spec.dims, spec.groups)
    return lambda: torch.convolution(x, weight, bias, *options)


# --- runtimes -----------------------------------------------------------------------------------------------

_NAME = re.compile(r"layer(\d+)_")
_OPENVINO_KINDS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
                   "Deconvolution", "FullyConnected", "MatMul")


def _time_in_onnxruntime(workloads: Sequence[Workload], threads: int) -> list[list[float]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    times: list[list[float]] = [[] for _ in workloads]
    with TemporaryDirectory(prefix="torchslim-", ignore_cleanup_errors=True) as folder:
        options.profile_file_prefix = str(Path(folder) / "times")
        session = onnxruntime.InferenceSession(_onnx_file(workloads), options, providers=["CPUExecutionProvider"])
        feeds = _feeds(workloads)
        for _ in limited_rounds(_ROUNDS, _MAX_SECONDS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        match = _NAME.match(event["name"])
        if match and event["name"].endswith("_kernel_time") and "Reorder" not in event["args"]["op_name"]:
            times[int(match[1])].append(event["dur"] * 1e3)
    return times


def _time_in_openvino(workloads: Sequence[Workload], threads: int) -> list[list[float]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(_onnx_file(workloads))
    for operation in model.get_ops():  # some names are lost when the file is read
        source = operation.input_value(0).get_node() if operation.get_input_size() else None
        if source is not None and source.get_type_name() == "Parameter":
            operation.set_friendly_name(f"layer{source.get_friendly_name()[1:]}_")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": "YES",
               "INFERENCE_NUM_THREADS": str(threads)}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    feeds = _feeds(workloads)
    times: list[list[float]] = [[] for _ in workloads]
    for _ in limited_rounds(_ROUNDS, _MAX_SECONDS):
        request.infer(feeds)
        for entry in request.profiling_info:
            match = _NAME.match(entry.node_name)
            if match and entry.node_type in _OPENVINO_KINDS:
                times[int(match[1])].append(entry.real_time.total_seconds() * 1e9)
    return times


LAYER_TIMERS = {"onnxruntime": _time_in_onnxruntime, "openvino": _time_in_openvino}
"""By runtime, the timer of layers: nanoseconds of each in each round."""


def _feeds(workloads: Sequence[Workload]) -> dict[str, Any]:
    import numpy as np

    return {f"x{number}": np.full(workload.input_shape, 0.01, dtype=workload.dtype)
            for number, workload in enumerate(workloads)}


def _onnx_file(workloads: Sequence[Workload]) -> bytes:
    """An ONNX file of independent layers; the n-th node is `layer{n}_`, its input `x{n}`."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}
    nodes, inputs, outputs, weights = [], [], [], []
    for number, workload in enumerate(workloads):
        if workload.dtype not in types:
            raise RequestError(f"latency: a layer in {workload.dtype} found, which runtimes for files are not timed "
                               "in; plan for backend='eager'")
        names = [f"x{number}", f"w{number}", *([f"b{number}"] if workload.spec.bias else [])]
        shapes = (workload.weight_shape, (workload.spec.outputs,))
        weights += [numpy_helper.from_array(np.full(shape, 0.01, dtype=workload.dtype), name)
                    for name, shape in zip(names[1:], shapes, strict=False)]
        inputs.append(helper.make_tensor_value_info(names[0], types[workload.dtype], workload.input_shape))
        outputs.append(helper.make_tensor_value_info(f"layer{number}_y", types[workload.dtype], None))
        operator, attributes = _onnx_operator(workload)
        nodes.append(helper.make_node(operator, names, [f"layer{number}_y"], name=f"layer{number}_", **attributes))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def _onnx_operator(workload: Workload) -> tuple[str, dict[str, Any]]:
    """The ONNX operator of a layer, and its attributes."""
    if workload.kind == "linear":
        return "Gemm", {"transB": 1}
    spec = workload.spec
    attributes = {"kernel_shape": spec.kernel, "strides": spec.stride, "dilations": spec.dilation,
                  "pads": (*spec.padding, *spec.padding), "group": spec.groups}
    if spec.transposed:
        return "ConvTranspose", {**attributes, "output_padding": spec.output_padding}
    return "Conv", attributes
