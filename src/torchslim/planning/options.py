"""What the caller of `plan` asks for, as one value that is checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypedDict

from torchslim.errors import RequestError
from torchslim.importance import Criterion, Importance, criterion
from torchslim.importance.gradients import Loss
from torchslim.latency.backends import Backend
from torchslim.rules.options import CouplingOptions
from torchslim.utils.outputs import Outputs, check_outputs

Scope = str | Mapping[str, float]

BUDGETS = ("macs", "params", "channels", "memory", "latency")


class PlanKeywords(TypedDict, total=False):
    """The keywords of `plan`, for functions that hand them on."""

    macs: float | None
    params: float | None
    channels: float | None
    memory: float | None
    latency: float | str | None
    backend: str | Backend | None
    importance: Importance
    scope: Scope
    shortcuts: bool
    round_to: int
    min_channels: int
    min_kept: float
    only: Sequence[str]
    exclude: Sequence[str]
    allow_approximate: bool
    whole_groups: bool
    data: Iterable[Any] | None
    loss: Loss | None
    seed: int
    outputs: Outputs
    strict: bool


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The keywords of `plan` but for `data`, `loss` and `original`; see there.

    Raises:
        RequestError: a value is none of those that `plan` takes.
    """

    macs: float | None = None
    params: float | None = None
    channels: float | None = None
    memory: float | None = None
    latency: float | str | None = None
    backend: str | Backend | None = None
    importance: Importance = "auto"
    scope: Scope = "global"
    shortcuts: bool = True
    round_to: int = 1
    min_channels: int = 1
    min_kept: float = 0.0
    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    allow_approximate: bool = False
    whole_groups: bool = False
    seed: int = 0
    outputs: Outputs = None
    strict: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "importance", criterion(self.importance))
        for name in ("only", "exclude"):
            object.__setattr__(self, name, as_patterns(getattr(self, name), name))
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}: got {value!r}, wanted an int of at least 1")
        if not _is_number(self.min_kept) or not 0 <= self.min_kept <= 1:
            raise RequestError(f"min_kept: got {self.min_kept!r}, wanted a number in [0, 1], the share of each group's "
                               "channels that stays at the least")
        self._check_scope()
        check_outputs(self.outputs)
        if isinstance(self.scope, str) and all(getattr(self, name) is None for name in BUDGETS):
            raise RequestError("plan: nothing was asked; give macs=, params=, channels=, memory= or latency= (what is "
                               "kept), or scope= with a share by pattern")

    def _check_scope(self) -> None:
        if isinstance(self.scope, str) and self.scope in ("global", "uniform"):
            return
        if not isinstance(self.scope, Mapping):
            raise RequestError(f"scope: got {self.scope!r}, wanted 'global', 'uniform' or a dict of pattern: share")
        for pattern, share in self.scope.items():
            if not isinstance(pattern, str):
                raise RequestError(f"scope: {pattern!r} is no pattern of layer names; wanted one such as 'layer1.*'")
            if not _is_number(share) or not 0 < share <= 1:
                raise RequestError(f"scope: {pattern!r}: {share} is no share; wanted a number in (0, 1], the share of "
                                   "channels kept")
            if share < self.min_kept:
                raise RequestError(f"scope: {pattern!r}: {share} is below min_kept={self.min_kept}, by which no group "
                                   "loses so much; leave one of them out")

    @property
    def ranking(self) -> Criterion:
        """What ranks the channels."""
        assert isinstance(self.importance, Criterion)
        return self.importance

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of channels kept by pattern; empty where the scope is a word."""
        return {} if isinstance(self.scope, str) else self.scope

    @property
    def counted_budgets(self) -> dict[str, float]:
        """The budgets that are counted, not timed, by resource."""
        return {name: getattr(self, name) for name in BUDGETS if name != "latency" and getattr(self, name) is not None}

    @property
    def coupling_options(self) -> CouplingOptions:
        """What couples channels."""
        return CouplingOptions(self.allow_approximate, self.whole_groups)


def split_keywords(keywords: PlanKeywords) -> tuple[PlanOptions, Iterable[Any] | None, Loss | None]:
    """The keywords of `plan` as options, data and loss."""
    options: dict[str, Any] = dict(keywords)
    data, loss = options.pop("data", None), options.pop("loss", None)
    return PlanOptions(**options), data, loss


def as_patterns(patterns: Sequence[str], name: str) -> tuple[str, ...]:
    """Patterns of layer names, as `only=` and `exclude=` take them.

    Raises:
        RequestError: a single text, which is a sequence of letters, or no texts at all.
    """
    listed = () if isinstance(patterns, str) or not isinstance(patterns, Iterable) else tuple(patterns)
    if listed == () != patterns or not all(isinstance(pattern, str) for pattern in listed):
        raise RequestError(f"{name}: got {patterns!r}, wanted a sequence of layer-name patterns such as ['layer1.*']")
    return listed


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
