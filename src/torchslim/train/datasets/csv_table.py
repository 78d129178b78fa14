"""`csv:FILE`: a table with a picture in each row and what is predicted in the other columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from torchslim.train.datasets.broken import picture_look, usable
from torchslim.train.datasets.files import name_parts, warn_once
from torchslim.train.datasets.items import FileReader, Sample, make_data
from torchslim.train.datasets.request import DataRequest
from torchslim.train.datasets.text_files import read_text
from torchslim.utils.data import Data
from torchslim.utils.text import did_you_mean, first_names, printable

_SPLIT = "split"
_BETWEEN = "|"  # labels of one cell
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class _Table:
    """The cells of the columns that are predicted, row by row.

    Attributes:
        where: the file.
        names: of the columns.
        cells: one row a picture.
        lines: the rows' lines in the file.
    """

    where: str
    names: tuple[str, ...]
    cells: list[tuple[str, ...]]
    lines: list[int]


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: no such file or folder, no table, missing columns or cells, a mixture of columns, an unknown part,
            pictures that can't be read.
    """
    name, at, folder = request.rest.partition("@")
    path = Path(name).expanduser()
    root = Path(folder).expanduser() if at else path.parent
    if not root.is_dir():
        raise request.error(f"{root} is no folder; give csv:FILE@FOLDER with the folder of the pictures")
    pictures, parts, table = _read(request, path, root)
    task = request.check_task(*_tasks(request, table))
    classes, targets = _TARGETS[task](request, table)
    samples: list[Sample] = list(zip(pictures, targets, strict=True))
    train, test = _parts(request, table, parts, samples)
    if task == "classification" and test is not None:
        _check_classes(request, classes, train, test)
    return make_data(request, task, classes,
                     *usable(request, task, train, test, picture_look(request), classes=classes),
                     FileReader(request.colours))


# --- the file -------------------------------------------------------------------------------------------------------

def _read(request: DataRequest, path: Path, root: Path) -> tuple[list[Path], list[str] | None, _Table]:
    """Pictures, their parts if there is such a column, and the other columns."""
    where, text = printable(path), read_text(request, path)
    header = text.partition("\n")[0]
    reader = csv.reader(StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=header.count),
                        skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise request.error(f"{where}, line {reader.line_num}: not a table ({error}); mend its quotes") from error
    if len(rows) < 2:
        raise request.error(f"{where}: {len(rows)} rows, wanted names of columns and a row for each picture")
    names = rows[0][1]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise request.error(f"{where}, line {number}: {len(row)} cells, wanted {len(names)} as in the first line; "
                                "put quotes around cells that hold the delimiter")
        if not row[0]:
            raise request.error(f"{where}, line {number}: no picture; the first column is its path")
    if (root / names[0]).is_file():
        raise request.error(f"{where}: the first line is a picture ({names[0]}), wanted names of columns; put them "
                            "before it, such as `picture,label`")
    lower = [name.lower() for name in names]
    split = lower.index(_SPLIT, 1) if _SPLIT in lower[1:] else None
    columns = [index for index in range(1, len(names)) if index != split]
    if not columns:
        raise request.error(f"{where}: the columns are {', '.join(names)}, wanted the picture's path and at least one "
                            "column to predict; set the delimiter to a comma, a semicolon or a tab")
    twice = [names[index] for index in columns if names.count(names[index]) > 1]
    if twice:
        raise request.error(f"{where}: two columns {twice[0]!r}; rename one")
    data = rows[1:]
    table = _Table(where, tuple(names[index] for index in columns),
                   [tuple(row[index] for index in columns) for _, row in data], [number for number, _ in data])
    return [root / row[0] for _, row in data], None if split is None else [row[split] for _, row in data], table


