"""Budgets of memory: the peak of activations is met, is that of a real run, and is all that is paid for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Calls, conv, in_turn, oracle_error, random_statistics
from holding import Holding
from torchslim.errors import RequestError


def peak(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), Holding(model, x) as run:
        model(x)
    return run.peak()


CASES = [
    *((name, share) for name in ("torchvision:resnet18", "torchvision:shufflenet_v2_x1_0", "unet")
      for share in (0.8, 0.5, 0.3)),
    *((name, 0.4) for name in ("torchvision:mobilenet_v2", "torchvision:densenet121", "torchvision:regnet_y_400mf",
                               "torchvision:googlenet", "timm:cspresnet50", "timm:res2net50_26w_4s"))]
DAILY = [("torchvision:resnet18", 0.5), ("torchvision:shufflenet_v2_x1_0", 0.3), ("unet", 0.8), ("unet", 0.3),
         ("torchvision:mobilenet_v2", 0.4), ("torchvision:regnet_y_400mf", 0.4), ("torchvision:googlenet", 0.4)]


@pytest.mark.parametrize(("name", "share"), in_turn(CASES, DAILY))
def test_the_budget_is_met_and_is_what_a_real_run_holds(name: str, share: float) -> None:
    torch.manual_seed(0)
    model = random_statistics(ts.create_model(name, **({"width": 0.5} if name == "unet" else {}))).eval()
    x = torch.randn(1, 3, 125, 125) if name == "unet" else torch.randn(1, 3, 64, 64)
    plan = ts.plan(model, x, memory=share)
    [budget] = plan.budgets
    assert (budget.resource, budget.before) == ("memory", peak(model, x))
    assert budget.asked == int(share * budget.before)
    # What one channel holds at the peak is the smallest step: a map of the first layers is more than a hundredth.
    assert 0.96 * budget.asked <= budget.met <= budget.asked
    slim = ts.apply(model, plan)
    assert budget.met == ts.profile(slim, x).peak_memory == peak(slim, x)
    assert oracle_error(model, slim, plan, x) < 1e-9


def test_only_what_is_alive_at_the_peak_is_cut() -> None:
    model = nn.Sequential(conv(3, 64), nn.ReLU(), nn.MaxPool2d(4), conv(64, 64), nn.ReLU(), conv(64, 8))
    plan = ts.plan(model, torch.randn(1, 3, 32, 32), memory=0.5)
    assert {name for name, dims in plan.kept.items() if 0 in dims} == {"0.weight", "0.bias"}


def test_a_count_is_bytes_and_budgets_go_together() -> None:
    model = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 8))
    x = torch.randn(1, 3, 16, 16)
    count, share = (ts.plan(model, x, memory=asked) for asked in (ts.profile(model, x).peak_memory // 2, 0.5))
    assert count.kept == share.kept
    both = ts.plan(model, x, memory=0.5, macs=0.2)
    assert [budget.resource for budget in both.budgets] == ["macs", "memory"]
    assert all(budget.met <= budget.asked for budget in both.budgets)


def test_what_can_not_be_met_says_so() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 64))
    plan = ts.plan(model, torch.randn(1, 3, 16, 16), memory=0.5, strict=False)
    assert plan.budgets[0].met > plan.budgets[0].asked
    assert "the nearest feasible budget is" in plan.notes[0]
    assert "the protected channels, those that are left alone, cost " in plan.notes[0]
    with pytest.raises(RequestError, match="memory=0: wanted a float"):
        ts.plan(model, torch.randn(1, 3, 16, 16), memory=0)


def test_maps_that_wait_for_later_parts_count() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        first = self.a(x)
        y = self.c(self.b(torch.nn.functional.max_pool2d(first, 2)).relu())
        return self.d(torch.cat([first, torch.nn.functional.interpolate(y, scale_factor=2)], 1))

    torch.manual_seed(0)
    model = Calls(forward, a=conv(3, 16), b=conv(16, 32), c=conv(32, 16), d=conv(32, 4)).eval()
    x = torch.randn(2, 3, 16, 16)
    for share in (0.9, 0.7, 0.5):
        plan = ts.plan(model, x, memory=share)
        assert plan.budgets[0].met == peak(ts.apply(model, plan), x) <= share * peak(model, x)
