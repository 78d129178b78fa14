"""The plan: which channels of a network are kept, as plain data.

`plan` decides and changes nothing; `apply` executes and decides nothing. This value is what passes between them:
frozen, printable, comparable, and equal after a round trip through JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchslim.utils.formatting import milliseconds
from torchslim.utils.json_values import parse_json, read_values, to_values

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]

FORMAT = 1
CLOCK_TOLERANCE = 0.02
"""By how much of it a measured time may miss its budget: clocks are no more precise."""
_REMEDY = "give the text that Plan.to_json wrote"


@dataclass(frozen=True)
class AttributeUpdate:
    """An attribute of a module that stores a width (`groups`, `num_features`, ...), and its value after the cut.

    Within lists, mappings and other objects it is a path: `feature_info.2.num_chs`.
    """

    module: str
    attribute: str
    old: int | tuple[int, ...]
    new: int | tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("old", "new"):  # widths may be integers of numpy, which JSON does not know
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(map(int, value)) if isinstance(value, tuple) else int(value))

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class Budget:
    """One limit: the requested maximum (a count), the network's cost before and after the cut.

    Times ("latency") are in nanoseconds; that after the cut is predicted, or measured where one of both is too long.
    """

    resource: str
    before: int
    asked: int
    met: int

    @property
    def share(self) -> float:
        """Share of the original that is kept."""
        return self.met / self.before if self.before else 1.0

    @property
    def is_met(self) -> bool:
        """Whether the cost after the cut is within the budget; a time, within the clock's precision."""
        return self.met <= self.asked * (1 + CLOCK_TOLERANCE * (self.resource == "latency"))

    def format_count(self, number: int) -> str:
        """A number of this resource for display: "1,234,567", or for a time "1.23 ms"."""
        return format_count(self.resource, number)


@dataclass(frozen=True)
class LeftAlone:
    """Channels that the plan does not cut, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """Which channels of a network are kept.

    Attributes:
        kept: for each parameter or buffer that is cut, and each of its cut dimensions, the indices that are kept,
            in original numbering and in the order they have in the slim network. A grouped convolution's dimension 1
            counts the input channels over all groups (`0 .. in_channels - 1`).
        readers: the `(parameter, dimension)` pairs of `kept` that *read* channels (a convolution's input dimension):
            zeroing their missing indices in the original silences exactly what was removed.
        grouped: for the weight of each grouped convolution that is cut, its groups before and after.
        attribute_updates: module attributes that store a width, before and after.
        unused: parameters that no run reads, which the slim network has not.
        budgets: the requested limits and what is met.
        predicted: `params` and `macs` of the slim network, as predicted for the given inputs, and where it
            was planned for a backend `latency`, in nanoseconds.
        left_alone: channels that cannot be cut, and why.
        notes: remarks for the reader.
        settings: the options of the call (importance, scope, seed, ...).
        ignored_outputs: places of the tensors, among all that the network returns in eval mode, that do not matter:
            they may be narrower, and have other values.
    """

    kept: Kept
    readers: tuple[tuple[str, int], ...] = ()
    grouped: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    attribute_updates: tuple[AttributeUpdate, ...] = ()
    budgets: tuple[Budget, ...] = ()
    predicted: Mapping[str, int] = field(default_factory=dict)
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    ignored_outputs: tuple[int, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether every budget is met."""
        return all(budget.is_met for budget in self.budgets)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {"format": FORMAT, **to_values(self, "plan")}

    def to_json(self) -> str:
        """The plan as JSON text; `Plan.from_json` gives an equal plan back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Any, where: str = "plan") -> Plan:
        """The plan that `to_dict` wrote; `where` is what messages call it.

        Raises:
            CheckpointError: the values are not a plan, or one of another format.
        """
        if isinstance(values, Mapping):  # earlier files of this format have another key, and lack some
            values = {"unused": [], "ignored_outputs": [], **{"attribute_updates" if key == "mends" else key: value
                                       for key, value in values.items()}}
        return read_values(cls, values, where, _REMEDY, FORMAT)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "plan") -> Plan:
        """The plan that `to_json` wrote; see `from_dict`."""
        return cls.from_dict(parse_json(text, where, _REMEDY), where)

    def __str__(self) -> str:
        lines = [f"Plan: {len(self.kept)} parameters and buffers are cut"]
        lines += [f"  {b.resource}: {b.format_count(b.before)} -> {b.format_count(b.met)} ({b.share:.1%}; asked "
                  f"for at most {b.format_count(b.asked)})" for b in self.budgets]
        for name, dims in self.kept.items():
            cuts = ", ".join(f"dim {dim} keeps {len(index)}" for dim, index in dims.items())
            lines.append(f"  {name}: {cuts}")
        lines += [f"  updates {update}" for update in self.attribute_updates]
        lines += [f"  {name}: never used, taken out" for name in self.unused]
        lines += [f"  left alone: {entry.name} ({entry.channels} channels): {entry.reason}"
                  for entry in self.left_alone]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def format_count(resource: str, number: int) -> str:
    """A number of a resource for display: "1,234,567", or for a time "1.23 ms"."""
    return milliseconds(number / 1e6) if resource == "latency" else f"{number:,}"
