"""Budgets: one row a resource, and limits on what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torchslim.costs.cost_models import CostModel, PeakMemory, Shares
from torchslim.coupling.coupling import Coupling
from torchslim.errors import RequestError
from torchslim.rules.declarations import CostTerm, LabeledDim


@dataclass(frozen=True, eq=False)
class Limit:
    """One budget: a cost and the most that it may be."""

    resource: str
    cost: CostModel
    maximum: int


def is_met(limits: Iterable[Limit], shares: Shares) -> bool:
    """Whether shares meet all limits."""
    return all(limit.cost(shares) <= limit.maximum for limit in limits)


def made_dimensions(coupling: Coupling) -> list[LabeledDim]:
    """The dimensions along which layers make channels: what is meant by their widths."""
    makes = {(m.name, m.dim) for group in coupling.groups for m in group.members if m.role in ("makes", "gates")}
    return [dim for dim in coupling.labeled_dims if (dim.name, dim.dim) in makes]


def _channels(coupling: Coupling) -> CostModel:
    return CostModel([CostTerm(len(dim.labels), (dim.labels,)) for dim in made_dimensions(coupling)])


COUNTED: dict[str, Callable[[Coupling], CostModel]] = {
    "macs": lambda coupling: CostModel(coupling.macs),
    "params": lambda coupling: CostModel(coupling.params),
    "channels": _channels,
    "memory": lambda coupling: PeakMemory(coupling.labeled_graphs[0]),
}
"""The resources that are counted, and the cost of each. (`latency=` is measured: see `torchslim.latency.target`.)"""


def counted_limits(coupling: Coupling, budgets: Mapping[str, float]) -> list[Limit]:
    """Limits from budgets of counted resources, each a share or a count.

    Raises:
        RequestError: a budget is neither.
    """
    costs = {resource: COUNTED[resource](coupling) for resource in budgets}
    return [Limit(resource, cost, as_count(budgets[resource], cost.total, resource))
            for resource, cost in costs.items()]


def as_count(requested: float, total: int, resource: str) -> int:
    """A budget as a count: a float in (0, 1] is a share of today, an int a count.

    Raises:
        RequestError: neither.
    """
    if isinstance(requested, bool) or not isinstance(requested, int | float):
        raise RequestError(f"{resource}: got {requested!r}, wanted a share in (0, 1] or a count")
    if isinstance(requested, int) and requested >= 1:
        return requested
    if isinstance(requested, float) and 0 < requested <= 1:
        return int(total * requested)
    raise RequestError(f"{resource}={requested!r}: wanted a float in (0, 1], the share kept of {total:,}, "
                       "or an int of at least 1, the count kept")
