"""Cuts in steps: each proven, each within its share of the original, scored anew after training."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchslim as ts
from helpers import Untouched, conv, counted_macs, in_turn, oracle_error, random_statistics
from torchslim.errors import PlanError, RequestError
from torchslim.planning.schedules import shares
from torchslim.store.loading import build
from torchslim.zoo.sources import resolve

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3])


def chain() -> nn.Sequential:
    return random_statistics(nn.Sequential(conv(3, 40), nn.ReLU(), conv(40, 60), nn.ReLU(), conv(60, 30), nn.ReLU(),
                                           conv(30, 4)))


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def train(model: nn.Module, x: Tensor = X, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), Y).backward()
        optimizer.step()


@pytest.mark.parametrize(("curve", "wanted"), [
    ("linear", [0.8, 0.6, 0.4, 0.2]), ("geometric", [0.2**0.25, 0.2**0.5, 0.2**0.75, 0.2]),
    ("cubic", [0.2 + 0.8 * 27 / 64, 0.2 + 0.8 / 8, 0.2 + 0.8 / 64, 0.2])])
def test_shares_by_hand(curve: str, wanted: list[float]) -> None:
    assert shares(4, 0.2, curve) == pytest.approx(wanted, rel=1e-12)


def test_a_network_is_cut_step_by_step_and_saved_with_all_its_steps(tmp_path: Path) -> None:
    source = "torchvision:resnet18?num_classes=4"
    model = random_statistics(build(resolve(source)))
    before, total = Untouched(model), counted_macs(model, X)
    previous, plans = model, []
    for slim, plan in ts.schedule(model, X, macs=0.25, params=0.5, steps=3, curve="linear", importance="taylor",
                                  data=iter([(X, Y)]), loss=cross_entropy):
        plans.append(plan)
        share = 1 - 0.75 * len(plans) / 3
        assert (share - 0.02) * total < counted_macs(slim, X) <= share * total
        assert ts.verify(previous, slim, plan, X) < 1e-9
        assert oracle_error(previous, slim, plan, X) < 1e-9
        train(slim)
        previous = slim
    assert len(plans) == 3
    assert {budget.resource: budget.asked for budget in plans[-1].budgets} == {
        "macs": total // 4, "params": int(0.5 * sum(p.numel() for p in model.parameters()))}
    before.check()
    ts.save(slim, tmp_path / "slim.safetensors", plan=plans, source=source)
    loaded = ts.load(tmp_path / "slim.safetensors")
    for (name, value), (other, own) in zip(loaded.state_dict().items(), slim.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, own)
    assert torch.equal(loaded(X), slim.eval()(X))


def test_each_step_scores_what_training_has_left() -> None:
    steps = ts.schedule(chain(), X, scope={"0": 0.5}, steps=2, curve="linear", importance="l1:filters")
    slim, first = next(steps)
    assert len(first.kept["0.weight"][0]) == 30
    with torch.no_grad():
        slim[0].weight[10:20] = 0
    slim, second = next(steps)
    assert second.kept["0.weight"][0] == (*range(10), *range(20, 30))
    assert next(steps, None) is None


def test_shares_are_the_originals_at_every_step() -> None:
    found = [widths(slim) for slim, _ in ts.schedule(chain(), X, scope={"0": 0.5, "2": 0.2}, steps=2, curve="linear")]
    assert found == [[30, 36, 30, 4], [20, 12, 30, 4]]
    *_, (slim, _) = ts.schedule(chain(), X, channels=1, min_kept=0.3, steps=3, strict=False)
    assert widths(slim) == [12, 18, 9, 4]
    *_, (slim, plan) = ts.schedule(chain(), X, channels=0.4, scope="uniform", steps=3, importance="random")
    kept = [now / before for now, before in zip(widths(slim)[:3], (40, 60, 30), strict=True)]
    assert max(kept) - min(kept) <= 1.5 / 30  # the output's 4 channels stay and count
    assert (sum(widths(slim)), int(0.4 * 134)) == (53, 53)
    assert plan.settings["shares_of"] == "original"


def test_what_is_left_may_be_refitted_at_each_step() -> None:
    model = chain()
    plain, refitted = ([ts.verify(model, slim, plan, X) for slim, plan in ts.schedule(
        model, X, macs=0.5, steps=1, compensate=compensate, data=[X])] for compensate in (False, True))
    assert plain[0] < 1e-9
    assert refitted[0] > 1e-3  # no longer the silenced original
    assert len(list(ts.schedule(model, X, macs=0.3, steps=2, compensate=True, data=iter([X])))) == 2


def test_a_budget_that_is_met_already_cuts_nothing() -> None:
    found = list(ts.schedule(chain(), X, channels=1.0, steps=2))
    assert [plan.kept for _, plan in found] == [{}, {}]
    assert [widths(slim) for slim, _ in found] == [widths(chain())] * 2


@pytest.mark.parametrize("name", in_turn(["mobilenet_v2", "shufflenet_v2_x1_0", "resnext50_32x4d"], ["mobilenet_v2"]))
def test_networks_with_rows_and_depthwise_layers_go_down_in_steps(name: str) -> None:
    model = random_statistics(ts.create_model(f"torchvision:{name}", num_classes=4))
    x = torch.randn(1, 3, 64, 64)
    previous = model
    for slim, plan in ts.schedule(model, x, macs=0.3, steps=3, min_kept=0.2, round_to=4):
        assert ts.verify(previous, slim, plan, x) < 1e-9
        assert plan.budgets[0].met <= plan.budgets[0].asked
        previous = slim
    assert counted_macs(slim, x) <= 0.3 * counted_macs(model, x)
    first = dict(model.named_modules())
    for layer, module in slim.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels >= 0.2 * first[layer].out_channels


@pytest.mark.parametrize(("options", "said"), [
    ({}, "nothing was asked"), ({"macs": 2.0}, "macs=2.0"), ({"macs": 0.5, "steps": 0}, "steps: got 0"),
    ({"macs": 0.5, "curve": "steep"}, "curve: got 'steep'"), ({"macs": 0.5, "importance": "l3"}, "unknown criterion"),
    ({"macs": 0.5, "compensate": True}, "schedule: compensate=True asks for data="),
    ({"macs": 0.5, "original": nn.ReLU()}, "original= is the model itself"),
    ({"scope": {"0": 0.1}, "min_kept": 0.2}, "below min_kept"),
    ({"macs": 0.5, "importance": "activation", "data": X}, "data: got tensor ")])
def test_what_can_not_be_is_refused_before_any_step(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ts.schedule(chain(), X, **options)


# The original of a plan by itself


def test_a_plan_of_a_cut_network_may_count_in_the_originals() -> None:
    model = chain()
    slim, _ = ts.prune(model, X, macs=0.5)
    plan = ts.plan(slim, X, macs=0.25, original=model)
    assert plan.budgets[0].asked == int(0.25 * counted_macs(model, X))
    assert plan.budgets[0].before == counted_macs(slim, X)
    assert ts.plan(slim, X, macs=0.6, original=model).kept == {}
    half, _ = ts.prune(model, X, scope={"2": 0.5})
    assert len(ts.plan(half, X, scope={"2": 0.35}, original=model).kept["2.weight"][0]) == ceil(0.35 * 60)
    assert ts.plan(half, X, scope={"2": 0.7}, original=model).kept == {}


def test_rows_count_in_the_originals_too() -> None:
    model = random_statistics(nn.Sequential(conv(3, 32), conv(32, 48, groups=4), nn.ReLU(), conv(48, 4)))
    half, _ = ts.prune(model, X, scope={"0": 0.5, "1": 0.5})
    assert widths(half) == [16, 24, 4]
    slim, _ = ts.prune(half, X, scope={"0": 0.25, "1": 0.25}, original=model)
    assert widths(slim) == [8, 12, 4]
    slim, _ = ts.prune(half, X, channels=1, min_kept=0.25, original=model, strict=False)
    assert widths(slim) == [8, 12, 4]


def test_another_network_is_no_original() -> None:
    model = chain()
    slim, plan = ts.prune(model, X, macs=0.5)
    with pytest.raises(RequestError, match=r"original: `0.weight`: \d+ channels along dimension 0 in it, and 40 in"):
        ts.plan(model, X, macs=0.5, original=slim)
    with pytest.raises(RequestError, match=r"original: `2.weight`: no such tensor in it"):
        ts.plan(model, X, macs=0.5, original=nn.Sequential(conv(3, 40)))
    with pytest.raises(PlanError):
        ts.apply(slim, plan)
