"""The record survives JSON, and refuses what is not a record in one line that says where."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from torchslim.errors import CheckpointError
from torchslim.report.record import NetworkMetrics, Record, TrainingCurve


def test_a_record_survives_json(record):
    assert Record.from_json(record.to_json()) == record


def test_the_smallest_record_survives_json():
    record = Record("", "", "2025-11-21", {}, {}, NetworkMetrics(0, 0, 0), NetworkMetrics(0, 0, 0), 0.0)
    assert Record.from_json(record.to_json()) == record


def test_order_of_settings_and_backends_is_kept(record):
    record = replace(record, settings={"b": 1, "a": 2})
    assert list(Record.from_json(record.to_json()).settings) == ["b", "a"]


def test_json_has_no_constants_beyond_json(record):
    json.loads(record.to_json(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_refused_by_place(record, value):
    curves = (TrainingCurve("train", (1.0, value), (0.5, 0.5)),)
    with pytest.raises(CheckpointError, match=r"^record\.curves\[0\]\.loss\[1\]: (nan|inf) found.*[^\n]$"):
        replace(record, curves=curves).to_json()


@pytest.mark.parametrize("settings", [{"x": object()}, {"x": {None: 2}}, {"x": [{3}]}])
def test_settings_that_are_no_json_are_refused(record, settings):
    with pytest.raises(CheckpointError, match=r"record\.settings\.x"):
        replace(record, settings=settings).to_json()


def test_a_whole_number_is_good_where_a_number_is_wanted(record):
    raw = json.loads(record.to_json())
    raw["before"]["latency"]["eager"]["median_ms"] = 31
    median = Record.from_json(json.dumps(raw)).before.latency["eager"].median_ms
    assert (median, type(median)) == (31.0, float)


CHANGES = {
    "record: unknown fields ['extra']": (("extra",), 1),
    "record.before: unknown fields ['flops']": (("before", "flops"), 1),
    "record.layers[3]: unknown fields ['x']": (("layers", 3, "x"), 1),
    "record.left_alone[0]: unknown fields ['x']": (("left_alone", 0, "x"), 1),
    "record.title: expected `str`, got `int`": (("title",), 3),
    "record.title: expected `str`, got `null`": (("title",), None),
    "record.before.params: expected `int`, got `bool`": (("before", "params"), True),
    "record.before.params: expected `int`, got `float`": (("before", "params"), 1.5),
    "record.before: expected `object`, got `array`": (("before",), []),
    "record.before.latency: expected `object`, got `array`": (("before", "latency"), []),
    "record.before.latency[...]: expected `object`, got `int`": (("before", "latency", "eager"), 3),
    "record.proof_error: expected `float`, got `str`": (("proof_error",), "0"),
    "record.proof_error: expected `float`, got `bool`": (("proof_error",), True),
    "record.onnx_error: expected `float | null`, got `str`": (("onnx_error",), "x"),
    "record.curves: expected `array`, got `object`": (("curves",), {}),
    "record.curves[0].loss[0]: expected `float`, got `null`": (("curves", 0, "loss", 0), None),
    "record.settings: expected `object`, got `int`": (("settings",), 1),
    "record.environment[...]: expected `str`, got `int`": (("environment", "torch"), 2),
    "record.notes[0]: expected `str`, got `int`": (("notes", 0), 1),
    "record.created: 'yesterday' found": (("created",), "yesterday"),
    "record.after.metrics.accuracy: 98.3 found": (("after", "metrics", "accuracy"), 98.3),
    "record.curves[1].score[0]: -0.1 found": (("curves", 1, "score", 0), -0.1),
    "record.scores: 1 edges, 3 and 3 counts found": (("scores", "edges"), [1.0]),
    "record: format 2 found, 1 wanted": (("format",), 2),
    "record: format True found, 1 wanted": (("format",), True),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_misfit_is_refused_in_one_line_with_its_place(record, message):
    (*path, last), value = CHANGES[message]
    raw = json.loads(record.to_json())
    spot = raw
    for key in path:
        spot = spot[key]
    spot[last] = value
    with pytest.raises(CheckpointError) as caught:
        Record.from_json(json.dumps(raw))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [
    ("title",), ("before", "macs"), ("layers", 0, "kind"), ("samples", 0, "png")])
def test_a_missing_field_is_refused(record, path):
    raw = json.loads(record.to_json())
    spot = raw
    for key in path[:-1]:
        spot = spot[key]
    del spot[path[-1]]
    with pytest.raises(CheckpointError, match=rf"missing required field `{path[-1]}`"):
        Record.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", [
    "", "{", "null", "[]", "3", "{}", '"x"', "NaN", '{"format": 1}', "[" * 100_000])
def test_text_that_is_no_record_is_refused(text):
    with pytest.raises(CheckpointError, match=r"\Arecord: [^\n]+\Z"):
        Record.from_json(text)


@pytest.mark.parametrize(("old", "new"), [('"proof_error": 3.1e-15', '"proof_error": NaN'),
                                          ('"proof_error": 3.1e-15', '"proof_error": 1e999'),
                                          ('"proof_error": 3.1e-15', '"proof_error": 1' + "0" * 400),
                                          ('"macs": 0.4', '"macs": 1e999')])
def test_numbers_without_end_are_refused(record, old, new):
    text = record.to_json()
    assert old in text
    with pytest.raises(CheckpointError, match=r"\Arecord[^\n]+\Z"):
        Record.from_json(text.replace(old, new))


def test_a_record_needs_no_torch():
    code = "import sys, torchslim.report.record; print('torch' in sys.modules, 'jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
