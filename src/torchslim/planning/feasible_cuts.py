"""A selection that the network runs at: select, try, exclude what failed, until a cut works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchslim.coupling.coupling import Coupling
from torchslim.errors import PlanError
from torchslim.importance import Scores
from torchslim.latency.predictor import LatencyPredictor
from torchslim.latency.target import LatencyTarget
from torchslim.planning.budgets import Limit, counted_limits
from torchslim.planning.candidates import protected_classes, prunable_units, select
from torchslim.planning.channel_matching import Cut, Failure, resolve_cut, runs_beyond
from torchslim.planning.failures import FailureLog
from torchslim.planning.options import PlanOptions
from torchslim.planning.problem import PlanningProblem
from torchslim.planning.selection import Selection
from torchslim.planning.units import PrunableUnit

Selecting = Callable[[Coupling, Sequence[PrunableUnit], Sequence[Limit], PlanOptions, Coupling | None,
                      LatencyPredictor | None], Selection]


@dataclass(frozen=True, eq=False)
class FeasibleCut:
    """A cut at which the network runs, and what it follows from.

    Attributes:
        cut: what stays.
        selection: how far each unit goes down.
        units: the units with all their levels.
        limits: the budgets.
        protected: class of channels -> why it stays.
        coupling: the one whose classes these are.
        predictor: of time, if there is one.
    """

    cut: Cut
    selection: Selection
    units: Sequence[PrunableUnit]
    limits: Sequence[Limit]
    protected: Mapping[int, str]
    coupling: Coupling
    predictor: LatencyPredictor | None

    @property
    def costs(self) -> dict[str, int]:
        """By resource, what the cut network costs; times as predicted."""
        shares = self.cut.stays.astype(np.float64)
        return {limit.resource: limit.cost(shares) for limit in self.limits}

    @property
    def unmet(self) -> set[str]:
        """The resources whose budgets are not met."""
        costs = self.costs
        return {limit.resource for limit in self.limits if costs[limit.resource] > limit.maximum}


def find_nearest_cut(problem: PlanningProblem, options: PlanOptions, budgets: Mapping[str, float],
                     target: LatencyTarget | None, failures: FailureLog) -> tuple[FeasibleCut, FailureLog]:
    """As `find_feasible_cut`; and a budget that its cut misses is out of reach, whatever failed on the way.

    What fails depends on the widths that are tried. So where something failed, the network is cut as far as it runs
    at all, which says what is the nearest budget; the cut for this one is found with what was learnt, or is that one.
    """
    cut, learnt = find_feasible_cut(problem, options, budgets, target, failures)
    if not cut.unmet or learnt == failures:
        return cut, learnt
    asked = {limit.resource: limit.maximum for limit in cut.limits}
    timed = target if target is None or target.budget_ns is None else replace(target, budget_ns=1)
    least, learnt = find_feasible_cut(problem, options, dict.fromkeys(budgets, 1), timed, failures)
    again, learnt_again = find_feasible_cut(problem, options, budgets, target, learnt)
    if all(cost <= max(asked[resource], least.costs[resource]) for resource, cost in again.costs.items()):
        return again, learnt_again
    return replace(least, limits=[replace(limit, maximum=asked[limit.resource]) for limit in least.limits]), learnt


def find_feasible_cut(problem: PlanningProblem, options: PlanOptions, budgets: Mapping[str, float],
                      target: LatencyTarget | None, failures: FailureLog,
                      selected: Selecting = select) -> tuple[FeasibleCut, FailureLog]:
    """The best cut within the budgets that the network runs at, and the failures on the way to it.

    Args:
        problem: the network.
        options: what is asked for.
        budgets: those that are counted.
        target: the time that is asked for, if any.
        failures: what is known not to work.
        selected: how far each unit goes down.
    """
    coupling = problem.coupled(failures)
    while True:
        predictor = None if target is None else target.predictor(coupling)
        limits = counted_limits(coupling, budgets)
        if target is not None and predictor is not None and target.budget_ns is not None:
            limits.append(Limit("latency", predictor, target.budget_ns))
        protected = {**protected_classes(coupling, options), **failures.protected(coupling)}
        units, scores = prunable_units(coupling, options, protected, problem.evidence, problem.original_coupling)
        units = [failures.without_infeasible_widths(unit) for unit in units]
        selection = selected(coupling, units, limits, options, problem.original_coupling, predictor)
        outcome = resolve_cut(problem.model, problem.inputs, coupling, selection, scores,
                              failures.repairs)
        if isinstance(outcome, Cut):
            return FeasibleCut(outcome, selection, units, limits, protected, coupling, predictor), failures
        known = failures.known_culprits(selection, outcome)
        failing = bisect_failing_units(problem, coupling, selection, scores, outcome, known)
        before, failures = failures, failures.record(coupling, selection, failing, outcome)
        if not failures.couples_like(before):
            coupling = problem.coupled(failures)


def bisect_failing_units(problem: PlanningProblem, coupling: Coupling, selection: Selection, scores: Scores,
                         failure: Failure, known: Sequence[int] = ()) -> list[int]:
    """Indices of the units that can't be cut as selected.

    Those known from an earlier failure of the same operation; where no single operation fails, if the rest goes well
    without them. Else, of those that the failure blames, smallest sets that fail, one after the other until the rest
    works (QuickXplain, Junker 2004: a few runs for each culprit and each halving of the units). Where an operation
    failed, a set works if the network runs beyond it.
    """

    def works(indices: Sequence[int]) -> bool:
        chosen = set(indices)
        levels = tuple(level if index in chosen else 0 for index, level in enumerate(selection.levels))
        part = Selection(selection.units, levels)
        if failure.progress is not None:
            return runs_beyond(failure, problem.model, problem.inputs, coupling, part)
        return isinstance(resolve_cut(problem.model, problem.inputs, coupling, part, scores, failure.repairs), Cut)

    def smallest_failing(others: list[int], indices: list[int]) -> list[int]:
        """Of some units that fail together with others, those without which they would not."""
        if len(indices) == 1:
            return indices
        left, right = indices[:len(indices) // 2], indices[len(indices) // 2:]
        from_right = smallest_failing(others + left, right) if works(others + left) else []
        if from_right and not works(others + from_right):
            return from_right
        return smallest_failing(others + from_right, left) + from_right

    def failing(indices: list[int]) -> list[int]:
        culprits: list[int] = []
        while indices and not works(indices):
            culprits += smallest_failing([], indices)
            indices = [index for index in indices if index not in culprits]
        return sorted(culprits)

    cut = [index for index, level in enumerate(selection.levels) if level]
    if known and (failure.where or works([index for index in cut if index not in known])):
        return list(known)
    meet, shape = ([index for index in cut if not classes.isdisjoint(selection.units[index].classes.tolist())]
                   for classes in (failure.classes, failure.read_as_numbers))
    if len(meet) == 1 and not shape:
        return meet
    if len(failure.equal_widths) == 1:
        given = failure.equal_widths[0].rows(coupling)
        return [index for index in cut if given is not None and np.isin(given, selection.units[index].classes).any()]
    culprits = failing(sorted({*meet, *shape})) or failing(cut)
    if not culprits:
        raise PlanError("plan: the network does not run at its own widths a second time; "
                        "it may count its calls or change its shape by chance")
    return culprits
