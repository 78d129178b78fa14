"""How a model is called: the forms of `inputs`, the tensors in a model's output, and what wraps a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass, replace
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError, UnsupportedModel

Inputs = Any
"""A tensor, a tuple of arguments, a list (one argument), a mapping of keywords, or an object that holds tensors."""


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model call: copies, which the model may write into.

    A tensor is the one argument, a tuple the arguments in order, a list is passed as the one argument (as detectors
    want it), a mapping holds keyword arguments, and any other object that holds tensors is the one argument.

    Raises:
        RequestError: `inputs` is none of these, or holds no tensor.
    """
    args: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    if next(tensors_in((args, kwargs)), None) is None:
        if isinstance(inputs, tuple | list | Mapping):
            raise RequestError("inputs: no tensor in them; try torch.randn(1, 3, 224, 224)")
        raise RequestError(f"inputs: got {type(inputs).__name__}, wanted a tensor, a tuple of arguments, a list (one "
                           "argument), a dict of keywords or an object that holds tensors; try "
                           "torch.randn(1, 3, 224, 224)")
    copies: tuple[tuple[Any, ...], dict[str, Any]] = copied((args, kwargs))
    return copies


def copied(tree: Any) -> Any:
    """The same nest with copies of its tensors; one that comes twice is one copy."""
    copies: dict[int, Tensor] = {}
    return map_tensors(lambda tensor: copies.setdefault(id(tensor), tensor.clone()), tree)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings, dataclasses and attributes of other objects, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_in(value)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for entry in fields(tree):
            yield from tensors_in(getattr(tree, entry.name))
    else:
        for value in _attributes(tree).values():
            yield from tensors_in(value)


def map_tensors(function: Any, tree: Any) -> Any:
    """The same nest of tuples, lists, mappings, dataclasses and objects with `function` applied to each tensor.

    The rest is kept as it is. A mapping that can't be made from a dict becomes one.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, value) for key, value in tree.items()}
        try:
            return mapped if type(tree) is dict else type(tree)(mapped)  # type: ignore[call-arg]
        except TypeError:  # such as a defaultdict, whose first argument is another
            return mapped
    if isinstance(tree, list | tuple):
        items = [map_tensors(function, value) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{each.name: map_tensors(function, getattr(tree, each.name)) for each in fields(tree)
                                if each.init})
    attributes = _attributes(tree)
    if next(tensors_in(attributes), None) is None:
        return tree
    new = copy(tree)
    vars(new).update({name: map_tensors(function, value) for name, value in attributes.items()})
    return new


def _attributes(item: Any) -> dict[str, Any]:
    """The attributes of an object of the user's own that may hold tensors: those that are tensors or containers."""
    if isinstance(item, type | nn.Module | FunctionType | ModuleType) or not hasattr(item, "__dict__"):
        return {}
    return {name: value for name, value in vars(item).items() if isinstance(value, Tensor | list | tuple | dict)}


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module inside a compiled or data-parallel wrapper.

    Raises:
        UnsupportedModel: the model is no module, has no forward of its own and wraps a network, or is scripted, so that
            its operations can't be rewritten.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModel(f"model: {type(model).__name__} is a scripted module, whose widths are compiled in; "
                               "give the nn.Module that it was scripted from")
    if not isinstance(model, nn.Module):
        inner = wrapped_network(model)
        raise UnsupportedModel(f"model: got {type(model).__name__}, wanted a torch.nn.Module"
                               f"{f'; its `.{inner}` is one, give that' if inner else ''}")
    if _without_forward(model) and wrapped_network(model):
        raise UnsupportedModel(f"model: {type(model).__name__} has no forward of its own, it wraps a network; give its "
                               f"`.{wrapped_network(model)}`")
    return model


def _without_forward(model: nn.Module) -> bool:
    """True for a module that is not called by `forward`, but otherwise (on paths or pictures), or not at all."""
    return "forward" not in vars(model) and not any("forward" in vars(kind) for kind in type(model).__mro__
                                                    if kind is not nn.Module)


def wrapped_network(model: Any) -> str:
    """The attribute in which a wrapper (a predictor, a pipeline, a trainer) holds its network; empty if none does."""
    for name in ("model", "module", "network", "net"):
        if isinstance(getattr(model, name, None), nn.Module):
            return name
    held = {**getattr(model, "__dict__", {}), **(model._modules if isinstance(model, nn.Module) else {})}
    networks = [name for name, item in held.items() if isinstance(item, nn.Module)]
    return networks[0] if len(networks) == 1 else ""
