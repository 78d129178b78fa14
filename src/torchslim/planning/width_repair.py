"""Widths that a model's code remembers: found where the slim run differs, updated on the module that was running.

`x.view(b, self.groups, self.width // self.groups, h, w)` and `torch.split(x, self.sizes)` leave no operation of their
own in the graph, but their arguments do: at slim widths the operation fails, or gives another shape than the labels
predict. The attribute that remembers the old width is then looked for on the modules that were running, set to the new
one, and listed in the plan. Where no update helps, the operation at which the run differs is returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from torchslim.costs.cost_models import Shares
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.labeled_graph import GROUP_NORM, LabeledGraph
from torchslim.errors import TraceError
from torchslim.rules import is_arithmetic
from torchslim.surgery.cutting import resized
from torchslim.surgery.plans import AttributeUpdate
from torchslim.tracing.graph import Graph, Op, Value
from torchslim.tracing.runs import retrace
from torchslim.utils.inputs import Inputs

Sizes = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True)
class Repair:
    """A width that code remembers: the operation that showed it, by its run and index, and the attribute."""

    graph: int
    op: int
    module: str
    attribute: str


@dataclass(frozen=True, eq=False)
class SlimRun:
    """A run at slim widths, and the first operation that differs from what is expected (None if none does).

    Attributes:
        graphs: of the finished runs.
        labeled: which of the original's runs the operation is in.
        op: the original's operation there.
        reason: what was wrong.
        numbers: of the whole numbers that the operation was given, those that are others than in the original run:
            pairs of before and after.
        progress: how far the run came; more is better.
        repairs: the remembered widths that were updated for it.
    """

    graphs: tuple[Graph, ...]
    labeled: LabeledGraph | None
    op: Op | None
    reason: str
    numbers: frozenset[tuple[int, int]]
    progress: tuple[int, int]
    repairs: tuple[Repair, ...] = ()


def run_at_widths(model: nn.Module, inputs: Inputs, coupling: Coupling, shares: Shares, sizes: Sizes,
            attribute_updates: Sequence[AttributeUpdate]) -> SlimRun:
    """Run the model at slim widths and compare every shape with what the labels foresee."""
    graphs: list[Graph] = []
    for index, labeled in enumerate(coupling.labeled_graphs):
        reason = ""
        ops: Sequence[Op]
        failed_args: tuple[Any, ...] = ()
        with resized(model, sizes, attribute_updates):
            try:
                graph = retrace(model, inputs, labeled.graph)
                ops = graph.ops
            except TraceError as error:
                graph, ops = None, error.ops
                reason = f"the slim network fails: {str(error).partition('; ')[0]}"  # without what to try
                failed_args = error.failed_args
        mismatch = _first_mismatch(labeled, ops, shares) if labeled.graph.device == "meta" else None
        if mismatch is None and reason:
            mismatch = min(len(ops), len(labeled.graph.ops) - 1)
        if mismatch is not None or graph is None:
            op = labeled.graph.ops[mismatch or 0]
            slim_args = ops[op.index].args if op.index < len(ops) else failed_args
            what = "a fixed number of groups" if op.name == GROUP_NORM else "remembers a width"
            return SlimRun(tuple(graphs), labeled, op, reason or f"{what} in {op.where}",
                           _changed_numbers(op.args, slim_args), (index, op.index))
        graphs.append(graph)
    return SlimRun(tuple(graphs), None, None, "", frozenset(), (len(graphs), 0))


def _changed_numbers(before: Any, after: Any) -> frozenset[tuple[int, int]]:
    """Pairs of whole numbers that stand in the same place of two lists of arguments and differ."""
    if type(before) is int and type(after) is int:
        return frozenset({(before, after)} if before != after else ())
    if not isinstance(before, list | tuple) or not isinstance(after, list | tuple):
        return frozenset()
    return frozenset().union(*map(_changed_numbers, before, after))


def _first_mismatch(labeled: LabeledGraph, ops: Sequence[Op], shares: Shares) -> int | None:
    """The first operation whose result has another shape than expected, or that is another operation."""
    for index, (original, op) in enumerate(zip(labeled.graph.ops, ops, strict=False)):
        if original.name != op.name or len(original.outputs) != len(op.outputs):
            return _before_whole_views(labeled.graph.ops, index)
        if _numbers(original) != _numbers(op):
            return index
        if op.name == GROUP_NORM and op.args[6] != labeled.norm_groups(original, shares):
            return index
        for before, after in zip(original.outputs, op.outputs, strict=True):
            if before is None or after is None:
                continue
            expected = labeled.shape(before, shares) if before.id in labeled.tracks else before.shape
            if expected != after.shape and not before.static:
                return index
    return None


def _before_whole_views(ops: Sequence[Op], index: int) -> int:
    """The index of an operation, or of the views of whole tensors just before it.

    An index that takes everything, as `x[:, :width]`, leaves such a view in some versions of torch and none in others;
    where it takes less than everything, the operation after it is the first to differ.
    """
    while index > 0 and ops[index - 1].name in ("aten.alias", "aten.slice") and (
            ops[index - 1].output.shape == ops[index - 1].inputs[0].shape):
        index -= 1
    return index


_FILLS = frozenset({"aten.full", "aten.full_like", "aten.new_full", "aten.fill", "aten.constant_pad_nd"})


def _numbers(op: Op) -> list[str]:
    """The numbers that an operation calculates with: `x / x.shape[1]` works with a width, at whatever shapes.

    Whole numbers may be sizes or dimensions elsewhere than in arithmetic, in fillings and as factors of a sum.
    """
    calculates = is_arithmetic(op) or op.name.removesuffix("_") in _FILLS
    numbers = [item for item in op.args if isinstance(item, float) or (calculates and isinstance(item, int))]
    factors = [item for key, item in op.kwargs.items()
               if isinstance(item, float) or (isinstance(item, int) and (calculates or key in ("alpha", "beta")))]
    constants = [value.number for value in op.inputs if value.number is not None]
    return list(map(repr, (*numbers, *factors, *constants)))  # NaN equals NaN


def repair_widths(model: nn.Module, inputs: Inputs, coupling: Coupling, shares: Shares, sizes: Sizes,
                  attribute_updates: Sequence[AttributeUpdate],
                  known: Sequence[Repair] = ()) -> tuple[SlimRun, tuple[AttributeUpdate, ...]]:
    """Update attributes until the run at slim widths goes as expected, or no update helps any further.

    What is known from runs at other widths is updated before the first run, unless that does not get beyond it.
    """
    current, repairs = list(attribute_updates), list[Repair]()
    taken = {(update.module, update.attribute) for update in current}
    found = ((one, _repaired(model, coupling, one, shares)) for one in known
             if (one.module, one.attribute) not in taken)
    again = [(one, update) for one, update in found if update is not None]
    run = run_at_widths(model, inputs, coupling, shares, sizes, [*current, *(update for _, update in again)])
    if not again or run.progress > min((one.graph, one.op) for one, _ in again):
        repairs += [one for one, _ in again]
        current += [update for _, update in again]
    else:
        run = run_at_widths(model, inputs, coupling, shares, sizes, current)
    while run.op is not None and run.labeled is not None:
        better = None
        for candidates in _possible_updates(model, run.labeled, run.op, shares, current):
            slim_run = run_at_widths(model, inputs, coupling, shares, sizes, [*current, *candidates])
            if slim_run.progress > run.progress:
                better = slim_run, candidates
                break
        if better is None:
            break
        repairs += [Repair(*run.progress, update.module, update.attribute) for update in better[1]]
        run = better[0]
        current += better[1]
        run = _repair_sister_modules(model, inputs, coupling, shares, sizes, run, current, repairs)
    return replace(run, repairs=tuple(repairs)), tuple(current)


def _repaired(model: nn.Module, coupling: Coupling, repair: Repair, shares: Shares) -> AttributeUpdate | None:
    """The update of an attribute by what an operation sees at these widths; None where it is none of them."""
    labeled = coupling.labeled_graphs[repair.graph]
    old = getattr(model.get_submodule(repair.module), repair.attribute, None)
    new = _new_value(old, _widths_seen(labeled, labeled.graph.ops[repair.op], shares))
    return None if new is None else AttributeUpdate(repair.module, repair.attribute, _plain(old), new)


def _repair_sister_modules(model: nn.Module, inputs: Inputs, coupling: Coupling, shares: Shares, sizes: Sizes,
                           run: SlimRun, current: list[AttributeUpdate], repairs: list[Repair]) -> SlimRun:
    """What one module needed so far, others of its class will: update them together, if that helps.

    By what an operation like the one that failed sees there: elsewhere the same width may be another's. The updates
    and repairs that helped are added to the lists.
    """
    if run.op is None:
        return run
    kinds = {(type(model.get_submodule(one.module)), one.attribute, coupling.graphs[one.graph].ops[one.op].name)
             for one in repairs if one.module == repairs[-1].module}
    extra: dict[tuple[str, str], tuple[Repair, AttributeUpdate]] = {}
    done = {(update.module, update.attribute) for update in current}
    for number, graph in enumerate(coupling.graphs):
        for op in graph.ops:
            for kind, attribute, failed in kinds:
                if (op.name == failed and (op.module, attribute) not in done | extra.keys()
                        and type(model.get_submodule(op.module)) is kind):
                    one = Repair(number, op.index, op.module, attribute)
                    update = _repaired(model, coupling, one, shares)
                    if update is not None:
                        extra[op.module, attribute] = one, update
    if extra:
        updates = [update for _, update in extra.values()]
        all_at_once = run_at_widths(model, inputs, coupling, shares, sizes, [*current, *updates])
        if all_at_once.progress > run.progress:
            current += updates
            repairs += [one for one, _ in extra.values()]
            return all_at_once
    return run


def _possible_updates(model: nn.Module, labeled: LabeledGraph, op: Op, shares: Shares,
                      done: Sequence[AttributeUpdate]) -> Iterator[list[AttributeUpdate]]:
    """Mends that could help, most likely first: each attribute alone, from the innermost module out, then together."""
    pool = _widths_seen(labeled, op, shares)
    taken = {(update.module, update.attribute) for update in done}
    path = op.module
    while True:
        module = model.get_submodule(path)
        updates = [AttributeUpdate(path, key, _plain(item), new) for key, item in module.__dict__.items()
                 if (path, key) not in taken and (new := _new_value(item, pool)) is not None]
        yield from ([update] for update in updates)
        if len(updates) > 1:
            yield updates
        if not path:
            return
        path = path.rpartition(".")[0]


@dataclass(frozen=True)
class _WidthsSeen:
    """What an operation saw: old width -> new width, and the same for the sizes of its parts, in their order."""

    widths: Mapping[int, int]
    parts: Mapping[tuple[int, ...], tuple[int, ...]]


def _widths_seen(labeled: LabeledGraph, op: Op, shares: Shares) -> _WidthsSeen:
    pool: dict[int, int] = {}
    seen = [*(v for v in op.outputs if v is not None), *op.inputs]
    # A reshape that copies fails before it does; a size that is a sum of widths shows where it is split.
    following = labeled.graph.ops[op.index + 1:op.index + 2] if op.name in ("aten.clone", "aten.view") else ()
    seen += [value for later in following for value in later.outputs if value is not None]
    for value in seen:
        for old, new in zip(value.shape, labeled.shape(value, shares), strict=True):
            if old != new:
                pool.setdefault(old, new)
    if op.name == "aten.slice":
        for number in op.args[2:4]:
            if isinstance(number, int) and 0 < number < op.args[0].shape[op.args[1]]:
                pool[number] = _kept_before(labeled, op.args[0], op.args[1], number, shares)
    if op.name == GROUP_NORM:
        pool[op.args[6]] = labeled.norm_groups(op, shares)
    return _WidthsSeen({old: new for old, new in pool.items() if old != new and old > 1}, _parts(labeled, op, shares))


def _parts(labeled: LabeledGraph, op: Op, shares: Shares) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the parts of a split, or sizes in a row of a reshape: of equal ones each may lose differently many."""
    outputs = [value for value in op.outputs if value is not None]
    if op.name == "aten.view":
        before, after = op.output.shape, labeled.shape(op.output, shares)
        runs = [slice(*ends) for ends in combinations(range(len(before) + 1), 2) if ends[1] - ends[0] > 1]
        return {before[run]: after[run] for run in runs if before[run] != after[run]}
    if len(outputs) < 2 or len({len(value.shape) for value in outputs}) > 1:
        return {}
    old, new = zip(*(value.shape for value in outputs), strict=True), zip(
        *(labeled.shape(value, shares) for value in outputs), strict=True)
    return {before: after for before, after in zip(old, new, strict=True) if before != after}


def _kept_before(labeled: LabeledGraph, value: Value, dim: int, index: int, shares: Shares) -> int:
    for track in labeled.tracks.get(value.id, ()):
        if track.shape[dim] > 1:
            rows = np.moveaxis(shares[track], dim, -1).reshape(-1, track.shape[dim])
            return round(float(rows[0, :index].sum()))
    return index


def _new_value(item: Any, pool: _WidthsSeen) -> int | tuple[int, ...] | None:
    """An attribute's value at the new widths; None if it remembers none of the old ones."""
    if type(item) is int:
        return pool.widths.get(item)
    if isinstance(item, list | tuple) and item and all(type(part) is int for part in item):
        new = pool.parts.get(tuple(item), tuple(pool.widths.get(part, part) for part in item))
        return new if new != tuple(item) else None
    return None


def _plain(item: Any) -> int | tuple[int, ...]:
    return tuple(item) if isinstance(item, list | tuple) else item
