"""Slim models as files: one safetensors file with the tensors, the steps that made it, the architecture's source.

No pickle and no code: a model is rebuilt from its source, rewritten and cut again by its steps, and then filled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from torchslim import sources
from torchslim.calling import unwrap
from torchslim.copying import copied
from torchslim.errors import CheckpointError, PlanError, RequestError
from torchslim.files import writable, write_whole
from torchslim.plans import Plan
from torchslim.rewriting import Rewriting, Step, redone
from torchslim.wording import dims, first_line

FORMAT = 2
_KEY = "torchslim"


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        source: the specification of the original model (see `torchslim.sources`), or None.
        steps: cuts and rewritings, in the order in which they are applied to the original.
        version: the torchslim that wrote the file.
        training: whether the model was in training mode.
        aliases: name of each tensor that is tied to another, and the name under which that one is stored.
        buffers: dtype of each floating-point buffer that is rebuilt, not stored.
        digest: SHA-256 of the tensors.
    """

    source: str | None
    steps: tuple[Step, ...]
    version: str
    training: bool
    aliases: Mapping[str, str]
    buffers: Mapping[str, torch.dtype]
    digest: str


def save(model: nn.Module, path: str | Path, plan: Step | Sequence[Step] | None = None,
         source: str | Path | sources.Source | None = None) -> Path:
    """Write a model, its plan and its source as one safetensors file; the file appears whole or not at all.

    Args:
        model: the slim model.
        path: the file; one that exists is replaced.
        plan: the plan that made it, or several in the order in which they were applied; rewritings, too (see
            `torchslim.rewriting.Lightened.steps`).
        source: the specification of the model that was cut (`torchvision:resnet18?num_classes=10`). When that
            is itself a saved slim model, its steps and its source are written before `plan`.

    Returns:
        The path.

    Raises:
        RequestError: the folder is missing, the source is unknown, the plan is something else, the model holds what
            can't be stored.
        CheckpointError: the file can't be written (a full disk, no permission).
    """
    from torchslim import __version__

    model, path = unwrap(model), writable(Path(path), "slim.safetensors")
    steps: tuple[Step, ...] = () if plan is None else tuple(plan) if isinstance(plan, Sequence) else (plan,)
    if strange := [type(step).__name__ for step in steps if not isinstance(step, Step)]:
        raise RequestError(f"{path}: plan={strange[0]} found, a plan or rewritings wanted; give what `torchslim.plan` "
                           "returned, or the `.steps` of what `torchslim.rewriting.lightened` did")
    origin = None if source is None else sources.resolve(source)
    earlier = read_header(origin.name) if origin is not None and origin.kind == "saved" else None
    tensors, aliases = _stored(model)
    _write(path, tensors, {
        "format": FORMAT,
        "version": __version__,
        "source": earlier.source if earlier else None if origin is None else str(origin),
        "steps": [json.loads(each.to_json()) for each in ((*earlier.steps, *steps) if earlier else steps)],
        "training": model.training,
        "aliases": aliases,
        "buffers": _unsaved_buffers(model),
        "digest": _digest(tensors),
    })
    return path


def load(path: str | Path, model: nn.Module | None = None, *, trust_source: bool = False) -> nn.Module:
    """The model that `save` wrote, in eval mode, on the CPU unless `model` is elsewhere.

    Nothing is downloaded: the original is rebuilt with random weights, which the stored ones replace.

    Args:
        path: the file.
        model: the original, built by the caller, in place of the file's source; it stays as it is.
        trust_source: allow a source that is a factory in a module or a file, whose code then runs.

    Raises:
        CheckpointError: the file is missing, damaged, no torchslim file, or made for another model.
        RequestError: the file has no source, or one that is code and not trusted, and `model` was not given.
    """
    path = Path(path)
    header, tensors = _read(path)
    rebuilt = _rebuild(path, header.source, trust_source) if model is None else unwrap(model)
    slim = copied(rebuilt) if model is not None and not header.steps else rebuilt
    try:
        for step in header.steps:
            slim = redone(slim, step)
    except PlanError as error:
        raise CheckpointError(f"{path}: its plan does not fit {_name(header, model)}: {error}") from error
    every = {**tensors, **{name: tensors[stored] for name, stored in header.aliases.items()}}
    _compare(path, slim, every, _name(header, model))
    _fill(path, slim, every, header.buffers)
    return slim.eval()


