"""What a launcher of several processes, such as torchrun, tells each in its environment. No torch is loaded."""

from __future__ import annotations

import os


def requested_processes() -> int:
    """How many processes were asked for; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def requested_on_machine() -> int:
    """How many of them run on this machine; 1 without a launcher."""
    return _number("LOCAL_WORLD_SIZE", 1)


def requested_rank() -> int:
    """The number of this process, from 0; 0 without a launcher."""
    return _number("RANK", 0)


def is_first_on_machine() -> bool:
    """Whether this is the first process of its machine; True without a launcher."""
    return _number("LOCAL_RANK", 0) == 0


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise
