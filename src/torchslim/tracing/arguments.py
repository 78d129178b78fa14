"""The arguments and results of dispatched operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from torch import Tensor


@cache
def operation_name(func: Any) -> str:
    """The name of a torch operation without its overload, such as "aten.convolution"."""
    return str(func._schema.name).replace("::", ".")


@cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that an operation writes into."""
    return tuple((position, argument.name) for position, argument in enumerate(func._schema.arguments)
                 if argument.alias_info is not None and argument.alias_info.is_write)


def written_tensors(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that a call of an operation writes into."""
    for position, name in written_arguments(func):
        item = args[position] if position < len(args) else kwargs.get(name)
        yield from flat(item)


def map_arguments(function: Callable[[Tensor], Any], items: Any) -> Any:
    """`function` over the tensors of an argument list; lists inside become tuples, so that a graph can't be changed."""
    out = []
    for item in items:
        if isinstance(item, Tensor):
            item = function(item)
        elif isinstance(item, list | tuple) and any(isinstance(part, Tensor) for part in item):
            item = type(item)(function(part) if isinstance(part, Tensor) else part for part in item)
        out.append(item)
    return tuple(out)


def flat(tree: Any) -> list[Tensor]:
    """The tensors of nested lists."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [tensor for item in tree for tensor in flat(item)]
    return []
