"""The slim network's channels are the original's: run at slim widths, and match.

The network is traced again with narrower tensors. Channels of the slim run are known by the dimensions of the
parameters that they touch: each must be a channel of the original that touches the same. This says which channels may
stay and in which order they come, however they were split, shuffled and joined on the way; and where the model's code
remembers a width, it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchslim.costs.cost_models import Shares
from torchslim.coupling.coupling import Coupling, couple
from torchslim.coupling.labeled_graph import Index
from torchslim.importance import Scores
from torchslim.planning.channel_order import out_of_order
from torchslim.planning.equal_widths import EqualWidths, equal_widths, values_of_numbers
from torchslim.planning.layer_attributes import layer_attribute_updates
from torchslim.planning.selection import Selection
from torchslim.planning.width_repair import Repair, SlimRun, repair_widths
from torchslim.proof.verification import TOLERANCE, differences
from torchslim.rules.declarations import LabeledDim
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import AttributeUpdate, Plan
from torchslim.tracing.graph import Graph
from torchslim.utils.inputs import Inputs

Kept = dict[str, dict[int, tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class Cut:
    """What stays where the network is cut as selected.

    Attributes:
        stays: of each class of channels, whether it does.
        kept: the indices that stay of each tensor and dimension, in the slim network's order.
        grouped: the groups of each grouped convolution that is cut, before and after.
        readers: the dimensions in `kept` that read channels.
        attribute_updates: what remembers a width, and its new value.
        graphs: the runs at the slim widths; none where they were foreseen.
    """

    stays: NDArray[np.bool_]
    kept: Kept
    grouped: dict[str, tuple[int, int]]
    readers: tuple[tuple[str, int], ...]
    attribute_updates: tuple[AttributeUpdate, ...]
    graphs: tuple[Graph, ...] = ()


@dataclass(frozen=True, eq=False)
class Failure:
    """Why the network can't be cut to the selected widths.

    Attributes:
        reason: in words.
        where: the operation where it shows, if it is one.
        classes: the channels that meet there, or are to blame where it is no single operation.
        read_as_numbers: channels whose number the operation was given as a size, so that their width shows there.
        progress: how far the run came, where it did not come to its end (`width_repair.SlimRun`).
        equal_widths: what the operation was to make as wide as something else, for each that it may have been.
        repairs: the remembered widths that were found before.
    """

    reason: str
    where: str
    classes: frozenset[int]
    read_as_numbers: frozenset[int] = frozenset()
    progress: tuple[int, int] | None = None
    equal_widths: tuple[EqualWidths, ...] = ()
    repairs: tuple[Repair, ...] = ()

    @property
    def key(self) -> str:
        """What tells failures apart: the operation, or the reason where no single operation fails."""
        return self.where or self.reason


def resolve_cut(model: nn.Module, inputs: Inputs, coupling: Coupling, selection: Selection, scores: Scores,
                known: Sequence[Repair] = ()) -> Cut | Failure:
    """What stays of the network where it is cut as selected, or why it can't be.

    `known` are remembered widths that runs at other widths have shown.
    """
    shares = selection.shares(coupling.num_classes)
    for touch in {id(touch.labels): touch for touch in coupling.labeled_dims}.values():
        if len(touch.labels) >= 2 and round(float(shares[touch.labels].sum())) < 2:
            # A dimension of size 1 broadcasts: its channel could not be told from none.
            return Failure(f"`{touch.name}` would keep one channel of dimension {touch.dim}",
                           touch.name, frozenset(touch.labels.tolist()))
    return predict_cut(model, coupling, selection, scores) or _trace_and_match(
        model, inputs, coupling, selection, scores, known)


def predict_cut(model: nn.Module, coupling: Coupling, selection: Selection, scores: Scores) -> Cut | None:
    """The cut of a network whose code reads no width: it will run as it ran, so that nothing need be run.

    None where it might not, or where rows of one channel set are tied to others, and only a run tells their order.
    """
    if not all(graph.width_independent for graph in coupling.graphs):
        return None
    stays = _staying_classes(coupling, selection, scores)
    if stays is None:
        return None
    kept: Kept = {}
    sizes: dict[str, dict[int, int]] = {}
    indices: dict[int, tuple[int, ...]] = {}
    grouped: dict[str, tuple[int, int]] = {}
    for touch in coupling.labeled_dims:
        if id(touch.labels) not in indices:
            indices[id(touch.labels)] = tuple(np.flatnonzero(stays[touch.labels]).tolist())
        index = indices[id(touch.labels)]
        if len(index) < len(touch.labels):
            left = _groups_left(touch, stays)
            kept.setdefault(touch.name, {})[touch.dim] = index
            sizes.setdefault(touch.name, {})[touch.dim] = len(index) // left
            if touch.groups > 1:
                grouped[touch.name] = touch.groups, left
    kept = {name: dict(sorted(dims.items())) for name, dims in kept.items()}
    readers = tuple((t.name, t.dim) for t in coupling.labeled_dims
                    if t.dim in kept.get(t.name, {}) and (t.name, t.dim) in coupling.reading_dims)
    updates = layer_attribute_updates(model, coupling, stays.astype(np.float64), sizes, grouped)
    return Cut(stays, kept, grouped, readers, tuple(updates))


def _staying_classes(coupling: Coupling, selection: Selection, scores: Scores) -> NDArray[np.bool_] | None:
    """Of each class, whether it stays; None where rows of one channel set are tied to others."""
    stays = np.ones(coupling.num_classes, dtype=bool)
    for unit, level in zip(selection.units, selection.levels, strict=True):
        if not level:
            continue
        if not unit.tied:
            stays[unit.classes] = unit.shares(level) > 0
            continue
        classes = set(unit.classes.tolist())
        matrices = [rows.labels for rows in coupling.constraints if int(rows.labels.flat[0]) in classes]
        if len(matrices) != 1 or matrices[0].size != len(classes):
            return None
        for row in matrices[0]:
            gone = len(row) - len(row) * unit.widths[level] // unit.widths[0]
            stays[row[np.lexsort((-row, scores[row]))[:gone]]] = False
    return stays


def _groups_left(touch: LabeledDim, stays: NDArray[np.bool_]) -> int:
    """How many of a grouped convolution's groups keep channels; 1 for any other dimension."""
    return int(np.count_nonzero(stays[touch.labels].reshape(touch.groups, -1).any(1))) if touch.groups > 1 else 1


