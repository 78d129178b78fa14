"""Decide what to cut: model -> Plan; and the whole way in one call: plan, apply, verify.

A plan is made on shapes: the network is traced, its channels are coupled and scored, and the budget says how many of
each group stay. Then the network is traced again *at its slim widths*. Every channel of the slim run must touch the
same parameters as a channel of the original run: which original channels stay, and in which order, follows from that,
and a width that the model's code remembers shows up here and not in the user's hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from torchslim.budget import (
    Bundle,
    Limit,
    Meter,
    PeakMeter,
    Selection,
    Shares,
    as_count,
    free_bundle,
    matches,
    remarks,
    row_bundle,
    select,
)
from torchslim.calling import Inputs, unwrap
from torchslim.channels import ChannelGroup
from torchslim.clockmeter import ClockMeter
from torchslim.coupling import Coupling, Scaling, couple
from torchslim.deadlines import Backend, Deadline, deadline
from torchslim.errors import ProofError, RequestError
from torchslim.gradients import Gradients, Loss
from torchslim.importance import ON_LABELS, score
from torchslim.labels import Rows, Touch
from torchslim.matching import Cut, culprits, cut_as
from torchslim.modules import tensors_of
from torchslim.pacing import idle, select_by_time, stairs
from torchslim.plans import Budget, LeftAlone, Plan
from torchslim.proof import differences
from torchslim.surgery import apply
from torchslim.tapes import tapes
from torchslim.terms import Terms
from torchslim.trouble import Trouble
from torchslim.unread import note

Scope = str | Mapping[str, float]

TOLERANCE = 1e-6
"""Largest relative error at which `prune` accepts a cut; a correct one is at about 1e-15."""


@dataclass(frozen=True)
class Choice:
    """What the caller allows to be cut, and how it is chosen."""

    importance: str | Callable[[ChannelGroup], object] = "l2"
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


@torch.inference_mode(False)
def plan(model: nn.Module, inputs: Inputs, *, macs: float | None = None, params: float | None = None,
         channels: float | None = None, memory: float | None = None, latency: float | str | None = None,
         backend: str | Backend | None = None,
         importance: str | Callable[[ChannelGroup], object] = "l2", scope: Scope = "global", shortcuts: bool = True,
         round_to: int = 1, min_channels: int = 1, only: Sequence[str] = (), exclude: Sequence[str] = (),
         allow_approximate: bool = False, whole_groups: bool = False, data: Iterable[Any] | None = None,
         loss: Loss | None = None, seed: int = 0) -> Plan:
    """Decide which channels stay, and touch nothing.

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with: a tensor, a tuple, a list (the one argument) or a dict of keywords. Costs are
            counted for these very inputs.
        macs, params, channels, memory: what is *kept*, alone or together: a float in (0, 1] is a share of today, an
            int a count (multiply-adds, parameters, output channels of all layers, bytes of activations at the peak).
        latency: the time kept of one call, measured: a share, an int of nanoseconds or a text such as "3ms".
        backend: where the network is to be fast, and is timed: "eager" (the default where a latency is asked for),
            "channels-last", "compiled", "onnxruntime", "openvino", "cuda", or a clock of your own
            (`torchslim.deadlines.Backend`). With other budgets alone it says to meet them by cuts that save time there.
        importance: "l2", "l1", "bn_scale", "fpgm", "lamp", "taylor", "hessian", "random" or a callable(group) -> one
            score a channel, higher for channels that matter more (`torchslim.importance`).
        scope: "global" compares scores over the whole network, "uniform" keeps the same share of every group; a dict
            of layer-name pattern -> share of channels kept rules the groups whose layers all match, and the budget, if
            any, the others.
        shortcuts: False leaves alone each group that enters an addition or concatenation or has several readers.
        round_to: kept channels are multiples of this (or all).
        min_channels: the least that a group keeps.
        only, exclude: patterns of layer names whose output channels may, or may not, go.
        allow_approximate: also cut channels that a layer norm or its like mixes; the result is then no exact cut.
        whole_groups: grouped convolutions lose whole groups; by default each group loses equally many channels.
        data: batches of (inputs, targets), for "taylor" and "hessian"; other criteria do not look at it.
        loss: of outputs and targets, likewise: torch.nn.functional.cross_entropy, say.
        seed: of importance="random".

    Raises:
        RequestError: nothing was asked, or a value is none of these; or the backend can't run here.
        ExportError: the network can't be run in the backend.
        TraceError: the model fails on these inputs.
    """
    model = unwrap(model)
    choice = Choice(importance, scope, shortcuts, round_to, min_channels, _patterns(only, "only"),
                    _patterns(exclude, "exclude"), seed)
    asked = {"macs": macs, "params": params, "channels": channels, "memory": memory}
    if latency is None and all(value is None for value in asked.values()) and isinstance(scope, str):
        raise RequestError("plan: nothing was asked; give macs=, params=, channels=, memory= or latency= (what is "
                           "kept), or scope= with a share by pattern")
    gradients = _gradients(model, importance, data, loss)
    graphs = tapes(model, inputs)
    coupling = couple(graphs, Terms(allow_approximate, whole_groups))
    clock = deadline(model, inputs, graphs[0], latency, backend)
    trouble = Trouble()
    while True:
        meter = None if clock is None else clock.meter(coupling)
        limits = _limits(coupling, asked, clock, meter)
        left_alone = {**_protected(coupling, choice), **trouble.frozen(coupling)}
        bundles, scores = _bundles(model, coupling, choice, left_alone, gradients)
        bundles = [trouble.without_impossible(b) for b in bundles]
        selection = _select(coupling, bundles, limits, choice, meter)
        cut = cut_as(selection, model, inputs, coupling, scores)
        if isinstance(cut, Cut):
            slow = {} if meter is None else _slow(meter, selection, bundles, coupling)
            reasons = {**_stuck(selection.bundles), **slow, **left_alone}
            found = _finished(coupling, cut, limits, selection, choice, reasons, meter)
            if clock is None or meter is None:
                return found
            if clock.confirmed(partial(apply, model, found), found, meter):
                return clock.noted(found)
            continue
        ties = len(trouble.ties)
        places = trouble.known_culprits(selection, cut) or culprits(
            cut, selection, model, inputs, coupling, scores)
        trouble.remember(selection, places, cut)
        for place in places:
            trouble.meet(coupling, selection, place, cut.reason)
        if len(trouble.ties) > ties:
            trouble.renumbered()
            coupling = couple(graphs, replace(coupling.terms, ties=frozenset(trouble.ties)))


def prune(model: nn.Module, inputs: Inputs, **options: Any) -> tuple[nn.Module, Plan]:
    """Plan, apply and verify, in one call; the options are those of `plan`.

    Returns:
        The slim model, in the mode of the given one, and its plan.

    Raises:
        ProofError: the slim network does not equal its silenced original; the slim network is not returned.
    """
    decided = plan(model, inputs, **options)
    slim = apply(model, decided)
    found = differences(model, slim, decided, inputs)
    wrong = next((d for d in found if not d.error <= TOLERANCE), None)
    if wrong is not None:
        raise ProofError(f"prune: `{wrong.where}` of the slim network differs from the silenced original's by "
                         f"{wrong.error:.1e} (relative), at most {TOLERANCE:.0e} is accepted; leave the layers before "
                         "it alone with exclude=")
    return slim, decided


def _patterns(patterns: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise RequestError(f"{name}: got {patterns!r}, wanted a sequence of layer-name patterns such as ['layer1.*']")
    return tuple(patterns)


def _limits(coupling: Coupling, asked: Mapping[str, float | None], clock: Deadline | None,
            timer: ClockMeter | None) -> list[Limit]:
    meters: dict[str, Callable[[], Meter]] = {
        "macs": lambda: Meter(coupling.macs), "params": lambda: Meter(coupling.params),
        "channels": lambda: _channel_meter(coupling), "memory": lambda: PeakMeter(coupling.tapes[0])}
    found = {resource: meters[resource]() for resource, value in asked.items() if value is not None}
    limits = [Limit(resource, meter, as_count(asked[resource] or 0, meter.total, resource))
              for resource, meter in found.items()]
    if clock is not None and clock.most is not None and timer is not None:
        limits.append(Limit("latency", timer, clock.most))
    return limits


def _channel_meter(coupling: Coupling) -> Meter:
    return Meter([Scaling(len(touch.labels), (touch.labels,)) for touch in _made(coupling)])


def _made(coupling: Coupling) -> list[Touch]:
    """The dimensions along which layers make channels: what is meant by their widths."""
    makes = {(m.name, m.dim) for group in coupling.groups for m in group.members if m.role in ("makes", "gates")}
    return [touch for touch in coupling.touches if (touch.name, touch.dim) in makes]


def _protected(coupling: Coupling, choice: Choice) -> dict[int, str]:
    """Class of channels -> why it stays, before any budget."""
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


def _gradients(model: nn.Module, importance: object, data: Iterable[Any] | None, loss: Loss | None) -> Gradients | None:
    """What a criterion that asks for a loss is told; None for the others, and where there is no data or no loss."""
    if not isinstance(importance, str) or importance not in ON_LABELS or data is None or loss is None:
        return None
    return Gradients(model, data, loss)


def _bundles(model: nn.Module, coupling: Coupling, choice: Choice, left_alone: dict[int, str],
             gradients: Gradients | None) -> tuple[list[Bundle], Shares]:
    """What can be removed, and the score of every class of channels."""
    tied = _tied_rows(coupling, left_alone)
    free = [g for g in coupling.groups if left_alone.keys().isdisjoint(g.classes.tolist())]
    found = score(tuple(free), tensors_of(model), choice.importance, choice.seed, gradients)
    scores = np.zeros(coupling.classes)
    for group, own in zip(free, found, strict=True):
        scores[group.classes] = own
    in_any_row = np.zeros(coupling.classes, dtype=bool)
    stays = np.zeros(coupling.classes, dtype=bool)
    stays[list(left_alone)] = True
    made = _made(coupling)
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


def _select(coupling: Coupling, bundles: Sequence[Bundle], limits: Sequence[Limit], choice: Choice,
            meter: ClockMeter | None) -> Selection:
    if meter is not None:
        bundles = stairs(meter, bundles, coupling.classes)
    if choice.scope == "uniform":
        bundles = [_uniform(bundle) for bundle in bundles]
    floor = {}
    ruled = []
    if not isinstance(choice.scope, str):
        by_class = {int(one): group for group in coupling.groups for one in group.classes}
        for place, bundle in enumerate(bundles):
            layers = {layer for one in bundle.classes.tolist() for layer in by_class[one].makers}
            shares = [share for pattern, share in choice.scope.items() if matches(sorted(layers), [pattern])]
            if shares:
                least = shares[0] * bundle.kept[0]
                floor[place] = int((bundle.kept >= least).sum()) - 1
                ruled.append(place)
    fixed = [Bundle(b.name, b.classes, b.kept[: floor[p] + 1], b.losses[: floor[p]], b.tied) if p in ruled else b
             for p, b in enumerate(bundles)]
    if meter is not None and choice.scope != "uniform":
        return select_by_time(coupling, fixed, limits, meter, floor)
    return select(coupling, fixed, limits, floor, evenly=choice.scope == "uniform")


def _uniform(bundle: Bundle) -> Bundle:
    """The same channels in the same order, each removal priced by the share that is then gone."""
    return Bundle(bundle.name, bundle.classes, bundle.kept, 1 - bundle.kept[1:] / bundle.kept[0], bundle.tied)


def _finished(coupling: Coupling, cut: Cut, limits: Sequence[Limit], selection: Selection, choice: Choice,
              left_alone: Mapping[int, str], meter: ClockMeter | None) -> Plan:
    shares = cut.stays.astype(np.float64)
    budgets = tuple(Budget(limit.resource, limit.meter.total, limit.most, limit.meter(shares)) for limit in limits)
    notes = remarks(limits, budgets, selection)
    mixed = list(dict.fromkeys(m.reason for m in coupling.mixed if (shares[m.labels] == 0).any()))
    notes += [f"approximate: {reason}" for reason in mixed]
    notes += note(coupling.graphs)
    notes += [f"no rule for {name}: what it reads stays" for name in coupling.unknown]
    settings = {"importance": choice.importance if isinstance(choice.importance, str) else "callable",
                "scope": choice.scope if isinstance(choice.scope, str) else dict(choice.scope),
                "shortcuts": choice.shortcuts, "round_to": choice.round_to, "min_channels": choice.min_channels,
                "only": list(choice.only), "exclude": list(choice.exclude),
                "allow_approximate": bool(mixed),
                "whole_groups": coupling.terms.whole_groups, "seed": choice.seed}
    return Plan(kept=cut.kept, readers=cut.readers, grouped=cut.grouped, mends=cut.mends, budgets=budgets,
                predicted={"macs": Meter(coupling.macs)(shares), "params": Meter(coupling.params)(shares),
                           **({} if meter is None else {"latency": meter(shares)})},
                left_alone=_left_alone(coupling, left_alone), notes=tuple(notes), settings=settings)


def _left_alone(coupling: Coupling, reasons: Mapping[int, str]) -> tuple[LeftAlone, ...]:
    """What stays, by group and reason; positions and other constants that no parameter shares are no channels."""
    parameters = {name for name, value in coupling.graphs[0].state.items() if value.source == "parameter"}
    found: dict[tuple[str, str], int] = {}
    for group in coupling.groups:
        if parameters.isdisjoint(m.name for m in group.members):
            continue
        for one in group.classes.tolist():
            if one in reasons:
                key = (group.name, reasons[one])
                found[key] = found.get(key, 0) + 1
    return tuple(LeftAlone(name, count, reason) for (name, reason), count in found.items())


def _slow(meter: ClockMeter, selection: Selection, bundles: Sequence[Bundle], coupling: Coupling) -> dict[int, str]:
    """Class of channels -> why it stays, where a cut would save no time."""
    return {one: "a cut here would not make it faster"
            for place in idle(meter, selection, bundles, coupling.classes) for one in bundles[place].classes.tolist()}


def _stuck(bundles: Sequence[Bundle]) -> dict[int, str]:
    """Class of channels -> why it stays, where a bundle has no smaller width to go to."""
    found: dict[int, str] = {}
    for bundle in bundles:
        if len(bundle.kept) == 1:
            why = ("no smaller number of channels fits all the rows that must lose equally many" if bundle.tied else
                   "the least width already (a group keeps 2 channels; min_channels= and round_to= may ask for more)")
            found.update(dict.fromkeys(bundle.classes.tolist(), why))
    return found
