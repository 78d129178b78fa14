"""A model as a candidate for the clock in other ways of running it: torch's own, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.deploy.exporting import export, quiet
from torchslim.deploy.runtimes import onnx_runner, openvino_runner
from torchslim.errors import ExportError, MissingExtra, RequestError, TorchslimError, UnsupportedModel
from torchslim.latency.timing import Candidate, conditions
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs, arguments, map_tensors, tensors_in, unwrap
from torchslim.utils.text import describe_error

BACKENDS = ("eager", "channels-last", "compiled", "onnxruntime", "openvino")

# The runtimes for files: the packages that each needs to be given one, the extra that brings them, the format.
_PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
_EXTRA = {"onnxruntime": "onnx", "openvino": "openvino"}
_SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}
RUNNERS = {"onnxruntime": onnx_runner, "openvino": openvino_runner}
"""What opens a file as a candidate, by backend: `runner(path, inputs, threads)`; both read ONNX files."""

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of dimensions


def available(device: str = "cpu") -> dict[str, str]:
    """Every backend, and why it can't run here; "" for those that can.

    Args:
        device: where the models are, such as "cpu" or "cuda".
    """
    reasons = {}
    for backend in BACKENDS:
        try:
            require(backend, device)
            reasons[backend] = ""
        except RequestError as error:
            reasons[backend] = str(error)
    return reasons


def require(backend: str, device: str = "cpu") -> None:
    """Check that a backend can run here.

    Raises:
        MissingExtra: a package that it needs is not installed.
        RequestError: there is no backend of that name, or what it needs is not on this machine or device.
    """
    if backend not in BACKENDS:
        raise RequestError(f"backend {backend}: there is none of that name; wanted one of {', '.join(BACKENDS)}")
    if backend in _PACKAGES and device != "cpu":
        raise RequestError(f"backend {backend}: runs on the CPU only, {device} asked for; leave it or the device out")
    for package in _PACKAGES.get(backend, ()):
        if find_spec(package) is None:
            raise MissingExtra(package, _EXTRA[backend], f"backend {backend}")
    if backend == "compiled" and device == "cpu" and not shutil.which(_compiler()):
        raise RequestError(f"backend compiled: torch.compile needs a C++ compiler, and {_compiler()} was not found; "
                           "install one, or name it in the environment variable CXX")
    if backend == "compiled" and device != "cpu" and find_spec("triton") is None:
        raise RequestError(f"backend compiled: torch.compile needs the package triton on {device}, which is not "
                           "installed: pip install triton")


def prepared(model: nn.Module, inputs: Inputs, backend: str = "eager", *, threads: int | None = None) -> Candidate:
    """A model in a backend, ready to be timed: what `measure` takes as a candidate.

    The model itself stays as it is, and all that can be done once is done here: a copy is laid out, a graph compiled,
    a file written (to a folder that is gone afterwards), held against the eager model and opened.

    Args:
        model: any module.
        inputs: what it will be timed on: a tensor, a tuple of arguments, a list (the one argument) or a dict of
            keywords. Backends other than "eager" and "compiled" keep them, and ignore what they are called with.
        backend: "eager"; "channels-last" (a copy whose weights and inputs lie so); "compiled" (`torch.compile`);
            "onnxruntime" or "openvino" (in float32, on the CPU).
        threads: CPU threads; None leaves them. Give `measure` the same: compiled code is made for so many.

    Raises:
        RequestError: the backend is unknown or can't run here, or the model fails on the inputs.
        UnsupportedModel: a scripted model, or one that can't be copied where a copy is needed.
        TorchslimError: the model can't be compiled; ExportError: it can't be exported, or the file disagrees with it.
    """
    args, kwargs = arguments(inputs)
    require(backend, next((t.device.type for t in tensors_in((args, kwargs)) if t.device.type != "cpu"), "cpu"))
    model = unwrap(model)
    with conditions(model, threads=threads):
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
        path = Path(folder) / f"model{_SUFFIX[backend]}"
        try:
            export(model, inputs, path)
        except ExportError as error:
            raise ExportError(f"backend {backend}: {str(error).removeprefix(f'{path}: ')}") from error
        return RUNNERS[backend](path, inputs, threads)


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
            tensor.data = _laid_out(tensor.data)
        args, kwargs = map_tensors(_laid_out, args), map_tensors(_laid_out, kwargs)
    return lambda *_args, **_kwargs: copy(*args, **kwargs)


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=_LAST[tensor.ndim]) if tensor.ndim in _LAST else tensor


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int | None) -> nn.Module:
    """The model after its first call, which compiles it.

    Sizes are fixed, as they are in the other backends. Models of one class share a limit of compilations, beyond which
    torch runs them eagerly: it is lifted.
    """
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    with conditions(model, threads=threads), torch._dynamo.config.patch(recompile_limit=2**10):
        try:
            with quiet():
                compiled(*args, **kwargs)
        except Exception as error:
            raise TorchslimError(f"backend compiled: torch.compile failed: {describe_error(error)}; leave this backend "
                                 "out") from error
    return compiled


def _compiler() -> str:
    """The C++ compiler that torch.compile would call."""
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return (os.environ.get("CXX") or default).split()[0]
