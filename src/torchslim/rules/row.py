"""The value that every operation's row is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchslim.rules.labels import LabelSpace
from torchslim.tracing.graph import Op


@dataclass(frozen=True)
class Row:
    """How an operation moves labels, and the multiply-adds that it costs (None: it has none)."""

    labels: Callable[[LabelSpace, Op], None]
    macs: Callable[[Op], int] | None = None
