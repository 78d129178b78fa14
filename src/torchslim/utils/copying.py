"""A deep copy of a model: `copy.deepcopy`, but quick where modules are plain.

A module has a dozen registries, most of them empty, and `copy.deepcopy` takes each through its general ceremony. Here
modules whose class copies in the ordinary way are rebuilt attribute by attribute; whatever is not a number, a string or
an empty registry still goes through `copy.deepcopy`, with one memo for all, so that what is shared stays shared.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import nn

from torchslim.utils.modules import named_modules, named_tensors

_ATOMIC = frozenset({NoneType, bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType,
                     torch.dtype, torch.Size})
_REGISTRIES = frozenset({dict, OrderedDict, set, list})
_OWN_WAYS = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__",
             "__slots__")


def copy_model(model: nn.Module, parts: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model in which `parts` stand in for the objects with these ids.

    Tensors that are a computation's result have no deep copy of torch's own. Hooks such as those of
    `torch.nn.utils.weight_norm` and `prune` leave them behind, and compute them anew before each call.
    """
    memo: dict[int, Any] = {id(t): t.detach().clone() for _, _, t in named_tensors(model) if not t.is_leaf}
    memo.update(parts or {})
    for _, module in reversed(named_modules(model)):  # children come first, and are found in the memo
        kind: Any = type(module)
        if id(module) not in memo and _copies_plainly(kind):
            memo[id(module)] = new = kind.__new__(kind)
            state = module.__getstate__()  # type: ignore[no-untyped-call]
            new.__setstate__({key: _copied(item, memo) for key, item in state.items()})
    new = copy.deepcopy(model, memo)
    # A module that builds itself anew when it is copied (`torch.fx.GraphModule`) comes back in train mode.
    for (_, module), (_, twin) in zip(named_modules(model), named_modules(new), strict=False):
        if twin.training != module.training:
            twin.training = module.training
    return new


def _copied(item: Any, memo: dict[int, Any]) -> Any:
    kind = type(item)
    if kind in _ATOMIC:
        return item
    if id(item) in memo:
        return memo[id(item)]
    if kind is tuple and all(type(part) in _ATOMIC for part in item):  # kernel sizes, strides, paddings
        return item
    if kind in _REGISTRIES and not item:
        memo[id(item)] = kind()
        return memo[id(item)]
    return copy.deepcopy(item, memo)


@cache
def _copies_plainly(kind: Any) -> bool:
    """True if a class says no more on how it is copied than `nn.Module` does."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return not any(name in base.__dict__ for base in bases for name in _OWN_WAYS)
