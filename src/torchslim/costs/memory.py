"""What a run reads, writes and holds in memory: Graph -> elements and bytes.

Views are free. A tensor lives from the operation that makes it to the last one that reads it or a view of it, as in
runtimes that plan their memory; Python code that holds on to a tensor longer makes eager runs need somewhat more.
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
    return op.name in _VIEWS or _aliases(op.overload)


@cache
def _aliases(overload: Any) -> bool:
    returns = overload._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def accessed(op: Op) -> list[Value]:
    """The tensors that an operation reads and writes, each as often as it does."""
    if is_view(op):
        return []
    written = [value for value in op.outputs if value is not None]
    if op.name in _PICKING:
        return [*written, *written[:1], *op.inputs[1:]]
    return [*written, *(op.inputs[1:] if op.name in _WRITING else op.inputs)]


def size(value: Value) -> int:
    """Bytes of a tensor of its own."""
    return value.numel * value.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Life:
    """A tensor with memory of its own, and the operations between which it is alive: places on the tape, inclusive."""

    value: Value
    first: int
    last: int


def lives(graph: Graph) -> list[Life]:
    """The activations of a run, with those that wait for later parts. Views live on in what they are views of.

    The weights aside; the network's inputs count until they are last read, its outputs to the end.
    """
    home: dict[int, int] = {}
    first: dict[int, int] = {value.id: 0 for value in graph.inputs}
    last: dict[int, int] = {}
    owners: dict[int, Value] = {value.id: value for value in graph.inputs}
    for op in graph.ops:
        for value in op.inputs:
            last[home.get(value.id, value.id)] = op.index
        known = {value.id for value in op.inputs}
        for out in op.outputs:
            if out is None or out.id in known:
                continue
            if op.inputs and (is_view(op) or op.name.endswith("_")):
                source = op.inputs[0].id  # a view, or a tensor whose shape was changed in place
                home[out.id] = home.get(source, source)
            elif out.id not in first:
                first[out.id] = op.index
                owners[out.id] = out
            last[home.get(out.id, out.id)] = op.index
    for value in graph.outputs:
        last[home.get(value.id, value.id)] = len(graph.ops) - 1
    return [Life(owners[key], start, last.get(key, start)) for key, start in first.items()]


def held(graph: Graph) -> Sequence[int]:
    """The bytes of activations that are alive while each operation runs: inputs, results, and what is read later."""
    steps = [0] * (len(graph.ops) + 1)
    for life in lives(graph) if graph.ops else ():
        steps[life.first] += size(life.value)
        steps[life.last + 1] -= size(life.value)
    return list(accumulate(steps[:-1]))
