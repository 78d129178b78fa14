"""Slim models as files: one safetensors file with the tensors, the steps that made it, the architecture's source.

No pickle and no code: a model is rebuilt from its source, rewritten and cut again by its steps, and then filled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from torchslim._version import __version__
from torchslim.errors import RequestError
from torchslim.rewriting import ArchitectureStep
from torchslim.store.attributes import PREFIX, plain_tensors
from torchslim.store.header import FORMAT, KEY, digest, read_header
from torchslim.utils.files import check_writable, write_atomically
from torchslim.utils.inputs import unwrap
from torchslim.zoo.sources import Source, resolve


def save(model: nn.Module, path: str | Path, plan: ArchitectureStep | Sequence[ArchitectureStep] | None = None,
         source: str | Path | Source | None = None) -> Path:
    """Write a model, its plan and its source as one safetensors file; the file appears whole or not at all.

    Tensors that modules hold as plain attributes, by themselves or in lists, tuples and dicts, are kept, too.

    Args:
        model: the slim model.
        path: the file; one that exists is replaced.
        plan: the plan that made it, or several in the order in which they were applied; rewritings, too (see
            `torchslim.rewriting.LightenResult.steps`).
        source: the specification of the model that was cut (`torchvision:resnet18?num_classes=10`). When that
            is itself a saved slim model, its steps and its source are written before `plan`.

    Returns:
        The path.

    Raises:
        RequestError: the folder is missing, the source is unknown, the plan is something else, the model holds what
            can't be stored.
        CheckpointError: the file can't be written (a full disk, no permission).

    Example:
        >>> import tempfile, torch, torchslim
        >>> image = torch.rand(1, 3, 32, 32)
        >>> model = torchslim.create_model("mobilenet_v1_cifar", num_classes=10).eval()
        >>> slim, plan = torchslim.prune(model, image, macs=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = torchslim.save(slim, f"{folder}/slim.safetensors", plan=plan,
        ...                           source="mobilenet_v1_cifar?num_classes=10")
        ...     again = torchslim.load(path)
        >>> torch.equal(again(image), slim(image))
        True
    """
    model, path = unwrap(model), check_writable(Path(path), "slim.safetensors")
    steps: tuple[ArchitectureStep, ...] = () if plan is None else tuple(plan) if isinstance(plan, Sequence) else (plan,)
    if strange := [type(step).__name__ for step in steps if not isinstance(step, ArchitectureStep)]:
        raise RequestError(f"{path}: plan={strange[0]} found, a plan or rewritings wanted; give what `torchslim.plan` "
                           "returned, or the `.steps` of what `torchslim.rewriting.lighten_with_report` did")
    origin = None if source is None else resolve(source)
    earlier = read_header(origin.name) if origin is not None and origin.kind == "saved" else None
    tensors, aliases = _stored(model)
    _write(path, tensors, {
        "format": FORMAT,
        "version": __version__,
        "source": earlier.source if earlier else None if origin is None else str(origin),
        "steps": [step.to_dict() for step in ((*earlier.steps, *steps) if earlier else steps)],
        "training": model.training,
        "aliases": aliases,
        "buffers": _unsaved_buffers(model),
        "digest": digest(tensors),
    })
    return path


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
        stored = value.detach().cpu().contiguous()
        # a view of a larger tensor takes a copy, for the format refuses storage that is shared in part
        tensors[name] = stored if stored.untyped_storage().nbytes() == stored.nbytes else stored.clone()
    for name, value in plain_tensors(model).items():
        _check_storable(name.removeprefix(PREFIX), value)
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, aliases


def _check_storable(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        description = f"extra state of type {type(value).__name__}"
    elif value.is_meta:
        description = "a tensor on the meta device"
    elif value.is_quantized or value.layout != torch.strided:
        description = "a quantised or sparse tensor"
    elif value.dtype is torch.complex128:
        description = "a tensor of complex doubles"
    else:
        return
    raise RequestError(f"{name}: {description} can't be stored; wanted an ordinary tensor with data")


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    write_atomically(path, lambda draft: save_file(tensors, draft, {KEY: json.dumps(metadata)}), (SafetensorError,))


def _unsaved_buffers(model: nn.Module) -> dict[str, str]:
    """Dtypes of the floating-point buffers that the state leaves out (`model.half()` changes them too)."""
    stored = model.state_dict()
    return {name: str(buffer.dtype).removeprefix("torch.")
            for name, buffer in model.named_buffers(remove_duplicate=False)
            if name not in stored and buffer.is_floating_point()}
