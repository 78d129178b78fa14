"""Whether a network runs as before with new layers in it, and with which of them it does not.

Code may ask a layer for more than its outputs: `self.conv.weight.dtype`, `self.conv.out_channels`, whether it is an
`nn.Conv2d`. What stands in its place has no answer to that, or another one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from torchslim.costs.memory import is_view
from torchslim.errors import TraceError
from torchslim.rewriting.steps import exchange
from torchslim.rules import multiplies
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs
from torchslim.utils.text import first_line

_MOVES = frozenset({"aten.clone", "aten._to_copy", "aten.copy_", "aten._unsafe_view", "aten.add", "aten.empty"})


class _Broken(Exception):
    """The network does not run as before; the layer to blame, if that can be told, and how it shows."""

    def __init__(self, reason: str, layer: str = "") -> None:
        super().__init__(reason)
        self.reason, self.layer = reason, layer


def put_in(model: nn.Module, new: Mapping[str, nn.Module], inputs: Inputs,
           before: Graph) -> tuple[Graph, dict[str, str]]:
    """Put new layers in the place of those of the same names, but for those with which the network does not run.

    It runs once where it runs with all of them. Else a layer to blame is found by the error, or by halves, taken out,
    and the rest tried again.

    Args:
        model: changed in place.
        new: layers by name.
        inputs: on which it runs.
        before: the tape of the model as it was.

    Returns:
        The tape of the model as it is now, and the layers that stay as they were, with reasons.
    """
    old = {name: model.get_submodule(name) for name in new}
    good, left = dict(new), dict[str, str]()
    while True:
        exchange(model, {old[name]: layer for name, layer in good.items()})
        try:
            return _tried(model, good, inputs, before), left
        except _Broken as error:
            broken = error
        if not good:  # pragma: no cover - the model ran before; were it not to run now, no layer could be to blame
            return before, left
        guilty = broken.layer
        if not guilty:
            guilty, broken = _by_halves(model, old, good, inputs, before, broken)
        exchange(model, {layer: old[name] for name, layer in good.items()})
        left[guilty] = broken.reason
        del good[guilty]


def _by_halves(model: nn.Module, old: Mapping[str, nn.Module], new: Mapping[str, nn.Module], inputs: Inputs,
               before: Graph, broken: _Broken) -> tuple[str, _Broken]:
    """The first layer that breaks the network where those before it are new, too; all are old or new afterwards."""
    names = list(new)
    runs, fails = 0, len(names)
    while fails - runs > 1:
        half = (runs + fails) // 2
        exchange(model, {old[name]: new[name] for name in names[:half]})
        exchange(model, {new[name]: old[name] for name in names[half:]})
        try:
            _tried(model, names[:half], inputs, before)
            runs = half
        except _Broken as error:
            fails, broken = half, error
    return names[fails - 1], broken


def _tried(model: nn.Module, names: Collection[str], inputs: Inputs, before: Graph) -> Graph:
    """The tape of a run.

    Raises:
        _Broken: there is none, or what is not new in it ran in another way than before.
    """
    sure = before.device == "meta"  # data decide nothing there, so that every run is like every other
    try:
        after = trace(model, inputs, meta=sure or None, watch=False)
    except TraceError as error:
        cause = error.__cause__ or error
        asked = cause.obj if isinstance(cause, AttributeError) else None
        guilty = next((name for name in names if asked is not None and model.get_submodule(name) is asked), "")
        raise _Broken(f"the network reads its `{cause.name}`" if guilty and isinstance(cause, AttributeError)
                      else f"the network no longer runs with it: {first_line(cause)}", guilty) from error
    if not sure:
        return after
    for name in names:
        if before.calls.get(name, 0) != after.calls.get(name, 0):
            raise _Broken("the network no longer calls what is in its place", name)
    inside = tuple(f"{name}." for name in names)
    for name in before.calls.keys() | after.calls.keys():
        if not name.startswith(inside) and before.calls.get(name, 0) != after.calls.get(name, 0):
            raise _Broken(f"`{name}` no longer runs as often with it")
    if [value.shape for value in before.outputs] != [value.shape for value in after.outputs]:
        raise _Broken("the network's outputs have other shapes with it")
    if _arithmetic(before, names, inside) != _arithmetic(after, names, inside):
        raise _Broken("the network computes something else with it")
    return after


def _arithmetic(graph: Graph, names: Collection[str], inside: tuple[str, ...]) -> list[tuple[str, str]]:
    """What runs outside of the new layers.

    How maps lie in memory may change, which decides on views and copies, and on how matrices are multiplied.
    """
    return [(op.module, op.name) for op in graph.ops if op.module not in names and not op.module.startswith(inside)
            and not (is_view(op) or multiplies(op) or op.name in _MOVES)]
