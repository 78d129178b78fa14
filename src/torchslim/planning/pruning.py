"""Decide what to cut: model -> Plan; and the whole way in one call: plan, apply, verify.

A plan is made on shapes. The network is traced and its channels are coupled (`problem.py`). Then two loops follow. The
inner one (`feasible_cuts.py`) selects channels under the budgets (`candidates.py`, `selection.py`), traces the network
*at its slim widths* (`channel_matching.py`: every channel of the slim run must touch the same parameters as a channel
of the original run) and excludes what does not work, until a cut does. The outer one, `decide`, measures the cut
network where a time is asked for, and corrects the prediction until it holds. Nothing of either loop is kept in an
object that changes: what was learnt is returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import nn

from torchslim.compensation.compensate import compensate as refitted
from torchslim.errors import ProofError, RequestError, TorchslimError
from torchslim.importance import Automatic, Evidence, Importance
from torchslim.importance.gradients import Loss
from torchslim.latency.backends import Backend
from torchslim.planning.assembly import assemble_plan, budget_error
from torchslim.planning.failures import FailureLog
from torchslim.planning.feasible_cuts import find_nearest_cut
from torchslim.planning.options import PlanKeywords, PlanOptions, Scope, split_keywords
from torchslim.planning.problem import PlanningProblem, prepare
from torchslim.planning.remembered_widths import with_remembered_widths
from torchslim.proof.verification import TOLERANCE, differences
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Plan
from torchslim.utils.inputs import Inputs, unwrap
from torchslim.utils.outputs import Outputs


def plan(model: nn.Module, inputs: Inputs, *, macs: float | None = None, params: float | None = None,
         channels: float | None = None, memory: float | None = None, latency: float | str | None = None,
         backend: str | Backend | None = None, importance: Importance = "auto", scope: Scope = "global",
         shortcuts: bool = True, round_to: int = 1, min_channels: int = 1, min_kept: float = 0.0,
         only: Sequence[str] = (), exclude: Sequence[str] = (), allow_approximate: bool = False,
         whole_groups: bool = False, data: Iterable[Any] | None = None, loss: Loss | None = None, seed: int = 0,
         outputs: Outputs = None, strict: bool = True, original: nn.Module | None = None) -> Plan:
    """Decide which channels stay, and touch nothing.

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with: a tensor, a tuple, a list (the one argument) or a dict of keywords. Costs are
            counted for these very inputs.
        macs, params, channels, memory: what is *kept*, alone or together: a float in (0, 1] is a share of today, an
            int a count (multiply-adds, parameters, channels that layers make, bytes of activations at the peak).
            What keeps the plan from meeting them closely is in its notes. A count above the network's is refused.
        latency: the time kept of one call, measured: a share, an int of nanoseconds or a text such as "3ms".
        backend: where the network is to be fast, and is timed: "eager" (the default where a latency is asked for),
            "channels-last", "compiled", "onnxruntime", "openvino", "cuda", or a backend of your own
            (`torchslim.latency.backends.Backend`). With other budgets alone: meet them by cuts that save time there.
        importance: what ranks the channels: "auto" ("obs" on `data`; else "bn_scale" if training pressed the scales;
            else "l2"; `settings` say which), "l1", "fpgm", "lamp", "activation", "taylor", "hessian", "random", a name
            with one option ("l2:max"), a criterion (`torchslim.importance`), or a callable(group) -> a score a channel.
        scope: "global" compares scores over the whole network, "uniform" keeps the same share of every group; a dict
            of layer-name pattern -> share of channels kept rules the groups whose layers all match (several patterns:
            the largest share), and the budget, if any, the others.
        shortcuts: False leaves alone each group that enters an addition or concatenation or has several readers.
        round_to: kept channels are multiples of this (or all).
        min_channels, min_kept: the least number, and share, of its channels that a group keeps.
        only, exclude: patterns of layer names whose output channels may, or may not, go.
        allow_approximate: also cut channels that a layer norm or its like mixes; the result is then no exact cut.
        whole_groups: grouped convolutions lose whole groups; by default each group loses equally many channels.
        data: batches of inputs, for "auto" (the first 256), "obs" and "activation"; with a loss of (inputs, targets),
            for "taylor" and "hessian" too. Other criteria do not look at it.
        loss: of outputs and targets: torch.nn.functional.cross_entropy, say.
        seed: of importance="random".
        outputs: which outputs matter, by index, key, several or a function that selects them; the others may change.
        strict: a budget that can't be met raises. False: the nearest that can be is met, with as little cut as gives
            it; the first notes of the plan say so.
        original: the network that the model was cut from: shares (of budgets, by pattern, `min_kept`, "uniform") are
            then of its costs and widths, not of the model's.

    Raises:
        RequestError: nothing was asked, or a value is none of these; or the backend can't run here.
        BudgetError: a budget can't be met (`strict`).
        TraceError, ExportError: the model fails on these inputs; or it can't be run in the backend.

    Example:
        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
        >>> plan = ts.plan(model, torch.randn(1, 3, 8, 8), macs=0.5)
        >>> {name: len(dims[0]) for name, dims in plan.kept.items() if 0 in dims}
        {'0.weight': 4, '0.bias': 4}
    """
    options = PlanOptions(
        macs=macs, params=params, channels=channels, memory=memory, latency=latency, backend=backend,
        importance=importance, scope=scope, shortcuts=shortcuts, round_to=round_to, min_channels=min_channels,
        min_kept=min_kept, only=only, exclude=exclude, allow_approximate=allow_approximate, whole_groups=whole_groups,
        seed=seed, outputs=outputs, strict=strict)
    return plan_with(options, model, inputs, data, loss, original)


def plan_with(options: PlanOptions, model: nn.Module, inputs: Inputs, data: Iterable[Any] | None = None,
              loss: Loss | None = None, original: nn.Module | None = None) -> Plan:
    """As `plan`, its keywords as one value."""
    with torch.inference_mode(False):
        return decide(prepare(unwrap(model), inputs, options, data, loss, original), options)


def decide(problem: PlanningProblem, options: PlanOptions) -> Plan:
    """The plan of a network that was run and coupled before; see `plan`.

    Args:
        problem: the network, prepared with the same `allow_approximate` and `whole_groups`.
        options: what is asked for.

    Raises:
        BudgetError: a budget can't be met, and the options are strict.
    """
    budgets, target = problem.counted_budgets(options), problem.latency_target(options)
    failures = FailureLog()
    while True:
        feasible, failures = find_nearest_cut(problem, options, budgets, target, failures)
        feasible = replace(feasible, cut=with_remembered_widths(problem.model, problem.inputs, feasible.coupling,
                                                                feasible.cut))
        decided = assemble_plan(feasible, options, problem.evidence, problem.original_coupling)
        refused = options.strict and feasible.unmet - {"latency"}
        if target is not None and not refused:  # what is predicted to be too slow may be faster
            decided, target = target.measure_and_update(decided, partial(apply, problem.model, decided))
            if target is not None:
                continue
        if options.strict and any(not budget.is_met for budget in decided.budgets if budget.resource in feasible.unmet):
            raise budget_error(decided, problem.original_coupling)
        return decided


def prune(model: nn.Module, inputs: Inputs, *, compensate: bool | None = None, original: nn.Module | None = None,
          **options: Unpack[PlanKeywords]) -> tuple[nn.Module, Plan]:
    """Plan, apply and verify, in one call; the options are those of `plan`.

    Args:
        model, inputs: see `plan`.
        compensate: after the proof, refit what is left to the original's outputs on `data=` (`torchslim.compensate`);
            the targets of labelled data play no part. None: if importance="auto" took "obs", on the same inputs.
        original, options: see `plan`.

    Returns:
        The slim model, in the mode of the given one, and its plan.

    Raises:
        RequestError: see `plan`; or there is no data to compensate on.
        ProofError: the slim network does not equal its silenced original; the slim network is not returned.

    Example:
        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> slim, plan = ts.prune(model, torch.randn(1, 3, 8, 8), macs=0.5)
        >>> slim[0]
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    plan_options, data, loss = split_keywords(options)
    return prune_with(plan_options, model, inputs, data, loss, original, compensate)


