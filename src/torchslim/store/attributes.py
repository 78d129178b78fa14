"""Tensors that are neither parameters nor buffers: attributes of modules, and those in lists, tuples and dicts there.

A state dict leaves them out, and a freshly built model has others if they were drawn at random or changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from torch import Tensor, nn

from torchslim.utils.modules import named_modules

PREFIX = "attribute:"
_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors by the names under which a file has them: "attribute:block.noise", "attribute:block.kernels#1"."""
    return {_name(start, key, item, place): tensor for start, key, _, item in _attributes(model)
            for place, tensor in enumerate(_tensors(item))}


def fill_attributes(model: nn.Module, stored: Mapping[str, Tensor]) -> list[str]:
    """Put stored tensors, by their names in the file, where they were; a model that has no such place makes its own.

    Returns:
        The names of the lists and dicts that hold another number of tensors than those stored.
    """
    wrong = []
    modules = dict(named_modules(model))
    for name, tensor in stored.items():
        owner, _, key = name.removeprefix(PREFIX).rpartition(".")
        if "#" not in key and owner in modules:
            modules[owner].__dict__[key] = tensor.clone()  # a copy: a mapped tensor is not aligned as torch's own are
    for start, key, module, item in list(_attributes(model)):
        if isinstance(item, Tensor):
            continue
        parts = [name for name in stored if name.startswith(f"{PREFIX}{start}{key}#")]
        if parts and len(parts) != sum(1 for _ in _tensors(item)):
            wrong.append(f"{start}{key}")
        elif parts:
            places = count()
            module.__dict__[key] = _replaced(item, lambda name=f"{PREFIX}{start}{key}", places=places:
                                             stored[f"{name}#{next(places)}"].clone())
    return wrong


def _attributes(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, Any]]:
    """Prefix, key, module and value of each attribute that holds such tensors."""
    for prefix, module in named_modules(model):
        for key, item in module.__dict__.items():
            if key not in _REGISTRIES and next(_tensors(item), None) is not None:
                yield f"{prefix}." if prefix else "", key, module, item


def _name(start: str, key: str, item: Any, place: int) -> str:
    return f"{PREFIX}{start}{key}" + ("" if isinstance(item, Tensor) else f"#{place}")


def _tensors(item: Any) -> Iterator[Tensor]:
    if _is_plain(item):
        yield item
    elif type(item) in (list, tuple, dict):
        for part in item.values() if isinstance(item, dict) else item:
            yield from _tensors(part)


def _is_plain(item: Any) -> bool:
    """A tensor that is no parameter, and no result of parameters that hooks compute anew."""
    return isinstance(item, Tensor) and not isinstance(item, nn.Parameter) and item.is_leaf


def _replaced(item: Any, tensor: Any) -> Any:
    """The same nest with each such tensor replaced by what `tensor()` gives, in order."""
    if _is_plain(item):
        return tensor()
    if type(item) is dict:
        return {key: _replaced(part, tensor) for key, part in item.items()}
    return type(item)(_replaced(part, tensor) for part in item) if type(item) in (list, tuple) else item
