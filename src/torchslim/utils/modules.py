"""A model's modules and tensors by name, in one walk.

torch's own iterators say the same through a chain of generators as deep as the module tree, and a network of a few
hundred modules is walked several times for every plan.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

BLOCK_ELEMENTS = 2**20
"""About how many elements of a large tensor are worked on at a time: temporaries as large as itself cost more time than
the work, and memory that may not be there."""

# Most attributes are of these types; asking torch whether a number is a tensor takes its time.
_PLAIN = frozenset({NoneType, bool, int, float, str, tuple, list, set, dict, OrderedDict})


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under each of its qualified names, parents first; "" is the model itself."""
    stack, modules = [("", model)], []
    while stack:
        prefix, module = stack.pop()
        modules.append((prefix, module))
        start = f"{prefix}." if prefix else ""
        stack += [(start + key, child) for key, child in reversed(module._modules.items()) if child is not None]
    return modules


def names_of_modules(model: nn.Module) -> dict[nn.Module, str]:
    """The first name of each module."""
    return {module: name for name, module in reversed(named_modules(model))}


def named_tensors(model: nn.Module) -> list[tuple[str, str, Tensor]]:
    """Kind ("parameter", "buffer" or "attribute"), qualified name and value of every tensor that modules hold.

    Parameters come first, then buffers, then plain tensors held as attributes: constants that their authors did not
    register. A tied tensor comes under each of its names.
    """
    parameters: list[tuple[str, str, Tensor]] = []
    buffers: list[tuple[str, str, Tensor]] = []
    attributes: list[tuple[str, str, Tensor]] = []
    for prefix, module in named_modules(model):
        start = f"{prefix}." if prefix else ""
        parameters += [("parameter", start + key, t) for key, t in module._parameters.items() if t is not None]
        buffers += [("buffer", start + key, t) for key, t in module._buffers.items() if t is not None]
        attributes += [("attribute", start + key, t) for key, t in module.__dict__.items()
                       if type(t) not in _PLAIN and isinstance(t, Tensor)]
    return [*parameters, *buffers, *attributes]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by qualified name, tied ones under each of their names."""
    return {name: tensor for _, name, tensor in named_tensors(model)}


def held_tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Tensors that modules hold as plain attributes, by themselves or in a list, tuple or dict."""
    for module in modules:
        for item in module.__dict__.values():
            if type(item) not in _PLAIN:
                parts: Iterable[Any] = (item,)
            else:
                parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
            yield from (part for part in parts if type(part) not in _PLAIN and isinstance(part, Tensor))


def convolution_filters(names: Mapping[nn.Module, str], ranks: Mapping[str, int]) -> frozenset[str]:
    """Names of the tensors that hold the filters of convolution layers, parametrised ones included.

    Args:
        names: the name of each module.
        ranks: how many dimensions each tensor has, by its name.
    """
    wanted = {name: 2 + len(module.kernel_size) for module, name in names.items() if isinstance(module, _ConvNd)}
    owners = {name: name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
              for name in ranks}
    return frozenset(name for name, rank in ranks.items() if rank == wanted.get(owners[name]))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is, or its first buffer; the CPU for a model without tensors."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
