"""What `importance="auto"` takes, that the plan says so, and that it fails for the data's faults alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchslim as ts
from helpers import conv, random_statistics
from torchslim.errors import RequestError
from torchslim.importance import Evidence, score
from torchslim.importance.automatic import FilledBNScale

X = torch.randn(1, 3, 8, 8)
BATCHES = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
LABELLED = [(batch, torch.zeros(8, dtype=torch.long)) for batch in BATCHES]


def network() -> nn.Sequential:
    return random_statistics(nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 12), nn.ReLU(),
                                           conv(12, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))).eval()


def pressed() -> nn.Sequential:
    model = network()
    with torch.no_grad():
        model[1].weight.abs_().add_(0.5)[::4] = 1e-5
    return model


class Product(nn.Module):
    """Channels that a plain matrix reads, which `obs` can't measure, and a group that it can."""

    def __init__(self, differentiable: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 12), nn.Parameter(torch.randn(12, 12)), nn.Linear(12, 5)
        self.differentiable = differentiable

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            return self.head((self.first(x).mean((2, 3)) @ self.second).relu())


@pytest.mark.parametrize(("model", "given", "taken"), [
    (network(), {}, "l2"), (pressed(), {}, "bn_scale"), (network(), {"data": BATCHES}, "obs"),
    (pressed(), {"data": LABELLED, "loss": cross_entropy}, "obs")])
def test_it_takes_the_best_for_what_is_given(model: nn.Module, given: dict[str, Any], taken: str) -> None:
    plan = ts.plan(model, X, macs=0.5, **given)
    named = {"importance": taken, **({"data": BATCHES} if given else {})} if taken != "bn_scale" else {}
    assert (plan.settings["importance"], plan.settings["ranked_by"]) == ("auto", taken)
    assert any(note.startswith(f"importance: auto took {taken}: ") for note in plan.notes) == (taken != "l2")
    assert not named or plan.kept == ts.plan(model, X, macs=0.5, **named).kept


def test_no_more_data_is_read_than_it_looks_at() -> None:
    def batches() -> Any:
        yield from (torch.randn(100, 3, 8, 8) for _ in range(3))
        pytest.fail("a fourth batch was read")

    assert "first 300 inputs" in ts.plan(network(), X, macs=0.5, data=batches()).notes[-1]


def test_pressed_scales_rank_and_weights_rank_what_has_none() -> None:
    """The second group has no scale: as many of its channels go as of the first with weights as small."""
    model = pressed()
    groups = [group for group in ts.groups(model, X) if group.name in ("0", "3") and not group.frozen]
    first, second = score(groups, FilledBNScale(), Evidence(model, X))
    assert first.tolist() == model[1].weight.abs().tolist()
    weights = score(groups, ts.importance.L2(), Evidence(model, X))
    order = np.argsort(weights[1])
    assert (np.diff(second[order]) >= 0).all()
    known, place = np.sort(weights[0]), int(order[6])
    below = np.searchsorted(known, weights[1][place])
    assert np.sort(first)[max(below - 1, 0)] <= second[place] <= np.sort(first)[min(below, 15)] or below in (0, 16)
    gone = set(range(16)) - set(ts.plan(model, X, channels=0.9, only=["0"]).kept["0.weight"][0])
    assert gone <= {0, 4, 8, 12}


def test_what_obs_cannot_do_is_said_and_done_otherwise() -> None:
    plan = ts.plan(Product().eval(), X, macs=0.5, data=BATCHES)
    assert plan.settings["ranked_by"] == "obs"
    assert "1 group that it can't score" in plan.notes[-1]
    slim, plan = ts.prune(Product(differentiable=False).eval(), X, macs=0.5, data=BATCHES)
    assert plan.settings["ranked_by"] == "l2"
    assert "obs can't be computed here" in plan.notes[-1]
    assert slim(X).shape == (1, 5)


def test_weights_without_numbers_are_ranked_at_random() -> None:
    with torch.device("meta"):
        model = nn.Sequential(conv(3, 6), conv(6, 2))
    assert ts.plan(model, X, macs=0.5).settings["ranked_by"] == "random"


@pytest.mark.parametrize(("data", "said"), [
    ([torch.randn(8, 4, 8, 8)], "batch 0 is tensor 8x4x8x8"), (LABELLED, r"try data=\(x for x, \*_ in loader\)"),
    ([X, X * float("nan")], "batch 1 holds NaN"), ([], "no batch in it"), (X, "wanted an iterable"),
    (["text"], "inputs: got str")])
def test_bad_data_stay_an_error(data: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ts.plan(network(), X, macs=0.5, data=data)


def test_prune_refits_on_the_same_inputs_unless_told_not_to() -> None:
    _, plan = ts.prune(network(), X, macs=0.5, data=iter(BATCHES))
    assert plan.notes[-1].startswith("compensate: refitted")
    model = network()
    plain, plan = ts.prune(model, X, macs=0.5, data=BATCHES, compensate=False)
    refitted, _ = ts.prune(model, X, macs=0.5, data=BATCHES)
    assert ts.verify(model, plain, plan, X) < 1e-10
    wanted = ts.compensate(model, plain, plan, BATCHES)
    assert all(torch.equal(ours, other) for ours, other in zip(refitted.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050", "timm:test_vit"])
def test_weights_rank_every_kind_of_network(name: str) -> None:
    """Without norms, with gates, with attention."""
    side = 160 if "vit" in name else 32
    plan = ts.plan(ts.create_model(name, num_classes=4).eval(), torch.randn(1, 3, side, side), macs=0.6, strict=False)
    assert plan.settings["ranked_by"] == "l2"
