"""Budgets that can't be met: refused with the nearest that can, or brought there with as little cut as gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchslim as ts
from clocks import Blocky
from helpers import conv, counted_macs
from torchslim.errors import BudgetError, PlanError, RequestError

X = torch.randn(1, 3, 16, 16)


def latent(channels: int) -> nn.Sequential:
    """A norm over all channels holds them; the latent by itself can lose some."""
    return nn.Sequential(conv(3, 64), nn.GroupNorm(1, 64), nn.ReLU(), conv(64, 64), nn.GroupNorm(1, 64), nn.ReLU(),
                         conv(64, channels, 1), conv(channels, 64, 1), nn.GroupNorm(1, 64), nn.ReLU(), conv(64, 3))


def classifier() -> nn.Sequential:
    return nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).eval()


def widths(model: nn.Module, plan: ts.Plan) -> list[int]:
    return [len(layer.weight) for layer in ts.apply(model, plan) if isinstance(layer, nn.Conv2d | nn.Linear)]


def test_the_error_has_the_nearest_and_what_stands_in_the_way() -> None:
    model = classifier()
    with pytest.raises(BudgetError) as caught:
        ts.plan(model, X, macs=0.1, params=0.9, exclude=["0"])
    assert isinstance(caught.value, RequestError)
    assert isinstance(caught.value, PlanError)
    message, nearest = str(caught.value), caught.value.nearest
    total = counted_macs(model, X)
    plan = ts.plan(model, X, macs=0.1, params=0.9, exclude=["0"], strict=False)
    left = counted_macs(ts.apply(model, plan), X)
    assert caught.value.counts["macs"] == left == plan.budgets[0].met
    assert nearest == pytest.approx({"macs": left / total, "params": 0.9}, abs=1e-4)
    assert "\n" not in message
    for part in (f"macs: asked for at most {total // 10:,}", f"nearest feasible budget is {left:,}, a share of 0.",
                 "`0` (among exclude=)", "ask for macs=0.", "strict=False (--nearest)"):
        assert part in message
    assert message.startswith(plan.notes[0])
    assert ts.plan(model, X, **nearest, exclude=["0"]).kept == plan.kept
    with pytest.raises(BudgetError):
        ts.plan(model, X, macs=0.98 * nearest["macs"], exclude=["0"])


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_what_saves_less_than_a_hundredth_of_the_rest_is_not_cut(scope: str) -> None:
    model = latent(4)  # half of it is 0.4% of the multiply-adds
    half = latent(2)
    assert 0.99 < counted_macs(half, X) / counted_macs(model, X) < 1
    plan = ts.plan(model, X, macs=0.5, scope=scope, strict=False)
    assert (plan.kept, plan.budgets[0].share) == ({}, 1)
    with pytest.raises(BudgetError, match=r"all that can be cut saves 0\.\d+% of it; left alone.*let more be cut"):
        ts.plan(model, X, macs=0.5, scope=scope)
    assert ts.plan(model, X, macs=0.9999, scope=scope).kept  # asked for, it goes
    assert widths(latent(64), ts.plan(latent(64), X, macs=0.5, scope=scope, strict=False))[2] < 16  # that is much


def test_layers_that_hardly_count_stay_wide() -> None:
    model = classifier()
    least = counted_macs(nn.Sequential(conv(3, 32), conv(32, 2)), X)
    plan = ts.plan(model, X, macs=0.001, exclude=["0"], strict=False)
    assert widths(model, plan)[1] == 2
    assert all(width > 30 for width in widths(model, plan)[2:4])
    assert least < plan.budgets[0].met <= 1.01 * (least + 2 * 4 * 2 + 2 * 2 + 2 * 10)
    both = ts.plan(model, X, macs=0.001, params=0.012, exclude=["0"], strict=False)
    assert both.budgets[1].share <= 0.012  # what can be met, is
    assert sum(widths(model, both)) < sum(widths(model, plan))


@pytest.mark.parametrize(("options", "why"), [
    ({"exclude": ["*"]}, r"no channel can be cut; left alone: .*\(among exclude=\)"),
    ({"only": ["2"], "exclude": ["2"]}, "no channel can be cut"),
    ({"round_to": 1000}, "no smaller width is a multiple of round_to=1000"),
    ({"min_channels": 1000}, "no channel can be cut.*the least width already"),
    ({"min_kept": 1.0}, "no channel can be cut.*the least width already"), ({"macs": 1}, "asked for at most 1, which")])
def test_odd_requests_are_answered_in_one_line(options: dict[str, Any], why: str) -> None:
    model = classifier()
    with pytest.raises(BudgetError, match=why) as caught:
        ts.plan(model, X, **{"macs": 0.5, **options})
    assert "\n" not in str(caught.value)
    plan = ts.plan(model, X, **{"macs": 0.5, **options}, strict=False)
    assert str(caught.value).startswith(plan.notes[0])
    assert ("macs" in options) == bool(plan.kept)


@pytest.mark.parametrize("resource", ["macs", "params", "channels", "memory"])
def test_more_than_there_is_is_refused(resource: str) -> None:
    model = classifier()
    has = ts.plan(model, X, **{resource: 1.0}).budgets[0].before
    assert ts.plan(model, X, **{resource: has}).kept == {}
    for strict in (True, False):
        with pytest.raises(RequestError, match=f"{resource}=99,000,000,000: the network has {has:,} as it is"):
            ts.plan(model, X, **{resource: 99 * 10**9}, strict=strict)
    half = ts.apply(model, ts.plan(model, X, **{resource: 0.5}))
    assert ts.plan(half, X, **{resource: has}, original=model).kept == {}  # of the original it is less


def test_steps_are_refused_before_the_first_or_go_to_the_nearest() -> None:
    model = classifier()
    with pytest.raises(BudgetError):
        ts.schedule(model, X, macs=0.001, steps=2)
    plans = [plan for _, plan in ts.schedule(model, X, macs=0.001, steps=2, strict=False)]
    whole = ts.plan(model, X, macs=0.001, strict=False)
    assert plans[-1].budgets[0].met <= plans[-1].budgets[0].asked == whole.budgets[0].met


class Slow(Blocky):
    """A cut network is no faster than nine tenths, whatever its layers take."""

    def time_networks(self, models: Any, inputs: Any) -> list[list[float]]:
        found = super().time_networks(models, inputs)
        return [found[0], [max(time, 0.9 * whole) for time, whole in zip(found[1], found[0], strict=True)]] if (
            len(found) == 2) else found


def test_a_time_that_is_missed_when_measured_is_what_the_plan_says_first() -> None:
    model = nn.Sequential(conv(3, 128), nn.ReLU(), conv(128, 128), nn.ReLU(), conv(128, 8)).eval()
    plan = ts.plan(model, X, latency=0.7, backend=Slow())
    [budget] = plan.budgets
    assert budget.share == pytest.approx(0.9, abs=1e-3)
    assert not budget.is_met
    assert plan.notes[0].startswith("latency: missed, asked for at most 0.")
    assert plan.predicted["latency"] <= budget.asked


def test_a_time_out_of_reach_has_a_nearest_one() -> None:
    model = nn.Sequential(conv(3, 128), nn.ReLU(), conv(128, 128), nn.ReLU(), conv(128, 8)).eval()
    with pytest.raises(BudgetError, match=r"latency: asked for at most .*, which can't be met") as caught:
        ts.plan(model, X, latency=0.001, backend=Blocky())
    plan = ts.plan(model, X, latency=0.001, backend=Blocky(), strict=False)
    assert plan.budgets[0].share == pytest.approx(caught.value.nearest["latency"], rel=0.01)
    assert ts.plan(model, X, **caught.value.nearest, backend=Blocky()).budgets[0].is_met
