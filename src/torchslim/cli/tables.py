"""Tables on the terminal, with the most important columns that fit; or all columns as CSV."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchslim.cli.output import print_table
from torchslim.errors import RequestError
from torchslim.utils.formatting import format_bytes, format_count

GAP = 2  # spaces between columns


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: what `--sort` calls it.
        heading: above it.
        value: the cell of a row, a number or a text.
        text: formats a cell.
        rank: on a narrow terminal columns of the highest rank are left out first; those of rank 0 never.
    """

    key: str
    heading: str
    value: Callable[[Any], Any]
    text: Callable[[Any], str] = str
    rank: int = 0


def count_cell(number: float) -> str:
    """A count with an SI prefix after a plain space."""
    return format_count(number, " ")


def bytes_cell(number: float) -> str:
    """A number of bytes with its unit after a plain space."""
    return format_bytes(number).replace("\N{NO-BREAK SPACE}", " ")


def sorted_rows(rows: Sequence[Any], columns: Sequence[Column], sort: str | None, top: int | None) -> list[Any]:
    """The first `top` rows, sorted by a column: numbers from the largest down, names from A on; None keeps the order.

    Raises:
        RequestError: no column of that name.
    """
    ordered = list(rows)
    if sort is not None:
        matching = [column for column in columns if sort in (column.key, column.key.partition(" ")[0])]
        if not matching:
            without = " without --time" if sort == "time" else ""
            raise RequestError(f"--sort {sort}: no such column{without}; wanted one of "
                               f"{', '.join(column.key for column in columns)}")
        value = matching[0].value
        ordered.sort(key=value, reverse=bool(ordered) and not isinstance(value(ordered[0]), str))
    return ordered[:top]


def print_fitted(rows: Sequence[Any], columns: Sequence[Column]) -> None:
    """Print a table that is no wider than the terminal; all columns where the output is no terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown = fitting_columns(rows, columns, width)
    text = {index for index, column in enumerate(shown) if rows and isinstance(column.value(rows[0]), str)}
    print_table([column.heading for column in shown],
                [[column.text(column.value(row)) for column in shown] for row in rows], text | {0}, tight=True,
                width=width or 10_000)


def fitting_columns(rows: Sequence[Any], columns: Sequence[Column], width: int | None) -> list[Column]:
    """The columns that fit into the width."""
    kept = list(columns)
    sizes = {column.key: max(len(column.heading), *(len(column.text(column.value(row))) for row in rows), 0)
             for column in columns}
    while width is not None and sum(sizes[column.key] + GAP for column in kept) - GAP > width:
        last = max(kept, key=lambda column: column.rank)
        if not last.rank:
            break
        kept.remove(last)
    return kept


def print_csv(rows: Sequence[Any], columns: Sequence[Column]) -> None:
    """Every column, numbers unrounded, on stdout."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    writer.writerows([column.value(row) for column in columns] for row in rows)
