"""Dataclasses go through JSON unchanged, and every misfit is one line that names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from torchslim.errors import CheckpointError
from torchslim.utils.json_values import parse_json, read_json, to_values


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Shape:
    name: str
    index: Mapping[str, Mapping[int, tuple[int, ...]]]
    pairs: tuple[tuple[str, int], ...] = ()
    size: int | tuple[int, ...] = 0
    points: tuple[Point, ...] = ()
    corners: Mapping[str, Point] = field(default_factory=dict)
    center: Point | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


SHAPE = Shape("s", {"w": {0: (1, 2), 1: ()}}, (("a", 1),), (3, 4), (Point(1.0), Point(2.5, -1.0)), {"top": Point(0.0)},
              None, {"b": [1, None], "a": {"deep": "x"}})


def read(text: str | bytes) -> Shape:
    return read_json(Shape, text, "shape", "draw it again", 1)


def text_of(shape: Shape = SHAPE, **changes: Any) -> str:
    return json.dumps({"format": 1, **to_values(shape, "shape"), **changes})


def test_a_value_survives_json() -> None:
    assert read(text_of()) == SHAPE
    assert read(text_of().encode()) == SHAPE
    assert list(read(text_of()).extra) == ["b", "a"]


def test_a_whole_number_is_good_for_a_float() -> None:
    point = read(text_of(center={"x": 3, "y": 0})).center
    assert point is not None
    assert (point.x, type(point.x)) == (3.0, float)


@pytest.mark.parametrize(("changes", "message"), [
    ({"surprise": 1}, "shape: unknown fields ['surprise']; install a matching torchslim"),
    ({"points": [{"x": 1, "y": 2}, {"x": 1, "y": 2, "z": 3}]}, "shape.points[1]: unknown fields ['z']"),
    ({"corners": {"top": {"x": 1}}}, "shape.corners.top: fields ['y'] are missing; draw it again"),
    ({"center": {"y": 1}}, "shape.center: object missing required field `x`"),
    ({"name": 3}, "shape.name: expected `str`, got `int`; draw it again"),
    ({"size": True}, "shape.size: expected `int | array`, got `bool`"),
    ({"size": 1.5}, "shape.size: expected `int | array`, got `float`"),
    ({"center": {"x": "1", "y": 0}}, "shape.center.x: expected `float`, got `str`"),
    ({"pairs": [["a"]]}, "shape.pairs[0]: expected `array` of length 2, got 1"),
    ({"index": {"w": {"zero": []}}}, "shape.index[...]: expected `int`, got `str`"),
    ({"index": {"w": {"1": [], "01": []}}}, "shape"),
    ({"index": []}, "shape.index: expected `object`, got `array`"),
    ({"format": 2}, "shape: format 2 found, 1 wanted; install a matching torchslim"),
    ({"format": True}, "shape: format True found, 1 wanted"),
])
def test_a_misfit_is_one_line_that_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(text_of(**changes))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [
    "", "{", "null", "[]", "3", "{}", '"x"', "NaN", "1e999", "1" * 5000, "[" * 100_000, '{"a":' * 100_000,
    b"\xff\xfe\xfa",
    '{"format": 1, "extra": {"a": ' + "[" * 900 + "]" * 900 + "}}", text_of(center={"x": 10**400, "y": 0})])
def test_other_texts_are_refused(text: str | bytes) -> None:
    with pytest.raises(CheckpointError, match=r"\Ashape[^\n]+draw it again\Z"):
        read(text)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[1e999]"])
def test_only_finite_numbers_are_read(text: str) -> None:
    with pytest.raises(CheckpointError, match="not a finite number"):
        parse_json(text, "shape", "draw it again")


@pytest.mark.parametrize(("value", "message"), [
    ({"x": [1.0, float("nan")]}, r"shape\.extra\.x\[1\]: nan found"), ({"x": {3}}, r"shape\.extra\.x: set found"),
    ({"x": {None: 1}}, r"shape\.extra\.x: dict found"), ({"x": object()}, r"shape\.extra\.x: object found")])
def test_what_json_cannot_hold_is_refused_by_field(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        to_values(Shape("s", {}, extra=value), "shape")
