"""A training's checkpoint, as one safetensors file, without pickle and written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from torchslim.errors import CheckpointError
from torchslim.surgery.plans import Plan
from torchslim.utils.files import write_atomically
from torchslim.utils.json_values import parse_json, read_values, to_values
from torchslim.utils.text import describe_error

FORMAT = 2
_KEY = "torchslim.fit"
_REMEDY = "delete it to start anew"


@dataclass(frozen=True)
class TrainingState:
    """A training's progress: epochs done; the loss and, if measured, the main metric of each; the cuts made."""

    epochs: int = 0
    loss: tuple[float, ...] = ()
    score: tuple[float, ...] = ()
    plans: tuple[Plan, ...] = ()


@dataclass(frozen=True)
class _Metadata:
    """The file's metadata: `TrainingState`, identity (`recipe`), the optimizer's numbers by parameter and group."""

    recipe: Mapping[str, Any]
    optimizer: Mapping[int, Mapping[str, Any]]
    groups: tuple[Mapping[str, Any], ...]
    epochs: int
    loss: tuple[float, ...]
    score: tuple[float, ...]
    plans: tuple[Any, ...]

    def state(self, where: str) -> TrainingState:
        plans = tuple(Plan.from_dict(values, f"{where}.plans[{index}]") for index, values in enumerate(self.plans))
        return TrainingState(self.epochs, self.loss, self.score, plans)


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState,
                    identity: Mapping[str, Any], parts: Mapping[str, Any] = {}) -> None:
    """Write the state of the model, of the optimizer and of the training.

    The learning-rate schedule and random generators need no state: both follow from the epoch's number.

    Args:
        path: the file.
        model, optimizer: of the training.
        state: of the training.
        identity: JSON values that must be equal for the checkpoint to be loaded.
        parts: further state by name, each with `state_dict` and `load_state_dict` of tensors.

    Raises:
        CheckpointError: the file can't be written, or the model's state dict has a value that is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is {type(value).__name__}, only tensors can be stored; "
                                  "train without a checkpoint")
        tensors[f"model.{name}"] = _cpu_copy(value)
    tensors |= {f"{part}.{name}": _cpu_copy(value) for part, kept in parts.items()
                for name, value in kept.state_dict().items()}
    numbers: dict[int, dict[str, Any]] = {}
    described = optimizer.state_dict()
    groups = tuple({key: value for key, value in group.items() if isinstance(value, int | float) and key != "lr"}
                   for group in described["param_groups"])
    tensors |= {f"groups.{index}.{key}": _cpu_copy(value) for index, group in enumerate(described["param_groups"])
                for key, value in group.items() if isinstance(value, Tensor)}
    for index, entries in described["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = _cpu_copy(value)
            elif value is not None:
                numbers.setdefault(index, {})[key] = value
    plans = tuple(plan.to_dict() for plan in state.plans)
    metadata = _Metadata(identity, numbers, groups, state.epochs, state.loss, state.score, plans)
    text = json.dumps({"format": FORMAT, **to_values(metadata, str(path))})
    write_atomically(path, lambda draft: save_file(tensors, draft, {_KEY: text}), (SafetensorError,))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                    identity: Mapping[str, Any], parts: Mapping[str, Any] = {}) -> TrainingState:
    """Load the state of the model, of the optimizer and of further parts, and return that of the training.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or of another model or training.
    """
    metadata, tensors = _read(path, identity, tensors=True)
    try:
        optimizer_state = {index: dict(numbers) for index, numbers in metadata.optimizer.items()}
        for name, value in _under("optimizer", tensors).items():
            index, key = name.split(".", 1)
            optimizer_state.setdefault(int(index), {})[key] = value
        model.load_state_dict(_under("model", tensors))
        for part, kept in parts.items():
            kept.load_state_dict(_under(part, tensors))
        groups = [{**group, **numbers} for group, numbers in zip(optimizer.state_dict()["param_groups"],
                                                                 metadata.groups, strict=True)]
        for name, value in _under("groups", tensors).items():
            index, key = name.split(".", 1)
            groups[int(index)][key] = value
        optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: no checkpoint of this training ({describe_error(error)}); {_REMEDY}") from error
    return metadata.state(str(path))


def read_plans(path: Path, identity: Mapping[str, Any]) -> tuple[Plan, ...]:
    """The cuts made before a checkpoint was written; its tensors are of the cut network.

    Raises:
        CheckpointError: the file is damaged, not a checkpoint, or of another training.
    """
    metadata, _ = _read(path, identity, tensors=False)
    return metadata.state(str(path)).plans


def _read(path: Path, identity: Mapping[str, Any], tensors: bool) -> tuple[_Metadata, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            # Mapped tensors may be unaligned; kernels, and with them the last bit, depend on alignment.
            loaded = {name: file.get_tensor(name).clone() for name in (file.keys() if tensors else ())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no checkpoint of this training ({describe_error(error)}); {_REMEDY}") from error
    if text is None:
        raise CheckpointError(f"{path}: no checkpoint of this training (metadata without {_KEY}); {_REMEDY}")
    metadata = read_values(_Metadata, parse_json(text, str(path), _REMEDY), str(path), _REMEDY, FORMAT)
    stored, current = metadata.recipe, to_values(identity, str(path))
    differences = [f"{name}={stored.get(name)!r} (now {current.get(name)!r})"
                   for name in sorted({*stored, *current}) if stored.get(name) != current.get(name)]
    if differences:
        raise CheckpointError(f"{path}: made by a training with {', '.join(differences)}; "
                              "train as before, choose another checkpoint, or delete it to start anew")
    return metadata, loaded


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of them."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _cpu_copy(value: Tensor) -> Tensor:
    """A copy, since safetensors refuses tensors with shared memory."""
    return value.detach().to("cpu", copy=True).contiguous()
