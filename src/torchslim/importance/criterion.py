"""What a criterion is, and the two that look at nothing of the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

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
    """Scores the channels of groups: higher for channels that matter more.

    A subclass is a frozen dataclass that says what it `needs` and gives one array a group when it is called.

    Attributes:
        normalize: what makes scores of different groups comparable: "none" takes them as they are, "mean" and "max"
            divide by the group's mean or maximum, "kind" by the mean of all groups that touch tensors of the same
            shapes in the same roles (the blocks of one stage).
        needs: what it looks at: "nothing", "weights", "inputs" (and weights: `plan` must be given `data=`) or "labels"
            (`data=` of (inputs, targets), and `loss=`).
        name: by which `plan` and the command line know it; empty for criteria of one's own.
        choices: the fields that an option after the name can set, with their values: "l1:filters".

    Raises:
        RequestError: a field is none of its choices.
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
        """The scores of each group's channels, shape (channels,), before they are normalised.

        Args:
            groups: those that may be cut.
            evidence: the network, and what else there is to look at.
        """

    @property
    def needs_data(self) -> bool:
        """Whether it looks at data."""
        return self.needs in ("inputs", "labels")

    def check(self, evidence: Evidence) -> None:
        """Raise where the evidence lacks what the criterion needs.

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
        """Its own `choices`, and how scores may be normalised."""
        return {**cls.choices, "normalize": get_args(Normalize)}

    def __str__(self) -> str:
        """As a name, or a name with one option, "l2:max", where that says it all; else as code: "Random(seed=3)"."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if not self.name or len(changed) > 1 or not changed.keys() <= self.all_choices().keys():
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
        return ":".join([self.name, *changed.values()])


@dataclass(frozen=True)
class Random(Criterion):
    """Numbers drawn evenly from [0, 1): what any other criterion must be better than.

    Attributes:
        seed: None for that of the plan.
    """

    seed: int | None = None
    needs: ClassVar[Needs] = "nothing"
    name: ClassVar[str] = "random"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        numbers = np.random.default_rng(evidence.seed if self.seed is None else self.seed)
        return [numbers.random(group.channels) for group in groups]


@dataclass(frozen=True)
class ByGroup(Criterion):
    """Scores by a function of the caller's that sees one group at a time.

    `plan(importance=function)` is short for it; in full, its scores can be normalised.

    Attributes:
        function: from a group to one score a channel: a sequence, an array or a tensor.
    """

    function: Callable[[ChannelGroup], object]
    needs: ClassVar[Needs] = "nothing"

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`."""
        return [numbers_of(group, self.function(group)) for group in groups]

    def __str__(self) -> str:
        return "callable" + (f":{self.normalize}" if self.normalize != "none" else "")


def numbers_of(group: ChannelGroup, scores: Any) -> Scores:
    """Scores as an array, whatever they come as.

    Raises:
        RequestError: they are no numbers.
    """
    try:
        return np.asarray(scores.detach().double().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"importance: `{group.name}` got {type(scores).__name__} ({error}), wanted "
                           f"{group.channels} numbers, one a channel") from error
