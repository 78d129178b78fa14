"""Which layers a rule rewrites: by name, kernel, width and weight, and neither the first nor the last unless asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchslim.errors import RequestError
from torchslim.rules import macs, multiplies
from torchslim.tracing.graph import Graph, Op, Value
from torchslim.utils.layer_spec import Spec, spec_of
from torchslim.utils.patterns import matches


@dataclass(frozen=True)
class LayerFilter:
    """Which layers may be rewritten.

    Attributes:
        only, exclude: patterns of layer names; a part of a rewritten layer answers to that layer's name, too.
        kernels: sizes of the largest side of the kernel; empty for all.
        min_channels: the least of inputs and outputs.
        min_share: of the network's multiply-adds.
        ends: the first layer and those that make the outputs, too.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kernels: tuple[int, ...] = ()
    min_channels: int = 0
    min_share: float = 0.0
    ends: bool = False

    def __post_init__(self) -> None:
        for name, patterns in (("only", self.only), ("exclude", self.exclude)):
            if not isinstance(patterns, tuple) or not all(isinstance(pattern, str) for pattern in patterns):
                raise RequestError(f"lighten: {name}={patterns!r} is no list of patterns of layer names; try "
                                   f"{name}=['layer1.*']")
        if not all(isinstance(size, int) and size > 0 for size in self.kernels):
            raise RequestError(f"lighten: kernels={self.kernels!r}: wanted sizes such as [3, 5]")
        if not isinstance(self.min_channels, Real):
            raise RequestError(f"lighten: min_channels={self.min_channels!r} is no number; wanted such as 64")
        if not isinstance(self.min_share, Real) or not 0 <= self.min_share <= 1:
            raise RequestError(f"lighten: min_share={self.min_share!r} is no share; wanted a number from 0 to 1")

    def names(self, name: str, origins: Collection[str]) -> list[str]:
        """What a layer is called: by its own name, and by that of the rewritten layer that it is a part of."""
        parts = name.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        return [name, *(other for other in above if other in origins)]

    def named(self, names: Collection[str]) -> bool:
        """Whether the patterns take a layer of these names."""
        return _any(names, self.only or ("*",)) and not _any(names, self.exclude)

    def spares(self, names: Collection[str], spec: Spec, end: bool, share: float | None) -> bool:
        """Whether a layer, though named, is not meant: for its kernel, its size or its place."""
        if self.kernels and max(spec.kernel, default=1) not in self.kernels:
            return True
        if min(spec.inputs, spec.outputs) < self.min_channels:
            return True
        if share is not None and share < self.min_share:
            return True
        return end and not self.ends and not set(names) & set(self.only)


def _any(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(matches([name], [pattern]) for name in names for pattern in patterns)


def candidates(model: nn.Module, graph: Graph | None) -> dict[str, tuple[Any, Spec | str]]:
    """Convolutions and linear layers by name, each once, with its spec, or why it can't be rewritten."""
    twice, elsewhere = _tied(model), {} if graph is None else _readers(graph)
    found: dict[str, tuple[Any, Spec | str]] = {}
    for name, layer in model.named_modules():
        if not name or not isinstance(layer, _ConvNd | nn.Linear):
            continue
        spec, holder = spec_of(layer), model.get_submodule(name.rpartition(".")[0])
        own: Spec | str
        if spec is None:
            own = f"{type(layer).__name__} is no plain layer of torch's"
        elif "weight" not in layer._parameters:
            own = "its weight is computed"
        elif {id(layer.weight), id(layer.bias)} & twice:
            own = "its weight or bias is tied to another layer's"
        elif any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
            own = "it has hooks"
        elif not (layer.weight.is_meta or bool(layer.weight.isfinite().all())):
            own = "its weight has infinite values, or values that are no numbers"
        elif isinstance(holder, nn.MultiheadAttention):
            own = "MultiheadAttention reads its weight, and does not call it"
        elif isinstance(holder, nn.TransformerEncoderLayer):
            own = "TransformerEncoderLayer reads its weight where it takes a short cut"  # without gradients, fused
        elif elsewhere.get(name, name) != name:
            own = f"`{elsewhere[name] or 'the model'}` reads its weight, too"
        else:
            own = spec
        found[name] = layer, own
    return found


def _tied(model: nn.Module) -> set[int]:
    """Tensors that several modules hold."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _readers(graph: Graph) -> dict[str, str]:
    """For each module whose parameters another one reads: which."""
    found = {}
    for op in graph.ops:
        for value in op.inputs:
            owner = value.name.rpartition(".")[0]
            if value.source == "parameter" and owner != op.module:
                found[owner] = op.module
    return found


def ends_of(names: Collection[str], graph: Graph | None) -> frozenset[str]:
    """The layers that read the network's input, and those from which its outputs come; by order without a tape."""
    if graph is None:
        ordered = list(names)
        return frozenset([*ordered[:1], *ordered[-1:]])
    made = {out.id: op for op in graph.ops for out in op.outputs if out is not None}
    return _first(graph) | _last(graph.outputs, made)


def _first(graph: Graph) -> frozenset[str]:
    """Layers that products first meet on the way from the inputs."""
    raw = {value.id for value in graph.inputs}
    found = set()
    for op in graph.ops:
        if any(value.id in raw for value in op.inputs):
            if multiplies(op):
                found.add(op.module)
            else:
                raw |= {out.id for out in op.outputs if out is not None}
    return frozenset(found)


def _last(outputs: Iterable[Value], made: Mapping[int, Op]) -> frozenset[str]:
    """Layers that products first meet on the way back from the outputs."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [value.id for value in outputs]
    while waiting:
        key = waiting.pop()
        if key in seen or key not in made:
            continue
        seen.add(key)
        if multiplies(made[key]):
            found.add(made[key].module)
        else:
            waiting += [value.id for value in made[key].inputs]
    return frozenset(found)


def shares(graph: Graph | None) -> dict[str, float]:
    """Each layer's share of the multiply-adds; empty without a tape."""
    if graph is None:
        return {}
    costs: dict[str, int] = {}
    for op in graph.ops:
        costs[op.module] = costs.get(op.module, 0) + macs(op)
    total = max(sum(costs.values()), 1)
    return {name: cost / total for name, cost in costs.items()}


def check_patterns(choice: LayerFilter, names: Collection[str], origins: Collection[str]) -> None:
    """Every pattern is for some layer.

    Raises:
        RequestError: one is for none.
    """
    for pattern in (*choice.only, *choice.exclude):
        if not any(_any(choice.names(name, origins), [pattern]) for name in names):
            raise RequestError(f"lighten: no convolution or linear layer matches {pattern!r}; they are named like "
                               f"{', '.join(list(names)[:3])}")
