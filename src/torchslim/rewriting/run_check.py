"""Checks that a network runs as before with new layers in it, and finds the layers with which it does not.

Code may use more of a layer than its outputs: `self.conv.weight.dtype`, `self.conv.out_channels`, whether it is an
`nn.Conv2d`. The replacement lacks that attribute, or has another value of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from torchslim.costs.memory import is_view
from torchslim.errors import TraceError
from torchslim.rewriting.steps import exchange
from torchslim.rules import multiplies
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs
from torchslim.utils.text import describe_error

_MOVES = frozenset({"aten.clone", "aten._to_copy", "aten.copy_", "aten._unsafe_view", "aten.add", "aten.empty"})


@dataclass(frozen=True)
class _Failure:
    """How the network no longer runs as before, and the layer that causes it if that is known."""

    reason: str
    layer: str = ""


def insert_layers(model: nn.Module, new: Mapping[str, nn.Module], inputs: Inputs,
                  before: Graph) -> tuple[Graph, dict[str, str]]:
    """Replace layers by new ones of the same names, except those with which the network does not run as before.

    One run suffices where the network runs with all of them. Otherwise a layer that breaks it is found by the error or
    by bisection, its replacement is left out, and the rest is tried again.

    Args:
        model: changed in place.
        new: layers by name.
        inputs: on which it runs.
        before: the trace of the model as it was.

    Returns:
        The trace of the model as it is now, and the layers that stay as they were, with reasons.
    """
    old = {name: model.get_submodule(name) for name in new}
    accepted, rejected = dict(new), dict[str, str]()
    while accepted:
        exchange(model, {old[name]: layer for name, layer in accepted.items()})
        result = _check_run(model, accepted, inputs, before)
        if isinstance(result, Graph):
            return result, rejected
        if not result.layer:
            result = _bisect(model, old, accepted, inputs, before, result)
        exchange(model, {layer: old[name] for name, layer in accepted.items()})
        rejected[result.layer] = result.reason
        del accepted[result.layer]
    return before, rejected


def _bisect(model: nn.Module, old: Mapping[str, nn.Module], new: Mapping[str, nn.Module], inputs: Inputs,
            before: Graph, failure: _Failure) -> _Failure:
    """The first layer that breaks the network when all layers before it are replaced, too."""
    names = list(new)
    runs, fails = 0, len(names)
    while fails - runs > 1:
        middle = (runs + fails) // 2
        exchange(model, {old[name]: new[name] for name in names[:middle]})
        exchange(model, {new[name]: old[name] for name in names[middle:]})
        result = _check_run(model, names[:middle], inputs, before)
        if isinstance(result, Graph):
            runs = middle
        else:
            fails, failure = middle, result
    return _Failure(failure.reason, names[fails - 1])


def _check_run(model: nn.Module, names: Collection[str], inputs: Inputs, before: Graph) -> Graph | _Failure:
    """The trace of a run; a failure if there is none, or if the layers that are not new ran differently."""
    on_meta = before.device == "meta"  # no data decide what runs there, so every run must be like every other
    try:
        after = trace(model, inputs, meta=on_meta or None, detect_width_reads=False)
    except TraceError as error:
        cause = error.__cause__ or error
        read = cause.obj if isinstance(cause, AttributeError) else None
        layer = next((name for name in names if read is not None and model.get_submodule(name) is read), "")
        if layer and isinstance(cause, AttributeError):
            return _Failure(f"the network reads its `{cause.name}`", layer)
        return _Failure(f"the network no longer runs with it: {describe_error(cause)}")
    return (_difference(before, after, names) if on_meta else None) or after


def _difference(before: Graph, after: Graph, names: Collection[str]) -> _Failure | None:
    """How a run differs from the one before outside of the new layers."""
    old_calls, new_calls = before.calls, after.calls
    for name in names:
        if old_calls.get(name, 0) != new_calls.get(name, 0):
            return _Failure("the network no longer calls what is in its place", name)
    inside = tuple(f"{name}." for name in names)
    for name in old_calls.keys() | new_calls.keys():
        if not name.startswith(inside) and old_calls.get(name, 0) != new_calls.get(name, 0):
            return _Failure(f"`{name}` no longer runs as often with it")
    if [value.shape for value in before.outputs] != [value.shape for value in after.outputs]:
        return _Failure("the network's outputs have other shapes with it")
    if _operations(before, names, inside) != _operations(after, names, inside):
        return _Failure("the network computes something else with it")
    return None


def _operations(graph: Graph, names: Collection[str], inside: tuple[str, ...]) -> list[tuple[str, str]]:
    """The operations outside of the new layers.

    Without views, copies and matrix products: the memory layout of maps, which may change, decides on these.
    """
    return [(op.module, op.name) for op in graph.ops if op.module not in names and not op.module.startswith(inside)
            and not (is_view(op) or multiplies(op) or op.name in _MOVES)]
