"""Weights of a named model from a file: a state dict, alone or in a training script's checkpoint.

Files of torch are read with `weights_only=True`: tensors, numbers and texts, and no code.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchslim.errors import RequestError, TorchslimWarning
from torchslim.utils.text import describe_error, format_shape, quoted
from torchslim.zoo.misplaced_files import SAVED_SUFFIX, check_file

SLIM_KEY = "torchslim"
"""What the metadata of our own saved models have an entry for."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "state_dict_ema", "model_ema", "module", "network", "net")
"""Entries of a checkpoint that hold the state dict, in the order of preference."""
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What wrappers put before the names of all tensors."""
NAMED = 4
"""So many tensors of a kind are named in a message, and the others counted."""
_NOT_LEARNED = "num_batches_tracked"  # missing in files of old versions of torch, and of no effect in eval mode
_REMEDY = "give a file that torch.save(model.state_dict(), PATH) or safetensors.torch.save_file wrote"
_BLOCKED = re.compile(r"GLOBAL (\S+)")


def load_checkpoint(model: nn.Module, path: str | Path, where: str, head: Collection[str] = ()) -> nn.Module:
    """Give a model the weights in a file; every tensor must be there and have its shape. Returns the model.

    A warning names the tensors of the head that stay as they are.

    Args:
        model: changed in place.
        path: the file, relative to the working folder.
        where: the model's specification, for messages.
        head: names of tensors that stay as they are, where the file lacks them or has them in another shape.

    Raises:
        RequestError: the file can't be read, holds code or no tensors, or tensors are missing, unexpected or have other
            shapes.
    """
    state = _own_names(model, _state_dict(str(path), _read(check_checkpoint(path, where))))
    own = model.state_dict()
    fresh = [name for name in own if name in head and getattr(state.get(name), "shape", None) != own[name].shape]
    state.update({name: own[name] for name in fresh})
    _fill(model, state, f"{where}: {quoted(str(path))} does not fit")
    if fresh:
        warnings.warn(f"{where}: the head stays random, {quoted(str(path))} has none of its size: {_listed(fresh)}",
                      TorchslimWarning, stacklevel=2)
    return model


def check_checkpoint(path: str | Path, where: str) -> Path:
    """The path of a file of weights, checked before a model is built for it.

    Raises:
        RequestError: it is no path, or not that of a file that holds something.
    """
    if not isinstance(path, str | Path):
        raise RequestError(f"{where}: checkpoint={path!r} found, wanted the path of a file, such as "
                           "checkpoint=weights.pth")
    place = Path(check_file(str(Path(path).expanduser())))
    if not place.stat().st_size:
        raise RequestError(f"{quoted(str(path))}: is empty; {_REMEDY}")
    return place


def _read(path: Path) -> Any:
    """What the file holds."""
    if path.suffix == SAVED_SUFFIX:
        return _read_safetensors(path)
    import numpy as np

    # Training scripts keep their arguments and best figures beside the weights.
    plain = [argparse.Namespace, type(np.dtype("float64")), type(np.dtype("float32")), np.dtype,
             getattr(np, "_core", np.core).multiarray.scalar]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(plain):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a bad file
        code = _BLOCKED.search(str(error))
        if code or "TorchScript" in str(error):
            what = code[1] if code else "a TorchScript program"
            raise RequestError(f"{quoted(str(path))}: holds code ({what}), which was not run; where it was made, save "
                               "the weights alone: torch.save(model.state_dict(), PATH)") from error
        reason = "" if "weights_only" in str(error) else f" ({describe_error(error)})"
        raise RequestError(f"{quoted(str(path))}: can't be read as a file of weights{reason}; {_REMEDY}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if SLIM_KEY in (file.metadata() or {}):
                raise RequestError(f"{quoted(str(path))}: is a saved slim model, which has its architecture; give it "
                                   "as MODEL by itself")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{quoted(str(path))}: can't be read as safetensors ({describe_error(error)}); "
                           f"{_REMEDY}") from error


def _state_dict(path: str, content: Any) -> OrderedDict[str, Any]:
    """The state dict in what a file holds, out of the entries in which training scripts keep it."""
    found = content
    while isinstance(found, Mapping) and not _has_tensors(found):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not _has_tensors(found):
        entries = f" among {', '.join(map(repr, list(found)[:5]))}" if isinstance(found, Mapping) and found else ""
        raise RequestError(f"{quoted(path)}: holds no tensors by name{entries}; {_REMEDY}")
    return _renamed(found, "", getattr(found, "_metadata", {}))


def _renamed(state: Mapping[Any, Any], prefix: str, versions: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """A state dict whose names are without a prefix, with the versions of its modules, by which torch reads it."""
    renamed = OrderedDict((str(name).removeprefix(prefix), value) for name, value in state.items()
                          if name != "n_averaged" or not prefix)
    renamed._metadata = {f"{name}.".removeprefix(prefix).rstrip("."): entry  # type: ignore[attr-defined]
                         for name, entry in versions.items()}
    return renamed


def _has_tensors(entries: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a state dict; an averaged model's count of updates is none."""
    return any(isinstance(value, Tensor) for name, value in entries.items() if name != "n_averaged")


def _own_names(model: nn.Module, state: OrderedDict[str, Any]) -> OrderedDict[str, Any]:
    """The state without the prefixes of wrappers that the model's own names lack."""
    own = model.state_dict()
    while prefix := next((prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in own)
                          and all(name.startswith(prefix) for name in state if name != "n_averaged")), None):
        state = _renamed(state, prefix, state._metadata)  # type: ignore[attr-defined]
    if not state._metadata:  # type: ignore[attr-defined]
        state._metadata = own._metadata  # type: ignore[attr-defined]
    return state


def _fill(model: nn.Module, state: OrderedDict[str, Any], where: str) -> None:
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    shapes = {name: (format_shape(state[name].shape), format_shape(value.shape)) for name, value in own.items()
              if not is_lazy(value) and isinstance(state.get(name), Tensor)}
    shaped = [f"{name} ({theirs} in the file, {ours} in the model)" for name, (theirs, ours) in shapes.items()
              if theirs != ours]
    missing = [name for name in own if name not in state and not name.endswith(_NOT_LEARNED)]
    unexpected = [name for name in state if name not in own]
    failure: Exception | None = None
    if not shaped:
        try:  # hooks may rename tensors of older versions, so that torch has the last word
            lists = model.load_state_dict(state, strict=False)
            missing = [name for name in lists.missing_keys if not name.endswith(_NOT_LEARNED)]
            unexpected = list(lists.unexpected_keys)
        except Exception as error:
            failure = error
    wrong = [f"{len(names)} {what}: {_listed(names)}" for what, names in (
        ("missing", missing), ("unexpected", unexpected), ("of another shape", shaped)) if names]
    if wrong or failure:
        reason = f"of its tensors {'; '.join(wrong)}" if wrong else describe_error(failure or ValueError())
        head = "" if missing or unexpected or failure else \
            "; for another number of classes, new_head=True (--new-head) leaves the last layers random"
        raise RequestError(f"{where}: {reason}; give the architecture and the options (num_classes=, ...) that the "
                           f"weights were trained with{head}") from failure


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
