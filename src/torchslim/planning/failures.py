"""What planning has run into, and does not try again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from torchslim.coupling.coupling import Coupling
from torchslim.planning.channel_matching import Failure
from torchslim.planning.selection import Bundle, Selection

WIDTHS_TRIED = 4
"""How many widths of tied rows may turn out impossible before the rows are left alone."""

Kind = tuple[bool, tuple[tuple[str, str, int, int], ...]]


@dataclass
class Trouble:
    """Widths that are impossible, rows that are tied and channels that stay.

    Rows that must lose equally many may fit at one width and not at the next. So some widths are tried; then the n-th
    channels of all rows are tied together, which keeps every order; then they stay. Bundles alike, in sister modules,
    share their fate: the code that fails for one is the code that runs for the others.
    """

    impossible: set[tuple[int, int]] = field(default_factory=set)
    ties: set[int] = field(default_factory=set)
    stays: list[tuple[str, int, int, str]] = field(default_factory=list)
    blamed: dict[str, frozenset[int]] = field(default_factory=dict)

    def known_culprits(self, selection: Selection, failure: Failure) -> list[int]:
        """Places of the bundles that were to blame when the same operation went wrong, if all are cut again."""
        first = {int(bundle.classes.min()): place for place, bundle in enumerate(selection.bundles)
                 if selection.removals[place]}
        known = self.blamed.get(failure.where, frozenset())
        return sorted(first[one] for one in known) if known <= first.keys() else []

    def remember(self, selection: Selection, places: Sequence[int], failure: Failure) -> None:
        """Keep what a search for the culprits found: it takes many runs."""
        if failure.where:
            self.blamed[failure.where] = frozenset(int(selection.bundles[place].classes.min()) for place in places)

    def without_impossible(self, bundle: Bundle) -> Bundle:
        """The bundle without the widths that the network was seen not to run at."""
        if not self.impossible:
            return bundle
        first = int(bundle.classes.min())
        able = np.array([(first, n) not in self.impossible for n in bundle.kept.tolist()])
        return replace(bundle, kept=bundle.kept[able], losses=bundle.losses[able[1:]])

    def meet(self, coupling: Coupling, selection: Selection, place: int, reason: str) -> None:
        """Take note that a bundle of the selection, by its place, can't be cut to its level."""
        kind = _kind(coupling, selection.bundles[place])
        for other, (bundle, level) in enumerate(zip(selection.bundles, selection.removals, strict=True)):
            if other == place or (level and _kind(coupling, bundle) == kind):
                self._meet(coupling, bundle, level, reason)

    def _meet(self, coupling: Coupling, bundle: Bundle, level: int, reason: str) -> None:
        first = int(bundle.classes.min())
        own = set(bundle.classes.tolist())
        rows = [rows for rows in coupling.constraints if rows.labels.flat[0] in own] if bundle.tied else []
        untied = {r.index for r in rows} - self.ties
        if rows and sum(known == first for known, _ in self.impossible) < WIDTHS_TRIED:
            self.impossible.add((first, int(bundle.kept[level])))
        elif untied:
            self.ties |= untied
        else:
            for touch in coupling.labeled_dims:
                hit = np.flatnonzero(np.isin(touch.labels, bundle.classes))
                if len(hit):
                    self.stays += [(touch.name, touch.dim, place, reason) for place in hit.tolist()]

    def renumbered(self) -> None:
        """Forget what goes by the numbers of classes: with new ties they are numbered anew."""
        self.impossible.clear()
        self.blamed.clear()

    def frozen(self, coupling: Coupling) -> dict[int, str]:
        """Class of channels -> why it stays, in the numbering of this coupling."""
        return {int(coupling.by_dimension[name, dim].labels[place]): reason for name, dim, place, reason in self.stays}


def _kind(coupling: Coupling, bundle: Bundle) -> Kind:
    """What kinds of layers a bundle's channels touch, in which dimensions, and how many of them."""
    inside = np.zeros(coupling.classes, dtype=bool)
    inside[bundle.classes] = True
    modules = coupling.graphs[0].modules
    touched = []
    for touch in coupling.labeled_dims:
        count = int(np.count_nonzero(inside[touch.labels]))
        if count:
            owner, _, attribute = touch.name.rpartition(".")
            touched.append((modules.get(owner, ""), attribute, touch.dim, count))
    return bundle.tied, tuple(sorted(touched))
