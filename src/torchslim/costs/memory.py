"""Memory traffic and live activations of a run: Graph -> elements and bytes.

Views cost nothing. A tensor is alive from the operation that makes it to the last one that reads it or a view of it, as
in runtimes that plan their memory; where Python code keeps a reference longer, eager runs need somewhat more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from torchslim.tracing.graph import Graph, Op, Value

# Views by what they do, though their declarations say otherwise.
_VIEWS = frozenset({"aten._unsafe_view", "aten.lift_fresh"})
# Operations that read as many elements as they give: they pick some of a table.
_PICKING = frozenset({"aten.embedding", "aten.index", "aten._unsafe_index", "aten.index_select", "aten.gather"})
# Operations that write their first argument without reading it.
_WRITING = frozenset({"aten.copy_", "aten.fill_", "aten.zero_"})


def is_view(op: Op) -> bool:
    """True where the operation's results share the memory of an argument, and nothing is written."""
    return op.name in _VIEWS or op.overload is None or _aliases(op.overload)


@cache
def _aliases(overload: Any) -> bool:
    returns = overload._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def accessed(op: Op) -> list[Value]:
    """The tensors that an operation reads and writes, each as often as it is read or written."""
    if is_view(op):
        return []
    written = [value for value in op.outputs if value is not None]
    if op.name in _PICKING:
        return [*written, *written[:1], *op.inputs[1:]]
    return [*written, *(op.inputs[1:] if op.name in _WRITING else op.inputs)]


def size(value: Value) -> int:
    """Bytes of a tensor."""
    return value.numel * value.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Lifetime:
    """A tensor with memory of its own, and the indices of the first and last operation at which it is alive."""

    value: Value
    first: int
    last: int


def lives(graph: Graph) -> list[Lifetime]:
    """The lifetimes of a run's activations, without weights. A view extends the lifetime of the tensor it views.

    The network's inputs are alive from the start until they are last read, its outputs until the end.
    """
    base: dict[int, int] = {}
    first: dict[int, int] = {value.id: 0 for value in graph.inputs}
    last: dict[int, int] = {}
    tensors: dict[int, Value] = {value.id: value for value in graph.inputs}
    for op in graph.ops:
        for value in op.inputs:
            last[base.get(value.id, value.id)] = op.index
        known = {value.id for value in op.inputs}
        for out in op.outputs:
            if out is None or out.id in known:
                continue
            if op.inputs and (is_view(op) or op.name.endswith("_")):
                source = op.inputs[0].id  # a view, or a tensor whose shape was changed in place
                base[out.id] = base.get(source, source)
            elif out.id not in first:
                first[out.id] = op.index
                tensors[out.id] = out
            last[base.get(out.id, out.id)] = op.index
    for value in graph.outputs:
        last[base.get(value.id, value.id)] = len(graph.ops) - 1
    return [Lifetime(tensors[key], start, last.get(key, start)) for key, start in first.items()]


def live_bytes(graph: Graph) -> Sequence[int]:
    """For each operation the bytes of activations that are alive while it runs."""
    changes = [0] * (len(graph.ops) + 1)
    for lifetime in lives(graph) if graph.ops else ():
        changes[lifetime.first] += size(lifetime.value)
        changes[lifetime.last + 1] -= size(lifetime.value)
    return list(accumulate(changes[:-1]))