def runs_beyond(failure: Failure, model: nn.Module, inputs: Inputs, coupling: Coupling, selection: Selection) -> bool:
    """Whether the network, cut as selected, runs further than to the operation at which another selection failed."""
    run, *_ = _run_at_selection(model, inputs, coupling, selection, failure.repairs)
    return failure.progress is not None and run.progress > failure.progress


def _run_at_selection(model: nn.Module, inputs: Inputs, coupling: Coupling, selection: Selection,
                      known: Sequence[Repair]) -> tuple[
        SlimRun, tuple[AttributeUpdate, ...], tuple[AttributeUpdate, ...]]:
    """A run at the selected widths, the updates of what remembers the old ones, and those that only the run showed."""
    shares = selection.shares(coupling.num_classes)
    sizes: dict[str, dict[int, int]] = {}
    grouped: dict[str, tuple[int, int]] = {}
    labels = {id(touch.labels): touch.labels for touch in coupling.labeled_dims}
    counts = {key: round(float(shares[dim_labels].sum())) for key, dim_labels in labels.items()}
    for touch in coupling.labeled_dims:
        if counts[id(touch.labels)] < len(touch.labels):
            groups = _groups_left(touch, shares > 0)
            sizes.setdefault(touch.name, {})[touch.dim] = counts[id(touch.labels)] // groups
            if touch.groups > 1:
                grouped[touch.name] = touch.groups, groups
    own = layer_attribute_updates(model, coupling, shares, sizes, grouped)
    run, attribute_updates = repair_widths(model, inputs, coupling, shares, sizes, own, known)
    return run, attribute_updates, attribute_updates[len(own):]


def _trace_and_match(model: nn.Module, inputs: Inputs, coupling: Coupling, selection: Selection,
                     scores: Scores, known: Sequence[Repair]) -> Cut | Failure:
    """Run the network at the selected widths, updating what remembers the old ones, and match its channels."""
    shares = selection.shares(coupling.num_classes)
    run, attribute_updates, repairs = _run_at_selection(model, inputs, coupling, selection, known)
    if run.op is not None and run.labeled is not None:
        classes = run.labeled.classes_of((*run.op.inputs, *run.op.outputs))
        values = [op.inputs[position] for op, position, *_ in values_of_numbers(run, run.labeled, run.op, shares)]
        return Failure(run.reason, run.op.where, classes, run.labeled.classes_of(values), run.progress,
                       equal_widths(run, coupling, run.op, shares), run.repairs)
    slim = couple(run.graphs, replace(coupling.options, grouped_weights=coupling.grouped_weights,
                                      whole_heads=frozenset(coupling.whole_heads), head_widths=coupling.head_widths))
    mismatched = _mismatched_classes(coupling, slim, shares)
    if mismatched:
        return Failure("in the slim network its channels would reach other weights than in the original", "",
                       mismatched, repairs=run.repairs)
    chosen = _match_classes(coupling, slim, shares, scores)
    stays = coupling.signatures == 0
    stays[chosen[chosen >= 0]] = True
    kept, groups_of, readers = _kept_indices(coupling, slim, chosen)
    misplaced = out_of_order(coupling, slim, stays, kept)
    if misplaced is not None:
        where, classes = misplaced
        return Failure(f"in the slim network its channels would come in another order{f' in {where}' if where else ''}",
                       where, classes, repairs=run.repairs)
    cut = Cut(stays, kept, groups_of, readers, attribute_updates, run.graphs)
    if repairs and any(graph.device != "meta" for graph in coupling.graphs):
        # On data no shape tells whether a width is calculated with, too: the numbers do.
        plan = Plan(kept, readers, groups_of, attribute_updates,
                    ignored_outputs=tuple(coupling.graphs[0].ignored_outputs))
        worst = max(differences(model, apply(model, plan), plan, inputs), key=lambda one: one.error, default=None)
        if worst is not None and not worst.error <= TOLERANCE:
            names = ", ".join(f"`{update.module}.{update.attribute}`".replace("`.", "`") for update in repairs)
            return Failure(f"{names} is a width, and something else: at its new value `{worst.where}` changes", "",
                           frozenset(np.flatnonzero(shares < 1).tolist()))
    return cut


