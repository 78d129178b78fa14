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
from torchslim.rules.labels import EqualCountConstraint
from torchslim.tracing.graph import Op, Value

LEARNT = -1
"""The number, in its index, of the operation of a constraint that no operation declared."""


@dataclass(frozen=True)
class EqualWidths:
    """An operation that makes a dimension as wide as one of another operation's result.

    Attributes:
        graph: the number of the run.
        op, dim: the operation, and the dimension of its first result.
        source, output, source_dim: the operation whose result has the width, which of its results, and the dimension.
    """

    graph: int
    op: int
    dim: int
    source: int
    output: int
    source_dim: int

    def rows(self, coupling: Coupling) -> Index | None:
        """The classes along both dimensions, the source's first; None where they can't lose equally many."""
        labeled = coupling.labeled_graphs[self.graph]
        made = _along(labeled, labeled.graph.ops[self.op].output, self.dim)
        source = _along(labeled, labeled.graph.ops[self.source].outputs[self.output], self.source_dim)
        if made is None or source is None or len(made) != len(source) or np.isin(made, source).any():
            return None
        return np.stack([source, made])


def _along(labeled: LabeledGraph, value: Value | None, dim: int) -> Index | None:
    """The classes along a dimension of a value, where it has no others."""
    tracks = [] if value is None else [t for t in labeled.tracks.get(value.id, ()) if t.shape[dim] > 1]
    return tracks[0].ravel() if len(tracks) == 1 and tracks[0].size == tracks[0].shape[dim] else None


def values_of_numbers(run: SlimRun, labeled: LabeledGraph, failed: Op, shares: Shares) -> Iterator[
        tuple[int, int, int, tuple[int, int]]]:
    """Results whose size, before and after the cut, is among the numbers that an operation was given, the latest first.

    Each as the operation that made it, which of its results it is, the dimension, and the two sizes.
    """
    for op in reversed(labeled.graph.ops[:failed.index] if run.numbers else ()):
        for output, value in enumerate(op.outputs):
            if value is not None and value.id in labeled.tracks:
                sizes = list(zip(value.shape, labeled.shape(value, shares), strict=True))
                yield from ((op.index, output, dim, pair) for dim, pair in enumerate(sizes) if pair in run.numbers)


def equal_widths(run: SlimRun, coupling: Coupling, failed: Op, shares: Shares) -> tuple[EqualWidths, ...]:
    """What an operation that failed was to make as wide as something else: one for each set of channels that it may be.

    Args:
        run: the run at slim widths.
        coupling: of the original.
        failed: the original's operation.
        shares: what is kept of each class.
    """
    labeled = coupling.labeled_graphs[len(run.graphs)]
    made = failed.output
    wrong = [(dim, sizes[0]) for dim, sizes in enumerate(zip(made.shape, labeled.shape(made, shares), strict=True))
             if any(before == sizes[0] and after != sizes[1] for before, after in run.numbers)]
    found: dict[bytes, EqualWidths] = {}
    for source, output, source_dim, (before, _) in values_of_numbers(run, labeled, failed, shares):
        for dim in (dim for dim, size in wrong if size == before):
            one = EqualWidths(len(run.graphs), failed.index, dim, source, output, source_dim)
            rows = one.rows(coupling)
            if rows is not None:
                found.setdefault(rows.tobytes(), one)
    return tuple(found.values())


def in_sister_modules(coupling: Coupling, one: EqualWidths) -> Iterator[EqualWidths]:
    """The same pair of dimensions wherever the code that was running runs; the given one is the first."""
    yield one
    graph = coupling.graphs[one.graph]
    failed, source = graph.ops[one.op], graph.ops[one.source]
    for op in graph.ops[failed.index - source.index:]:
        other = graph.ops[op.index - failed.index + source.index]
        alike = op.index != failed.index and (op.name, other.name) == (failed.name, source.name) and (
            graph.modules[op.module] == graph.modules[failed.module])
        if alike and one.dim < len(op.output.shape) and one.output < len(other.outputs):
            yield replace(one, op=op.index, source=other.index)


def with_equal_widths(coupling: Coupling, pairs: Iterable[EqualWidths]) -> Coupling:
    """A coupling in which these dimensions lose equally many channels, too."""
    rows = [found for one in sorted(pairs, key=lambda one: (one.graph, one.op, one.source))
            if (found := one.rows(coupling)) is not None]
    extra = [EqualCountConstraint(found, 2, (LEARNT, number)) for number, found in enumerate(rows)]
    return replace(coupling, constraints=(*coupling.constraints, *extra)) if extra else coupling
