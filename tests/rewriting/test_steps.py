"""What was decided for a lighter network: the same after a trip through JSON, and enough to build it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchslim as ts
from helpers import Untouched, conv
from torchslim.errors import CheckpointError, PlanError
from torchslim.rewriting import RewriteStep, apply_step, lighten_with_report
from torchslim.store.saving import read_header

NAME = "timm:test_resnet?num_classes=10"
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RULES = ["separable", "grouped:4:shuffle", "asymmetric:16", "lowrank:0.5", "ghost", "fire:8", "separable:norm",
         "pointwise-before", ["separable", "grouped:2"]]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_lighter_network_comes_back_from_its_file(rules: Any, tmp_path: Path) -> None:
    found = lighten_with_report(ts.create_model("timm:test_resnet", num_classes=10), rules, X)
    path = ts.save(found.model, tmp_path / "light.safetensors", plan=found.steps, source=NAME)
    assert read_header(path).steps == found.steps
    torch.testing.assert_close(ts.load(path)(X), found.model.eval()(X), rtol=0, atol=0)


def test_cuts_follow_rewritings_and_rewritings_cuts(tmp_path: Path) -> None:
    original = ts.create_model("timm:test_resnet", num_classes=10)
    found = lighten_with_report(original, "separable", X)
    slim, plan = ts.prune(found.model, X, macs=0.5)
    again = lighten_with_report(slim, "lowrank:0.5", X, only=["layer4.*"])
    path = tmp_path / "light.safetensors"
    ts.save(again.model, path, plan=(*found.steps, plan, *again.steps), source=NAME)
    torch.testing.assert_close(ts.load(path)(X), again.model.eval()(X), rtol=0, atol=0)
    narrow, plan = ts.prune(ts.load(path), X, scope={"*": 0.5})
    ts.save(narrow, tmp_path / "narrow.safetensors", plan=plan, source=path)  # a saved one as the source
    torch.testing.assert_close(ts.load(tmp_path / "narrow.safetensors", model=original)(X), narrow.eval()(X),
                               rtol=0, atol=0)


def test_a_module_in_two_places_stays_one_and_bfloat16_stays() -> None:
    shared = conv(8, 8)
    model = nn.Sequential(conv(3, 8), shared, nn.Sequential(shared), conv(8, 8)).bfloat16()
    light: Any = apply_step(model, RewriteStep("separable", ("1",)))
    assert light[1] is light[2][0]
    assert {p.dtype for p in light.parameters()} == {torch.bfloat16}


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8))
    before = Untouched(model)
    apply_step(model, RewriteStep("separable", ("1",)))
    before.check()


@pytest.mark.parametrize(("step", "said"), [
    (RewriteStep("separable", ("5",)), "5: no such layer"),
    (RewriteStep("separable", ("2",)), "no plain layer"),
    (RewriteStep("grouped:3", ("1",)), "grouped:3 does not fit")])
def test_steps_for_another_network_are_refused(step: RewriteStep, said: str, tmp_path: Path) -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8), nn.ReLU())
    with pytest.raises(PlanError, match=said):
        apply_step(model, step)
    path = ts.save(model, tmp_path / "light.safetensors", plan=step)
    with pytest.raises(CheckpointError, match=said):
        ts.load(path, model=model)


@pytest.mark.parametrize("text", ["[]", "{}", "nothing", json.dumps({"rule": "separable", "layers": "conv1"}),
                                  json.dumps({"rule": "nonsense", "layers": ["conv1"]}),
                                  json.dumps({"rule": "separable", "layers": [], "more": 1})])
def test_other_texts_are_no_rewriting(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"give the text that RewriteStep\.to_json wrote"):
        RewriteStep.from_json(text)
