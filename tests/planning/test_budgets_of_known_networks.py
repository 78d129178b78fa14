"""Budgets over networks as people use them: met closely, or with the reason and the nearest that can be met."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import budgets
import torchslim as ts
from helpers import in_turn
from holding import Holding
from torchslim.surgery.plans import Budget, Plan

SMALL = ["torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:squeezenet1_1", "torchvision:regnet_y_400mf",
         "torchvision:alexnet", "torchslim:shufflenet_v1", "timm:dla34", "timm:skresnet18"]
DAILY = ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:regnet_y_400mf"]


@pytest.mark.parametrize("name", in_turn(SMALL, DAILY))
def test_every_budget_is_close_or_explained_and_counted_right(name: str) -> None:
    row = budgets.measure(name, shares=(0.6, 0.1))
    assert len(row["cells"]) == 12
    assert [cell for cell in row["cells"] if budgets.failed(cell)] == []
    # Multiply-adds and parameters come in steps so small that both are met closely.
    assert all(cell["outcome"] == "close" for cell in row["cells"] if cell["resources"] in ("macs", "params"))


@pytest.mark.parametrize(("name", "share"), [("torchvision:alexnet", 0.2), ("torchslim:shufflenet_v1", 0.8)])
def test_the_nearest_feasible_budget_of_memory_is_met_and_is_what_a_run_holds(name: str, share: float) -> None:
    torch.manual_seed(0)
    model, x = ts.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    [note] = ts.plan(model, x, memory=share, strict=False).notes
    found = budgets.FEASIBLE.match(note)
    assert found is not None
    plan = ts.plan(model, x, memory=float(found[3]))
    assert plan.notes == ()
    assert peak(ts.apply(model, plan), x) == plan.budgets[0].met == int(found[2].replace(",", ""))


def test_a_plan_that_says_nothing_or_less_than_is_wanted_fails() -> None:
    close, below, above = (Budget("macs", 1000, 500, met) for met in (495, 480, 510))
    told = "nearest feasible budget above is 510, a share of 0.5100"
    assert budgets.outcome(planned(close)) == "close"
    assert budgets.outcome(planned(close, below)) == "close"
    assert budgets.outcome(planned(below)).startswith("FAILED")
    assert budgets.outcome(planned(below, notes=[f"macs: further; {told}"])).startswith("FAILED")
    assert budgets.outcome(planned(below, notes=[f"macs: rounding; {told}"])) == "below 0.510, rounding"
    assert budgets.outcome(planned(above, close)).startswith("FAILED")
    assert budgets.outcome(planned(above, notes=[f"params: rounding; {told}"])).startswith("FAILED")
    assert budgets.outcome(planned(above, notes=[f"macs: rounding; {told}"])) == "above 0.510, rounding"


def planned(*met: Budget, notes: Any = ()) -> Plan:
    return Plan(kept={}, readers={}, grouped={}, attribute_updates=(), budgets=met, predicted={}, left_alone=(),
                notes=tuple(notes), settings={})


def peak(model: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad(), Holding(model, x) as run:
        model(x)
    return run.peak()
