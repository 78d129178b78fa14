"""Remove what contributes nothing: model + inputs -> the smaller model of the same outputs, and its plan.

The plan says which channels go, and is plain data like any other. Constants of removed channels are in the weights of
the slim model, as the weights that `compensate` refits are: `apply` would have to run the network to compute them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from torchslim.costs.cost_models import CostModel
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.unreached import unreached_parameters
from torchslim.errors import ProofError, TraceError
from torchslim.importance.criterion import ByGroup
from torchslim.planning.assembly import assemble_plan, left_alone
from torchslim.planning.dead.channels import Mask
from torchslim.planning.dead.constants import follow_constants
from torchslim.planning.dead.dead_indices import DeadIndices, reasons_to_stay
from torchslim.planning.dead.folding import folded
from torchslim.planning.dead.liveness import Fold, dead_channels
from torchslim.planning.failures import FailureLog
from torchslim.planning.feasible_cuts import find_feasible_cut
from torchslim.planning.options import PlanOptions
from torchslim.planning.problem import PlanningProblem, prepare
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit
from torchslim.proof.float64 import inputs_in_float64
from torchslim.proof.verification import outputs_of, relative_error
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import Kept, Plan
from torchslim.tracing.runs import retrace
from torchslim.utils.copying import copy_model
from torchslim.utils.formatting import pluralize
from torchslim.utils.inputs import Inputs, arguments, unwrap

TOLERANCE = 1e-10
"""Largest relative error of the outputs in float64; a correct removal is at about 1e-15."""


@dataclass(frozen=True, eq=False)
class Removal:
    """What can be removed.

    Attributes:
        plan: what stays.
        folds: what takes the constants of removed channels.
        removed: how many channels go, by the layer that makes them.
        before, saved: multiply-adds ("macs") and parameters ("params") of the network as it is, and of the channels
            that go.
    """

    plan: Plan
    folds: tuple[Fold, ...]
    removed: Mapping[str, int]
    before: Mapping[str, int]
    saved: Mapping[str, int]


def remove_dead(model: nn.Module, inputs: Inputs, *, exclude: Sequence[str] = ()) -> tuple[nn.Module, Plan]:
    """A smaller copy of a model with the same outputs: without the channels and parameters that contribute nothing.

    What goes: filters that are zero, by a mask of `torch.nn.utils.prune` (its hooks still on, or removed) or
    otherwise; channels whose batch-norm scale is zero; channels that nobody reads, or only with weights of zero; all
    that only these depend on; parameters that no run reads, in eval mode or in training.

    A channel without a filter may still hold a constant: its bias, or what a batch norm and an activation make of zero.
    Such a constant is moved into the bias of what reads it (into the running mean of the next batch norm, where there
    is no bias). It stays where a convolution pads the map with zeros, for the constant then isn't the same everywhere;
    a constant of zero always goes. A layer keeps two channels at the least.

    That a channel contributes nothing is decided by its weights, not by the inputs; then outputs on the inputs are
    compared in float64. `plan.left_alone` has what contributes nothing and stays, with the reason. Where no constant
    was moved, `verify(model, slim, plan, inputs)` holds as for any plan.

        >>> import torch, torchslim as ts
        >>> from torch.nn.utils import prune
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
        >>> _ = prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=0)
        >>> x = torch.randn(1, 3, 8, 8)
        >>> slim, plan = ts.remove_dead(model, x)
        >>> slim[0].out_channels, torch.allclose(slim(x), model(x), atol=1e-6)
        (4, True)

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with (see `torchslim.profile`), with data.
        exclude: patterns of layer names whose channels stay.

    Returns:
        The slim model, in the mode of the given one, and its plan.

    Raises:
        ProofError: the outputs are not the same; or the network's operations change from run to run.
        TraceError: the model fails on these inputs.
    """
    slim, plan, _ = removed_and_compared(model, inputs, exclude)
    return slim, plan


@torch.inference_mode(False)
def removed_and_compared(model: nn.Module, inputs: Inputs,
                         exclude: Sequence[str] = ()) -> tuple[nn.Module, Plan, float]:
    """As `remove_dead`, with the relative error of the outputs in float64."""
    model = unwrap(model)
    removal = plan_removal(model, inputs, exclude)
    slim = apply(folded(model, removal.folds), removal.plan)
    # Biases of the model's own precision are rounded, those of the proof are not.
    double, double_inputs = _in_double(model, inputs)
    slim_double = apply(folded(double, removal.folds), removal.plan)
    expected, given = (outputs_of(network, *arguments(double_inputs)) for network in (double, slim_double))
    error = max((relative_error(a, b, "the output") for a, b in zip(expected, given, strict=True)), default=0.0)
    if not error <= TOLERANCE:
        raise ProofError(f"remove_dead: the outputs of the slim network differ by {error:.1e} (relative), at most "
                         f"{TOLERANCE:.0e} is accepted; leave the layers before the difference alone with exclude=")
    return slim, removal.plan, error


@torch.inference_mode(False)
def plan_removal(model: nn.Module, inputs: Inputs, exclude: Sequence[str] = ()) -> Removal:
    """What of a network contributes nothing, and can go; see `remove_dead`."""
    # All multiply-adds may stay: what goes is chosen by the weights.
    options = PlanOptions(macs=1.0, importance="random", exclude=exclude)
    problem = prepare(unwrap(model), inputs, options)
    run = follow_constants(*_in_double(problem.model, inputs), problem.coupling)
    first = liveness = dead_channels(run, run.prunable)
    failures = FailureLog()
    while True:
        dead = DeadIndices(run, problem, liveness.dead)
        options = replace(options, importance=ByGroup(dead.scores))
        feasible, failures = find_feasible_cut(problem, options, {}, None, failures, _all_without_loss)
        removed = _removed(run.coupling, feasible.cut.kept)
        liveness = dead_channels(run, removed)
        if (liveness.dead == removed).all():
            break
    coupling = feasible.coupling
    reasons = reasons_to_stay(feasible, run, DeadIndices(run, problem, first.dead), first.held)
    unused, remarks = _unused_parameters(problem)
    plan = assemble_plan(feasible, options, problem.evidence, None)
    fewer = sum(coupling.graphs[0].state[name].numel for name in unused)
    notes = [f"`{fold.name}` takes the constants of {pluralize(fold.channels, 'channel')}" for fold in liveness.folds]
    before = {"macs": CostModel(coupling.macs).total, "params": CostModel(coupling.params).total}
    saved = {name: cost - plan.predicted[name] for name, cost in before.items()}
    plan = replace(
        plan, unused=unused, left_alone=left_alone(coupling, reasons), notes=(*plan.notes, *notes, *remarks),
        predicted={**plan.predicted, "params": plan.predicted["params"] - fewer},
        settings={"importance": "dead", "exclude": list(options.exclude)})
    return Removal(plan, liveness.folds, _removed_by_layer(coupling, feasible.cut.stays), before, saved)


def _all_without_loss(coupling: Coupling, units: Sequence[PrunableUnit], *_: object) -> Selection:
    """Every removal that takes no importance."""
    return Selection(tuple(units), tuple(int(np.count_nonzero(unit.losses == 0)) for unit in units))


def _removed(coupling: Coupling, kept: Kept) -> Mask:
    """The classes that a cut removes."""
    gone = np.zeros(coupling.num_classes, dtype=bool)
    for dim in coupling.labeled_dims:
        index = kept.get(dim.name, {}).get(dim.dim)
        if index is not None:
            gone[np.delete(dim.labels, list(index))] = True
    return gone


def _removed_by_layer(coupling: Coupling, stays: Mask) -> dict[str, int]:
    """How many channels go, by the layer that makes them; a layer that makes channels of several groups once."""
    removed: dict[str, int] = {}
    for group in coupling.groups:
        gone = ~stays[group.classes]
        for member in group.members:
            if member.role in ("makes", "gates") and gone.any() and member.name in coupling.graphs[0].state:
                count = int(gone.sum()) * member.indices.shape[1]
                removed[member.layer] = removed.get(member.layer, 0) + count
    return removed


def _unused_parameters(problem: PlanningProblem) -> tuple[tuple[str, ...], list[str]]:
    """Parameters that neither evaluation nor training reads, and what there is to say of them."""
    graphs = problem.coupling.graphs
    read = set().union(*(graph.tensors_read() for graph in graphs))
    unused = tuple(name for name, value in graphs[0].state.items() if value.source == "parameter" and name not in read)
    if not unused or unreached_parameters(graphs):  # another run may read them
        return (), []
    trial = apply(problem.model, Plan({}, unused=unused))
    try:
        for graph in graphs:
            retrace(trial, problem.inputs, graph)
    except TraceError as error:
        return (), [f"no operation reads {pluralize(len(unused), 'parameter')} such as `{unused[0]}`, but code asks "
                    f"for them: {error}"]
    return unused, []


def _in_double(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A float64 copy in eval mode, and float64 inputs."""
    double = copy_model(model).double()
    for module in double.modules():
        module.training = False
    return double, inputs_in_float64(inputs)
