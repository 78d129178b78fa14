"""Export of a model to a file for other runtimes: ONNX, torch.export, OpenVINO.

A file gets its final name only after it was loaded, run, and compared with the eager model. A new format is a row of
`_FORMATS`.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, fields, is_dataclass
from errno import EDQUOT, EFBIG, EIO, ENOSPC, EROFS
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.deploy.runtimes import in_order, onnx_runner, openvino_runner
from torchslim.errors import CheckpointError, ExportError, MissingExtra, RequestError
from torchslim.utils.copying import copy_model
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.files import flush_to_disk
from torchslim.utils.inputs import Inputs, arguments, copied, map_tensors, tensors_in, unwrap
from torchslim.utils.text import describe_error, format_shape

ModelCall = tuple[tuple[Any, ...], dict[str, Any]]

_DISK, _FULL = frozenset({ENOSPC, EDQUOT, EFBIG, EIO, EROFS}), 2**16  # bytes
_PROTOBUF_LIMIT = 1_900_000_000  # bytes; a message, hence a self-contained ONNX file, may have 2 GB


@dataclass(frozen=True)
class ExportResult:
    """An exported model.

    Attributes:
        path: the file; OpenVINO's weights lie beside it as `.bin`, ONNX's above 2 GB as `.data`.
        error: the largest difference to an eager output, as a share of that output's largest magnitude.
    """

    path: Path
    error: float


def export(model: nn.Module, inputs: Inputs, path: str | Path, *, tolerance: float | None = None,
           dynamic_batch: bool = False, tensors_only: bool = False) -> ExportResult:
    """Export a model in the format of the path's suffix: `.onnx`, `.pt2` (torch.export) or `.xml` (OpenVINO).

    The model is exported in eval mode and on the CPU (from a copy, when it lies elsewhere), so that the file
    needs no accelerator; mode, device and hooks of the given one stay as they are. The file is run and
    compared before it appears under its name.

    Args:
        model: any module. One with a method `export_form` says itself what is written of it (see `exported_form`).
        inputs: a tensor, a tuple of arguments, a list (the one argument) or a dict of keywords.
        path: the file; one that exists is replaced.
        tolerance: largest error allowed (see `ExportResult`); None means 1e-4, or 1e-2 in half precision.
        dynamic_batch: dimension 0 of every input tensor may take any size; otherwise it is that of `inputs`.
        tensors_only: the file's outputs are the tensors of the model's output, in order; numbers, texts and other
            things in it, which most formats can't hold, are left out.

    Raises:
        RequestError: an unknown suffix, a missing folder, inputs without a batch dimension to make dynamic.
        MissingExtra: a package that writes or runs this format is not installed.
        ExportError: the model can't be written in this format, or the written one disagrees.
        CheckpointError: the disk is full or fails, which says nothing about the model.

    Example:
        >>> import tempfile, torch, torchslim as ts
        >>> model, images = torch.nn.Conv2d(3, 8, 3).eval(), torch.zeros(1, 3, 16, 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = ts.export(model, images, f"{folder}/model.pt2")
        ...     exported = torch.export.load(result.path).module()
        >>> exported(images).shape, result.error < 1e-4
        (torch.Size([1, 8, 14, 14]), True)
    """
    path = Path(path)
    export_format = check_path(path)
    model, call = _on_cpu(*exported_form(model, inputs))
    calls = [call, _twice_the_batch(call)] if dynamic_batch else [call]
    tolerance = _default_tolerance(model, call) if tolerance is None else tolerance
    with evaluating(model), torch.no_grad(), _returning_tensors(model) if tensors_only else nullcontext(), \
            TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            with suppress_output():
                export_format.write(model, copied(calls[-1]), _dynamic_shapes(call) if dynamic_batch else None, draft)
                # Copies: the model may write into its inputs.
                results = [(list(tensors_in(model(*args, **kwargs))), export_format.run(draft, call))
                           for call in calls for args, kwargs in (copied(call),)]
        except Exception as cause:
            if full := _disk_error(cause, Path(folder)):
                raise CheckpointError(f"{path}: could not be written: {describe_error(full)}; nothing was left behind; "
                                      "free space or choose another place") from cause
            raise _failed(path, cause, model, call, dynamic_batch) from cause
        error = max(_difference(path, eager, exported) for eager, exported in results)
        if not error <= tolerance:
            raise ExportError(f"{path}: differs from the eager model by {error:.1e} of its largest output, "
                              f"at most {tolerance:.1e} wanted; nothing was written; try another format or "
                              "tolerance=")
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            flush_to_disk(file)
            file.replace(path.parent / file.name)  # what the file refers to comes first
    return ExportResult(path, error)


def exported_form(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The network that a file holds, and its inputs there: the model and these, or what its `export_form` says.

    A model has that method where its operations depend on what it finds, and a part of it has a fixed form:
    `export_form(inputs)` returns a network, which shares nothing with it, and the inputs of that.
    """
    model = unwrap(model)
    form = getattr(model, "export_form", None)
    return (model, inputs) if form is None else form(inputs)


def check_path(path: Path) -> _Format:
    """The format of a file to be written, by its suffix.

    Raises:
        RequestError: an unknown suffix, a folder, or no folder to write in.
        MissingExtra: a package that writes or runs this format is not installed.
    """
    if path.suffix not in _FORMATS:
        raise RequestError(f"{path}: suffix {path.suffix!r} found, one of {', '.join(_FORMATS)} wanted")
    if path.is_dir():
        raise RequestError(f"{path}: is a folder; give the name of a file, such as {path / f'model{path.suffix}'}")
    if not path.parent.is_dir():
        raise RequestError(f"{path}: lies in a folder that does not exist; make {path.parent} first")
    export_format = _FORMATS[path.suffix]
    for package in export_format.packages:
        if find_spec(package) is None:
            raise MissingExtra(package, export_format.extra, f"export to {path.suffix}")
    return export_format


# --- the formats --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Format:
    """A file format: the extra that installs the packages for it, what writes a file, and what runs one."""

    packages: tuple[str, ...]
    extra: str
    write: Callable[[nn.Module, ModelCall, Any, Path], None]
    run: Callable[[Path, ModelCall], list[Tensor]]


def _write_onnx(model: nn.Module, call: ModelCall, dynamic: Any, path: Path) -> None:
    size = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
    torch.onnx.export(model, call[0], path, kwargs=call[1], dynamo=True, verbose=False,
                      dynamic_shapes=dynamic, external_data=size > _PROTOBUF_LIMIT)


def _run_onnx(path: Path, call: ModelCall) -> list[Tensor]:
    return [torch.from_numpy(output) for output in onnx_runner(path, call[1] or call[0])()]


def _write_pt2(model: nn.Module, call: ModelCall, dynamic: Any, path: Path) -> None:
    torch.export.save(torch.export.export(model, call[0], call[1], dynamic_shapes=dynamic), path)


def _run_pt2(path: Path, call: ModelCall) -> list[Tensor]:
    return list(tensors_in(torch.export.load(path).module()(*call[0], **call[1])))


def _write_openvino(model: nn.Module, call: ModelCall, dynamic: Any, path: Path) -> None:
    import openvino

    program = torch.export.export(model, call[0], call[1], dynamic_shapes=dynamic)
    converted = openvino.convert_model(program)
    tensors = in_order(call[1] or call[0], [port.any_name for port in converted.inputs])
    # the conversion forgets the sizes it was shown, and fixed ones run faster
    converted.reshape({port: [-1 if dynamic and not dim else size for dim, size in enumerate(tensor.shape)]
                       for port, tensor in zip(converted.inputs, tensors, strict=True)})
    openvino.save_model(converted, path, compress_to_fp16=False)


def _run_openvino(path: Path, call: ModelCall) -> list[Tensor]:
    return [torch.from_numpy(output.copy()) for output in openvino_runner(path, call[1] or call[0])()]


_FORMATS = {
    ".onnx": _Format(("onnx", "onnxscript", "onnxruntime"), "onnx", _write_onnx, _run_onnx),
    ".pt2": _Format((), "", _write_pt2, _run_pt2),
    ".xml": _Format(("openvino",), "openvino", _write_openvino, _run_openvino),
}


# --- inputs -------------------------------------------------------------------------------------------------

def _on_cpu(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, ModelCall]:
    call = arguments(inputs)
    tensors = chain(model.parameters(), model.buffers(), tensors_in(call))
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return model, call
    return copy_model(model).cpu(), map_tensors(Tensor.cpu, call)


def _twice_the_batch(call: ModelCall) -> ModelCall:
    """The call at twice the batch: torch.export takes a batch of 1 for a constant."""
    if any(isinstance(arg, list) for arg in call[0]) or any(not tensor.ndim for tensor in tensors_in(call)):
        raise RequestError("dynamic_batch: an input without a batch dimension found, wanted tensors with the "
                           "batch as dimension 0; leave dynamic_batch out")
    doubled: ModelCall = map_tensors(lambda tensor: torch.cat([tensor, tensor]), call)
    return doubled


def _dynamic_shapes(call: ModelCall) -> Any:
    batch = torch.export.Dim("batch", min=1)

    def axes(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return {0: batch}
        if isinstance(tree, dict):
            return {key: axes(value) for key, value in tree.items()}
        return tuple(axes(value) for value in tree) if isinstance(tree, tuple) else None

    args, kwargs = call
    return axes(kwargs or args)


# --- outputs ------------------------------------------------------------------------------------------------

@contextmanager
def _returning_tensors(model: nn.Module) -> Iterator[None]:
    """In this context the model returns the tensors of its output as a tuple."""
    handle = model.register_forward_hook(lambda _module, _args, output: tuple(tensors_in(output)))
    try:
        yield
    finally:
        handle.remove()


def _others_in_output(model: nn.Module, call: ModelCall) -> list[str]:
    """Where a model's output holds something else than tensors, and what; nothing where the model fails."""
    def described(tree: Any, where: str) -> list[str]:
        if isinstance(tree, Mapping):
            parts = [(f"{where}[{key!r}]", item) for key, item in tree.items()]
        elif isinstance(tree, list | tuple):
            parts = [(f"{where}[{index}]", item) for index, item in enumerate(tree)]
        elif is_dataclass(tree) and not isinstance(tree, type):
            parts = [(f"{where}.{field.name}", getattr(tree, field.name)) for field in fields(tree)]
        else:
            fits = tree is None or isinstance(tree, Tensor)
            return [] if fits else [f"{where} is {type(tree).__name__} {tree!r:.40}"]
        return [text for place, item in parts for text in described(item, place)]

    args, kwargs = copied(call)
    with suppress_output(), suppress(Exception):
        return described(model(*args, **kwargs), "output")
    return []


# --- the comparison -----------------------------------------------------------------------------------------

def _difference(path: Path, eager: list[Tensor], exported: list[Tensor]) -> float:
    exported_shapes, eager_shapes = (
        [format_shape(tensor.shape) for tensor in tensors] for tensors in (exported, eager))
    if exported_shapes != eager_shapes:
        raise ExportError(f"{path}: outputs {', '.join(exported_shapes)} found, {', '.join(eager_shapes)} wanted; "
                          "try another format")
    return max((_relative_error(*pair) for pair in zip(eager, exported, strict=True)), default=0.0)


def _relative_error(eager: Tensor, exported: Tensor) -> float:
    eager, exported = eager.double(), exported.double()
    finite = eager.isfinite()
    if not torch.equal(finite, exported.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float((eager - exported)[finite].abs().max())
    scale = float(eager[finite].abs().max())
    return difference / scale if scale else difference


def _default_tolerance(model: nn.Module, call: ModelCall) -> float:
    halves = (torch.float16, torch.bfloat16)
    return 1e-2 if any(t.dtype in halves for t in chain(model.parameters(), tensors_in(call))) else 1e-4


@contextmanager
def suppress_output() -> Iterator[None]:
    """Neither log, warnings, stdout nor stderr: the exporters use all of them for progress and for advice."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _failed(path: Path, cause: Exception, model: nn.Module, call: ModelCall, dynamic_batch: bool) -> ExportError:
    hint = "dynamic_batch=False" if dynamic_batch else "another format, or fixed control flow"
    reason = describe_error(_root_cause(cause))
    if others := _others_in_output(model, call):
        hint = "tensors_only=True, which leaves them out, or another format"
        reason = f"{', '.join(others)}, tensors wanted ({reason})"
    return ExportError(f"{path}: the export failed: {reason}; try {hint}")


def _disk_error(error: BaseException, folder: Path) -> OSError | None:
    """The failure of a disk among an error's causes; writers in C++ do not name theirs, so that a full disk counts."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(ENOSPC, os.strerror(ENOSPC)) if shutil.disk_usage(folder).free < _FULL else None


def _root_cause(error: BaseException) -> BaseException:
    """The first exception in the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
