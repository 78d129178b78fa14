"""The base class of criteria, and the two that need no evidence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args
from zlib import crc32

import numpy as np
from torch import Tensor

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.evidence import Evidence
from torchslim.importance.types import Scores

Needs = Literal["nothing", "weights", "inputs", "labels"]
Normalize = Literal["none", "mean", "max", "kind"]


@dataclass(frozen=True)
class Criterion(ABC):
    """Scores the channels of groups; higher means more important.

    A subclass is a frozen dataclass that sets `needs` and returns one array per group when it is called.

    Attributes:
        normalize: how scores are made comparable between groups: "none" leaves them, "mean" and "max" divide by the
            group's mean or maximum, "kind" by the mean of all groups whose tensors have the same shapes and roles
            (the blocks of one stage).
        needs: the evidence it uses: "nothing", "weights", "inputs" (and weights; `plan` needs `data=`) or "labels"
            (`plan` needs `data=` of (inputs, targets), and `loss=`).
        name: its name in `plan` and on the command line; empty for custom criteria.
        choices: fields that an option after the name can set, with their values: "l1:filters".

    Raises:
        RequestError: a field's value is not among its choices.
    """

    normalize: Normalize = field(default="none", kw_only=True)
    needs: ClassVar[Needs] = "weights"
    name: ClassVar[str] = ""
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for name, known in self.all_choices().items():
            if getattr(self, name) not in known:
                raise RequestError(f"{type(self).__name__}: {name}={getattr(self, name)!r} found, wanted one of "
                                   f"{', '.join(known)}")

    @abstractmethod
    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """The scores of each group's channels, shape (channels,), before normalisation.

        Args:
            groups: those that may be cut.
            evidence: the network, and data and loss if given.
        """

    @property
    def needs_data(self) -> bool:
        """Whether it uses data."""
        return self.needs in ("inputs", "labels")

    @property
    def looks_at_data(self) -> bool:
        """Whether it uses data where there is some."""
        return self.needs_data

    def taken(self, evidence: Evidence) -> Criterion:
        """What ranked the channels: itself, unless it chose another criterion for this evidence."""
        return self

    def notes(self, evidence: Evidence) -> tuple[str, ...]:
        """What the plan says of the scores."""
        return ()

    def check(self, evidence: Evidence) -> None:
        """Check that the evidence has what the criterion needs.

        Raises:
            RequestError: no data, or no loss.
        """
        if self.needs == "inputs" and evidence.data is None:
            raise RequestError(f"importance '{self}' asks for data=, batches of inputs without labels, each what "
                               "the model is called with")
        if self.needs == "labels" and (evidence.data is None or evidence.loss is None):
            raise RequestError(f"importance '{self}' asks for data=, batches of (inputs, targets), and loss=, a "
                               "callable(outputs, targets) such as torch.nn.functional.cross_entropy")

    @classmethod
    def all_choices(cls) -> dict[str, tuple[str, ...]]:
        """Its own `choices`, and those of `normalize`."""
        return {**cls.choices, "normalize": get_args(Normalize)}

    def __str__(self) -> str:
        """The name, with one option if that suffices, such as "l2:max"; else the code, such as "Random(seed=3)"."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if not self.name or len(changed) > 1 or not changed.keys() <= self.all_choices().keys():
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
        return ":".join([self.name, *changed.values()])


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform random scores in [0, 1), the baseline of other criteria.

    A group's depend on its name, not on which other groups there are.

    Attributes:
        seed: None for the plan's seed.
    """

    seed: int | None = None
    needs: ClassVar[Needs] = "nothing"
    name: ClassVar[str] = "random"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        seed = evidence.seed if self.seed is None else self.seed
        return [np.random.default_rng([seed, crc32(group.name.encode())]).random(group.channels) for group in groups]


@dataclass(frozen=True)
class ByGroup(Criterion):
    """Scores by a caller's function of one group.

    `plan(importance=function)` is short for it, without normalisation.

    Attributes:
        function: from a group to one score per channel: a sequence, an array or a tensor.
    """

    function: Callable[[ChannelGroup], object]
    needs: ClassVar[Needs] = "nothing"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        return [numbers_of(group, self.function(group)) for group in groups]

    def __str__(self) -> str:
        return "callable" + (f":{self.normalize}" if self.normalize != "none" else "")


def numbers_of(group: ChannelGroup, scores: Any) -> Scores:
    """Array-like scores as a float64 array.

    Raises:
        RequestError: they are not numeric.
    """
    try:
        return np.asarray(scores.detach().double().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"importance: `{group.name}` got {type(scores).__name__} ({error}), wanted "
                           f"{group.channels} numbers, one a channel") from error
