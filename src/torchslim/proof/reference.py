"""The reference for cuts where zeros in the reading weights do not silence the removed channels.

A layer norm over fewer channels has another mean, so such a cut changes values and equals no silenced original. The
reference is then a run of the original in which each operation that mixes channels works on the kept ones only; the
slim network must agree with it to rounding.

A weight that is computed (`softplus(w)`, a standardised one) need not be zero where its parameter is: it is silenced
where a convolution or a matrix product reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchslim.coupling.coupling import Coupling, couple
from torchslim.coupling.labeled_graph import GROUP_NORM, Index, LabeledGraph
from torchslim.errors import ProofError
from torchslim.proof.following import FollowedRun
from torchslim.rules import multiplies, multiplies_activations, preserves_values
from torchslim.rules.options import CouplingOptions
from torchslim.surgery.plans import Plan
from torchslim.tracing.graph import Graph, Op, Value
from torchslim.tracing.trace import trace
from torchslim.utils.inputs import Inputs


@dataclass(frozen=True, eq=False)
class KeptChannels:
    """Which classes of channels of a run of the original a plan keeps."""

    coupling: Coupling
    kept: NDArray[np.bool_]

    @property
    def labeled(self) -> LabeledGraph:
        """The run, with the classes of each value's elements."""
        return self.coupling.labeled_graphs[0]

    def part_of_output(self, module: str, number: int, output: Tensor) -> Tensor:
        """What the slim network has of the n-th tensor that a module returned, over all its calls."""
        values = [value for call in self.labeled.graph.module_outputs.get(module, ()) for value in call]
        if number >= len(values) or tuple(output.shape) != values[number].shape:
            return output
        value = values[number]
        tracks = [track for track in self.labeled.tracks.get(value.id, ()) if not self.kept[track].all()]
        mask = np.ones((1,) * output.dim(), dtype=bool)
        for track in tracks:
            mask = mask & self.kept[track]
        kept = output.masked_select(torch.from_numpy(mask).to(output.device))
        shape = self.labeled.shape(value, self.kept.astype(np.float64))
        return kept.reshape(shape) if kept.numel() == prod(shape) else kept


def kept_channels(model: nn.Module, inputs: Inputs, plan: Plan, *, meta: bool | None = None) -> KeptChannels:
    """What a plan keeps of a run of a model.

    Args:
        model: the silenced original.
        inputs: those of the run.
        plan: the plan.
        meta: see `trace`.
    """
    graph = trace(model, inputs, meta=meta)
    # By width, whatever was cut: a head that went whole has lost all its widths.
    by_width = frozenset(range(1, len(graph.ops) + 1))
    coupling = couple([graph], CouplingOptions(allow_approximate=True, head_widths=by_width))
    kept = np.ones(coupling.num_classes, dtype=bool)
    for dim in coupling.labeled_dims:
        index = plan.kept.get(dim.name, {}).get(dim.dim)
        if index is not None:
            gone = np.ones(len(dim.labels), dtype=bool)
            gone[list(index)] = False
            kept[dim.labels[gone]] = False
    return KeptChannels(coupling, kept)


def needs_reference(model: nn.Module, inputs: Inputs, names: Collection[str]) -> bool:
    """Whether zeros in the readers of removed channels don't silence them.

    Two activations are multiplied with each other, and read without a weight; or one of these parameters, which read
    channels, is transformed before a convolution or a matrix product reads it.
    """
    graph = trace(model, inputs)
    return any(map(multiplies_activations, graph.ops)) or _is_transformed_before_read(graph, names)


def _is_transformed_before_read(graph: Graph, names: Collection[str]) -> bool:
    unchanged = {graph.state[name].id for name in names}
    for op in graph.ops:
        if unchanged.isdisjoint(value.id for value in op.inputs):
            continue
        if preserves_values(op) and len(op.inputs) == 1:  # joined weights: which of them are read, labels say
            unchanged.update(value.id for value in op.outputs if value is not None)
        elif not multiplies(op):
            return True
    return False


def kept_channels_mode(model: nn.Module, inputs: Inputs, plan: Plan) -> KeptChannelsMode:
    """A mode under which a run of `model` on these inputs mixes and reads only the kept channels."""
    # With real tensors, so that operations come in the same order as in that run.
    return KeptChannelsMode(kept_channels(model, inputs, plan, meta=False))


