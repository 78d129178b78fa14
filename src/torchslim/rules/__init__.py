"""One row per ATen operation: its cost, and how it moves channel labels.

An operation without a row freezes the labels that it reads and is named in the plan; `register_rule` adds a row.
`labels.py` has the values that rows work on, `row.py` the row itself; rows are in `linear.py`, `recurrent.py`,
`products.py`, `elementwise.py`, `shape.py`, `concatenation.py`, `indexing.py`, `along_dims.py`, `spatial.py` and
`mixing.py`; `broadcasting.py` says what meets element by element; `flops.py` counts arithmetic beside multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torchslim.errors import RequestError
from torchslim.rules import along_dims, concatenation, elementwise, linear, mixing, recurrent, shape, spatial
from torchslim.rules import flops as counting
from torchslim.rules import indexing as positions
from torchslim.rules.broadcasting import broadcast_union
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row, is_pointwise, out_arguments, plain_name
from torchslim.rules.tracks import Labels
from torchslim.rules.within_channel import moves_within_channels
from torchslim.tracing.graph import Op, Value

ROWS: dict[str, Row] = {**along_dims.ROWS, **concatenation.ROWS, **elementwise.ROWS, **linear.ROWS, **mixing.ROWS,
                        **positions.ROWS, **recurrent.ROWS, **shape.ROWS, **spatial.ROWS}


def row_of(op: Op) -> Row | None:
    """The row of an operation; one that torch tags as pointwise needs none of its own. None if unknown."""
    row = ROWS.get(row_name(op))
    return elementwise.POINTWISE if row is None and is_pointwise(op.name) else row


def row_name(op: Op) -> str:
    """The name of an operation's row, if it has one: in place or not, a view or a copy, labels move alike."""
    return op.name if op.name in ROWS else plain_name(op.name)


def preserves_values(op: Op) -> bool:
    """True for an operation that moves or copies elements, and changes none."""
    row = row_of(op)
    name = row_name(op)
    return row is not None and (row.labels is elementwise.passing
                                or any(name in rows for rows in (shape.ROWS, concatenation.ROWS, positions.ROWS)))


def differentiates_channels(op: Op, tracks: Sequence[Labels]) -> bool:
    """True for an operation after which the channels that it worked on differ from others of the same weights."""
    return not preserves_values(op) or moves_within_channels(op, tracks)


def is_arithmetic(op: Op) -> bool:
    """True for an element-wise operation, whose numbers are values and no sizes."""
    row = row_of(op)
    return row is not None and row.labels is elementwise.pointwise


def works_by_channel(op: Op) -> bool:
    """True for an operation whose result in a channel depends on that channel of its inputs alone."""
    row = row_of(op)
    return row is not None and not _written_arguments(op) and (
        preserves_values(op) or row_name(op) in spatial.ROWS
        or row.labels in (elementwise.pointwise, elementwise.aliased, mixing.batch_norm, mixing.reduction))


def multiplies(op: Op) -> bool:
    """True for an operation that has multiply-adds: a convolution or a matrix product."""
    row = row_of(op)
    return row is not None and row.macs is not None


def multiplies_activations(op: Op) -> bool:
    """True for a matrix product of two values that both depend on the input."""
    return row_of(op) is linear.MATMUL and not any(value.static for value in op.args[-2:])


def move_labels(space: LabelSpace, op: Op) -> None:
    """Apply an operation's row to the labels; freeze what an unknown operation reads."""
    space.op_number += 1
    row = row_of(op)
    written = _written_arguments(op)
    if row is not None and written:
        _move_into(space, op, row, written)
        return
    if row is not None:
        row.labels(space, op)
        return
    space.declared.unknown_ops.add(op.name)
    for value in op.inputs:
        space.freeze_value(value, f"no rule for the operation in {op.where}")


def _written_arguments(op: Op) -> dict[str, Value]:
    """The arguments of an `out=` form that the operation's results are written to."""
    names = out_arguments(op.overload) if op.kwargs else ()
    return {name: op.kwargs[name] for name in names if isinstance(op.kwargs.get(name), Value)}


def _move_into(space: LabelSpace, op: Op, row: Row, written: Mapping[str, Value]) -> None:
    """An `out=` form: the results' labels meet those of the tensors that they are written to."""
    kwargs = {name: value for name, value in op.kwargs.items() if name not in written}
    targets = {value.id for value in written.values()}  # one that the operation has resized is a new value
    results = tuple(value.unnamed() if value is not None and value.id in targets else value
                    for value in op.outputs)
    # Keyword arguments come last, and the tensors among them are the ones written to.
    row.labels(space, replace(op, kwargs=kwargs, inputs=op.inputs[:-len(written)], outputs=results))
    for target, result in zip(op.outputs, results, strict=True):
        if target is not None and result is not None and result is not target:
            space.set(target, broadcast_union(space, [target, result], op))


def macs(op: Op) -> int:
    """Multiply-adds of an operation: convolutions and matrix products; 0 for everything else."""
    row = row_of(op)
    return row.macs(op) if row is not None and row.macs is not None else 0


def flops(op: Op) -> int:
    """Floating-point operations of an operation: 2 for each multiply-add; for others see `counting`."""
    row = row_of(op)
    count = counting.COUNTS.get(row_name(op))
    if count is None and row is not None and row.labels is elementwise.pointwise:
        count = counting.POINTWISE
    if count is None or not any(value.dtype.is_floating_point or value.dtype.is_complex for value in op.inputs):
        return 2 * macs(op)
    return 2 * macs(op) + count(op)


def register_rule(name: str, *, cost: Callable[[Op], int] | None = None,
                  labels: Callable[[LabelSpace, Op], None] | None = None) -> None:
    """Teach an operation of one's own.

    Args:
        name: the operation as `namespace::name`, such as "torchvision::deform_conv2d".
        cost: from an `Op` to its multiply-adds; leave out for an operation that has none.
        labels: moves the labels of an `Op` through a `LabelSpace`; leave out to freeze what the operation reads.
            docs/custom-operations.md shows how.

    Raises:
        RequestError: the name has no namespace.
    """
    space_name, separator, op_name = name.partition("::")
    if not separator or not space_name or not op_name:
        raise RequestError(f"register_rule: {name!r} is no operation's name; wanted namespace::name, such as my::op")
    ROWS[f"{space_name}.{op_name}"] = Row(labels or freeze_inputs, cost)


def freeze_inputs(space: LabelSpace, op: Op) -> None:
    """The labels rule of an operation whose channels can't be cut."""
    for value in op.inputs:
        space.freeze_value(value, f"read as a whole in {op.where}")
