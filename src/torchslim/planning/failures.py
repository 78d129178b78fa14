"""Widths and units found infeasible while planning, which are not tried again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from torchslim.coupling.coupling import Coupling
from torchslim.planning.channel_matching import Failure
from torchslim.planning.equal_widths import LEARNT, EqualWidths, in_sister_modules
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit
from torchslim.planning.width_repair import Repair

MAX_WIDTHS_TRIED = 4
"""How many widths of tied rows may turn out infeasible before the rows are tied channel by channel."""

Kind = tuple[bool, tuple[tuple[str, str, int, int], ...]]


@dataclass(frozen=True)
class FailureLog:
    """What was found infeasible so far.

    Rows that must lose equally many may fit at one width and not at the next. So some widths are tried; then the n-th
    channels of all rows are tied together, which keeps every order; then they stay. Units of the same kind, in sister
    modules, share the verdict: the code that fails for one is the code that runs for the others.

    Attributes:
        infeasible_widths: pairs of a unit, by its first class, and a width; why the network did not run.
        ties: rows, by their index, that are tied channel by channel.
        head_widths: products of activations, by their number, that lose widths of heads, since whole heads can't go.
        equal_widths: dimensions that lose equally many, since the network's code gives them one width.
        stays: channels that stay: tensor, dimension, index along it, reason.
        culprits: by the operation that failed, or the reason, the units to blame, by their first classes.
        repairs: widths that the network's code remembers.
    """

    infeasible_widths: Mapping[tuple[int, int], str] = field(default_factory=dict)
    ties: frozenset[tuple[int, int]] = frozenset()
    head_widths: frozenset[int] = frozenset()
    equal_widths: frozenset[EqualWidths] = frozenset()
    stays: tuple[tuple[str, int, int, str], ...] = ()
    culprits: Mapping[str, frozenset[int]] = field(default_factory=dict)
    repairs: tuple[Repair, ...] = ()

    def known_culprits(self, selection: Selection, failure: Failure) -> list[int]:
        """Indices of the units that were to blame when the same failed before, if all are cut again."""
        first = {_first_class(unit): index for index, unit in enumerate(selection.units) if selection.levels[index]}
        known = self.culprits.get(failure.key, frozenset())
        return sorted(first[label] for label in known) if known <= first.keys() else []

    def without_infeasible_widths(self, unit: PrunableUnit) -> PrunableUnit:
        """The unit without the widths at which the network was seen not to run."""
        if not self.infeasible_widths:
            return unit
        first = _first_class(unit)
        feasible = np.array([(first, width) not in self.infeasible_widths for width in unit.widths.tolist()])
        reasons = [reason for (known, _), reason in self.infeasible_widths.items() if known == first]
        return replace(unit, widths=unit.widths[feasible], losses=unit.losses[feasible[1:]],
                       failure=reasons[-1] if reasons else "")

    def record(self, coupling: Coupling, selection: Selection, failing: Sequence[int], failure: Failure) -> FailureLog:
        """The log with a failure of some of the selection's units, by their indices, added."""
        blamed = frozenset(_first_class(selection.units[index]) for index in failing)
        log = replace(self, culprits={**self.culprits, failure.key: blamed},
                      repairs=tuple(dict.fromkeys((*self.repairs, *failure.repairs))))
        equal = log._with_equal_widths(coupling, [selection.units[index] for index in failing], failure)
        kinds = {_kind(coupling, selection.units[index]) for index in failing}
        for index, (unit, level) in enumerate(zip(selection.units, selection.levels, strict=True)):
            if equal is None and (index in failing or (level and _kind(coupling, unit) in kinds)):
                log = log._without(coupling, unit, level, failure)
        log = log if equal is None else equal
        # With new ties classes are numbered anew, and other units are made: what goes by their numbers is dropped.
        return log if log.couples_like(self) else replace(log, infeasible_widths={}, culprits={})

    def couples_like(self, other: FailureLog) -> bool:
        """Whether the network's channels are coupled alike with both logs."""
        return (self.ties, self.head_widths, self.equal_widths) == (
            other.ties, other.head_widths, other.equal_widths)

    def _with_equal_widths(self, coupling: Coupling, failing: Sequence[PrunableUnit],
                           failure: Failure) -> FailureLog | None:
        """The log with what the failed operation makes as wide as units to blame; None where that is nothing new."""
        pairs: set[EqualWidths] = set()
        for unit in failing:
            fitting = (one for one in failure.equal_widths if (rows := one.rows(coupling)) is not None
                       and np.isin(rows[0], unit.classes).all() and not np.isin(rows[1], unit.classes).all())
            pairs |= {sister for one in islice(fitting, 1) for sister in in_sister_modules(coupling, one)}
        return replace(self, equal_widths=self.equal_widths | pairs) if pairs - self.equal_widths else None

    def _without(self, coupling: Coupling, unit: PrunableUnit, level: int, failure: Failure) -> FailureLog:
        """Exclude a width of a unit; after some widths tie its rows; after that keep its channels.

        Where heads can't go whole, their widths are tried first.
        """
        classes = set(unit.classes.tolist())
        heads = {number for number, members in coupling.whole_heads.items() if not classes.isdisjoint(members.tolist())}
        if heads - self.head_widths:
            return replace(self, head_widths=self.head_widths | heads)
        rows = [rows for rows in coupling.constraints if rows.labels.flat[0] in classes
                and rows.index[0] != LEARNT] if unit.tied else []
        if failure.classes.isdisjoint(classes) and not failure.read_as_numbers.isdisjoint(classes):
            rows = []  # other channels are shaped by this number: no other width fits them
        untied = {matrix.index for matrix in rows} - self.ties
        first = _first_class(unit)
        if rows and sum(known == first for known, _ in self.infeasible_widths) < MAX_WIDTHS_TRIED:
            width = int(unit.widths[level])
            return replace(self, infeasible_widths={**self.infeasible_widths, (first, width): failure.reason})
        if untied:
            return replace(self, ties=self.ties | untied)
        stays = [(dim.name, dim.dim, index, failure.reason) for dim in coupling.labeled_dims
                 for index in np.flatnonzero(np.isin(dim.labels, unit.classes)).tolist()]
        return replace(self, stays=(*self.stays, *stays))

    def protected(self, coupling: Coupling) -> dict[int, str]:
        """Class of channels -> why it stays, in the numbering of a coupling."""
        return {int(coupling.by_dimension[name, dim].labels[index]): reason for name, dim, index, reason in self.stays}


def _first_class(unit: PrunableUnit) -> int:
    return int(unit.classes.min())


def _kind(coupling: Coupling, unit: PrunableUnit) -> Kind:
    """What kinds of layers a unit's channels touch, in which dimensions, and how many of them."""
    inside = np.zeros(coupling.num_classes, dtype=bool)
    inside[unit.classes] = True
    modules = coupling.graphs[0].modules
    touched = []
    for dim in coupling.labeled_dims:
        count = int(np.count_nonzero(inside[dim.labels]))
        if count:
            owner, _, attribute = dim.name.rpartition(".")
            touched.append((modules.get(owner, ""), attribute, dim.dim, count))
    return unit.tied, tuple(sorted(touched))
