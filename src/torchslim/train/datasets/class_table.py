"""`classes.txt` or `classes.json` beside the pictures: names of classes, and the colours of masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchslim.train.datasets.request import DataRequest
from torchslim.train.datasets.text_files import read_json, read_text
from torchslim.utils.text import printable

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """Names of classes by their index.

    Attributes:
        where: the file.
        names: one a class.
        colours: red, green and blue of each; empty without.
    """

    where: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()


def read_class_table(request: DataRequest, root: Path) -> ClassTable | None:
    """The table in a folder, if there is one.

    A line of `classes.txt` is `name` or `name red green blue`; `classes.json` holds a list of names, `{"0": name, ...}`
    or `{name: [red, green, blue], ...}`.

    Raises:
        RequestError: it can't be read; a name or a colour is there twice; some have colours and some have none.
    """
    path = next((root / name for name in ("classes.txt", "classes.json") if (root / name).is_file()), None)
    if path is None:
        return None
    where = printable(path)
    rows = ([_row(line) for line in read_text(request, path).splitlines() if line.strip()] if path.suffix == ".txt"
            else _rows_of_json(request, where, read_json(request, path)))
    names, colours = tuple(name for name, _ in rows), tuple(colour for _, colour in rows if colour is not None)
    if colours and len(colours) != len(names):
        raise request.error(f"{where}: {len(colours)} of {len(names)} classes have a colour; give all one, or none")
    for what, values in (("name", names), ("colour", colours)):
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise request.error(f"{where}: the {what} {twice[0]} is there twice; wanted one a class")
    if any(not 0 <= value <= 255 for colour in colours for value in colour):
        raise request.error(f"{where}: a colour outside 0 to 255; wanted `name red green blue`")
    return ClassTable(where, names, colours)


def _row(line: str) -> tuple[str, Colour | None]:
    words = line.split()
    if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
        return " ".join(words[:-3]), (int(words[-3]), int(words[-2]), int(words[-1]))
    return line.strip(), None


def _rows_of_json(request: DataRequest, where: str, values: Any) -> list[tuple[str, Colour | None]]:
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return [(value, None) for value in values]
    if isinstance(values, dict) and all(isinstance(value, str) for value in values.values()):
        if sorted(values) == sorted(map(str, range(len(values)))):
            return [(values[str(index)], None) for index in range(len(values))]
    elif isinstance(values, dict) and all(
            isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)
            for value in values.values()):
        return [(name, (value[0], value[1], value[2])) for name, value in values.items()]
    raise request.error(f"{where}: wanted a list of names, {{\"0\": name, ...}} or {{name: [red, green, blue], ...}}")
