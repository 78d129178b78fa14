"""What commands print: data and tables on stdout, remarks on stderr."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def wrapped(text: str, indent: str = "", hanging: str = "") -> str:
    """A paragraph in lines of at most 120 columns that fit the terminal; code between backticks is not broken.

    Lines after the first are indented by `hanging` more.
    """
    unbroken = re.sub("`[^`]+`", lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.fill(unbroken, min(shutil.get_terminal_size().columns, 120), initial_indent=indent,
                          subsequent_indent=indent + hanging, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def say(message: str) -> None:
    """A remark to the user, on stderr."""
    sys.stderr.write(f"{message}\n")  # in one piece: an interrupt may come at any time
    sys.stderr.flush()


def print_json(data: Any) -> None:
    """Data on stdout."""
    print(json.dumps(data, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[int] = (0,),
                tight: bool = False, width: int | None = None) -> None:
    """A table on stdout.

    Args:
        headings: of the columns.
        rows: a text for each column.
        text: indices of the columns that hold text; the others hold numbers.
        tight: whether two spaces separate columns, not three.
        width: where lines fold; None for the terminal's width.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if tight else 1, 0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in text else "right", overflow="fold",
                         no_wrap=index not in text)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, width=width).print(table)


def print_costs(rows: Sequence[tuple[str, int, int]]) -> None:
    """A table of costs: resource, before, after."""
    from torchslim.surgery.plans import format_count

    print_table(("", "before", "after", "kept"), [
        (name, format_count(name, old), format_count(name, new), f"{new / old:.1%}" if old else "-")
        for name, old, new in rows])
