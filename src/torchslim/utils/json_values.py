"""Dataclasses from JSON and to JSON: the one place where the contents of files are checked.

Reading is strict: types are not converted, and unknown and missing fields are refused. Every misfit is a
`CheckpointError` that names the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import msgspec

from torchslim.errors import CheckpointError
from torchslim.utils.text import describe_error

T = TypeVar("T")


def parse_json(text: str | bytes, where: str, remedy: str) -> Any:
    """The JSON values in a text; only finite numbers.

    Args:
        text: the text, or the bytes of a file.
        where: what is read, for messages: "plan", a file's path.
        remedy: what to try, for messages.

    Raises:
        CheckpointError: the text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON ({describe_error(error)}); {remedy}") from error


def read_values(kind: type[T], values: Any, where: str, remedy: str, version: int | None = None) -> T:
    """JSON values as a value of an annotated type, usually a dataclass of dataclasses, tuples, mappings and numbers.

    Args:
        kind: the type.
        values: JSON values.
        where, remedy: see `parse_json`.
        version: what the field "format" must hold; None where there is no such field.

    Raises:
        CheckpointError: another format; a field is unknown, missing or of the wrong type.
    """
    if version is not None:
        values = _without_format(values, where, remedy, version)
    try:
        result = msgspec.convert(values, kind, str_keys=True)
        _check_fields(values, result, where, remedy)
    except (msgspec.ValidationError, ValueError) as error:  # keys such as 1 and 01 are the same number
        problem, _, path = str(error).replace("`key` in ", "").partition(" - at `$")
        raise CheckpointError(f"{where}{path[:-1]}: {problem[0].lower()}{problem[1:]}; {remedy}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where}: nested too deeply; {remedy}") from error
    return result


def read_json(kind: type[T], text: str | bytes, where: str, remedy: str, version: int | None = None) -> T:
    """`parse_json`, then `read_values`."""
    return read_values(kind, parse_json(text, where, remedy), where, remedy, version)


def to_values(value: Any, where: str) -> Any:
    """A value as JSON holds it: dataclasses and mappings as dicts with keys of text, tuples as lists.

    Raises:
        CheckpointError: something in it that JSON can't hold, such as NaN.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_values(getattr(value, field.name), f"{where}.{field.name}") for field in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {str(key): to_values(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_values(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    got = value if isinstance(value, float) else type(value).__name__
    raise CheckpointError(f"{where}: {got} found, a JSON value wanted; convert it first, or leave it out")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _without_format(values: Any, where: str, remedy: str, version: int) -> dict[str, Any]:
    if not isinstance(values, dict) or "format" not in values:
        raise CheckpointError(f"{where}: no field 'format' found; {remedy}")
    got = values["format"]
    if type(got) is not int or got != version:
        raise CheckpointError(f"{where}: format {got!r} found, {version} wanted; "
                              f"install a matching torchslim, or {remedy}")
    return {name: value for name, value in values.items() if name != "format"}


def _check_fields(values: Any, result: Any, where: str, remedy: str) -> None:
    """Refuse unknown fields of dataclasses, and missing ones although they have a default."""
    if isinstance(values, list):
        for index, (entry, read) in enumerate(zip(values, result, strict=True)):
            if isinstance(entry, list | dict):
                _check_fields(entry, read, f"{where}[{index}]", remedy)
    elif isinstance(values, dict):
        entries = (dict(zip(values, result.values(), strict=True)) if isinstance(result, Mapping) else
                   {field.name: getattr(result, field.name) for field in fields(result)})
        if unknown := sorted(values.keys() - entries.keys()):
            raise CheckpointError(f"{where}: unknown fields {unknown}; install a matching torchslim, or {remedy}")
        if missing := sorted(entries.keys() - values.keys()):
            raise CheckpointError(f"{where}: fields {missing} are missing; {remedy}")
        for name, entry in values.items():
            _check_fields(entry, entries[name], f"{where}.{name}", remedy)
