"""What a network costs: Graph -> Profile.

Conventions, stated once: a MAC is one fused multiply-add of a convolution or a matrix product; FLOPs = 2 x MACs.
Costs are those of the inputs as given, batch and all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from torchslim.calling import Inputs, unwrap
from torchslim.graph import Graph, Op
from torchslim.rules import macs, row_of
from torchslim.trace import trace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One module that owns parameters or multiplies.

    Attributes:
        name: qualified module name; "" is the model itself.
        kind: class name.
        params: parameters that the module owns directly; a tied one counts where it first appears.
        macs: multiply-adds of the operations that ran directly in the module, over all its calls.
        in_shape, out_shape: of the first and the last tensor that these operations read and gave; empty if none ran.
        calls: how often the module was called; 0 for one whose tensors are read from outside, or that is never reached.
    """

    name: str
    kind: str
    params: int
    macs: int
    in_shape: Shape
    out_shape: Shape
    calls: int


@dataclass(frozen=True)
class Profile:
    """The costs of one run of a network.

    Attributes:
        params: number of parameters, tied ones once.
        trainable: those that require a gradient.
        dead_params: those that no operation of the forward pass reads.
        macs: multiply-adds of convolutions and matrix products.
        activations: elements of the outputs of these.
        memory_access: elements that these read (inputs and weights) and write.
        layers: the cost of each module.
        unknown: names of operations for which there is no rule; their cost is not counted.
    """

    params: int
    trainable: int
    dead_params: int
    macs: int
    activations: int
    memory_access: int
    layers: tuple[Layer, ...]
    unknown: tuple[str, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 x MACs."""
        return 2 * self.macs

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data."""
        return {**asdict(self), "flops": self.flops}

    def __str__(self) -> str:
        rows = [("layer", "kind", "params", "MACs", "output")]
        rows += [(layer.name or "(model)", layer.kind, f"{layer.params:,}", f"{layer.macs:,}",
                  "x".join(map(str, layer.out_shape)) or "never run") for layer in self.layers]
        rows.append(("total", "", f"{self.params:,}", f"{self.macs:,}", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
                 f"{row[4]:<{widths[4]}}".rstrip() for row in rows]
        if self.dead_params:
            lines.append(f"{self.dead_params:,} parameters are never used by the forward pass")
        if self.unknown:
            lines.append(f"not counted, no rule for: {', '.join(self.unknown)}")
        return "\n".join(lines)


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
    graph = trace(model, inputs)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    sizes = {name: value.numel for name, value in graph.state.items() if value.source == "parameter"}
    read = graph.read()
    multiplying = [op for op in graph.ops if macs(op)]
    return Profile(
        params=sum(sizes.values()),
        trainable=sum(size for name, size in sizes.items() if name in trainable),
        dead_params=sum(size for name, size in sizes.items() if name not in read),
        macs=sum(macs(op) for op in multiplying),
        activations=sum(op.output.numel for op in multiplying),
        memory_access=sum(op.output.numel + sum(value.numel for value in op.inputs) for op in multiplying),
        layers=_layers(graph, sizes),
        unknown=tuple(sorted({op.name for op in graph.ops if row_of(op) is None})),
    )


def _layers(graph: Graph, sizes: Mapping[str, int]) -> tuple[Layer, ...]:
    owned: dict[str, int] = {}
    for name, size in sizes.items():
        owner = name.rpartition(".")[0]
        while owner not in graph.modules:  # a ParameterList's entry
            owner = owner.rpartition(".")[0]
        owned[owner] = owned.get(owner, 0) + size
    ran: dict[str, list[Op]] = {}
    for op in graph.ops:
        ran.setdefault(op.module, []).append(op)
    layers = []
    for name, kind in graph.modules.items():
        ops = ran.get(name, [])
        cost = sum(macs(op) for op in ops)
        if cost or owned.get(name):
            layers.append(Layer(name, kind, owned.get(name, 0), cost, _in_shape(ops), _out_shape(ops),
                                graph.calls.get(name, 0)))
    return tuple(sorted(layers, key=lambda layer: ran[layer.name][0].index if layer.name in ran else len(graph.ops)))


def _in_shape(ops: list[Op]) -> Shape:
    return next((value.shape for op in ops for value in op.inputs if not value.static), ())


def _out_shape(ops: list[Op]) -> Shape:
    return next((value.shape for op in reversed(ops) for value in op.outputs if value is not None), ())

