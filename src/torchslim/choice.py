"""What the caller lets be cut: the choice as a value, what it leaves alone, and what can go, least important first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchslim.budget import Bundle, Limit, Meter, Selection, Shares, free_bundle, matches, row_bundle, select
from torchslim.channels import ChannelGroup
from torchslim.coupling import Coupling
from torchslim.errors import RequestError
from torchslim.importance import Criterion, Evidence, score
from torchslim.labels import Rows, Touch

Scope = str | Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """What the caller allows to be cut, and how it is chosen."""

    importance: Criterion
    scope: Scope = "global"
    shortcuts: bool = True
    round_to: int = 1
    min_channels: int = 1
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.scope, str) and self.scope not in ("global", "uniform"):
            raise RequestError(f"scope: got {self.scope!r}, wanted 'global', 'uniform' or a dict of pattern: share")
        if not isinstance(self.scope, str):
            for pattern, share in self.scope.items():
                if not 0 < share <= 1:
                    raise RequestError(f"scope: {pattern!r}: {share} is no share; wanted a number in (0, 1], the "
                                       "share of channels kept")
        for name, value in (("round_to", self.round_to), ("min_channels", self.min_channels)):
            if not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}: got {value!r}, wanted an int of at least 1")


def as_patterns(patterns: Sequence[str], name: str) -> tuple[str, ...]:
    """Patterns of layer names, as `only=` and `exclude=` take them.

    Raises:
        RequestError: a single text, which is a sequence of letters, or no texts at all.
    """
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise RequestError(f"{name}: got {patterns!r}, wanted a sequence of layer-name patterns such as ['layer1.*']")
    return tuple(patterns)


def protected(coupling: Coupling, choice: Choice) -> dict[int, str]:
    """Class of channels -> why it stays, before any budget.

    Raises:
        RequestError: a pattern that fits no layer.
    """
    reasons: dict[int, str] = {}
    makers = {layer for group in coupling.groups for layer in group.makers}
    for name, patterns in (("only", choice.only), ("exclude", choice.exclude),
                           ("scope", () if isinstance(choice.scope, str) else tuple(choice.scope))):
        for pattern in patterns:
            if not any(matches([layer], [pattern]) for layer in makers):
                raise RequestError(f"{name}: no layer that makes channels matches {pattern!r}; layers are named like "
                                   f"{', '.join(sorted(makers)[:3])}")
    for group in coupling.groups:
        reason = group.frozen
        if not reason and group.shortcut and not choice.shortcuts:
            reason = "on a shortcut, and shortcuts=False"
        if not reason and choice.only and not matches(group.makers, choice.only):
            reason = "not among only="
        if not reason and any(matches([layer], choice.exclude) for layer in group.makers):
            reason = "among exclude="
        if reason:
            reasons.update(dict.fromkeys(group.classes.tolist(), reason))
    return reasons


def bundles_of(coupling: Coupling, choice: Choice, left_alone: dict[int, str],
               evidence: Evidence) -> tuple[list[Bundle], Shares]:
    """What can be removed, and the score of every class of channels.

    Classes that must lose as many as some that stay are added to `left_alone`.
    """
    tied = _tied_rows(coupling, left_alone)
    free = [g for g in coupling.groups if left_alone.keys().isdisjoint(g.classes.tolist())]
    evidence.gains = gains(coupling)
    found = score(free, choice.importance, evidence)
    scores = np.zeros(coupling.classes)
    for group, own in zip(free, found, strict=True):
        scores[group.classes] = own
    in_any_row = np.zeros(coupling.classes, dtype=bool)
    stays = np.zeros(coupling.classes, dtype=bool)
    stays[list(left_alone)] = True
    made = widths_of(coupling)
    bundles = []
    for matrices in tied:
        in_rows = np.zeros(coupling.classes, dtype=bool)
        in_rows[np.concatenate([m.labels.ravel() for m in matrices])] = True
        in_any_row |= in_rows
        if not (stays & in_rows).any():
            name = next((g.name for g in coupling.groups if in_rows[g.classes].any()), "rows of computed channels")
            counts = [int(np.count_nonzero(in_rows[touch.labels])) for touch in made]
            bundles.append(row_bundle(name, matrices, [n for n in counts if n], scores, choice.round_to,
                                      choice.min_channels))
    needed = np.zeros(coupling.classes, dtype=bool)
    for part in coupling.parts:
        # Channels that stay anyway count; of equal ones the first is taken.
        classes = np.unique(part)
        needed[classes[np.lexsort((classes, -scores[classes], ~stays[classes]))[:2]]] = True
    bundles += [free_bundle(group, own, choice.round_to, choice.min_channels, needed[group.classes])
                for group, own in zip(free, found, strict=True) if not in_any_row[group.classes].any()]
    return bundles, scores


def gains(coupling: Coupling) -> Callable[[ChannelGroup], float]:
    """From a group to the multiply-adds that go when one of its channels goes, and no other."""
    meter = Meter(coupling.macs)

    def gain(group: ChannelGroup) -> float:
        shares = np.ones(coupling.classes)
        shares[group.classes[0]] = 0
        return float(meter.total - meter(shares))

    return gain


def _tied_rows(coupling: Coupling, left_alone: dict[int, str]) -> list[list[Rows]]:
    """Matrices of rows, those that share a channel together. One channel that stays keeps all of them."""
    home = np.full(coupling.classes, -1)
    found: dict[int, list[Rows]] = {}
    for place, matrix in enumerate(coupling.rows):
        classes = matrix.labels.ravel()
        met = np.unique(home[classes])
        found[place] = [matrix, *(other for old in met[met >= 0].tolist() for other in found.pop(old))]
        home[np.isin(home, met[met >= 0])] = place
        home[classes] = place
    stays = np.zeros(coupling.classes, dtype=bool)
    stays[list(left_alone)] = True
    for place in np.unique(home[stays & (home >= 0)]).tolist():
        own = np.flatnonzero(home == place)
        reason = left_alone[int(own[stays[own]][0])]
        for one in own.tolist():
            left_alone.setdefault(one, f"must lose as many as channels that stay ({reason})")
    return list(found.values())


def selected(coupling: Coupling, bundles: Sequence[Bundle], limits: Sequence[Limit], choice: Choice) -> Selection:
    """How far each bundle goes down, for the limits and the choice's scope."""
    if choice.scope == "uniform":
        bundles = [_uniform(bundle) for bundle in bundles]
    floor = {}
    ruled = []
    if not isinstance(choice.scope, str):
        by_class = {int(one): group for group in coupling.groups for one in group.classes}
        for place, bundle in enumerate(bundles):
            layers = {layer for one in bundle.classes.tolist() for layer in by_class[one].makers}
            share = _ruled(sorted(layers), choice.scope)
            if share is not None:
                least = share * bundle.kept[0]
                floor[place] = int((bundle.kept >= least).sum()) - 1
                ruled.append(place)
    fixed = [Bundle(b.name, b.classes, b.kept[: floor[p] + 1], b.losses[: floor[p]], b.tied) if p in ruled else b
             for p, b in enumerate(bundles)]
    return select(coupling, fixed, limits, floor, evenly=choice.scope == "uniform")


