"""What a network costs: Graph -> Profile.

Conventions, stated once: a MAC is one fused multiply-add of a convolution or a matrix product. FLOPs are 2 for each MAC
(with a bias, exactly: one product and one sum), and those of norms, activations, pooling and arithmetic
(`torchslim.rules.counting`). Costs are those of the inputs as given, batch and all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from torchslim.calling import Inputs, unwrap
from torchslim.graph import Graph, Op
from torchslim.memory import accessed, held, size
from torchslim.rules import flops, macs, multiplies, row_of
from torchslim.trace import trace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """What one module costs: by itself, or with all modules in it.

    Attributes:
        name: qualified module name; "" is the model itself.
        kind: class name.
        params: parameters that the module owns; a tied one counts where it first appears.
        trainable: those of them that require a gradient.
        dead_params: those of them that no operation of the forward pass reads.
        macs: multiply-adds of convolutions and matrix products, over all calls.
        flops: floating-point operations: 2 for each multiply-add, and all other arithmetic.
        activations: elements that convolutions and matrix products give.
        memory_access: elements that all operations read (inputs and weights) and write; views are free.
        memory_bytes: the same in bytes.
        peak_memory: the most bytes of activations that are alive while the module runs, those that wait for later
            modules included.
        in_shape, out_shape: of the first and the last tensor that the operations read and gave; empty if none ran.
        calls: how often the module was called; 0 for one whose tensors are read from outside, or that is never reached.
    """

    name: str
    kind: str
    params: int
    trainable: int
    dead_params: int
    macs: int
    flops: int
    activations: int
    memory_access: int
    memory_bytes: int
    peak_memory: int
    in_shape: Shape
    out_shape: Shape
    calls: int

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: floating-point operations for each byte that is read or written; 0 if none is."""
        return self.flops / self.memory_bytes if self.memory_bytes else 0.0


