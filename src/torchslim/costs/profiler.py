"""What a network costs: Graph -> Profile.

Conventions, stated once: a MAC is one fused multiply-add of a convolution or a matrix product. FLOPs are 2 for each MAC
(with a bias, exactly: one product and one sum), and those of norms, activations, pooling and arithmetic
(`torchslim.rules.flops`). Costs are those of the inputs as given, batch and all.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from torchslim.costs.memory import accessed, is_view, live_bytes, size
from torchslim.rules import flops, macs, multiplies, row_of
from torchslim.tracing.graph import Graph, Op
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs, unwrap
from torchslim.utils.modules import tensors_of

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
        in_shape, out_shape: of the first and the last tensor that the operations read and gave; empty if none add_op.
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
        """Lines below the table of layers: totals, and what was not counted."""
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

        >>> import torch, torchslim as ts
        >>> profile = ts.profile(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))
        >>> profile.params, profile.macs
        (224, 7776)

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
    return profiled(model, trace(model, inputs, detect_width_reads=False))


def profiled(model: nn.Module, graph: Graph) -> Profile:
    """The profile of a model that was already traced."""
    alive_at = live_bytes(graph)
    own_counts = _counts_by_module(
        graph, alive_at, {name for name, tensor in tensors_of(model).items() if tensor.requires_grad})
    layers = [_layer(graph, name, counts) for name, counts in sorted(own_counts.items(), key=lambda item: item[1].first)
              if counts.params or counts.out_shape]
    modules = [_layer(graph, name, counts) for name, counts in _with_submodules(own_counts).items()]
    total = modules[0]
    return Profile(
        params=total.params, trainable=total.trainable, dead_params=total.dead_params, macs=total.macs,
        flops=total.flops, activations=total.activations, memory_access=total.memory_access,
        memory_bytes=total.memory_bytes, peak_memory=max(alive_at, default=sum(map(size, graph.inputs))),
        weight_bytes=sum(size(value) for value in graph.state.values()), layers=tuple(layers), modules=tuple(modules),
        unknown=tuple(sorted({op.name for op in graph.ops if row_of(op) is None and not is_view(op)})))


@dataclass(slots=True)
class _LayerCounts:
    """The counts of one module, while its operations are added; `first` and `last` are indices of operations."""

    params: int = 0
    trainable: int = 0
    dead_params: int = 0
    macs: int = 0
    flops: int = 0
    activations: int = 0
    memory_access: int = 0
    memory_bytes: int = 0
    peak_memory: int = 0
    first: int = sys.maxsize
    last: int = -1
    in_shape: Shape = ()
    out_shape: Shape = ()

    def add_op(self, op: Op, alive: int) -> None:
        """Add an operation that runs while `alive` bytes of activations are alive."""
        self.macs += macs(op)
        self.flops += flops(op)
        self.activations += op.output.numel if multiplies(op) else 0
        for value in accessed(op):
            number = value.numel
            self.memory_access += number
            self.memory_bytes += number * value.dtype.itemsize
        self.peak_memory = max(self.peak_memory, alive)
        self.first, self.last = min(self.first, op.index), op.index
        self.in_shape = self.in_shape or next((value.shape for value in op.inputs if not value.static), ())
        self.out_shape = next((value.shape for value in op.outputs if value is not None), ())

    def add(self, part: _LayerCounts) -> None:
        """Add the counts of a submodule."""
        for key in ("params", "trainable", "dead_params", "macs", "flops", "activations", "memory_access",
                    "memory_bytes"):
            setattr(self, key, getattr(self, key) + getattr(part, key))
        self.peak_memory = max(self.peak_memory, part.peak_memory)
        if part.first < self.first:
            self.first, self.in_shape = part.first, part.in_shape
        if part.last > self.last:
            self.last, self.out_shape = part.last, part.out_shape


def _counts_by_module(graph: Graph, alive_at: Sequence[int], trainable: Collection[str]) -> dict[str, _LayerCounts]:
    """Every module by itself, parents first."""
    counts = {name: _LayerCounts() for name in reversed(list(graph.modules))}
    read = graph.tensors_read()
    for name, value in graph.state.items():
        if value.source == "parameter":
            owner = counts[_owning_module(name, counts)]
            owner.params += value.numel
            owner.trainable += value.numel if name in trainable else 0
            owner.dead_params += value.numel if name not in read else 0
    for op in graph.ops:
        counts[op.module].add_op(op, alive_at[op.index])
    return counts


def _with_submodules(own_counts: Mapping[str, _LayerCounts]) -> dict[str, _LayerCounts]:
    """Every module with its submodules, parents first."""
    totals = {name: _LayerCounts() for name in own_counts}
    for name in reversed(totals):  # submodules come first
        totals[name].add(own_counts[name])
        if name:
            totals[_owning_module(name, totals)].add(totals[name])
    return totals


def _owning_module(name: str, modules: Collection[str]) -> str:
    """The module that a parameter or module belongs to; containers such as a ParameterList do not count."""
    owner = name.rpartition(".")[0]
    while owner not in modules:
        owner = owner.rpartition(".")[0]
    return owner


def _layer(graph: Graph, name: str, counts: _LayerCounts) -> Layer:
    return Layer(name, graph.modules[name], counts.params, counts.trainable, counts.dead_params, counts.macs,
                 counts.flops, counts.activations, counts.memory_access, counts.memory_bytes, counts.peak_memory,
                 counts.in_shape, counts.out_shape, len(graph.module_outputs.get(name, ())))
