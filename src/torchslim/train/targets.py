"""Which tensors of two networks can be compared: a trace -> features, by the modules that return them, and outputs.

Features are what goes into the last pooling over positions, or, where there is none, what the layers read that make the
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torchslim.tracing.graph import Graph, Op, Value

_POOLINGS = ("aten.mean", "aten.amax", "aten._adaptive_avg_pool", "aten.adaptive_avg_pool", "aten.adaptive_max_pool",
             "aten.avg_pool", "aten.max_pool")
_CHOOSING = frozenset({"aten.nonzero", "aten.topk", "aten.sort", "aten.argsort", "aten.argmax", "aten.argmin",
                       "aten.unique_dim", "aten._unique2", "aten.masked_select", "torchvision.nms"})
"""What comes after these has an order or a number that depends on the values: detections, regions of a picture."""


class Place(NamedTuple):
    """A tensor that a module returns: the module's name, the number of the call, the position among the tensors."""

    module: str
    call: int
    position: int


def feature_places(graph: Graph) -> list[Place]:
    """Where the features are that a network makes its outputs of; empty if no module returns them."""
    chosen = _chosen(graph)
    makers = {value.id: op for op in reversed(graph.ops) for value in op.outputs if value is not None}
    pooled = _last_pooled(graph)
    values = [pooled] if pooled is not None and pooled.id not in chosen else _read_last(graph, makers, chosen)
    returned = {value.id: Place(name, call, position)
                for name, calls in graph.module_outputs.items() if name
                for call, results in enumerate(calls) for position, value in enumerate(results)}
    return list(dict.fromkeys(place for value in values for place in _nearest(value, makers, returned)))


def comparable_outputs(graph: Graph) -> list[int]:
    """Positions of the outputs that are floats in a fixed order, among all tensors that the model returns."""
    chosen = _chosen(graph)
    return [position for position, value in enumerate(graph.outputs)
            if value.dtype.is_floating_point and value.id not in chosen]


def _chosen(graph: Graph) -> set[int]:
    """Ids of the values whose order or number depends on other values."""
    chosen: set[int] = set()
    for op in graph.ops:
        if op.name in _CHOOSING or any(value.id in chosen for value in op.inputs):
            chosen.update(value.id for value in op.outputs if value is not None)
    return chosen


def _last_pooled(graph: Graph) -> Value | None:
    """What the pooling reads after which no operation works on maps."""
    for op in reversed(graph.ops):
        if op.name.startswith(_POOLINGS) and op.inputs and len(op.inputs[0].shape) > 2:
            return op.inputs[0]
        results = [value for value in op.outputs if value is not None]
        if any(len(value.shape) > 2 and value.numel > value.shape[0] * value.shape[1] for value in results):
            return None
    return None


def _read_last(graph: Graph, makers: Mapping[int, Op], chosen: set[int]) -> list[Value]:
    """What the last layers with weights before the outputs read."""
    values: list[Value] = []
    waiting, seen = list(graph.wanted_outputs), set[int]()
    while waiting:
        op = makers.get(waiting.pop(0).id)
        if op is None or op.index in seen:
            continue
        seen.add(op.index)
        read = [value for value in op.inputs if not value.static]
        has_weights = any(value.static and not value.fixed and len(value.shape) > 1 for value in op.inputs)
        if has_weights and not any(value.id in chosen for value in read):
            values += read
        else:
            waiting += read
    return values


def _nearest(value: Value, makers: Mapping[int, Op], returned: Mapping[int, Place]) -> Iterator[Place]:
    """The value, or else the nearest before it that modules return."""
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if value.id in returned and value.dtype.is_floating_point:
            yield returned[value.id]
        elif value.id in makers and value.id not in seen:
            waiting += [item for item in makers[value.id].inputs if not item.static]
        seen.add(value.id)
