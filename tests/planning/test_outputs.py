"""Outputs that do not matter hold nothing back; those that do are as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import oracle_error, random_statistics, tensors
from torchslim.errors import RequestError

X = torch.randn(2, 3, 16, 16)


@dataclass
class Found:
    scores: Tensor
    maps: list[Tensor]


class Detector(nn.Module):
    """Scores, and beside them the maps that they were computed of; in train mode the maps and what heads give."""

    def __init__(self, form: str = "tuple", trains_otherwise: bool = False) -> None:
        super().__init__()
        self.body, self.neck = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1)
        self.heads = nn.ModuleList([nn.Conv2d(16, 6, 1), nn.Conv2d(24, 6, 1)])
        self.form, self.trains_otherwise = form, trains_otherwise

    def relu(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Any:
        first = self.relu(self.body(x))
        second = self.neck(first)
        maps = [first, second]
        heads = [head(y).flatten(2) for head, y in zip(self.heads, maps, strict=True)]
        if self.trains_otherwise and self.training:
            return {"heads": heads, "maps": maps}
        scores = torch.cat(heads, 2)
        return {"tuple": (scores, maps), "dict": {"scores": scores, "maps": maps},
                "dataclass": Found(scores, maps)}[self.form]


class Body(Detector):
    """In train mode it returns something else, of the same modules: these return the very maps."""

    def __init__(self) -> None:
        super().__init__(trains_otherwise=True)
        self.body = nn.Sequential(self.body, nn.ReLU())  # type: ignore[assignment]

    def relu(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("form", "outputs"), [
    ("tuple", 0), ("tuple", -2), ("dict", "scores"), ("dataclass", "scores"), ("tuple", lambda out: out[0]),
    ("dict", ["scores"]), ("dict", lambda out: {"one": [out["scores"]]})])
def test_what_does_not_matter_holds_nothing_back(form: str, outputs: Any) -> None:
    model = random_statistics(Detector(form)).eval()
    reasons = {entry.reason for entry in ts.plan(model, X, macs=0.5, strict=False).left_alone}
    assert "the network's output" in reasons
    plan = ts.plan(model, X, macs=0.3, outputs=outputs)
    assert plan.budgets[0].share <= 0.3
    assert ts.Plan.from_json(plan.to_json()) == plan
    slim = ts.apply(model, plan)
    assert ts.verify(model, slim, plan, X) < 1e-12
    scores, first, second = tensors(slim(X) if form != "dataclass" else vars(slim(X)))
    assert scores.shape == (2, 6, 80)
    assert first.shape[1] < 16 or second.shape[1] < 24
    if form != "dataclass":
        only = nn.Sequential(model, Part(form)), nn.Sequential(slim, Part(form))
        renamed = {f"0.{name}": dims for name, dims in plan.kept.items()}
        assert oracle_error(*only, ts.Plan(renamed), X) < 1e-12


class Part(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.key = {"tuple": 0, "dict": "scores"}[form]

    def forward(self, output: Any) -> Tensor:
        return output[self.key]  # type: ignore[no-any-return]


def test_several_may_matter() -> None:
    model = Detector().eval()
    plan = ts.plan(model, X, macs=0.6, outputs=lambda out: [out[0], out[1][1]])
    assert 0 not in plan.kept.get("neck.weight", {})
    assert len(plan.kept["body.weight"][0]) < 16


def test_in_train_mode_the_same_maps_do_not_matter() -> None:
    model = random_statistics(Body()).eval()
    plan = ts.plan(model, X, macs=0.3, outputs=0)
    slim = ts.apply(model, plan)
    assert ts.verify(model, slim, plan, X) < 1e-12
    assert [t.shape[1] for t in slim.train()(X)["heads"]] == [6, 6]


def test_a_wrong_cut_of_what_matters_still_shows() -> None:
    model = random_statistics(Detector()).eval()
    plan = ts.plan(model, X, macs=0.5, outputs=0)
    slim = ts.apply(model, plan)
    with torch.no_grad():
        slim.get_parameter("heads.1.weight").mul_(1.01)
    assert ts.verify(model, slim, plan, X) > 1e-4


@pytest.mark.parametrize(("outputs", "said"), [
    (2, "outputs: 2 is no part of the model's output, a tuple of 2; wanted an index such as 0"),
    ("scores", "outputs: 'scores' is no part of the model's output, a tuple of 2"),
    (1.5, "outputs: got 1.5; wanted an index such as 0"), (True, "outputs: got True; wanted"),
    ([], r"outputs: got \[\]; wanted"), ([0, None], r"outputs: got \[0, None\]; wanted"),
    (lambda out: out[0] * 2, "outputs: .* selects none of the 3 tensors that the model returns"),
    (lambda out: out["x"], "outputs: the function failed on the model's output, a tuple of 2: TypeError"),
    (lambda out: None, "selects none of the 3 tensors")])
def test_what_selects_nothing_is_refused(outputs: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ts.plan(Detector().eval(), X, macs=0.5, outputs=outputs)


def test_a_single_tensor_has_no_parts() -> None:
    with pytest.raises(RequestError, match="outputs: 0 is no part of the model's output, a Tensor"):
        ts.plan(nn.Conv2d(3, 8, 3).eval(), X, macs=0.5, outputs=0)
    with pytest.raises(RequestError, match="a mapping with the keys 'scores', 'maps'"):
        ts.plan(Detector("dict").eval(), X, macs=0.5, outputs="score")
