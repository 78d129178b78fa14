"""Which layers a rule replaces: by name, kernel, width and MACs; the first and the last only on request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchslim.errors import RequestError
from torchslim.rules import macs, multiplies
from torchslim.tracing.graph import Graph, Op, Value
from torchslim.utils.layer_spec import LayerSpec, spec_of
from torchslim.utils.patterns import all_match


@dataclass(frozen=True)
class LayerFilter:
    """Which layers may be rewritten.

    Attributes:
        only, exclude: patterns of layer names; a part of a rewritten layer is also matched by that layer's name.
        kernels: sizes of the largest side of the kernel; empty for all.
        min_channels: the least number of both inputs and outputs.
        min_share: the least share of the network's multiply-adds.
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

    def matches_names(self, names: Collection[str]) -> bool:
        """Whether the patterns select a layer of these names."""
        return _any_matches(names, self.only or ("*",)) and not _any_matches(names, self.exclude)

    def accepts(self, names: Collection[str], spec: LayerSpec, is_end: bool, share: float | None) -> bool:
        """Whether a layer of these names is selected by its kernel, its width, its MACs and its position."""
        return (not (self.kernels and max(spec.kernel, default=1) not in self.kernels)
                and min(spec.inputs, spec.outputs) >= self.min_channels
                and (share is None or share >= self.min_share)
                and (self.ends or not is_end or not set(names).isdisjoint(self.only)))


def names_of(layer: str, rewritten: Collection[str]) -> list[str]:
    """The names that match a layer: its own, and that of each rewritten layer that it is a part of."""
    parts = layer.split(".")
    prefixes = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return [layer, *(prefix for prefix in prefixes if prefix in rewritten)]


def _any_matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(all_match([name], [pattern]) for name in names for pattern in patterns)


def check_patterns(layer_filter: LayerFilter, layers: Collection[str], rewritten: Collection[str]) -> None:
    """Check that every pattern matches a layer.

    Raises:
        RequestError: one matches none.
    """
    for pattern in (*layer_filter.only, *layer_filter.exclude):
        if not any(_any_matches(names_of(name, rewritten), [pattern]) for name in layers):
            raise RequestError(f"lighten: no convolution or linear layer matches {pattern!r}; they are named like "
                               f"{', '.join(list(layers)[:3])}")


def find_layers(model: nn.Module, graph: Graph | None) -> dict[str, LayerSpec | str]:
    """Convolutions and linear layers by name, each once: its spec, or why it can't be rewritten."""
    tied, readers = _tied_parameters(model), {} if graph is None else _readers(graph)
    layers: dict[str, LayerSpec | str] = {}
    for name, layer in model.named_modules():
        if not name or not isinstance(layer, _ConvNd | nn.Linear):
            continue
        spec, parent = spec_of(layer), model.get_submodule(name.rpartition(".")[0])
        result: LayerSpec | str
        if spec is None:
            result = f"{type(layer).__name__} is no plain layer of torch's"
        elif "weight" not in layer._parameters:
            result = "its weight is computed"
        elif {id(layer.weight), id(layer.bias)} & tied:
            result = "its weight or bias is tied to another layer's"
        elif any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
            result = "it has hooks"
        elif not (layer.weight.is_meta or bool(layer.weight.isfinite().all())):
            result = "its weight has infinite values, or values that are no numbers"
        elif isinstance(parent, nn.MultiheadAttention):
            result = "MultiheadAttention reads its weight, and does not call it"
        elif isinstance(parent, nn.TransformerEncoderLayer):
            result = "TransformerEncoderLayer reads its weight where it takes a short cut"  # without gradients, fused
        elif readers.get(name, name) != name:
            result = f"`{readers[name] or 'the model'}` reads its weight, too"
        else:
            result = spec
        layers[name] = result
    return layers


def _tied_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that several modules hold."""
    seen: set[int] = set()
    tied: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied


def _readers(graph: Graph) -> dict[str, str]:
    """The module that reads another one's parameters, by the name of that one."""
    readers = {}
    for op in graph.ops:
        for value in op.inputs:
            owner = value.name.rpartition(".")[0]
            if value.source == "parameter" and owner != op.module:
                readers[owner] = op.module
    return readers


def end_layers(layers: Collection[str], graph: Graph | None) -> frozenset[str]:
    """The layers that read the network's input and those that make its outputs; by their order without a graph."""
    if graph is None:
        ordered = list(layers)
        return frozenset([*ordered[:1], *ordered[-1:]])
    producers = {out.id: op for op in graph.ops for out in op.outputs if out is not None}
    return _input_layers(graph) | _output_layers(graph.outputs, producers)


def _input_layers(graph: Graph) -> frozenset[str]:
    """The modules of the first products on the way from the inputs."""
    reached = {value.id for value in graph.inputs}
    layers = set()
    for op in graph.ops:
        if any(value.id in reached for value in op.inputs):
            if multiplies(op):
                layers.add(op.module)
            else:
                reached |= {out.id for out in op.outputs if out is not None}
    return frozenset(layers)


def _output_layers(outputs: Iterable[Value], producers: Mapping[int, Op]) -> frozenset[str]:
    """The modules of the first products on the way back from the outputs."""
    layers: set[str] = set()
    visited: set[int] = set()
    pending = [value.id for value in outputs]
    while pending:
        value = pending.pop()
        if value in visited or value not in producers:
            continue
        visited.add(value)
        if multiplies(producers[value]):
            layers.add(producers[value].module)
        else:
            pending += [source.id for source in producers[value].inputs]
    return frozenset(layers)


def mac_shares(graph: Graph | None) -> dict[str, float]:
    """Each module's share of the multiply-adds; empty without a graph."""
    if graph is None:
        return {}
    costs: dict[str, int] = {}
    for op in graph.ops:
        costs[op.module] = costs.get(op.module, 0) + macs(op)
    total = max(sum(costs.values()), 1)
    return {name: cost / total for name, cost in costs.items()}
