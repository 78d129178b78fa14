"""Which channels hold one value whatever the inputs are.

One run of the network, in float64, beside its labelled graph. That a channel does not depend on the inputs is decided
by reasoning: a filter of zeros, a scale of zero, a sum of constants. What the constant is, the run shows.

A constant is the same at every position of the map. One that is not (a convolution that pads around constants other
than zero) depends on the size of the map, and counts as varying.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchslim.coupling.coupling import Coupling, couple
from torchslim.coupling.labeled_graph import Index
from torchslim.planning.dead.channels import Channels, Mask
from torchslim.planning.dead.readers import Reader, reader_of
from torchslim.proof.float64 import in_float64
from torchslim.proof.following import INCIDENTAL, FollowedRun
from torchslim.rules import is_arithmetic, preserves_values, row_name, works_by_channel
from torchslim.rules.tracks import Labels, along_dim
from torchslim.tracing.arguments import flat, written_tensors
from torchslim.tracing.graph import Op, Value
from torchslim.tracing.trace import trace
from torchslim.utils.attention import attention_of_any_width
from torchslim.utils.inputs import Inputs, arguments, tensors_in
from torchslim.utils.preserve import plain_context

UNIFORM = 1e-12
"""Largest difference between the elements of a constant channel, relative to them: sums may be taken in any order."""

_BATCH_NORM = "batch_norm"
_JOINS = frozenset({"aten.cat", "aten.stack"})
_POOLS = ("aten.max_pool", "aten.adaptive_", "aten._adaptive_", "aten.upsample_", "aten._upsample_")


@dataclass(frozen=True, eq=False)
class Operand:
    """An input of an operation: its value's number (-1 where it depends on no input of the network), its channels."""

    value: int
    channels: Channels


@dataclass(frozen=True, eq=False)
class Step:
    """An operation that depends on the network's inputs.

    Attributes:
        op: the operation.
        operands: its inputs.
        outputs: the numbers of its results.
        made: the classes of their channels.
        opaque: nothing is known of it but that it may use all that it is given.
        writes_into_others: it changes other tensors, too, of which it gave or was given a view.
        reader: what it is where weights read channels.
    """

    op: Op
    operands: tuple[Operand, ...]
    outputs: tuple[int, ...]
    made: Index
    opaque: bool
    writes_into_others: bool
    reader: Reader | None

    @cached_property
    def zeros(self) -> tuple[Index, ...]:
        """Of each operand of a product the classes at which it is zero, so that others don't matter there."""
        places = _factors(self.op)
        return tuple(operand.channels.classes[operand.channels.values == 0] if place in places else _NONE
                     for place, operand in enumerate(self.operands))


def _factors(op: Op) -> tuple[int, ...]:
    """The places among an operation's inputs of those that make its result zero, or a constant, where they are zero."""
    name = row_name(op)
    if _BATCH_NORM in name:
        return (1,) if op.args[1] is not None else ()
    return {"aten.mul": (0, 1), "aten.div": (0,)}.get(name, ())


_NONE = np.zeros(0, dtype=np.int64)


