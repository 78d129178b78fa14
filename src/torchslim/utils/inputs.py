"""How a model is called: the four forms of `inputs`, the tensors in a model's output, and what wraps a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError, UnsupportedModel

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model call.

    A tensor is the one argument, a tuple the arguments in order, a list is passed as the one argument (as detectors
    want it), a mapping holds keyword arguments.

    Raises:
        RequestError: `inputs` is none of these, or holds no tensor.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    if isinstance(inputs, Tensor | list):
        args, kwargs = (inputs,), {}
    elif isinstance(inputs, tuple):
        args, kwargs = inputs, {}
    elif isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        raise RequestError(f"inputs: got {type(inputs).__name__}, wanted a tensor, a tuple of arguments, a list (one "
                           "argument) or a dict of keywords; try torch.randn(1, 3, 224, 224)")
    if next(tensors_in((args, kwargs)), None) is None:
        raise RequestError("inputs: no tensor in them; try torch.randn(1, 3, 224, 224)")
    return args, kwargs


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, in order."""
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


def map_tensors(function: Any, tree: Any) -> Any:
    """The same nest of tuples, lists, mappings and dataclasses with `function` applied to each tensor.

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
    return tree


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module inside a compiled or data-parallel wrapper.

    Raises:
        UnsupportedModel: the model is no module, or is scripted, so that its operations can't be rewritten.
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
        raise UnsupportedModel(f"model: got {type(model).__name__}, wanted a torch.nn.Module")
    return model