@dataclass(frozen=True)
class Profile:
    """The costs of one run of a network.

    Attributes:
        params: number of parameters, tied ones once.
        trainable: those that require a gradient.
        dead_params: those that no operation of the forward pass reads.
        macs: multiply-adds of convolutions and matrix products.
        flops: floating-point operations: 2 for each multiply-add, and those of norms, activations, pooling, arithmetic.
        activations: elements of the outputs of convolutions and matrix products.
        memory_access: elements that operations read (inputs and weights) and write; views are free.
        memory_bytes: the same in bytes.
        peak_memory: bytes of activations that are alive at once, at most; each is freed after its last use.
        weight_bytes: of parameters and buffers.
        layers: what each module costs by itself, in the order of the run: those that own parameters or run operations.
        modules: what each module costs with all that is in it, parents first; the first is the model itself.
        unknown: names of operations for which there is no rule; their arithmetic is not counted.
    """

    params: int
    trainable: int
    dead_params: int
    macs: int
    flops: int
    activations: int
    memory_access: int
    memory_bytes: int
    peak_memory: int
    weight_bytes: int
    layers: tuple[Layer, ...]
    modules: tuple[Layer, ...]
    unknown: tuple[str, ...]

    @property
    def frozen(self) -> int:
        """Parameters that require no gradient."""
        return self.params - self.trainable

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: floating-point operations for each byte that is read or written."""
        return self.modules[0].intensity

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data."""
        data = {**asdict(self), "frozen": self.frozen, "intensity": self.intensity}
        for rows, layers in ((data["layers"], self.layers), (data["modules"], self.modules)):
            for row, layer in zip(rows, layers, strict=True):
                row["intensity"] = layer.intensity
        return data

    def __str__(self) -> str:
        shown = [layer for layer in self.layers if layer.params or layer.macs]
        rows = [("layer", "kind", "params", "MACs", "output")]
        rows += [(layer.name or "(model)", layer.kind, f"{layer.params:,}", f"{layer.macs:,}",
                  "x".join(map(str, layer.out_shape)) or "never run") for layer in shown]
        rows.append(("total", "", f"{self.params:,}", f"{self.macs:,}", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
                 f"{row[4]:<{widths[4]}}".rstrip() for row in rows]
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """What the table of layers does not say, a line each."""
        lines = [f"{self.flops:,} FLOPs, {self.activations:,} activations, memory: {self.memory_access:,} elements "
                 f"accessed, {self.peak_memory:,} bytes at the peak"]
        if self.frozen:
            lines.append(f"{self.frozen:,} parameters require no gradient")
        if self.dead_params:
            lines.append(f"{self.dead_params:,} parameters are never used by the forward pass")
        if self.unknown:
            lines.append(f"not counted, no rule for: {', '.join(self.unknown)}")
        return lines


def profile(model: nn.Module, inputs: Inputs) -> Profile:
    """What a network costs on the given inputs.

    The model runs once, in eval mode, on shapes alone where its control flow does not read data; it is left as it was.

    Args:
        model: any module.
        inputs: a tensor, a tuple of arguments, a list (passed as the one argument, as detectors want it) or a dict of
            keywords.

    Raises:
        TraceError: the model fails on these inputs.
        RequestError: inputs of another kind.
    """
    model = unwrap(model)
    graph = trace(model, inputs, watch=False)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = _layers(graph, learning)
    modules = _subtrees(graph, layers)
    whole = modules[0]
    return Profile(
        params=whole.params, trainable=whole.trainable, dead_params=whole.dead_params, macs=whole.macs,
        flops=whole.flops, activations=whole.activations, memory_access=whole.memory_access,
        memory_bytes=whole.memory_bytes, peak_memory=max(held(graph), default=0),
        weight_bytes=sum(size(value) for value in graph.state.values()),
        layers=tuple(sorted((layer for layer in layers.values() if layer.params or layer.out_shape),
                            key=_order(graph))),
        modules=modules, unknown=tuple(sorted({op.name for op in graph.ops if row_of(op) is None})))


def _layers(graph: Graph, learning: Collection[str]) -> dict[str, Layer]:
    """Every module by itself."""
    owned: dict[str, list[str]] = {}
    for name, value in graph.state.items():
        if value.source == "parameter":
            owner = name.rpartition(".")[0]
            while owner not in graph.modules:  # a ParameterList's entry
                owner = owner.rpartition(".")[0]
            owned.setdefault(owner, []).append(name)
    ran: dict[str, list[Op]] = {}
    for op in graph.ops:
        ran.setdefault(op.module, []).append(op)
    alive, read = held(graph), graph.read()
    return {name: _layer(graph, name, owned.get(name, []), ran.get(name, []), alive, read, learning)
            for name in reversed(list(graph.modules))}  # parents first


def _layer(graph: Graph, name: str, owned: Sequence[str], ops: Sequence[Op], alive: Sequence[int],
           read: Collection[str], learning: Collection[str]) -> Layer:
    sizes = {parameter: graph.state[parameter].numel for parameter in owned}
    touched = [value for op in ops for value in accessed(op)]
    return Layer(
        name, graph.modules[name], params=sum(sizes.values()),
        trainable=sum(count for parameter, count in sizes.items() if parameter in learning),
        dead_params=sum(count for parameter, count in sizes.items() if parameter not in read),
        macs=sum(map(macs, ops)), flops=sum(map(flops, ops)),
        activations=sum(op.output.numel for op in ops if multiplies(op)),
        memory_access=sum(value.numel for value in touched), memory_bytes=sum(map(size, touched)),
        peak_memory=max((alive[op.index] for op in ops), default=0),
        in_shape=next((value.shape for op in ops for value in op.inputs if not value.static), ()),
        out_shape=next((value.shape for op in reversed(ops) for value in op.outputs if value is not None), ()),
        calls=graph.calls.get(name, 0))


def _subtrees(graph: Graph, layers: Mapping[str, Layer]) -> tuple[Layer, ...]:
    """Every module with all that is in it."""
    order = _order(graph)
    inside: dict[str, list[Layer]] = {name: [] for name in layers}
    for layer in layers.values():
        parent = layer.name
        while parent:
            inside[parent].append(layer)
            parent = parent.rpartition(".")[0]
            while parent not in inside:  # modules of a container that is itself none
                parent = parent.rpartition(".")[0]
        inside[""].append(layer)
    return tuple(_together(layers[name], sorted(parts, key=order)) for name, parts in inside.items())


def _together(own: Layer, parts: Sequence[Layer]) -> Layer:
    """The sum over a module's parts, itself among them, in the order in which they ran."""
    sums = {key: sum(getattr(part, key) for part in parts) for key in
            ("params", "trainable", "dead_params", "macs", "flops", "activations", "memory_access", "memory_bytes")}
    return replace(own, **sums, peak_memory=max(part.peak_memory for part in parts),
                   in_shape=next((part.in_shape for part in parts if part.in_shape), ()),
                   out_shape=next((part.out_shape for part in reversed(parts) if part.out_shape), ()))


def _order(graph: Graph) -> Any:
    """Sorts modules by their first operation; those that ran none come last."""
    first: dict[str, int] = {}
    for op in graph.ops:
        first.setdefault(op.module, op.index)
    return lambda layer: first.get(layer.name, len(graph.ops))
