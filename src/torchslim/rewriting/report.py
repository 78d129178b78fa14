"""The report of `lighten`: what was rewritten, as values that print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchslim.rewriting.steps import RewriteStep
from torchslim.utils.formatting import percent

MAX_NAMES = 3
"""How many of the layers with one reason are named in print."""


@dataclass(frozen=True)
class RewrittenLayer:
    """One layer that was replaced.

    Attributes:
        layer: its name.
        rule: as requested.
        before, after: description of the old layer and of the new: kind, channels along the way, kernels, groups.
        params: before and after.
        macs: before and after; None without inputs.
        error: relative error of its outputs: root mean squared difference over the standard deviation of the old
            outputs; on white noise, or with `data` on the held-out batches in the new network (on all where it is a
            single batch that can't be split). None where nothing ran, and without data where the parts start from
            fresh weights or have norms between.
    """

    layer: str
    rule: str
    before: str
    after: str
    params: tuple[int, int]
    macs: tuple[int, int] | None
    error: float | None


@dataclass(frozen=True)
class LightenResult:
    """A lighter copy of a model, and how it was made; `str` is the table.

    Attributes:
        model: the copy.
        layers: what was rewritten, in order.
        steps: the same as plain data, which `torchslim.save(model, path, plan=steps, source=...)` keeps, and from which
            `torchslim.load` builds the network again.
        left_alone: selected layers that a rule does not fit: name and reason, once for each rule.
        params: of the whole model, before and after.
        macs: likewise; None without inputs.
    """

    model: nn.Module
    layers: tuple[RewrittenLayer, ...]
    steps: tuple[RewriteStep, ...]
    left_alone: tuple[tuple[str, str], ...]
    params: tuple[int, int]
    macs: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """All but the model and the steps, as JSON has it."""
        reasons: dict[str, str] = {}
        for name, reason in self.left_alone:
            reasons[name] = f"{reasons[name]}; {reason}" if name in reasons else reason
        return {"layers": [asdict(layer) for layer in self.layers], "left_alone": reasons,
                "params": self.params, "macs": self.macs}

    def __str__(self) -> str:
        rows = [("layer", "rule", "before", "after", "params", "MACs", "error")]
        rows += [(row.layer, row.rule, row.before, row.after, _change(row.params), _change(row.macs),
                  "-" if row.error is None else f"{row.error:.3f}") for row in self.layers]
        rows.append(("total", "", "", "", _change(self.params), _change(self.macs), ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(f"{_share(self.params)} of the parameters"
                     + ("" if self.macs is None else f", {_share(self.macs)} of the MACs"))
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """Which layers became heavier, and which were left alone: a line for each reason."""
        lines = []
        for key, what in (("params", "parameters"), ("macs", "MACs")):
            heavier = [f"{row.layer} ({row.rule})" for row in self.layers
                       if getattr(row, key) is not None and getattr(row, key)[1] > getattr(row, key)[0]]
            lines += [f"more {what} than before: {_first_names(heavier)}"] if heavier else []
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_alone:
            by_reason.setdefault(reason, []).append(name)
        return lines + [f"left alone: {reason}: {_first_names(names)}" for reason, names in by_reason.items()]


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def describe_layer(layer: nn.Module) -> str:
    """`Conv2d 64-64-128 3x3 1x1 g64`: kind, channels along the way, kernels and groups."""
    parts: list[Any] = [module for module in layer.modules() if isinstance(module, _ConvNd | nn.Linear)]
    widths = [_width(parts[0], "in"), *(_width(part, "out") for part in parts)]
    kernels = ["x".join(map(str, part.kernel_size)) for part in parts if hasattr(part, "kernel_size")]
    groups = [f"g{count}" for count in sorted({getattr(part, "groups", 1) for part in parts} - {1})]
    return " ".join([type(parts[0]).__name__, "-".join(map(str, widths)), *kernels, *groups])


def _width(layer: Any, side: str) -> int:
    width: int = getattr(layer, f"{side}_channels" if hasattr(layer, "in_channels") else f"{side}_features")
    return width


def _change(pair: tuple[int, int] | None) -> str:
    return "" if pair is None else f"{pair[0]:,} -> {pair[1]:,}"


def _share(pair: tuple[int, int]) -> str:
    return percent(pair[1] / max(pair[0], 1))
