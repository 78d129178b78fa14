"""What can go under the caller's options: channels that are protected, the units of the others, their selection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from torchslim.costs.cost_models import CostModel
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance import Evidence, Scores, score
from torchslim.latency.predictor import LatencyPredictor
from torchslim.planning.budgets import Limit, made_dimensions
from torchslim.planning.greedy import drop_levels_without_speedup, select_by_time
from torchslim.planning.nearest import nearest_levels
from torchslim.planning.options import PlanOptions
from torchslim.planning.selection import Selection, select_by_score
from torchslim.planning.units import PrunableUnit, free_unit, tied_unit
from torchslim.rules.declarations import EqualCountConstraint
from torchslim.utils.patterns import all_match


def protected_classes(coupling: Coupling, options: PlanOptions) -> dict[int, str]:
    """Class of channels -> why it stays, before any budget.

    Raises:
        RequestError: a pattern that fits no layer.
    """
    reasons: dict[int, str] = {}
    makers = {layer for group in coupling.groups for layer in group.makers}
    for name, patterns in (("only", options.only), ("exclude", options.exclude), ("scope", tuple(options.shares))):
        for pattern in patterns:
            if not any(all_match([layer], [pattern]) for layer in makers):
                raise RequestError(f"{name}: no layer that makes channels matches {pattern!r}; layers are named like "
                                   f"{', '.join(sorted(makers)[:3])}")
    for group in coupling.groups:
        reason = group.frozen
        if not reason and group.shortcut and not options.shortcuts:
            reason = "on a shortcut, and shortcuts=False"
        if not reason and options.only and not all_match(group.makers, options.only):
            reason = "not among only="
        if not reason and any(all_match([layer], options.exclude) for layer in group.makers):
            reason = "among exclude="
        if reason:
            reasons.update(dict.fromkeys(group.classes.tolist(), reason))
    return reasons


def prunable_units(coupling: Coupling, options: PlanOptions, protected: dict[int, str], evidence: Evidence,
                   original: Coupling | None) -> tuple[list[PrunableUnit], Scores]:
    """What can be removed, and the score of every class of channels.

    Classes that must lose as many as some that stay are added to `protected`.
    """
    tied_rows = _tied_rows(coupling, protected)
    free = [group for group in coupling.groups if protected.keys().isdisjoint(group.classes.tolist())]
    evidence.gains = macs_per_channel(coupling)
    scores_of_groups = score(free, options.ranking, evidence)
    scores = np.zeros(coupling.num_classes)
    for group, group_scores in zip(free, scores_of_groups, strict=True):
        scores[group.classes] = group_scores
    in_any_row = np.zeros(coupling.num_classes, dtype=bool)
    stays = np.zeros(coupling.num_classes, dtype=bool)
    stays[list(protected)] = True
    made = made_dimensions(coupling)
    units = []
    for matrices in tied_rows:
        in_rows = np.zeros(coupling.num_classes, dtype=bool)
        in_rows[np.concatenate([m.labels.ravel() for m in matrices])] = True
        in_any_row |= in_rows
        if not (stays & in_rows).any():
            name = next((g.name for g in coupling.groups if in_rows[g.classes].any()), "rows of computed channels")
            counts = [int(np.count_nonzero(in_rows[dim.labels])) for dim in made]
            units.append(tied_unit(name, matrices, [n for n in counts if n], scores, options.round_to,
                                   options.min_channels))
    needed = np.zeros(coupling.num_classes, dtype=bool)
    for part in coupling.sub_tensors:
        # Channels that stay anyway count; of equal ones the first is taken.
        classes = np.unique(part)
        needed[classes[np.lexsort((classes, -scores[classes], ~stays[classes]))[:2]]] = True
    units += [free_unit(group, unit_scores, options.round_to, options.min_channels, needed[group.classes])
              for group, unit_scores in zip(free, scores_of_groups, strict=True) if not in_any_row[group.classes].any()]
    if options.min_kept:
        widths = original_widths(coupling, units, original)
        units = [unit.at_least(options.min_kept * width) for unit, width in zip(units, widths, strict=True)]
    return units, scores


def _tied_rows(coupling: Coupling, protected: dict[int, str]) -> list[list[EqualCountConstraint]]:
    """Matrices of rows, those that share a channel together. One channel that stays keeps all of them."""
    home = np.full(coupling.num_classes, -1)
    joined: dict[int, list[EqualCountConstraint]] = {}
    for index, matrix in enumerate(coupling.constraints):
        classes = matrix.labels.ravel()
        met = np.unique(home[classes])
        joined[index] = [matrix, *(other for old in met[met >= 0].tolist() for other in joined.pop(old))]
        home[np.isin(home, met[met >= 0])] = index
        home[classes] = index
    stays = np.zeros(coupling.num_classes, dtype=bool)
    stays[list(protected)] = True
    for index in np.unique(home[stays & (home >= 0)]).tolist():
        joined_classes = np.flatnonzero(home == index)
        reason = protected[int(joined_classes[stays[joined_classes]][0])]
        for label in joined_classes.tolist():
            protected.setdefault(label, f"must lose as many as channels that stay ({reason})")
    return list(joined.values())


def original_widths(coupling: Coupling, units: Sequence[PrunableUnit], original: Coupling | None) -> list[float]:
    """Of each unit how wide it is; in the original, where shares refer to that."""
    if original is None:
        return [float(unit.widths[0]) for unit in units]
    widths = []
    for unit, groups in zip(units, _groups_of(coupling, units), strict=True):
        members = [member for group in groups for member in group.members]
        makers = [(m.name, m.dim) for m in members if m.role == "makes"] or [(m.name, m.dim) for m in members]
        before, now = (sum(len(of[key].labels) for key in makers)
                       for of in (original.by_dimension, coupling.by_dimension))
        widths.append(float(unit.widths[0]) * before / now)
    return widths


def select(coupling: Coupling, units: Sequence[PrunableUnit], limits: Sequence[Limit], options: PlanOptions,
           original: Coupling | None = None, predictor: LatencyPredictor | None = None) -> Selection:
    """How far each unit goes down, for the limits and the scope; with a predictor, by steps that save time."""
    widths, units = original_widths(coupling, units, original), list(units)
    if predictor is not None:
        units = drop_levels_without_speedup(predictor, units, coupling.num_classes)
    if options.scope == "uniform":
        units = [unit.with_uniform_losses(width) for unit, width in zip(units, widths, strict=True)]
        return select_by_score(coupling.num_classes, units, limits, uniform=True)
    min_levels = {}
    for index, groups in enumerate(_groups_of(coupling, units) if options.shares else ()):
        share = _scoped_share(_makers(groups), options.shares)
        if share is not None:
            units[index] = units[index].at_least(share * widths[index])
            min_levels[index] = len(units[index].losses)
    if predictor is not None:
        return select_by_time(coupling.num_classes, units, limits, predictor, min_levels)
    return select_by_score(coupling.num_classes, units, limits,
                           nearest_levels(coupling.num_classes, units, limits, min_levels))


def _groups_of(coupling: Coupling, units: Sequence[PrunableUnit]) -> list[list[ChannelGroup]]:
    """The channel groups of each unit, each once."""
    group_of = {label: group for group in coupling.groups for label in group.classes.tolist()}
    return [list({id(group_of[label]): group_of[label] for label in unit.classes.tolist()
                  if label in group_of}.values()) for unit in units]


def _makers(groups: Sequence[ChannelGroup]) -> list[str]:
    """The layers that make the channels of groups."""
    return sorted({layer for group in groups for layer in group.makers})


def _scoped_share(layers: Sequence[str], shares: Mapping[str, float]) -> float | None:
    """The share that a scope keeps of what these layers make.

    That of the first pattern that all match; where several match all between them, the largest.
    """
    for pattern, share in shares.items():
        if all_match(layers, [pattern]):
            return share
    layer_shares = [next((share for pattern, share in shares.items() if all_match([layer], [pattern])), None)
           for layer in layers]
    return None if None in layer_shares else max((share for share in layer_shares if share is not None), default=None)


def partly_scoped(coupling: Coupling, selection: Selection, options: PlanOptions) -> dict[int, str]:
    """Class of channels -> why it stays, where a scope names some of the layers that share it, and not all."""
    reasons: dict[int, str] = {}
    if not options.shares:
        return reasons
    patterns = tuple(options.shares)
    for unit, groups, level in zip(selection.units, _groups_of(coupling, selection.units), selection.levels,
                                   strict=True):
        layers = _makers(groups)
        others = [layer for layer in layers if not all_match([layer], patterns)]
        if not level and others and len(others) < len(layers):
            reasons.update(dict.fromkeys(unit.classes.tolist(), f"scope: `{others[0]}` shares these channels, and no "
                                                                "pattern matches it"))
    return reasons


def at_minimum(units: Sequence[PrunableUnit], options: PlanOptions) -> dict[int, str]:
    """Class of channels -> why it stays, where a unit has no smaller width to go to."""
    reasons: dict[int, str] = {}
    settings = "min_channels=, min_kept= and round_to=" if options.min_kept else "min_channels= and round_to="
    for unit in units:
        if len(unit.widths) == 1:
            why = (unit.failure or "no smaller number of channels fits all the rows that must lose equally many"
                   if unit.tied else
                   f"no smaller width is a multiple of round_to={options.round_to}"
                   if options.round_to > 1 and unit.min_width < unit.widths[0] else
                   f"the least width already (a group keeps 2 channels; {settings} may ask for more)")
            reasons.update(dict.fromkeys(unit.classes.tolist(), why))
    return reasons


def macs_per_channel(coupling: Coupling) -> Callable[[ChannelGroup], float]:
    """From a group to the multiply-adds that go when one of its channels goes, and no other."""
    macs = CostModel(coupling.macs)

    def saved(group: ChannelGroup) -> float:
        shares = np.ones(coupling.num_classes)
        shares[group.classes[0]] = 0
        return float(macs.total - macs(shares))

    return saved
