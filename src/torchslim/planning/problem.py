"""What a plan is made for: a network that was run and coupled once, and what its channels are ranked by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from torchslim.coupling.coupling import Coupling, couple
from torchslim.errors import RequestError
from torchslim.importance import Evidence
from torchslim.importance.gradients import Loss
from torchslim.latency.target import LatencyTarget, latency_target
from torchslim.planning.budgets import counted_limits
from torchslim.planning.equal_widths import with_equal_widths
from torchslim.planning.failures import FailureLog
from torchslim.planning.options import PlanOptions
from torchslim.tracing.runs import trace_modes
from torchslim.utils.inputs import Inputs, unwrap


@dataclass(frozen=True, eq=False)
class OriginalNetwork:
    """The network that the model was cut from, to whose costs and widths shares refer."""

    model: nn.Module
    coupling: Coupling


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """One network, coupled; several plans may be made for it.

    Attributes:
        model, inputs: the network, and what it is called with.
        coupling: of its channels, with no rows tied channel by channel.
        evidence: what criteria look at.
        original: None where shares are of the model itself.
    """

    model: nn.Module
    inputs: Inputs
    coupling: Coupling
    evidence: Evidence
    original: OriginalNetwork | None = None

    @property
    def original_coupling(self) -> Coupling | None:
        """Of the original, where there is one."""
        return None if self.original is None else self.original.coupling

    def coupled(self, failures: FailureLog) -> Coupling:
        """The coupling after failures: rows tied channel by channel, heads that lose widths, and equal widths."""
        options = replace(self.coupling.options, tied_constraints=failures.ties, head_widths=failures.head_widths)
        coupling = self.coupling if options == self.coupling.options else couple(self.coupling.graphs, options)
        return with_equal_widths(coupling, failures.equal_widths)

    def counted_budgets(self, options: PlanOptions) -> dict[str, float]:
        """The budgets that are counted: as asked for, or as counts where they are shares of the original.

        Raises:
            RequestError: one is above what the network (the original, if there is one) costs.
        """
        budgets = options.counted_budgets
        limits = counted_limits(self.original_coupling or self.coupling, budgets)
        for limit in limits:
            if limit.maximum > limit.cost.total:
                raise RequestError(f"{limit.resource}={limit.maximum:,}: the network has {limit.cost.total:,} as it "
                                   "is, which is less; ask for fewer, or for a share such as 0.5")
        if self.original is None:
            return budgets
        return {limit.resource: max(1, limit.maximum) for limit in limits}

    def latency_target(self, options: PlanOptions) -> LatencyTarget | None:
        """The time that is asked for; None where neither a time nor a backend is."""
        latency = options.latency
        if self.original is not None:
            before = latency_target(self.original.model, self.inputs, self.original.coupling.graphs[0], latency,
                                    options.backend)
            latency = latency if before is None else before.budget_ns
        return latency_target(self.model, self.inputs, self.coupling.graphs[0], latency, options.backend)


def prepare(model: nn.Module, inputs: Inputs, options: PlanOptions, data: Iterable[Any] | None = None,
            loss: Loss | None = None, original: nn.Module | None = None) -> PlanningProblem:
    """Run and couple a network, for plans with these options or others that couple channels alike.

    Raises:
        RequestError: there is not what the criterion needs; or the model is no cut of the original.
        TraceError: the model fails on these inputs.
    """
    evidence = Evidence(model, inputs, data, loss, options.seed)
    options.ranking.check(evidence)
    coupling = couple(trace_modes(model, inputs, options.outputs), options.coupling_options)
    if original is None:
        return PlanningProblem(model, inputs, coupling, evidence)
    original_model = unwrap(original)
    before = couple(trace_modes(original_model, inputs, options.outputs), options.coupling_options)
    _check_is_cut_of(before, coupling)
    return PlanningProblem(model, inputs, coupling, evidence, OriginalNetwork(original_model, before))


def _check_is_cut_of(original: Coupling, coupling: Coupling) -> None:
    """Raise a RequestError unless every dimension of a network is one of the original's, and no wider."""
    for (name, dim), now in coupling.by_dimension.items():
        before = original.by_dimension.get((name, dim))
        if before is None or len(before.labels) < len(now.labels):
            got = "no such tensor" if before is None else f"{len(before.labels)} channels along dimension {dim}"
            raise RequestError(f"original: `{name}`: {got} in it, and {len(now.labels)} in the model; give the "
                               "network that the model was cut from")