class KeptChannelsMode(FollowedRun):  # type: ignore[no-untyped-call]
    """Runs operations that mix channels on the kept channels only, and fills the others with zeros."""

    def __init__(self, channels: KeptChannels) -> None:
        coupling, kept = channels.coupling, channels.kept
        self.labeled = channels.labeled
        self.labeled_dims = coupling.by_dimension
        self.kept = kept
        self.mixing = {m.op for m in coupling.mixed if not kept[m.labels].all()}
        self.reading = {op.index for op in self.labeled.graph.ops
                        if multiplies(op) and any(self._is_silenced(op, value) for value in op.inputs)}
        super().__init__(self.labeled.graph, last=max(self.mixing | self.reading, default=-1))

    def run_operation(self, op: Op, func: Any, args: Any, kwargs: Any) -> Any:
        """See the base class."""
        if op.index in self.reading:
            args = [self._silenced(op, tensor, recorded) for tensor, recorded in zip(args, op.args, strict=True)]
        if op.index not in self.mixing:
            return func(*args, **kwargs)
        return self._on_kept_channels(func, op, args, kwargs)

    def _is_silenced(self, op: Op, value: Value) -> bool:
        """True for a computed weight, or a factor of a product of activations, that has removed channels."""
        tracks = self.labeled.tracks.get(value.id, ())
        return not value.name and (value.static or multiplies_activations(op)) and not all(
            self.kept[track].all() for track in tracks)

    def _silenced(self, op: Op, tensor: Any, recorded: Any) -> Any:
        if isinstance(tensor, list | tuple) and isinstance(recorded, list | tuple):  # such as an LSTM's weights
            return [self._silenced(op, part, value) for part, value in zip(tensor, recorded, strict=True)]
        if isinstance(recorded, Value) and self._is_silenced(op, recorded):
            for track in self.labeled.tracks.get(recorded.id, ()):
                tensor = tensor.masked_fill(torch.from_numpy(~self.kept[track]).to(tensor.device), 0)
        return tensor

    def _on_kept_channels(self, func: Any, op: Op, args: Any, kwargs: Any) -> Any:
        narrow = [self._narrow(tensor, recorded) for tensor, recorded in zip(args, op.args, strict=True)]
        result = func(*self._resized_arguments(op, narrow), **kwargs)
        if isinstance(result, Tensor):
            return self._widened(result, op.output)
        return tuple(self._widened(part, value) if value is not None else part
                     for part, value in zip(result, op.outputs, strict=True))

    def _resized_arguments(self, op: Op, args: Sequence[Any]) -> list[Any]:
        """The arguments, with sizes that repeat the shape of a tensor updated."""
        args = list(args)
        if op.name == "aten.native_layer_norm":
            args[1] = list(args[0].shape[-len(args[1]):])
        elif op.name == GROUP_NORM:
            args[4], args[6] = args[0].shape[1], self.labeled.norm_groups(op, self.kept.astype(np.float64))
        return args

    def _kept_indices(self, value: Value) -> dict[int, Index]:
        """For each labelled dimension of a value the indices that are kept."""
        if value.name:
            return {dim: np.flatnonzero(self.kept[touch.labels]) for (name, dim), touch in self.labeled_dims.items()
                    if name == value.name}
        indices: dict[int, Index] = {}
        for track in self.labeled.tracks.get(value.id, ()):
            for dim in range(track.ndim):
                if track.shape[dim] > 1:
                    rows = np.moveaxis(self.kept[track], dim, -1).reshape(-1, track.shape[dim])
                    if not (rows == rows[0]).all():
                        raise ProofError("verify: an operation mixes rows that keep different channels; this "
                                         "approximate cut can't be compared")
                    indices[dim] = np.flatnonzero(rows[0])
        return indices

    def _narrow(self, tensor: Any, recorded: Any) -> Any:
        if not isinstance(recorded, Value):
            return tensor
        for dim, index in self._kept_indices(recorded).items():
            tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
        return tensor

    def _widened(self, result: Tensor, value: Value) -> Tensor:
        for dim, index in self._kept_indices(value).items():
            shape = list(result.shape)
            shape[dim] = value.shape[dim]
            result = result.new_zeros(shape).index_copy(dim, torch.from_numpy(index).to(result.device), result)
        return result


