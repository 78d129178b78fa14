"""Dimensions that the network's code gives one width: `y.view(b, c, h, w)`, where `c` is the width of another tensor.

No label says so, since the width arrives as a plain number. At slim widths it shows: an operation that is given the
new width of one tensor fails, because what it shapes has another. Both must then lose equally many channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from torchslim.costs.cost_models import Shares
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.labeled_graph import Index, LabeledGraph
from torchslim.planning.width_repair import SlimRun
from torchslim.rules.declarations import EqualCountConstraint
from torchslim.tracing.graph import Graph, Op, Value, is_within

LEARNT = -1
"""The number, in its index, of the operation of a constraint that no operation declared."""


@dataclass(frozen=True)
class EqualWidths:
    """An operation that makes a dimension as wide as one of another operation's result.

    Attributes:
        graph: the number of the run.
        op, dim: the operation, and the dimension of its first result.
        reader, position, read_dim: an operation that reads the other tensor, its place among the inputs, the dimension.
    """

    graph: int
    op: int
    dim: int
    reader: int
    position: int
    read_dim: int

    def rows(self, coupling: Coupling) -> Index | None:
        """The classes along both dimensions, the tensor's first; None where they can't lose equally many."""
        labeled = coupling.labeled_graphs[self.graph]
        made = _along(labeled, labeled.graph.ops[self.op].output, self.dim)
        read = _along(labeled, labeled.graph.ops[self.reader].inputs[self.position], self.read_dim)
        if made is None or read is None or len(made) != len(read) or np.isin(made, read).any():
            return None
        return np.stack([read, made])


def _along(labeled: LabeledGraph, value: Value, dim: int) -> Index | None:
    """The classes along a dimension of a value, where it has no others."""
    tracks = [track for track in labeled.tracks.get(value.id, ()) if track.shape[dim] > 1]
    return tracks[0].ravel() if len(tracks) == 1 and tracks[0].size == tracks[0].shape[dim] else None


def values_of_numbers(run: SlimRun, labeled: LabeledGraph, failed: Op, shares: Shares) -> Iterator[
        tuple[Op, int, int, tuple[int, int]]]:
    """What was read before with a size that, before and after the cut, is among the numbers an operation was given.

    Each as the operation that read it, its place among the inputs, the dimension, and the two sizes: first those that
    the failing module read, the latest first.
    """
    ops = labeled.graph.ops[:failed.index] if run.numbers else ()
    for op in sorted(ops, key=lambda op: (not is_within(op, failed.module), -op.index)):
        for position, value in enumerate(op.inputs):
            if value.id in labeled.tracks:
                sizes = enumerate(zip(value.shape, labeled.shape(value, shares), strict=True))
                yield from ((op, position, dim, pair) for dim, pair in sizes if pair in run.numbers)


def equal_widths(run: SlimRun, coupling: Coupling, failed: Op, shares: Shares) -> tuple[EqualWidths, ...]:
    """What an operation that failed was to make as wide as something else: one for each set of channels that it may be.

    Args:
        run: the run at slim widths.
        coupling: of the original.
        failed: the original's operation.
        shares: what is kept of each class.
    """
    labeled = coupling.labeled_graphs[len(run.graphs)]
    made = next((value for value in failed.outputs if value is not None), None)
    if made is None:
        return ()
    wrong = [(dim, sizes[0]) for dim, sizes in enumerate(zip(made.shape, labeled.shape(made, shares), strict=True))
             if any(before == sizes[0] and after != sizes[1] for before, after in run.numbers)]
    found: dict[bytes, EqualWidths] = {}
    for reader, position, read_dim, (before, _) in values_of_numbers(run, labeled, failed, shares):
        if found and not is_within(reader, failed.module):
            break  # what the module itself was given is more likely
        for dim in (dim for dim, size in wrong if size == before):
            one = EqualWidths(len(run.graphs), failed.index, dim, reader.index, position, read_dim)
            rows = one.rows(coupling)
            if rows is not None:
                found.setdefault(rows.tobytes(), one)
    return tuple(found.values())


def in_sister_modules(coupling: Coupling, one: EqualWidths) -> Iterator[EqualWidths]:
    """The same pair of dimensions wherever the code that was running runs."""
    graph = coupling.graphs[one.graph]
    failed, reader = graph.ops[one.op], graph.ops[one.reader]
    for op in graph.ops[failed.index - reader.index:]:
        other = graph.ops[op.index - failed.index + reader.index]
        if (_kind(op, graph, op.module), _kind(other, graph, op.module)) == (
                _kind(failed, graph, failed.module), _kind(reader, graph, failed.module)):
            yield replace(one, op=op.index, reader=other.index)


def _kind(op: Op, graph: Graph, module: str) -> tuple[object, ...]:
    """What is the same of an operation wherever the code of a module runs."""
    ranks = [None if value is None else len(value.shape) for value in (*op.inputs, *op.outputs)]
    return op.name, ranks, op.module.removeprefix(module), graph.modules[op.module]


def with_equal_widths(coupling: Coupling, pairs: Iterable[EqualWidths]) -> Coupling:
    """A coupling in which these dimensions lose equally many channels, too."""
    rows = [found for one in sorted(pairs, key=lambda one: (one.graph, one.op, one.reader))
            if (found := one.rows(coupling)) is not None]
    extra = [EqualCountConstraint(found, 2, (LEARNT, number)) for number, found in enumerate(rows)]
    return replace(coupling, constraints=(*coupling.constraints, *extra)) if extra else coupling
