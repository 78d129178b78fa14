"""Decide what to cut: model -> Plan; and the whole way in one call: plan, apply, verify.

A plan is made on shapes: the network is traced, its channels are coupled and scored, and the budget says how many of
each group stay. Then the network is traced again *at its slim widths*. Every channel of the slim run must touch the
same parameters as a channel of the original run: which original channels stay, and in which order, follows from that,
and a width that the model's code remembers shows up here and not in the user's hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from torchslim.compensation.compensate import compensate as refitted
from torchslim.costs.cost_models import Meter, PeakMeter
from torchslim.coupling.coupling import Coupling, Scaling, couple
from torchslim.coupling.unreached import note
from torchslim.errors import ProofError, RequestError
from torchslim.importance import Evidence, Importance, criterion
from torchslim.importance.gradients import Loss
from torchslim.latency.predictor import LatencyPredictor
from torchslim.latency.target import Backend, LatencyTarget, latency_target
from torchslim.planning.budget_notes import remarks
from torchslim.planning.candidates import (
    Choice,
    Scope,
    as_patterns,
    bundles_of,
    compared,
    protected,
    selected,
    stuck,
    unruled,
    widths_of,
)
from torchslim.planning.channel_matching import Cut, culprits, cut_as
from torchslim.planning.failures import Trouble
from torchslim.planning.knapsack import idle
from torchslim.planning.selection import Bundle, Limit, Selection, as_count
from torchslim.proof.verification import differences
from torchslim.rules.options import CouplingOptions
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Budget, LeftAlone, Plan
from torchslim.tracing.runs import trace_modes
from torchslim.utils.inputs import Inputs, unwrap

TOLERANCE = 1e-6
"""Largest relative error at which `prune` accepts a cut; a correct one is at about 1e-15."""


@torch.inference_mode(False)
def plan(model: nn.Module, inputs: Inputs, *, macs: float | None = None, params: float | None = None,
         channels: float | None = None, memory: float | None = None, latency: float | str | None = None,
         backend: str | Backend | None = None, importance: Importance = "l2", scope: Scope = "global",
         shortcuts: bool = True, round_to: int = 1, min_channels: int = 1, min_kept: float = 0.0,
         only: Sequence[str] = (), exclude: Sequence[str] = (), allow_approximate: bool = False,
         whole_groups: bool = False, data: Iterable[Any] | None = None, loss: Loss | None = None, seed: int = 0,
         original: nn.Module | None = None) -> Plan:
    """Decide which channels stay, and touch nothing.

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with: a tensor, a tuple, a list (the one argument) or a dict of keywords. Costs are
            counted for these very inputs.
        macs, params, channels, memory: what is *kept*, alone or together: a float in (0, 1] is a share of today, an
            int a count (multiply-adds, parameters, channels that layers make, bytes of activations at the peak).
            What keeps the plan from meeting them closely is in its notes, with the nearest feasible budget.
        latency: the time kept of one call, measured: a share, an int of nanoseconds or a text such as "3ms".
        backend: where the network is to be fast, and is timed: "eager" (the default where a latency is asked for),
            "channels-last", "compiled", "onnxruntime", "openvino", "cuda", or a clock of your own
            (`torchslim.latency.target.Backend`). With other budgets alone it says to meet them by cuts that save time
            there.
        importance: what ranks the channels: "l2", "l1", "bn_scale", "fpgm", "lamp", "activation", "taylor", "hessian",
            "random", a name with options ("l2:max"), an instance of a criterion (`torchslim.importance`), or a
            callable(group) -> one score a channel, higher for channels that matter more.
        scope: "global" compares scores over the whole network, "uniform" keeps the same share of every group; a dict
            of layer-name pattern -> share of channels kept rules the groups whose layers all match (several patterns:
            the largest share), and the budget, if any, the others.
        shortcuts: False leaves alone each group that enters an addition or concatenation or has several readers.
        round_to: kept channels are multiples of this (or all).
        min_channels: the least that a group keeps.
        min_kept: the least share of its channels that a group keeps: 0.1 lets no group lose more than nine tenths.
        only, exclude: patterns of layer names whose output channels may, or may not, go.
        allow_approximate: also cut channels that a layer norm or its like mixes; the result is then no exact cut.
        whole_groups: grouped convolutions lose whole groups; by default each group loses equally many channels.
        data: batches of inputs, for "activation"; of (inputs, targets) where there is a loss, for "taylor" and
            "hessian". Other criteria do not look at it.
        loss: of outputs and targets: torch.nn.functional.cross_entropy, say.
        seed: of importance="random".
        original: the network that the model was cut from: shares (of budgets, by pattern, `min_kept`, "uniform") are
            then of its costs and widths, not of today's.

    Raises:
        RequestError: nothing was asked, or a value is none of these; or the backend can't run here.
        ExportError: the network can't be run in the backend.
        TraceError: the model fails on these inputs.
    """
    model = unwrap(model)
    choice = Choice(criterion(importance), scope, shortcuts, round_to, min_channels, min_kept,
                    as_patterns(only, "only"), as_patterns(exclude, "exclude"), seed)
    asked = {"macs": macs, "params": params, "channels": channels, "memory": memory}
    if latency is None and all(value is None for value in asked.values()) and isinstance(scope, str):
        raise RequestError("plan: nothing was asked; give macs=, params=, channels=, memory= or latency= (what is "
                           "kept), or scope= with a share by pattern")
    evidence = Evidence(model, inputs, data, loss, seed)
    choice.importance.check(evidence)
    graphs = trace_modes(model, inputs)
    coupling = couple(graphs, CouplingOptions(allow_approximate, whole_groups))
    if original is not None:
        whole = compared(couple(trace_modes(unwrap(original), inputs), coupling.options), coupling)
        choice = replace(choice, original=whole)
        asked |= {limit.resource: max(1, limit.most) for limit in _limits(whole, asked)}
        before = latency_target(unwrap(original), inputs, whole.graphs[0], latency, backend)
        latency = latency if before is None else before.budget_ns
    target = latency_target(model, inputs, graphs[0], latency, backend)
    trouble = Trouble()
    while True:
        meter = None if target is None else target.predictor(coupling)
        limits = _limits(coupling, asked, target, meter)
        left_alone = {**protected(coupling, choice), **trouble.frozen(coupling)}
        bundles, scores = bundles_of(coupling, choice, left_alone, evidence)
        bundles = [trouble.without_impossible(b) for b in bundles]
        selection = selected(coupling, bundles, limits, choice, meter)
        cut = cut_as(selection, model, inputs, coupling, scores)
        if isinstance(cut, Cut):
            slow = {} if meter is None else _slow(meter, selection, bundles, coupling)
            reasons = {**unruled(coupling, selection, choice), **stuck(selection.bundles, choice), **slow, **left_alone}
            found = _finished(coupling, cut, limits, selection, choice, reasons, meter)
            if target is not None:
                found, target = target.measure_and_update(found, partial(apply, model, found))
            if target is None:
                return found
            continue
        ties = len(trouble.ties)
        places = trouble.known_culprits(selection, cut) or culprits(
            cut, selection, model, inputs, coupling, scores)
        trouble.remember(selection, places, cut)
        for place in places:
            trouble.meet(coupling, selection, place, cut.reason)
        if len(trouble.ties) > ties:
            trouble.renumbered()
            coupling = couple(graphs, replace(coupling.options, tied_constraints=frozenset(trouble.ties)))


def prune(model: nn.Module, inputs: Inputs, *, compensate: bool = False, **options: Any) -> tuple[nn.Module, Plan]:
    """Plan, apply and verify, in one call; the options are those of `plan`.

    Args:
        model, inputs: see `plan`.
        compensate: after the proof, refit what is left to the original's outputs on `data=` (`torchslim.compensate`);
            the targets of labelled data play no part.
        options: see `plan`.

    Returns:
        The slim model, in the mode of the given one, and its plan.

    Raises:
        RequestError: see `plan`; or there is no data to compensate on.
        ProofError: the slim network does not equal its silenced original; the slim network is not returned.
    """
    evidence = Evidence(model, inputs, options.get("data"), options.get("loss"))
    if compensate:
        if evidence.data is None:
            raise RequestError("prune: compensate=True asks for data=, batches of what the model is called with")
        options["data"] = evidence.listed  # an iterator gives its batches once
    decided = plan(model, inputs, **options)
    slim = apply(model, decided)
    found = differences(model, slim, decided, inputs)
    wrong = next((d for d in found if not d.error <= TOLERANCE), None)
    if wrong is not None:
        raise ProofError(f"prune: `{wrong.where}` of the slim network differs from the silenced original's by "
                         f"{wrong.error:.1e} (relative), at most {TOLERANCE:.0e} is accepted; leave the layers before "
                         "it alone with exclude=")
    return refitted(model, slim, decided, evidence.batches) if compensate else slim, decided


def _limits(coupling: Coupling, asked: Mapping[str, float | None], target: LatencyTarget | None = None,
            timer: LatencyPredictor | None = None) -> list[Limit]:
    meters: dict[str, Callable[[], Meter]] = {
        "macs": lambda: Meter(coupling.macs), "params": lambda: Meter(coupling.params),
        "channels": lambda: _channel_meter(coupling), "memory": lambda: PeakMeter(coupling.tapes[0])}
    found = {resource: meters[resource]() for resource, value in asked.items() if value is not None}
    limits = [Limit(resource, meter, as_count(asked[resource] or 0, meter.total, resource))
              for resource, meter in found.items()]
    if target is not None and target.budget_ns is not None and timer is not None:
        limits.append(Limit("latency", timer, target.budget_ns))
    return limits


def _channel_meter(coupling: Coupling) -> Meter:
    return Meter([Scaling(len(touch.labels), (touch.labels,)) for touch in widths_of(coupling)])


def _finished(coupling: Coupling, cut: Cut, limits: Sequence[Limit], selection: Selection, choice: Choice,
              left_alone: Mapping[int, str], meter: LatencyPredictor | None) -> Plan:
    shares = cut.stays.astype(np.float64)
    budgets = tuple(Budget(limit.resource, limit.meter.total, limit.most, limit.meter(shares)) for limit in limits)
    own = {limit.resource: 1 for limit in limits if limit.resource != "latency"}
    wholes = {limit.resource: limit.meter.total for limit in _limits(choice.original, own)} if choice.original else {}
    notes = remarks(limits, budgets, selection, coupling.classes, wholes)
    mixed = list(dict.fromkeys(m.reason for m in coupling.mixed if (shares[m.labels] == 0).any()))
    notes += [f"approximate: {reason}" for reason in mixed]
    notes += note(coupling.graphs)
    notes += [f"no rule for {name}: what it reads stays" for name in coupling.unknown]
    settings = {"importance": str(choice.importance),
                "scope": choice.scope if isinstance(choice.scope, str) else dict(choice.scope),
                "shortcuts": choice.shortcuts, "round_to": choice.round_to, "min_channels": choice.min_channels,
                "min_kept": choice.min_kept,
                "only": list(choice.only), "exclude": list(choice.exclude),
                "allow_approximate": bool(mixed),
                "whole_groups": coupling.options.whole_groups, "seed": choice.seed,
                "shares_of": "today" if choice.original is None else "original"}
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


def _slow(meter: LatencyPredictor, selection: Selection, bundles: Sequence[Bundle],
          coupling: Coupling) -> dict[int, str]:
    """Class of channels -> why it stays, where a cut would save no time."""
    return {one: "a cut here would not make it faster"
            for place in idle(meter, selection, bundles, coupling.classes) for one in bundles[place].classes.tolist()}
