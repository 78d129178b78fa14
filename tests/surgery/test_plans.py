"""The plan as plain data: the same after a trip through JSON, and refused where the text is no plan."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslim.errors import CheckpointError
from torchslim.surgery.plans import AttributeUpdate, Budget, LeftAlone, Plan

names = st.text(max_size=20)
counts = st.integers(0, 2**50)
widths = st.one_of(st.integers(0, 9999), st.lists(st.integers(0, 9999), max_size=4).map(tuple))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-2**50, 2**50) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=5)
plans = st.builds(
    Plan,
    kept=st.dictionaries(names, st.dictionaries(
        st.integers(0, 5), st.lists(st.integers(0, 4096), max_size=6).map(tuple), max_size=2), max_size=4),
    readers=st.lists(st.tuples(names, st.integers(0, 5)), max_size=3).map(tuple),
    grouped=st.dictionaries(names, st.tuples(counts, counts), max_size=2),
    attribute_updates=st.lists(st.builds(AttributeUpdate, names, names, widths, widths), max_size=2).map(tuple),
    budgets=st.lists(st.builds(Budget, names, counts, counts, counts), max_size=2).map(tuple),
    predicted=st.dictionaries(names, counts, max_size=2),
    left_alone=st.lists(st.builds(LeftAlone, names, counts, names), max_size=2).map(tuple),
    notes=st.lists(names, max_size=2).map(tuple),
    settings=st.dictionaries(names, plain, max_size=3))

PLAN = Plan(
    kept={"stem.weight": {0: (0, 2, 5)}, "head.weight": {1: (0, 2, 5)}},
    readers=(("head.weight", 1),),
    grouped={"mix.weight": (4, 2)},
    attribute_updates=(AttributeUpdate("stem", "out_channels", 8, 3), AttributeUpdate("mix", "sizes", (4, 4), (2, 1))),
    budgets=(Budget("macs", 2_000_000, 1_000_000, 990_000),),
    predicted={"macs": 990_000, "params": 40},
    left_alone=(LeftAlone("head", 10, "the network's output"),),
    notes=("approximate: layer norm",),
    settings={"seed": 0, "scope": {"a.*": 0.5}})


@given(plans)
def test_json_gives_an_equal_plan_back(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert str(again) == str(plan)


def test_json_is_plain_and_says_its_format() -> None:
    raw = json.loads(PLAN.to_json())
    assert raw["format"] == 1
    assert raw["kept"]["stem.weight"] == {"0": [0, 2, 5]}
    assert raw["attribute_updates"][1] == {"module": "mix", "attribute": "sizes", "old": [4, 4], "new": [2, 1]}


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_text_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(CheckpointError, match=r"plan: not JSON .*Plan\.to_json"):
        Plan.from_json(PLAN.to_json()[:cut])


def damaged(**changes: Any) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **changes})


@pytest.mark.parametrize("text", [
    "null", "[]", "3", '"plan"', "{}", "not json",
    damaged(kept=3), damaged(kept={"a": {"x": [0]}}), damaged(kept={"a": [0]}), damaged(readers=[["a"]]),
    damaged(grouped={"a": 3}), damaged(mends=[{"module": "a"}]), damaged(budgets=[{"resource": "macs"}]),
    damaged(left_alone=[7]), damaged(notes=3),
])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^plan.*; give the text that Plan\.to_json wrote$"):
        Plan.from_json(text)


LATER = ("unused", "ignored_outputs")  # of which earlier files have none


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Plan) if f.name not in LATER])
def test_a_missing_field_is_named(field: str) -> None:
    raw = json.loads(PLAN.to_json())
    del raw[field]
    with pytest.raises(CheckpointError, match=field):
        Plan.from_json(json.dumps(raw))


def test_earlier_files_have_another_key_for_attribute_updates_and_lack_what_came_later() -> None:
    raw = json.loads(PLAN.to_json())
    for field in LATER:
        del raw[field]
    raw["mends"] = raw.pop("attribute_updates")
    assert Plan.from_json(json.dumps(raw)) == PLAN


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"format 2 found, 1 wanted; install a matching torchslim"):
        Plan.from_json(damaged(format=2))
    with pytest.raises(CheckpointError, match=r"unknown fields \['surprise'\]"):
        Plan.from_json(damaged(surprise=1))


def test_str_shows_every_part() -> None:
    assert str(PLAN).splitlines() == [
        "Plan: 2 parameters and buffers are cut",
        "  macs: 2,000,000 -> 990,000 (49.5%; asked for at most 1,000,000)",
        "  stem.weight: dim 0 keeps 3",
        "  head.weight: dim 1 keeps 3",
        "  updates stem.out_channels: 8 -> 3",
        "  updates mix.sizes: (4, 4) -> (2, 1)",
        "  left alone: head (10 channels): the network's output",
        "  note: approximate: layer norm",
    ]


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.notes = ()  # type: ignore[misc]


def test_a_budget_of_nothing_is_met_in_full() -> None:
    assert Budget("macs", 0, 1, 0).share == 1.0
    assert Budget("macs", 8, 4, 2).share == 0.25
