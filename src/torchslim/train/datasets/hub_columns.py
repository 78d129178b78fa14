"""What a column of Hugging Face's `datasets` says is predicted, by its feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchslim.train.datasets.request import DataRequest
from torchslim.utils.text import did_you_mean, first_names

_CLASS_NAMES = ("category", "categories", "label", "labels", "category_id", "class", "classes", "id")


@dataclass(frozen=True)
class Column:
    """What is predicted.

    Attributes:
        name: the column.
        task: what it is data for.
        feature: of a class: it may have names.
        key: of boxes, the field with their classes.
    """

    name: str
    task: str
    feature: Any = None
    key: str = ""

    def values(self, part: Any) -> list[list[Any]]:
        """The classes or labels of each row."""
        column = part.select_columns([self.name])
        found = (row[self.name] for row in column)
        if self.task == "detection":
            return [[entry[self.key] for entry in object_rows(row)] for row in found]
        return [list(row) if isinstance(row, list) else [row] for row in found]

    def labels(self, request: DataRequest, parts: Sequence[Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
        """The classes' names, and the index of each value of the column.

        Raises:
            RequestError: a row without a class, one that is none, or no classes.
        """
        found = {value for part in parts for row in self.values(part) for value in row}
        named = getattr(self.feature, "names", None)
        values = list(range(len(named))) if named is not None else sorted(found - {None})
        odd = sorted(map(str, found - set(values)))
        if odd:
            raise request.error(f"the column {self.name!r} holds {first_names(odd)}, wanted 0 to {len(values) - 1}; "
                                "take such rows away, or choose other parts with ?train=NAME&test=NAME")
        names = tuple(map(str, named if named is not None else values))
        if len(names) < (2 if self.task == "classification" else 1):
            raise request.error(f"{len(names)} classes in the column {self.name!r}, at least 2 wanted")
        return names, {value: index for index, value in enumerate(values)}


def object_rows(objects: Any) -> list[Mapping[str, Any]]:
    """The objects of a picture, from a list of them or from a dict of lists."""
    if isinstance(objects, Mapping):
        return [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]
    return list(objects)


def target_column(request: DataRequest, features: Mapping[str, Any], image: str, asked: str | None) -> Column:
    """The column that is predicted: the one asked for, or the only one that can be.

    Raises:
        RequestError: none, or several.
    """
    names = [name for name in features if name != image]
    if asked is not None and asked not in names:
        raise request.error(f"no column {asked!r}; {did_you_mean(asked, names)}")
    found = {name: tasks for name in names if (tasks := _tasks(features[name]))}
    if asked is not None:
        if asked not in found:
            raise request.error(f"the column {asked!r} is {features[asked]}, wanted classes, numbers, a mask or boxes")
        chosen = [asked]
    else:
        ranks = {name: _rank(features[name], tasks[0]) for name, tasks in found.items()
                 if request.task is None or request.task in tasks}
        chosen = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    if len(chosen) != 1:
        found_ones = (f"{' and '.join(chosen)} may be predicted" if chosen
                      else f"none of the columns {', '.join(names)} can be predicted")
        raise request.error(f"{found_ones}; choose a column with ?target=NAME")
    tasks = found[chosen[0]]
    feature = features[chosen[0]]
    task = request.check_task(*tasks)
    if task == "detection":
        fields = _fields(feature) or {}
        key = next(name for name in _CLASS_NAMES if name in fields)
        return Column(chosen[0], task, _inner(fields[key]), key)
    return Column(chosen[0], task, _inner(feature))


def _rank(feature: Any, task: str) -> int:
    """Masks and boxes say most; of plain values, classes with names: others may be numbers of rows, or sizes."""
    if task in ("segmentation", "detection"):
        return 0
    return 1 if hasattr(_inner(feature), "names") else 2


def _tasks(feature: Any) -> tuple[str, ...]:
    kind, inner = type(feature).__name__, _inner(feature)
    if kind == "Image":
        return ("segmentation",)
    fields = _fields(feature)
    if fields is not None:
        return ("detection",) if "bbox" in fields and any(name in fields for name in _CLASS_NAMES) else ()
    dtype = str(getattr(inner, "dtype", ""))
    whole = hasattr(inner, "names") or dtype.startswith(("int", "uint", "bool")) or dtype in ("string", "large_string")
    if inner is not feature:  # a list
        return ("multilabel",) if whole else ("regression",) if dtype.startswith("float") else ()
    if dtype.startswith("float"):
        return ("regression",)
    if dtype.startswith(("int", "uint")) and not hasattr(inner, "names"):
        return ("classification", "regression")
    return ("classification",) if whole else ()


def _inner(feature: Any) -> Any:
    """What a list holds; the feature itself if it is none."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", feature)


def _fields(feature: Any) -> Mapping[str, Any] | None:
    """The fields of objects, as a dict of lists or a list of dicts."""
    inner = _inner(feature)
    return inner if isinstance(inner, Mapping) else None
