"""Values of options, checked in one way."""

from __future__ import annotations

from collections.abc import Mapping

from torchslim.errors import RequestError


def check_fields(options: object, wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Check fields of a value: for each name whether it is good, and what was wanted.

    Raises:
        RequestError: one is not.
    """
    for name, (good, text) in wanted.items():
        if not good:
            raise RequestError(f"fit: {name}={getattr(options, name)!r} found, wanted {text}")
