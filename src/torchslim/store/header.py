"""What a saved file says about itself: its metadata, as a value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchslim.errors import CheckpointError, ForeignFileError
from torchslim.rewriting import ArchitectureStep, RewriteStep
from torchslim.surgery.plans import Plan
from torchslim.utils.json_values import parse_json, read_values
from torchslim.utils.text import describe_error, format_shape
from torchslim.zoo.misplaced_files import how_to_load

FORMAT = 2
KEY = "torchslim"
_REMEDY = "the file is damaged, take another copy"


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        source: the specification of the original model (see `torchslim.zoo.sources`), or None.
        steps: cuts and rewritings (`ArchitectureStep`), in the order in which they are applied to the original.
        version: the torchslim that wrote the file.
        training: whether the model was in training mode.
        aliases: name of each tensor that is tied to another, and the name under which that one is stored.
        buffers: name of the dtype ("float16") of each floating-point buffer that is rebuilt, not stored.
        digest: SHA-256 of the tensors.
    """

    source: str | None
    steps: tuple[Any, ...]
    version: str
    training: bool
    aliases: Mapping[str, str]
    buffers: Mapping[str, str]
    digest: str


def read_header(path: str | Path) -> Header:
    """What a file says about itself; no tensor is read.

    Raises:
        CheckpointError: the file is missing, cut short, or no torchslim file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            return parse_header(path, file.metadata())
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def parse_header(path: Path, metadata: Mapping[str, str] | None) -> Header:
    """The header in a file's metadata.

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    if not metadata or KEY not in metadata:
        raise ForeignFileError(f"{path}: a safetensors file, but not one of torchslim's; if it holds weights, "
                               f"{how_to_load(str(path))}")
    where = f"{path}: header"
    header = read_values(Header, parse_json(metadata[KEY], where, _REMEDY), where, _REMEDY, FORMAT)
    for name, dtype in header.buffers.items():
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise CheckpointError(f"{where}.buffers.{name}: {dtype!r} is no dtype of torch; {_REMEDY}")
    return replace(header, steps=tuple(_step(values, f"{where}.steps[{index}]")
                                       for index, values in enumerate(header.steps)))


def _step(values: Any, where: str) -> ArchitectureStep:
    kind = RewriteStep if isinstance(values, dict) and "rule" in values else Plan
    return kind.from_dict(values, where)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {format_shape(tensors[name].shape)} ".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that can't be read."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: no such file; give the path of a saved slim model")
    what = "is empty" if path.is_file() and not path.stat().st_size else \
        f"cannot be read as safetensors ({describe_error(error)})"
    return ForeignFileError(f"{path}: {what}; the file is damaged or of another kind, take another copy")
