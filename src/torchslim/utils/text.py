"""How error messages quote things, in one line."""

from __future__ import annotations

from collections.abc import Iterable


def describe_error(error: BaseException) -> str:
    """An error's kind and the first line of its message: `TypeError: ...`."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def format_shape(shape: Iterable[int]) -> str:
    """A shape as people write it: `64x3x7x7`, or `scalar`."""
    return "x".join(str(int(size)) for size in shape) or "scalar"