def _ruled(layers: Sequence[str], scope: Mapping[str, float]) -> float | None:
    """The share that a scope keeps of what these layers make: of the first pattern that all match; where several do it
    between them, the largest."""
    for pattern, share in scope.items():
        if matches(layers, [pattern]):
            return share
    own = [next((share for pattern, share in scope.items() if matches([layer], [pattern])), None) for layer in layers]
    return None if None in own else max((share for share in own if share is not None), default=None)


def _uniform(bundle: Bundle) -> Bundle:
    """The same channels in the same order, each removal priced by the share that is then gone."""
    return Bundle(bundle.name, bundle.classes, bundle.kept, 1 - bundle.kept[1:] / bundle.kept[0], bundle.tied)


def stuck(bundles: Sequence[Bundle]) -> dict[int, str]:
    """Class of channels -> why it stays, where a bundle has no smaller width to go to."""
    found: dict[int, str] = {}
    for bundle in bundles:
        if len(bundle.kept) == 1:
            why = ("no smaller number of channels fits all the rows that must lose equally many" if bundle.tied else
                   "the least width already (a group keeps 2 channels; min_channels= and round_to= may ask for more)")
            found.update(dict.fromkeys(bundle.classes.tolist(), why))
    return found


def widths_of(coupling: Coupling) -> list[Touch]:
    """The dimensions along which layers make channels: what is meant by their widths."""
    makes = {(m.name, m.dim) for group in coupling.groups for m in group.members if m.role in ("makes", "gates")}
    return [touch for touch in coupling.touches if (touch.name, touch.dim) in makes]