def _mismatched_classes(coupling: Coupling, slim: Coupling, shares: Shares) -> frozenset[int]:
    """Classes of the original whose number in the slim run is not what it must be."""
    kinds, kind_of = np.unique(np.concatenate([coupling.signatures, slim.signatures]), return_inverse=True)
    before, after = kind_of[: coupling.num_classes], kind_of[coupling.num_classes:]
    available, needed = (np.bincount(part, minlength=len(kinds)) for part in (before, after))
    sure = (shares == 0) | (shares == 1)
    certain = np.bincount(before[sure], minlength=len(kinds)) > 0
    exact = np.bincount(before[sure], weights=shares[sure], minlength=len(kinds))
    wrong = (kinds != 0) & ((needed > available) | (certain & (exact != needed)))
    if not wrong.any():
        return frozenset()
    # Where only unheard-of combinations turned up, every channel that was cut is suspect.
    blamed = np.flatnonzero(wrong[before])
    return frozenset((blamed if len(blamed) else np.flatnonzero(shares < 1)).tolist())


def _match_classes(coupling: Coupling, slim: Coupling, shares: Shares, scores: Scores) -> Index:
    """For each class of channels of the slim run, the class of the original that it is.

    Classes are matched within those that touch the same dimensions. Their number is the slim run's; where more are at
    hand (rows of which only the count was selected), the best stay.
    """
    left = np.flatnonzero(shares > 0)
    # By kind, and in each kind from the best to the worst; of equal ones the first is better.
    left = left[np.lexsort((left, -scores[left], coupling.signatures[left]))]
    ranked = coupling.signatures[left]
    chosen = np.full(slim.num_classes, -1, dtype=np.int64)
    wanted = np.argsort(slim.signatures, kind="stable")
    kinds, starts, counts = np.unique(slim.signatures[wanted], return_index=True, return_counts=True)
    for kind, start, count, first in zip(kinds, starts, counts, np.searchsorted(ranked, kinds), strict=True):
        if kind:
            chosen[wanted[start:start + count]] = np.sort(left[first:first + count])
    return chosen


def _kept_indices(coupling: Coupling, slim: Coupling, chosen: Index) -> tuple[
        Kept, dict[str, tuple[int, int]], tuple[tuple[str, int], ...]]:
    """What stays of each tensor, in the slim run's order; the grouped weights; and the dimensions that read."""
    kept: Kept = {}
    grouped: dict[str, tuple[int, int]] = {}
    readers = []
    cached: dict[tuple[int, ...], tuple[int, ...]] = {}
    for dim in slim.labeled_dims:
        before = coupling.by_dimension[dim.name, dim.dim]
        key = id(before.labels), id(dim.labels), id(before.copies), id(dim.copies)
        if key not in cached:
            cached[key] = tuple(_positions(before.labels, chosen[dim.labels], before.copies, dim.copies).tolist())
        if cached[key] == tuple(range(len(before.labels))):
            continue
        kept.setdefault(dim.name, {})[dim.dim] = cached[key]
        if (dim.name, dim.dim) in coupling.reading_dims:
            readers.append((dim.name, dim.dim))
        if dim.groups > 1:
            grouped[dim.name] = (before.groups, dim.groups)
    order = {dim.name: position for position, dim in enumerate(coupling.labeled_dims)}
    names = sorted(kept, key=order.__getitem__)
    return {name: dict(sorted(kept[name].items())) for name in names}, grouped, tuple(readers)


def _positions(before: Index, after: Index, copies_before: Index | None = None,
               copies_after: Index | None = None) -> Index:
    """Where each entry of `after` stands in `before`; the n-th of equal entries is matched with the n-th.

    Equal entries come in the order of `copies`, and where these are equal, too, in that of their places.
    """
    order = np.lexsort((before if copies_before is None else copies_before, before))
    ranked = before[order]
    seen = np.lexsort((after if copies_after is None else copies_after, after))
    ranked_after = after[seen]
    occurrence = np.arange(len(after)) - np.searchsorted(ranked_after, ranked_after, side="left")
    positions = np.empty(len(after), dtype=np.int64)
    positions[seen] = order[np.searchsorted(ranked, ranked_after, side="left") + occurrence]
    return positions
