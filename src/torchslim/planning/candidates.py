"""What the caller lets be cut: the choice as a value, what it leaves alone, and what can go, least important first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from numbers import Real

import numpy as np

from torchslim.costs.cost_models import Meter, Shares
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance import Criterion, Evidence, score
from torchslim.latency.predictor import LatencyPredictor
from torchslim.planning.knapsack import select_by_time, stairs
from torchslim.planning.selection import Bundle, Limit, Selection, free_bundle, row_bundle, select
from torchslim.rules.labels import EqualCountConstraint, LabeledDim
from torchslim.utils.patterns import all_match

Scope = str | Mapping[str, float]

TINY = 1e-9
"""Less than any share of channels: 0.1 of 30 is 3, whatever the product of floats says."""


@dataclass(frozen=True)
class Choice:
    """What the caller allows to be cut, and how it is chosen.

    See `torchslim.plan`; of `original`, whose widths shares refer to, there is the coupling.
    """

    importance: Criterion
    scope: Scope = "global"
    shortcuts: bool = True
    round_to: int = 1
    min_channels: int = 1
    min_kept: float = 0.0
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    original: Coupling | None = None

    def __post_init__(self) -> None:
        if self.scope not in ("global", "uniform") and not isinstance(self.scope, Mapping):
            raise RequestError(f"scope: got {self.scope!r}, wanted 'global', 'uniform' or a dict of pattern: share")
        if not isinstance(self.scope, str):
            for pattern, share in self.scope.items():
                if not isinstance(pattern, str):
                    raise RequestError(f"scope: {pattern!r} is no pattern of layer names; wanted one such as "
                                       "'layer1.*'")
                if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
                    raise RequestError(f"scope: {pattern!r}: {share} is no share; wanted a number in (0, 1], the "
                                       "share of channels kept")
        for name, value in (("round_to", self.round_to), ("min_channels", self.min_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}: got {value!r}, wanted an int of at least 1")
        if isinstance(self.min_kept, bool) or not isinstance(self.min_kept, Real) or not 0 <= self.min_kept <= 1:
            raise RequestError(f"min_kept: got {self.min_kept!r}, wanted a number in [0, 1], the share of each group's "
                               "channels that stays at the least")
        for pattern, share in () if isinstance(self.scope, str) else self.scope.items():
            if share < self.min_kept:
                raise RequestError(f"scope: {pattern!r}: {share} is below min_kept={self.min_kept}, by which no group "
                                   "loses so much; leave one of them out")


def as_patterns(patterns: Sequence[str], name: str) -> tuple[str, ...]:
    """Patterns of layer names, as `only=` and `exclude=` take them.

    Raises:
        RequestError: a single text, which is a sequence of letters, or no texts at all.
    """
    listed = () if isinstance(patterns, str) or not isinstance(patterns, Iterable) else tuple(patterns)
    if listed == () != patterns or not all(isinstance(pattern, str) for pattern in listed):
        raise RequestError(f"{name}: got {patterns!r}, wanted a sequence of layer-name patterns such as ['layer1.*']")
    return listed


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
            if not any(all_match([layer], [pattern]) for layer in makers):
                raise RequestError(f"{name}: no layer that makes channels matches {pattern!r}; layers are named like "
                                   f"{', '.join(sorted(makers)[:3])}")
    for group in coupling.groups:
        reason = group.frozen
        if not reason and group.shortcut and not choice.shortcuts:
            reason = "on a shortcut, and shortcuts=False"
        if not reason and choice.only and not all_match(group.makers, choice.only):
            reason = "not among only="
        if not reason and any(all_match([layer], choice.exclude) for layer in group.makers):
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
    for part in coupling.sub_tensors:
        # Channels that stay anyway count; of equal ones the first is taken.
        classes = np.unique(part)
        needed[classes[np.lexsort((classes, -scores[classes], ~stays[classes]))[:2]]] = True
    bundles += [free_bundle(group, own, choice.round_to, choice.min_channels, needed[group.classes])
                for group, own in zip(free, found, strict=True) if not in_any_row[group.classes].any()]
    if choice.min_kept:
        wholes = _wholes(coupling, bundles, choice)
        bundles = [_down_to(bundle, choice.min_kept * whole) for bundle, whole in zip(bundles, wholes, strict=True)]
    return bundles, scores


def _wholes(coupling: Coupling, bundles: Sequence[Bundle], choice: Choice) -> list[float]:
    """Of each bundle how many there are of what it keeps; in the original, where shares refer to that."""
    if choice.original is None:
        return [float(bundle.kept[0]) for bundle in bundles]
    by_class = {int(one): group for group in coupling.groups for one in group.classes}
    found = []
    for bundle in bundles:
        groups = {id(by_class[one]): by_class[one] for one in bundle.classes.tolist() if one in by_class}
        members = [m for group in groups.values() for m in group.members]
        makers = [(m.name, m.dim) for m in members if m.role == "makes"] or [(m.name, m.dim) for m in members]
        before, now = (sum(len(of[key].labels) for key in makers)
                       for of in (choice.original.by_dimension, coupling.by_dimension))
        found.append(float(bundle.kept[0]) * before / now)
    return found


def _down_to(bundle: Bundle, least: float) -> Bundle:
    """The same channels, of which so many stay at the least."""
    allowed = max(1, int((bundle.kept >= least - TINY).sum()))
    return replace(bundle, kept=bundle.kept[:allowed], losses=bundle.losses[:allowed - 1],
                   least=min(max(bundle.least, ceil(least - TINY)), int(bundle.kept[0])))


def compared(original: Coupling, coupling: Coupling) -> Coupling:
    """The original of which another network is a cut.

    Raises:
        RequestError: the other is no cut of it.
    """
    for (name, dim), touch in coupling.by_dimension.items():
        before = original.by_dimension.get((name, dim))
        if before is None or len(before.labels) < len(touch.labels):
            found = "no such tensor" if before is None else f"{len(before.labels)} channels along dimension {dim}"
            raise RequestError(f"original: `{name}`: {found} in it, and {len(touch.labels)} in the model; give the "
                               "network that the model was cut from")
    return original


def gains(coupling: Coupling) -> Callable[[ChannelGroup], float]:
    """From a group to the multiply-adds that go when one of its channels goes, and no other."""
    meter = Meter(coupling.macs)

    def gain(group: ChannelGroup) -> float:
        shares = np.ones(coupling.classes)
        shares[group.classes[0]] = 0
        return float(meter.total - meter(shares))

    return gain


def _tied_rows(coupling: Coupling, left_alone: dict[int, str]) -> list[list[EqualCountConstraint]]:
    """Matrices of rows, those that share a channel together. One channel that stays keeps all of them."""
    home = np.full(coupling.classes, -1)
    found: dict[int, list[EqualCountConstraint]] = {}
    for place, matrix in enumerate(coupling.constraints):
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


def selected(coupling: Coupling, bundles: list[Bundle], limits: Sequence[Limit], choice: Choice,
             meter: LatencyPredictor | None = None) -> Selection:
    """How far each bundle goes down, for the limits and the choice's scope; where a meter of time is given, by steps
    that make the network faster."""
    wholes = _wholes(coupling, bundles, choice)
    if meter is not None:
        bundles = stairs(meter, bundles, coupling.classes)
    if choice.scope == "uniform":
        bundles = [_uniform(bundle, whole) for bundle, whole in zip(bundles, wholes, strict=True)]
    floor = {}
    if not isinstance(choice.scope, str):
        for place, layers in enumerate(_makers(coupling, bundles)):
            share, bundle = _ruled(layers, choice.scope), bundles[place]
            if share is not None:
                bundles[place] = _down_to(bundle, share * wholes[place])
                floor[place] = len(bundles[place].losses)
    if meter is not None and choice.scope != "uniform":
        return select_by_time(coupling, bundles, limits, meter, floor)
    return select(coupling, bundles, limits, floor, evenly=choice.scope == "uniform")


def _makers(coupling: Coupling, bundles: Sequence[Bundle]) -> list[list[str]]:
    """The layers that make the channels of each bundle."""
    by_class = {int(one): group for group in coupling.groups for one in group.classes}
    return [sorted({layer for one in bundle.classes.tolist() for layer in by_class[one].makers}) for bundle in bundles]


def unruled(coupling: Coupling, selection: Selection, choice: Choice) -> dict[int, str]:
    """Class of channels -> why it stays, where a scope names some of the layers that share it, and not all."""
    found: dict[int, str] = {}
    if isinstance(choice.scope, str):
        return found
    patterns = tuple(choice.scope)
    for bundle, layers, level in zip(selection.bundles, _makers(coupling, selection.bundles), selection.removals,
                                     strict=True):
        others = [layer for layer in layers if not all_match([layer], patterns)]
        if not level and others and len(others) < len(layers):
            found.update(dict.fromkeys(bundle.classes.tolist(), f"scope: `{others[0]}` shares these channels, and no "
                                                                "pattern matches it"))
    return found


def _ruled(layers: Sequence[str], scope: Mapping[str, float]) -> float | None:
    """The share that a scope keeps of what these layers make: of the first pattern that all match; where several do it
    between them, the largest."""
    for pattern, share in scope.items():
        if all_match(layers, [pattern]):
            return share
    own = [next((share for pattern, share in scope.items() if all_match([layer], [pattern])), None) for layer in layers]
    return None if None in own else max((share for share in own if share is not None), default=None)


def _uniform(bundle: Bundle, whole: float) -> Bundle:
    """The same channels in the same order, each removal priced by the share that is then gone."""
    return replace(bundle, losses=1 - bundle.kept[1:] / whole)


def stuck(bundles: Sequence[Bundle], choice: Choice) -> dict[int, str]:
    """Class of channels -> why it stays, where a bundle has no smaller width to go to."""
    found: dict[int, str] = {}
    least = "min_channels= and round_to=" if not choice.min_kept else "min_channels=, min_kept= and round_to="
    for bundle in bundles:
        if len(bundle.kept) == 1:
            why = ("no smaller number of channels fits all the rows that must lose equally many" if bundle.tied else
                   f"the least width already (a group keeps 2 channels; {least} may ask for more)")
            found.update(dict.fromkeys(bundle.classes.tolist(), why))
    return found


def widths_of(coupling: Coupling) -> list[LabeledDim]:
    """The dimensions along which layers make channels: what is meant by their widths."""
    makes = {(m.name, m.dim) for group in coupling.groups for m in group.members if m.role in ("makes", "gates")}
    return [touch for touch in coupling.labeled_dims if (touch.name, touch.dim) in makes]