def prune_with(options: PlanOptions, model: nn.Module, inputs: Inputs, data: Iterable[Any] | None = None,
               loss: Loss | None = None, original: nn.Module | None = None,
               compensate: bool | None = False) -> tuple[nn.Module, Plan]:
    """As `prune`, the keywords of `plan` as one value."""
    if compensate and data is None:
        raise RequestError("prune: compensate=True asks for data=, batches of what the model is called with")
    chooses = compensate is None and data is not None and isinstance(options.ranking, Automatic)
    evidence = Evidence(model, inputs, data, loss)
    if compensate or chooses:  # an iterator gives its batches once
        data = evidence.listed if compensate else evidence.first_listed
    decided = plan_with(options, model, inputs, data, loss, original)
    slim = apply(model, decided)
    wrong = next((d for d in differences(model, slim, decided, inputs) if not d.error <= TOLERANCE), None)
    if wrong is not None:
        raise ProofError(f"prune: `{wrong.where}` of the slim network differs from the silenced original's by "
                         f"{wrong.error:.1e} (relative), at most {TOLERANCE:.0e} is accepted; leave the layers before "
                         "it alone with exclude=")
    if chooses and decided.settings["ranked_by"] == "obs":
        return _compensated_if_possible(model, slim, decided, evidence.first_batches)
    return refitted(model, slim, decided, evidence.batches) if compensate else slim, decided


def _compensated_if_possible(model: nn.Module, slim: nn.Module, decided: Plan,
                             batches: Sequence[Any]) -> tuple[nn.Module, Plan]:
    """The slim network, refitted unasked; the plan says so, or why not."""
    try:
        slim, said = refitted(model, slim, decided, batches), "refitted to the original's outputs on the same inputs"
    except TorchslimError as error:
        said = f"not refitted to the original's outputs ({error})"
    return slim, replace(decided, notes=(*decided.notes, f"compensate: {said}"))
