"""What `plan` is asked for: one value, checked once, with the same defaults and messages wherever it is made."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

import torchslim as ts
from torchslim.errors import RequestError
from torchslim.importance import L1, Automatic
from torchslim.planning.options import PlanKeywords, PlanOptions, as_patterns, split_keywords

NOT_OPTIONS = {"model", "inputs", "data", "loss", "original"}


def test_the_keywords_of_plan_are_the_options_with_their_defaults() -> None:
    parameters = {name: parameter.default for name, parameter in inspect.signature(ts.plan).parameters.items()
                  if name not in NOT_OPTIONS}
    assert parameters == {field.name: field.default for field in fields(PlanOptions)}
    assert set(PlanKeywords.__annotations__) == parameters.keys() | {"data", "loss"}


def test_options_are_frozen_and_equal_by_value() -> None:
    options = PlanOptions(macs=0.5, only=["a.*"], importance="l1")
    assert options == PlanOptions(macs=0.5, only=("a.*",), importance=L1())
    assert options.only == ("a.*",)
    assert options.ranking == L1()
    assert PlanOptions(macs=0.5).ranking == Automatic()
    with pytest.raises(FrozenInstanceError):
        options.macs = 0.4  # type: ignore[misc]


def test_budgets_shares_and_couplings_are_read_off() -> None:
    options = PlanOptions(macs=0.5, memory=1000, latency=0.5, whole_groups=True)
    assert options.counted_budgets == {"macs": 0.5, "memory": 1000}
    assert options.shares == {}
    assert options.coupling_options.whole_groups
    assert PlanOptions(scope={"a": 0.5}).shares == {"a": 0.5}


def test_data_and_loss_are_split_off() -> None:
    def loss(_: Any, __: Any) -> Any:
        return None

    options, data, given = split_keywords({"macs": 0.5, "data": [1], "loss": loss})
    assert (options, data, given) == (PlanOptions(macs=0.5), [1], loss)


@pytest.mark.parametrize(("options", "said"), [
    ({}, "nothing was asked; give macs=, params=, channels=, memory= or latency="),
    ({"macs": 0.5, "round_to": 0}, "round_to: got 0, wanted an int of at least 1"),
    ({"macs": 0.5, "round_to": True}, "round_to: got True"),
    ({"macs": 0.5, "min_channels": 1.5}, r"min_channels: got 1\.5"),
    ({"macs": 0.5, "min_kept": 1.5}, r"min_kept: got 1\.5, wanted a number in \[0, 1\]"),
    ({"macs": 0.5, "min_kept": "0.1"}, r"min_kept: got '0\.1'"),
    ({"macs": 0.5, "scope": "globally"}, "scope: got 'globally', wanted 'global', 'uniform' or a dict"),
    ({"scope": {3: 0.5}}, "scope: 3 is no pattern of layer names"),
    ({"scope": {"a": 0}}, "scope: 'a': 0 is no share"),
    ({"scope": {"a": 0.1}, "min_kept": 0.2}, r"scope: 'a': 0\.1 is below min_kept=0\.2"),
    ({"macs": 0.5, "only": "layer1"}, r"only: got 'layer1', wanted a sequence of layer-name patterns"),
    ({"macs": 0.5, "exclude": [1]}, r"exclude: got \[1\], wanted a sequence"),
    ({"macs": 0.5, "importance": "guess"}, "importance: unknown criterion 'guess'")])
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        PlanOptions(**options)
    assert "\n" not in str(caught.value)


def test_patterns_may_be_any_sequence_but_a_text() -> None:
    assert as_patterns(["a", "b"], "only") == as_patterns(("a", "b"), "only") == ("a", "b")
    assert as_patterns((), "only") == ()
