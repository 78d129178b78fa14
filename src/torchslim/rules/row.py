"""The value that every operation's row is, and the names under which a row is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from torchslim.rules.labels import LabelSpace
from torchslim.tracing.graph import Op

# Views that torch also has as copies, such as aten.view_copy; which of the two arrives depends on its version.
_VIEWS = frozenset({"_conj", "_neg_view", "_reshape", "_reshape_alias", "alias", "as_strided", "detach", "expand",
                    "narrow", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
                    "unbind", "unfold", "unsqueeze", "view"})


@dataclass(frozen=True)
class Row:
    """How an operation moves labels, and the multiply-adds that it costs (None: it has none)."""

    labels: Callable[[LabelSpace, Op], None]
    macs: Callable[[Op], int] | None = None


def plain_name(name: str) -> str:
    """The operation behind its in-place and its copying form: aten.relu_ -> aten.relu, aten.view_copy -> aten.view."""
    name = name.removesuffix("_")
    view = name.removesuffix("_copy")
    return view if view.removeprefix("aten.") in _VIEWS else name


@cache
def is_pointwise(name: str) -> bool:
    """Whether torch tags an ATen operation as pointwise; it tags some overloads, and forgets others."""
    packet = getattr(torch.ops.aten, plain_name(name).removeprefix("aten."), None) if name.startswith("aten.") else None
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, overload).tags
                                      for overload in packet.overloads())


@cache
def out_arguments(overload: Any) -> tuple[str, ...]:
    """Names of the keywords that an operation writes its results to, such as ("out",)."""
    arguments = getattr(getattr(overload, "_schema", None), "arguments", ())
    return tuple(argument.name for argument in arguments if argument.is_out)
