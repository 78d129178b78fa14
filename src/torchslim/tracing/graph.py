"""One run of a model as a list of operations: frozen values, no torch modules, no tensors."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor that the run saw.

    Attributes:
        id: its number in the graph.
        shape: its sizes.
        dtype: its element type.
        source: where it comes from: "input", "parameter", "buffer", "attribute" (a plain tensor held by a module),
            "constant" (held by nobody that could be found) or "operation".
        name: the qualified name of a parameter, buffer or attribute; empty otherwise.
        static: True where the value depends on no input: parameters, buffers, constants, and what is computed of
            these alone.
        fixed: True where it is data that no input and no parameter changes: buffers, constants, and what is computed of
            these alone. Zeros and other tensors that are made of nothing are none: they may be written to.
        number: what a constant of one element holds.
    """

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str
    name: str = ""
    static: bool = False
    fixed: bool = False
    number: complex | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def unnamed(self) -> Value:
        """A value like this one that is nobody's parameter, and stands for no tensor of the run."""
        return replace(self, id=-1 - self.id, source="operation", name="")


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One ATen operation of the run, or one of the calls of `undispatched.py`.

    Attributes:
        index: its position in the graph.
        name: operation without overload, such as "aten.convolution".
        overload: the callable torch operation; None for what torch does not dispatch (see `undispatched.py`).
        args: positional arguments, each tensor replaced by its `Value`.
        kwargs: keyword arguments, likewise.
        inputs: the values among the arguments, in order.
        outputs: the tensors that it returned, in order (an entry is None where it returned none).
        module: qualified name of the innermost module that was running; "" is the model itself.
    """

    index: int
    name: str
    overload: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value | None, ...]
    module: str

    @property
    def output(self) -> Value:
        """Its first tensor result."""
        return next(value for value in self.outputs if value is not None)

    @property
    def where(self) -> str:
        """Module and operation, for messages."""
        return f"`{self.module or 'model'}` ({self.name})"

    @property
    def mutates(self) -> bool:
        """Whether it writes into one of its arguments, of which others may be views."""
        return self.overload is None or bool(self.overload._schema.is_mutable)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """What one run of a model did.

    Attributes:
        ops: the operations in the order they ran.
        inputs: the tensors given to the model.
        outputs: the tensors that it returned.
        state: every parameter, buffer and plain tensor attribute of the model, read or not, by canonical name.
        aliases: further names of a tied tensor -> its canonical name.
        modules: qualified module name -> class name.
        module_outputs: of each call of each module the tensors that it returned, by itself or in tuples and lists; a
            module that was never reached is missing.
        training: True for a run in train mode.
        device: "meta" where shapes alone were run, else "real".
        kernels: names of the tensors that hold a convolution layer's filters: their last dimensions are positions.
        has_unregistered_parameters: True where the run read a parameter that no module of the model holds.
        width_independent: True where the model's code reads no width: at other widths it runs the same operations.
        ignored_outputs: places of the outputs that do not matter to the caller.
        output_structure: the nest of containers that the outputs came in (see `utils/outputs.py`).
        observed: ids of the values that something else than an operation with a tensor as its result may use: numbers
            and shapes computed of them, or modules that hold them after the run.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    state: Mapping[str, Value]
    aliases: Mapping[str, str]
    modules: Mapping[str, str]
    module_outputs: Mapping[str, tuple[tuple[Value, ...], ...]]
    training: bool
    device: str
    kernels: frozenset[str]
    has_unregistered_parameters: bool
    width_independent: bool
    observed: frozenset[int] = frozenset()
    ignored_outputs: frozenset[int] = frozenset()
    output_structure: Hashable = None

    @property
    def calls(self) -> dict[str, int]:
        """How often each module was called; a module that was never reached is missing."""
        return {name: len(values) for name, values in self.module_outputs.items()}

    @property
    def wanted_outputs(self) -> tuple[Value, ...]:
        """The outputs that matter."""
        return tuple(value for place, value in enumerate(self.outputs) if place not in self.ignored_outputs)

    def unused_ops(self) -> set[int]:
        """Indices of the operations whose results nobody uses: attention weights that the caller does not ask for."""
        return unused_ops(self.ops, {value.id for value in self.wanted_outputs} | self.observed)

    def tensors_read(self) -> set[str]:
        """Names of the parameters, buffers and attributes that some operation read."""
        return {value.name for op in self.ops for value in op.inputs if value.name}


def unused_ops(ops: Sequence[Op], wanted: Collection[int]) -> set[int]:
    """Indices of the operations of a run that read values and do nothing for the wanted ones, given by their ids."""
    used = set(wanted)
    unused = set()
    for op in reversed(ops):
        if not op.outputs or any(value.id in used for value in op.outputs if value is not None) or op.mutates:
            used.update(value.id for value in op.inputs)
        elif op.inputs:
            unused.add(op.index)
    return unused


def is_within(op: Op, module: str) -> bool:
    """Whether an operation ran in a module or in one of its parts."""
    return not module or op.module == module or op.module.startswith(f"{module}.")
