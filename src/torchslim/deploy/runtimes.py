"""Exported files opened in their runtimes, as callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from torchslim.errors import CheckpointError, MissingExtra, RequestError
from torchslim.utils.inputs import Inputs, arguments, tensors_in
from torchslim.utils.text import describe_error, format_shape


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
        raise CheckpointError(f"{path}: ONNX Runtime cannot open it: {describe_error(error)}") from error
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
        raise CheckpointError(f"{path}: OpenVINO cannot open it: {describe_error(error)}") from error
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
            raise RequestError(f"{path}: {format_shape(tensor.shape)} found for its input {name}, {wanted} wanted; the "
                               "file has fixed sizes: give those, or export it anew")
    return tensors


def in_order(inputs: Inputs, names: list[str]) -> list[Tensor]:
    """The tensors of `inputs` in the order of a file's input names, else in their own order."""
    if isinstance(inputs, Mapping) and set(inputs) == set(names):
        return [inputs[name] for name in names]
    return list(tensors_in(arguments(inputs)))