class ConstantsRun(FollowedRun):  # type: ignore[no-untyped-call]
    """A run in which constant channels are followed.

    Attributes:
        coupling: the network's, of this run.
        prunable: classes of channels that can be cut.
        steps: the operations that depend on the network's inputs, in order.
    """

    def __init__(self, coupling: Coupling, cut_by: Coupling) -> None:
        super().__init__(coupling.graphs[0])
        self.coupling = coupling
        self.prunable = _prunable(coupling, cut_by)
        self.steps: list[Step] = []
        self._tracks = coupling.labeled_graphs[0].tracks
        self._dims: dict[str, list[tuple[int, Index]]] = {}
        for (name, dim), labeled in coupling.by_dimension.items():
            if labeled.groups == 1:
                self._dims.setdefault(name, []).append((dim, labeled.labels))
        self._aliases = {out.id: op.inputs[0].id for op in coupling.graphs[0].ops if op.name in INCIDENTAL
                         for out in op.outputs if out is not None}
        self._known: dict[int, Channels] = {}
        self._unsteady: set[int] = set()  # recorded as independent of the inputs, and written to since
        self._views: dict[int, list[tuple[ref[Tensor], int]]] = {}

    def number(self, value: Value) -> int:
        """The number of a value, the same for its aliases."""
        number = value.id
        while number in self._aliases:
            number = self._aliases[number]
        return number

    def tracks(self, value: Value) -> Sequence[Labels]:
        """The classes of a value's elements."""
        if not value.name:
            return self._tracks.get(value.id, ())
        return [along_dim(labels, dim, len(value.shape)) for dim, labels in self._dims.get(value.name, ())]

    def run_operation(self, op: Op, func: Any, args: Any, kwargs: Any) -> Any:
        """See the base class."""
        tensors = list(tensors_in((args, kwargs)))
        written = list(written_tensors(func, args, kwargs))
        result = func(*args, **kwargs)
        results = flat(result)
        with _disable_current_modes():
            self._follow(op, tensors, results, written, torch.Tag.nondeterministic_seeded in func.tags)
        return result

    def _follow(self, op: Op, tensors: Sequence[Tensor], results: Sequence[Tensor | None], written: Sequence[Tensor],
                random: bool) -> None:
        if random or any(map(self.varies, op.inputs)):
            others = {number for tensor in written for number in self._others(tensor, op)}
            for number in others:
                self._unsteady.add(number)
                self._known.pop(number, None)
            self._add_step(op, tensors, results, bool(others), random)
            self._unsteady.update(self.number(out) for out in op.outputs if out is not None and out.static)
        for value, tensor in [*zip(op.inputs, tensors, strict=True), *zip(op.outputs, results, strict=True)]:
            if value is not None and tensor is not None and tensor.numel():
                views = self._views.setdefault(tensor.untyped_storage().data_ptr(), [])
                if all(other() is not tensor for other, _ in views):
                    views.append((ref(tensor), self.number(value)))

    def varies(self, value: Value) -> bool:
        """Whether a value may depend on the network's inputs."""
        return not value.static or self.number(value) in self._unsteady

    def _others(self, tensor: Tensor, op: Op) -> Iterator[int]:
        """Other values that share a tensor's memory and can still be read."""
        own = {self.number(out) for out in op.outputs if out is not None}
        for other, number in self._views.get(tensor.untyped_storage().data_ptr(), ()):
            if other() is not None and number not in own:
                yield number

    def _add_step(self, op: Op, tensors: Sequence[Tensor], results: Sequence[Tensor | None], shared: bool,
                  random: bool) -> None:
        reader = None if shared or random else reader_of(self, op, tensors)
        opaque = shared or random or (reader is None and not works_by_channel(op))
        places = () if opaque or reader is not None else _factors(op)
        operands = tuple(self._operand(value, tensor if place in places else None)
                         for place, (value, tensor) in enumerate(zip(op.inputs, tensors, strict=True)))
        step = Step(op, operands, tuple(self.number(out) for out in op.outputs if out is not None),
                    self._classes(op.outputs), opaque, shared, reader)
        self.steps.append(step)
        varies = np.ones(self.coupling.num_classes, dtype=bool)
        if reader is not None:
            reader.mark_varying(varies)
        elif not opaque:
            varies = self._varying_results(step)
        for out, tensor in zip(op.outputs, results, strict=True):
            if out is not None and tensor is not None:
                channels = self._uniform(out, tensor)
                self._known[self.number(out)] = Channels(
                    channels.classes, np.where(varies[channels.classes], np.nan, channels.values))

    def _operand(self, value: Value, tensor: Tensor | None) -> Operand:
        """An input; of one that depends on no input of the network, the values where the tensor is given."""
        if self.varies(value):
            return Operand(self.number(value), self.channels(value))
        return Operand(-1, self._unknown(value) if tensor is None else self._uniform(value, tensor))

    def channels(self, value: Value) -> Channels:
        """What is known of a value that depends on the network's inputs."""
        known = self._known.get(self.number(value))
        return self._unknown(value) if known is None else known

    def _unknown(self, value: Value) -> Channels:
        classes = self._classes([value])
        return Channels(classes, np.full(len(classes), np.nan))

    def _classes(self, values: Iterable[Value | None]) -> Index:
        tracks = [track.ravel() for value in values if value is not None for track in self.tracks(value)]
        return np.unique(np.concatenate([_NONE, *tracks]))

    def _varying_results(self, step: Step) -> Mask:
        """Of each class whether the results of an operation that works channel by channel vary in it."""
        joins = row_name(step.op) in _JOINS
        varies = np.zeros(self.coupling.num_classes, dtype=bool)
        known = np.zeros_like(varies)
        for operand in step.operands:
            here, values = operand.channels.classes, operand.channels.values
            known[here] = True
            if operand.value < 0:
                continue
            if not joins:
                elsewhere = np.ones_like(varies)
                elsewhere[here] = False
                varies |= elsewhere
            varies[here[np.isnan(values) if _keeps_constants(step.op) else values != 0]] = True
        if joins:
            varies |= ~known
        for zeros in step.zeros:
            varies[zeros] = False
        return varies

    def _uniform(self, value: Value, tensor: Tensor) -> Channels:
        """The channels of a tensor; the values of those whose elements are all equal."""
        lowest = np.full(self.coupling.num_classes, np.inf)
        highest = -lowest
        for track in self.tracks(value) if tensor.is_floating_point() and tensor.numel() else ():
            dims = [dim for dim, size in enumerate(track.shape) if size == 1]
            for extreme, reduce, update in ((lowest, torch.amin, np.minimum), (highest, torch.amax, np.maximum)):
                reduced = reduce(tensor.detach(), dims, keepdim=True) if dims else tensor.detach()
                with np.errstate(invalid="ignore"):
                    update.at(extreme, track.ravel(), reduced.reshape(-1).double().cpu().numpy())
        classes = self._classes([value])
        low, high = lowest[classes], highest[classes]
        with np.errstate(invalid="ignore"):
            equal = np.isfinite(low) & (high - low <= UNIFORM * np.maximum(np.abs(low), np.abs(high)))
        return Channels(classes, np.where(equal, low, np.nan))


def follow_constants(model: nn.Module, inputs: Inputs, coupling: Coupling) -> ConstantsRun:
    """The run of a network in which constant channels were followed.

    Args:
        model: a float64 copy in eval mode.
        inputs: what it is called with, in float64.
        coupling: of the network as it is cut, which says what can be.

    Raises:
        TraceError: the model fails on these inputs.
        ProofError: its operations change from run to run.
    """
    with in_float64():
        run = ConstantsRun(couple([trace(model, inputs, meta=False)]), coupling)
    args, kwargs = arguments(inputs)
    with (torch.random.fork_rng(devices=()), plain_context(), in_float64(), attention_of_any_width(model.modules()),
          run):
        model(*args, **kwargs)
    return run


def _prunable(coupling: Coupling, cut_by: Coupling) -> Mask:
    """The classes of a run that another coupling of the same network allows to cut."""
    prunable = np.zeros(coupling.num_classes, dtype=bool)
    for labeled in coupling.labeled_dims:
        prunable[labeled.labels] = True
    for group in cut_by.groups:
        for member in group.members if group.frozen else ():
            dim = coupling.by_dimension.get((member.name, member.dim))
            if dim is not None:
                prunable[dim.labels[member.indices.ravel()]] = False
    return prunable


def _keeps_constants(op: Op) -> bool:
    """Whether a channel of one value stays one, the same for maps of any size."""
    name = row_name(op)
    if name.startswith("aten.avg_pool"):
        return not np.any(op.argument(3, "padding", 0))
    return (preserves_values(op) or is_arithmetic(op) or _BATCH_NORM in name or name == "aten.mean"
            or name.startswith(_POOLS))
