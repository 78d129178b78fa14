"""What a scan finds, as plain data that prints, draws itself and says how much of each layer a plan may take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from typing import Any

from torchslim.errors import RequestError
from torchslim.planning.sensitivity.heatmap import Heatmap, HeatmapRow, draw
from torchslim.surgery.plans import LeftAlone
from torchslim.utils.json_values import read_json, to_values

FORMAT = 1
MEASURES = ("accuracy", "agreement", "error")
DROP = 0.01
ROUNDING = 1e-9
"""Shares of pictures are fractions: 0.99 - 0.98 is a little more than 0.01."""


@dataclass(frozen=True)
class GroupSensitivity:
    """One channel group, or several that are cut together, each time the only one that is cut.

    Attributes:
        name: the first layer that makes the channels.
        layers: all the layers that do.
        channels: how many there are.
        kept: how many stay at each ratio.
        macs: the share of the network's multiply-adds that is left then.
        values: what was measured then.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    kept: tuple[int, ...]
    macs: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What a network does when a single group of channels is cut, group by group; `str` is the table.

    Attributes:
        measure: "accuracy" (the share of labels that it gets right), "agreement" (the share of answers that are the
            whole network's) or "error" (root of the squared difference of the outputs over that of the outputs).
        base: what the whole network has; 1 for "agreement", 0 for "error".
        items: answers that were compared: pictures, or places of all pictures where each has an answer.
        ratios: the shares of channels kept, largest first.
        importance: what chose the channels.
        groups: what was measured, in the order of the network's run.
        left_alone: channels that can't be cut or were not to be, and why.
    """

    measure: str
    base: float
    items: int
    ratios: tuple[float, ...]
    importance: str
    groups: tuple[GroupSensitivity, ...]
    left_alone: tuple[LeftAlone, ...] = ()

    def loss(self, value: float) -> float:
        """How much worse a measured value is than the whole network's: 0.02 are two points."""
        return value if self.measure == "error" else self.base - value

    def least(self, group: GroupSensitivity, drop: float = DROP) -> float:
        """The least share of a group's channels at which no more than `drop` is lost, and at no larger one either.

        Shares between those that were measured are not guessed; 1.0 where the largest of them loses more.
        """
        share = 1.0
        for ratio, value in zip(self.ratios, group.values, strict=True):
            if not self.loss(value) <= drop + ROUNDING:
                break
            share = ratio
        return share

    def shares(self, drop: float = DROP) -> dict[str, float]:
        """Layer-name patterns and the share of channels to keep, for `plan(scope=...)`: groups lose `drop` at most.

        Each by itself: cut together, groups lose more than each alone, mostly less than the sum. Groups that can do
        without nothing are there with 1.0, so that a budget beside does not take them.

        Args:
            drop: of accuracy or agreement (0.01 is a point), or a relative error.

        Raises:
            RequestError: a drop that is negative or no number.
        """
        if not isinstance(drop, int | float) or isinstance(drop, bool) or not drop >= 0:
            raise RequestError(f"shares: drop={drop!r} found, a number from 0 wanted; try 0.01, a point of accuracy")
        return {escape(layer): self.least(group, drop) for group in self.groups for layer in group.layers}

    def svg(self) -> str:
        """The table as a drawing: a curve for each group, and a cell for each width, darker where more is lost."""
        rows = tuple(HeatmapRow(group.name, group.layers, group.channels, group.kept, group.macs,
                                tuple(map(self.loss, group.values)),
                                tuple(shown(self, value) for value in group.values)) for group in self.groups)
        caption = (f"As it is: {shown(self, self.base)}. Darker: more is lost. {self.items:,} answers, channels by "
                   f"{self.importance}.")
        return draw(Heatmap(f"{self.measure.capitalize()} with a share of one group's channels", caption, self.ratios,
                            1.0 if self.measure == "error" else self.base, rows))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format": FORMAT, **to_values(self, "sensitivity")}

    def to_json(self) -> str:
        """As JSON text; `Sensitivity.from_json` gives an equal one back."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """What `to_json` wrote.

        Raises:
            CheckpointError: the text is something else.
        """
        return read_json(cls, text, "sensitivity", "give the text that Sensitivity.to_json wrote", FORMAT)

    def __str__(self) -> str:
        head = (f"Sensitivity: {self.measure} {shown(self, self.base)} as it is, on {self.items:,} answers; then with "
                "a share of one group's channels")
        names = [f"{group.name} ({group.channels})" for group in self.groups]
        wide = max((len(name) for name in ["group", *names]), default=0)

        def line(name: str, cells: Sequence[str]) -> str:
            return f"  {name:<{wide}}" + "".join(f"{cell:>8}" for cell in cells)

        rows = [line(name, [shown(self, value) for value in group.values])
                for name, group in zip(names, self.groups, strict=True)]
        left = [f"  left alone: {entry.name} ({entry.channels} channels): {entry.reason}" for entry in self.left_alone]
        return "\n".join([head, line("group", [f"{ratio:g}" for ratio in self.ratios]), *rows, *left])


def shown(result: Sensitivity, value: float) -> str:
    """A measured value as people read it."""
    return f"{value:.3f}" if result.measure == "error" else f"{value:.1%}"
