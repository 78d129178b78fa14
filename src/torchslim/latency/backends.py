"""Backends that can be timed: torch's, ONNX Runtime and OpenVINO; and the protocol of custom ones.

A runtime for files needs a row of `FILE_RUNTIMES` here and a timer of single layers in `layer_benchmark.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchslim.deploy.exporting import export, exported_form, suppress_output
from torchslim.deploy.runtimes import onnx_runner, openvino_runner
from torchslim.errors import ExportError, MissingExtra, RequestError, TorchslimError, UnsupportedModel
from torchslim.latency.timing import Runnable, inference_conditions
from torchslim.latency.workloads import Workload
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, arguments, map_tensors, tensors_in, unwrap
from torchslim.utils.text import describe_error, did_you_mean


class Backend(Protocol):
    """Times layers and networks. Implement it for other devices (a phone, say).

    Attributes:
        name: for messages.
        environment: all that times depend on beside the layers; equal environments share cached times.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def environment(self) -> Mapping[str, str]: ...  # noqa: D102

    def time_layers(self, workloads: Sequence[Workload]) -> Sequence[float]:
        """Nanoseconds of each single layer, in the order given."""
        ...

    def time_networks(self, models: Sequence[nn.Module], inputs: Inputs) -> Sequence[Sequence[float]]:
        """Nanoseconds of a call of each network in each round, measured in turns."""
        ...


@dataclass(frozen=True)
class FileRuntime:
    """A runtime that runs exported files, on the CPU.

    Attributes:
        suffix: of its export format; all read ONNX files.
        packages: required packages.
        extra: the extra of this package that installs them.
        open: opens a file as a callable: `open(path, inputs, threads)`.
    """

    suffix: str
    packages: tuple[str, ...]
    extra: str
    open: Callable[[str | Path, Inputs, int | None], Callable[..., Any]]


FILE_RUNTIMES = {
    "onnxruntime": FileRuntime(".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx", onnx_runner),
    "openvino": FileRuntime(".xml", ("openvino",), "openvino", openvino_runner),
}
BACKENDS = ("eager", "channels-last", "compiled", *FILE_RUNTIMES)

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Channels last, by the number of dimensions."""


def backend_problems(device: str = "cpu") -> dict[str, str]:
    """Every backend, and why it can't run here; "" for those that can.

    Args:
        device: of the models, such as "cpu" or "cuda".
    """
    problems = {}
    for backend in BACKENDS:
        try:
            check_backend(backend, device)
            problems[backend] = ""
        except RequestError as error:
            problems[backend] = str(error)
    return problems


def check_backend(backend: str, device: str = "cpu") -> None:
    """Check that a backend can run here.

    Raises:
        MissingExtra: a package that it needs is not installed.
        RequestError: an unknown backend, or one that can't run on this machine or device.
    """
    if backend not in BACKENDS:
        raise RequestError(f"backend {backend}: there is none of that name; {did_you_mean(backend, BACKENDS)}")
    if backend in FILE_RUNTIMES:
        if device != "cpu":
            raise RequestError(f"backend {backend}: runs on the CPU only, {device} asked for; leave it or the device "
                               "out")
        for package in FILE_RUNTIMES[backend].packages:
            if find_spec(package) is None:
                raise MissingExtra(package, FILE_RUNTIMES[backend].extra, f"backend {backend}")
    if backend == "compiled" and device == "cpu" and not shutil.which(_compiler()):
        raise RequestError(f"backend compiled: torch.compile needs a C++ compiler, and {_compiler()} was not found; "
                           "install one, or name it in the environment variable CXX")
    if backend == "compiled" and device != "cpu" and find_spec("triton") is None:
        raise RequestError(f"backend compiled: torch.compile needs the package triton on {device}, which is not "
                           "installed: pip install triton")


def prepare_model(model: nn.Module, inputs: Inputs, backend: str = "eager", *,
                  threads: int | None = None) -> Runnable:
    """A model in a backend, ready to be timed by `measure`.

    The model is not changed. All one-time work is done here: copying to another memory format, compiling, or exporting
    to a temporary file, which is compared with the eager model and opened.

    Args:
        model: any module.
        inputs: for timing: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords. Backends
            other than "eager" and "compiled" store them and ignore their call arguments.
        backend: "eager"; "channels-last" (a copy with weights and inputs in that format); "compiled"
            (`torch.compile`); "onnxruntime" or "openvino" (in float32, on the CPU).
        threads: CPU threads; None leaves them. Give `measure` the same: compiled code depends on them.

    Raises:
        RequestError: the backend is unknown or can't run here, or the model fails on the inputs.
        UnsupportedModel: a scripted model, or one that can't be copied where a copy is needed.
        TorchslimError: the model can't be compiled; ExportError: it can't be exported, or the file's outputs differ.
    """
    args, kwargs = arguments(inputs)
    check_backend(backend, next((t.device.type for t in tensors_in((args, kwargs)) if t.device.type != "cpu"), "cpu"))
    model = unwrap(model)
    with inference_conditions(model, threads=threads):
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise RequestError(f"{type(model).__name__}: failed on the given inputs: {describe_error(error)}; check "
                               "their shapes, dtype and device with a plain call of the model") from error
    if backend == "eager":
        return model
    if backend == "channels-last":
        return _channels_last(model, args, kwargs)
    if backend == "compiled":
        return _compiled(model, args, kwargs, threads)
    with TemporaryDirectory(prefix="torchslim-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"model{FILE_RUNTIMES[backend].suffix}"
        try:
            export(model, inputs, path)
        except ExportError as error:
            raise ExportError(f"backend {backend}: {str(error).removeprefix(f'{path}: ')}") from error
        return FILE_RUNTIMES[backend].open(path, exported_form(model, inputs)[1], threads)


def _channels_last(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    try:
        copy = copy_model(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"backend channels-last: {type(model).__name__} can't be copied ({error}); "
                               "copy.deepcopy(model) must work") from error
    for module in copy.modules():
        module.training = False
    with torch.no_grad():
        for tensor in chain(copy.parameters(), copy.buffers()):
            tensor.data = to_channels_last(tensor.data)
        args, kwargs = map_tensors(to_channels_last, args), map_tensors(to_channels_last, kwargs)
    return lambda *_args, **_kwargs: copy(*args, **kwargs)


def to_channels_last(tensor: Tensor) -> Tensor:
    """The tensor in channels-last format if it has 4 or 5 dimensions."""
    if tensor.ndim not in MEMORY_FORMATS:
        return tensor
    return tensor.contiguous(memory_format=MEMORY_FORMATS[tensor.ndim])


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int | None) -> nn.Module:
    """The model after its first call, which compiles it.

    Sizes are static, as in the other backends. The recompile limit, which models of one class share and beyond which
    torch runs eagerly, is raised.
    """
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    with inference_conditions(model, threads=threads), torch._dynamo.config.patch(recompile_limit=2**10):
        try:
            with suppress_output():
                compiled(*args, **kwargs)
        except Exception as error:
            raise TorchslimError(f"backend compiled: torch.compile failed: {describe_error(error)}; leave this backend "
                                 "out") from error
    return compiled


def _compiler() -> str:
    """The C++ compiler of torch.compile."""
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return (os.environ.get("CXX") or default).split()[0]