def _parts(request: DataRequest, table: _Table, parts: list[str] | None,
           samples: list[Sample]) -> tuple[list[Sample], list[Sample] | None]:
    if parts is None:
        return samples, None
    names = sorted(set(parts))
    for name in names:
        if name_parts(request.spec, [name]) == (None, None):
            line = table.lines[parts.index(name)]
            raise request.error(f"{table.where}, line {line}: the part {name!r} is none; "
                                f"{did_you_mean(name, ('train', 'val', 'test'))}")
    train, test = name_parts(request.spec, names)
    if train is None or test is None:
        raise request.error(f"{table.where}: the column split holds {', '.join(names)} only, wanted train and val or "
                            "test; leave the column out to have some held out")
    left = len(parts) - parts.count(train) - parts.count(test)
    if left:
        warn_once(f"{request.spec}: {left} rows not read, as their part is not {train} or {test}", Path(table.where))
    return tuple([sample for sample, part in zip(samples, parts, strict=True) if part == name]  # type: ignore[return-value]
                 for name in (train, test))


def _check_classes(request: DataRequest, classes: Sequence[str], train: list[Sample], test: list[Sample]) -> None:
    found = [{target for _, target in part} for part in (train, test)]
    odd = "; ".join(f"{first_names([classes[index] for index in sorted(alone)])} in {part} only"
                    for part, alone in (("train", found[0] - found[1]), ("test", found[1] - found[0])) if alone)
    if odd:
        raise request.error(f"the parts hold different classes ({odd}); give both the same")


# --- tasks ----------------------------------------------------------------------------------------------------------

def _tasks(request: DataRequest, table: _Table) -> tuple[str, ...]:
    """The tasks that the columns allow, the likeliest first."""
    numbers = all(_is_number(cell) for row in table.cells for cell in row)
    binary = all(cell in _BITS for row in table.cells for cell in row)
    if len(table.names) > 1:
        if not numbers:
            odd = next((name, row[index], line) for row, line in zip(table.cells, table.lines, strict=True)
                       for index, name in enumerate(table.names) if not _is_number(row[index]))
            raise request.error(f"{table.where}, line {odd[2]}: {odd[1]!r} in the column {odd[0]!r} is no number; "
                                f"wanted numbers in all of {first_names(table.names)}, or one column of classes; "
                                "take the others away")
        return ("multilabel", "regression") if binary else ("regression",)
    cells = [row[0] for row in table.cells]
    if any(_BETWEEN in cell for cell in cells):
        return ("multilabel",)
    if not numbers:
        return ("classification", "multilabel")
    whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
    return ("classification", "regression", "multilabel") if whole else ("regression", "classification")


_BITS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _classification(request: DataRequest, table: _Table) -> tuple[list[str], list[Any]]:
    cells = [row[0] for row in table.cells]
    if "" in cells:
        raise request.error(f"{table.where}, line {table.lines[cells.index('')]}: no class in the column "
                            f"{table.names[0]!r}; give one, or take the row away")
    by_number = all(_is_number(cell) for cell in cells)
    names = sorted(set(cells), key=float) if by_number else sorted(set(cells))
    if len(names) < 2:
        raise request.error(f"{table.where}: 1 class found ({names[0]}), at least 2 wanted")
    index = {name: number for number, name in enumerate(names)}
    return names, [index[cell] for cell in cells]


def _multilabel(_request: DataRequest, table: _Table) -> tuple[list[str], list[Any]]:
    if len(table.names) > 1:
        return list(table.names), [torch.tensor([_BITS[cell] for cell in row]) for row in table.cells]
    labels = [{label.strip() for label in row[0].split(_BETWEEN) if label.strip()} for row in table.cells]
    names = sorted(set().union(*labels))
    return names, [torch.tensor([float(name in present) for name in names]) for present in labels]


def _regression(_request: DataRequest, table: _Table) -> tuple[list[str], list[Any]]:
    return list(table.names), [torch.tensor([float(cell) for cell in row]) for row in table.cells]


_TARGETS = {"classification": _classification, "multilabel": _multilabel, "regression": _regression}
