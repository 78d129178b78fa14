"""Shell-style patterns of layer names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def all_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """True if every name matches some pattern."""
    return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names)
