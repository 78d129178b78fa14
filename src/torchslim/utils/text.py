"""How error messages quote things, in one line."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def describe_error(error: BaseException) -> str:
    """An error's kind and the first line of its message: `TypeError: ...`."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def format_shape(shape: Iterable[int]) -> str:
    """A shape as people write it: `64x3x7x7`, or `scalar`."""
    return "x".join(str(int(size)) for size in shape) or "scalar"


def printable(name: object) -> str:
    """The name of a file in one line, with escapes for bytes that are no UTF-8, which could not be written."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n")


def first_names(names: Sequence[str], count: int = 4) -> str:
    """The first few of a list: `a, b, c, d, ...`."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def quoted(text: str) -> str:
    """A value as the command line takes it: in quotes where it is empty or holds spaces."""
    return shlex.quote(text)


def did_you_mean(word: str, names: Iterable[str], others: str = "") -> str:
    """What to try in place of a word that is none of these names: the closest, else `others`, else all names."""
    known = list(names)
    by_lower = {name.lower(): name for name in known}
    close = (get_close_matches(word, known, n=3, cutoff=0.65)
             or [by_lower[name] for name in get_close_matches(word.lower(), by_lower, n=3, cutoff=0.65)]
             or [name for name in known if len(word) > 2 and name.startswith(word)][:3])
    return f"did you mean {' or '.join(close)}?" if close else others or f"wanted one of {', '.join(known)}"
