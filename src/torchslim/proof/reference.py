"""What a cut is held against where zeros in the weights do not silence what is removed.

A layer norm over fewer channels has another mean, so a cut there changes values, and no silenced original equals it. It
is still right or wrong: run the original, and let each operation that mixes channels work on those that stay alone. The
slim network must agree with that to rounding.

A weight that is computed (`softplus(w)`, a standardised one) need not be zero where its parameter is: it is silenced
where a convolution or a product reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchslim.coupling.coupling import Coupling, couple
from torchslim.coupling.tape import Index, Tape
from torchslim.errors import ProofError
from torchslim.rules import keeps_values, multiplies
from torchslim.rules.options import CouplingOptions
from torchslim.surgery.plans import Plan
from torchslim.tracing.graph import Op, Value
from torchslim.tracing.trace import operation_name, trace
from torchslim.utils.inputs import Inputs


def same_channels(model: nn.Module, inputs: Inputs, plan: Plan) -> SameChannels:
    """A mode under which a run of `model` mixes and reads only the channels that stay.

    Args:
        model: the silenced original; traced here for real, so that the same operations come in the same order.
        inputs: those of the run to come.
        plan: what stays.
    """
    coupling = couple([trace(model, inputs, meta=False)], CouplingOptions(allow_approximate=True))
    stays = np.ones(coupling.classes, dtype=bool)
    for touch in coupling.labeled_dims:
        index = plan.kept.get(touch.name, {}).get(touch.dim)
        if index is not None:
            gone = np.ones(len(touch.labels), dtype=bool)
            gone[list(index)] = False
            stays[touch.labels[gone]] = False
    return SameChannels(coupling, stays)


def changed_before_read(model: nn.Module, inputs: Inputs, names: Collection[str]) -> bool:
    """Whether one of these parameters is worked on before a convolution or a product reads it."""
    graph = trace(model, inputs)
    as_it_is = {graph.state[name].id for name in names}
    for op in graph.ops:
        if as_it_is.isdisjoint(value.id for value in op.inputs):
            continue
        if keeps_values(op):
            as_it_is.update(value.id for value in op.outputs if value is not None)
        elif not multiplies(op):
            return True
    return False


_INCIDENTAL = frozenset({"aten.detach", "aten.alias"})


class SameChannels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs the operations that mix channels on the channels that stay, and puts zeros for the others."""

    def __init__(self, coupling: Coupling, stays: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape: Tape = coupling.tapes[0]
        self.labeled_dims = coupling.by_dimension
        self.stays = stays
        self.mixing = {m.op for m in coupling.mixed if not stays[m.labels].all()}
        self.reading = {op.index for op in self.tape.graph.ops
                        if multiplies(op) and any(map(self._computed, op.inputs))}
        # Views that torch makes for its own ends come and go with the modes at work.
        self.ops = [op for op in self.tape.graph.ops if op.name not in _INCIDENTAL]
        self.last = max(self.mixing | self.reading, default=-1)
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation_name(func) in _INCIDENTAL:
            return func(*args, **kwargs)
        op = self.ops[self.count] if self.count < len(self.ops) else None
        if op is None or op.index > self.last:  # what is left (a detector's choice of boxes) may go by the values
            return func(*args, **kwargs)
        if op.name != operation_name(func):
            result = func(*args, **kwargs)
            if _gives_tensors(result):
                raise ProofError(f"verify: the original ran {operation_name(func)} where it ran {op.name} just before; "
                                 "a network whose operations change from run to run can't be compared")
            return result
        self.count += 1
        if op.index in self.reading:
            args = [self._silenced(given, noted) for given, noted in zip(args, op.args, strict=True)]
        if op.index not in self.mixing:
            return func(*args, **kwargs)
        return self._on_what_stays(func, op, args, kwargs)

    def _computed(self, value: Value) -> bool:
        """A weight that is computed, and has channels that go."""
        tracks = self.tape.tracks.get(value.id, ())
        return value.static and not value.name and not all(self.stays[track].all() for track in tracks)

    def _silenced(self, given: Any, noted: Any) -> Any:
        if isinstance(noted, Value) and self._computed(noted):
            for track in self.tape.tracks[noted.id]:
                given = given.masked_fill(torch.from_numpy(~self.stays[track]).to(given.device), 0)
        return given

    def _on_what_stays(self, func: Any, op: Op, args: Any, kwargs: Any) -> Any:
        narrow = [self._narrow(given, noted) for given, noted in zip(args, op.args, strict=True)]
        result = func(*_resized_arguments(op, narrow), **kwargs)
        if isinstance(result, Tensor):
            return self._widened(result, op.output)
        return tuple(self._widened(part, value) if value is not None else part
                     for part, value in zip(result, op.outputs, strict=True))

    def _kept(self, value: Value) -> dict[int, Index]:
        """For each labelled dimension of a value, the indices that stay."""
        if value.name:
            return {dim: np.flatnonzero(self.stays[touch.labels]) for (name, dim), touch in self.labeled_dims.items()
                    if name == value.name}
        found: dict[int, Index] = {}
        for track in self.tape.tracks.get(value.id, ()):
            for dim in range(track.ndim):
                if track.shape[dim] > 1:
                    rows = np.moveaxis(self.stays[track], dim, -1).reshape(-1, track.shape[dim])
                    if not (rows == rows[0]).all():
                        raise ProofError("verify: an operation mixes rows that keep different channels; this "
                                         "approximate cut can't be compared")
                    found[dim] = np.flatnonzero(rows[0])
        return found

    def _narrow(self, given: Any, noted: Any) -> Any:
        if not isinstance(noted, Value):
            return given
        for dim, index in self._kept(noted).items():
            given = given.index_select(dim, torch.from_numpy(index).to(given.device))
        return given

    def _widened(self, result: Tensor, value: Value) -> Tensor:
        for dim, index in self._kept(value).items():
            shape = list(result.shape)
            shape[dim] = value.shape[dim]
            result = result.new_zeros(shape).index_copy(dim, torch.from_numpy(index).to(result.device), result)
        return result


def _resized_arguments(op: Op, args: Sequence[Any]) -> list[Any]:
    """The arguments with the sizes that some of them repeat brought up to date."""
    args = list(args)
    if op.name == "aten.native_layer_norm":
        args[1] = list(args[0].shape[-len(args[1]):])
    elif op.name == "aten.native_group_norm":
        args[4] = args[0].shape[1]
    return args


def _gives_tensors(result: Any) -> bool:
    parts = result if isinstance(result, list | tuple) else [result]
    return any(isinstance(part, Tensor) for part in parts)
