"""Where a training run stands, as one safetensors file: no pickle, and whole or not there at all."""

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
from torchslim.utils.files import write_whole
from torchslim.utils.text import first_line

FORMAT = 1
_KEY = "torchslim.fit"


@dataclass(frozen=True)
class Standing:
    """How far a training is: the epochs done; for each its loss and, where measured, its accuracy; the cuts made."""

    epochs: int
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    plans: tuple[Plan, ...] = ()


def save_standing(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, standing: Standing,
                  recipe: Mapping[str, Any]) -> None:
    """Write the model's and the optimizer's state, and where the run stands.

    The schedule and the generators need no state: both follow from the epoch's number.

    Raises:
        CheckpointError: the file can't be written, or the model's state holds what is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is {type(value).__name__}, only tensors can be stored; "
                                  "train without a checkpoint")
        tensors[f"model.{name}"] = _own(value)
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = _own(value)
            elif value is not None:
                plain.setdefault(str(index), {})[key] = value
    about = {"format": FORMAT, "recipe": dict(recipe), "optimizer": plain, "epochs": standing.epochs,
             "loss": standing.loss, "accuracy": standing.accuracy,
             "plans": [json.loads(plan.to_json()) for plan in standing.plans]}

    def write(draft: Path) -> None:
        try:
            save_file(tensors, draft, {_KEY: json.dumps(about)})
        except SafetensorError as error:
            raise OSError(str(error)) from error

    write_whole(path, write)


def load_standing(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                  recipe: Mapping[str, Any]) -> Standing:
    """Put the model and the optimizer where the file's run stood.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or of another model or recipe.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            # Mapped tensors start anywhere, and kernels choose their path (and last bit) by alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {about['format']!r} found, {FORMAT} wanted; "
                                  "delete it, or install a matching torchslim")
        _compare(path, about["recipe"], recipe)
        state: dict[int, dict[str, Any]] = {int(i): dict(plain) for i, plain in about["optimizer"].items()}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensors.pop(name)
        model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return Standing(int(about["epochs"]), tuple(about["loss"]), tuple(about["accuracy"]), _plans(about))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: no checkpoint of this training ({first_line(error)}); "
                              "delete it to start anew") from error


def plans_in(path: Path, recipe: Mapping[str, Any]) -> tuple[Plan, ...]:
    """The cuts that were made before a file was written: its state fits the network that they make.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or of another recipe.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
        _compare(path, about["recipe"], recipe)
        return _plans(about)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no checkpoint of this training ({first_line(error)}); "
                              "delete it to start anew") from error


def _plans(about: Mapping[str, Any]) -> tuple[Plan, ...]:
    return tuple(Plan.from_json(json.dumps(plan)) for plan in about["plans"])


def _own(value: Tensor) -> Tensor:
    """A copy in memory of its own, for the format refuses shared memory."""
    return value.detach().to("cpu", copy=True).contiguous()


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(dict(wanted)))  # tuples are lists once they were JSON
    odd = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if odd:
        said = ", ".join(f"{name}={found.get(name)!r} (now {wanted.get(name)!r})" for name in odd)
        raise CheckpointError(f"{path}: made by a training with {said}; "
                              "train as before, choose another checkpoint, or delete it to start anew")