def read_header(path: str | Path) -> Header:
    """What a file says about itself; no tensor is read.

    Raises:
        CheckpointError: the file is missing, cut short, or no torchslim file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            return _header(path, file.metadata())
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


# --- writing ------------------------------------------------------------------------------------------------

def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state as contiguous CPU tensors, each once, and the names that are tied to another."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        _check_storable(name, value)
        identity = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        own = value.detach().cpu().contiguous()
        # a view of a larger tensor takes a copy, for the format refuses storage that is shared in part
        tensors[name] = own if own.untyped_storage().nbytes() == own.nbytes else own.clone()
    return tensors, aliases


def _check_storable(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        found = f"extra state of type {type(value).__name__}"
    elif value.is_meta:
        found = "a tensor on the meta device"
    elif value.is_quantized or value.layout != torch.strided:
        found = "a quantised or sparse tensor"
    else:
        return
    raise RequestError(f"{name}: {found} can't be stored; wanted an ordinary tensor with data")


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    write_whole(path, lambda draft: save_file(tensors, draft, {_KEY: json.dumps(metadata)}), (SafetensorError,))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {dims(tensors[name].shape)} ".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- reading ------------------------------------------------------------------------------------------------

def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            intact = _digest(tensors) == header.digest and set(header.aliases.values()) <= set(tensors)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    if not intact:
        raise CheckpointError(f"{path}: its tensors are not the ones that were written (checksums differ); "
                              "the file is damaged, take another copy")
    return header, tensors


def _header(path: Path, metadata: Mapping[str, str] | None) -> Header:
    if not metadata or _KEY not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one of torchslim's; "
                              "load it with safetensors.torch.load_file")
    try:
        raw = json.loads(metadata[_KEY])
        if raw["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {raw['format']!r} found, {FORMAT} wanted; "
                                  f"it was written by torchslim {raw.get('version')}, install a matching one")
        return Header(
            source=None if raw["source"] is None else str(raw["source"]),
            steps=tuple((Rewriting if "rule" in step else Plan).from_json(json.dumps(step)) for step in raw["steps"]),
            version=str(raw["version"]), training=bool(raw["training"]), aliases=dict(raw["aliases"]),
            buffers={name: _dtype(text) for name, text in raw["buffers"].items()}, digest=str(raw["digest"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({first_line(error)}); "
                              "take another copy") from error


def _rebuild(path: Path, source: str | None, trust: bool) -> nn.Module:
    if source is None:
        raise RequestError(f"{path}: says not where its architecture comes from; load it with model=ORIGINAL")
    if not sources.is_library(source) and not trust:
        raise RequestError(f"{path}: its source {source!r} is code, which would run; give trust_source=True "
                           f"if you trust it (command line: {path}?trust_source=True), or model=ORIGINAL")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the same
        return sources.build(sources.resolve(source).without_weights())


def _compare(path: Path, slim: nn.Module, stored: Mapping[str, Tensor], what: str) -> None:
    wanted = slim.state_dict()
    found = {name: (dims(stored[name].shape) if name in stored else "nothing",
                    dims(wanted[name].shape) if name in wanted else "nothing")
             for name in dict.fromkeys([*wanted, *stored])}
    wrong = [f"{name}: {mine} in the file, {theirs} in the model"
             for name, (mine, theirs) in found.items() if mine != theirs]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: made for another model than {what}: {'; '.join(wrong[:3])}{more}; "
                              "rebuild the original with the options it had")


def _fill(path: Path, slim: nn.Module, stored: Mapping[str, Tensor],
          buffers: Mapping[str, torch.dtype]) -> None:
    """Copy the stored values into the model, whose tensors take the stored dtypes.

    The copy matters: tensors mapped from a file are not aligned as torch's own are, and compute slightly
    different sums.
    """
    wanted = {**{name: tensor.dtype for name, tensor in stored.items()}, **buffers}
    for name, target in [*slim.named_parameters(remove_duplicate=False),
                         *slim.named_buffers(remove_duplicate=False)]:
        if target.is_meta:
            raise RequestError(f"{path}: cannot be loaded into {name}, which is on the meta device; "
                               "build the model on the CPU")
        if target.dtype != wanted.get(name, target.dtype):
            target.data = target.data.to(wanted[name])
    try:
        slim.load_state_dict(dict(stored), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the model refused its tensors: {first_line(error)}") from error


def _unsaved_buffers(model: nn.Module) -> dict[str, str]:
    """Dtypes of the floating-point buffers that the state leaves out (`model.half()` changes them too)."""
    stored = model.state_dict()
    return {name: str(buffer.dtype).removeprefix("torch.")
            for name, buffer in model.named_buffers(remove_duplicate=False)
            if name not in stored and buffer.is_floating_point()}


def _dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{text!r} is no dtype")
    return dtype


def _name(header: Header, model: nn.Module | None) -> str:
    return f"its source {header.source}" if model is None else f"the given {type(model).__name__}"


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: no such file; give the path of a saved slim model")
    return CheckpointError(f"{path}: cannot be read as safetensors ({first_line(error)}); "
                           "the file is damaged or of another kind, take another copy")
