"""The smallest network of many families, on small pictures: cut to a quarter, and proven twice over.

`benchmarks/coverage.py` puts every family through this at its usual size; here are those that take seconds.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchslim
from battery.networks import CONVOLUTIONAL, HYBRID
from helpers import check_training, count, counted_macs, in_turn, oracle_error, random_statistics
from torchslim.surgery.plans import Plan

# Convolutions throughout: a quarter of the multiply-adds is met to the channel.
# A side that the network takes, where 64 is none.
SIDES = {"torchvision:squeezenet1_0": 64, "timm:test_vit": 160}

# Norms over all channels: cut only where the approximation is allowed.
APPROXIMATE = ["timm:test_convnext", "timm:test_efficientnet_gn", "timm:test_efficientnet_ln", "timm:convnextv2_atto"]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = random_statistics(torchslim.create_model(name, num_classes=10)).eval()
    side = SIDES.get(name, 64)
    return model, torch.randn(1, 3, side, side)


def cut(model: nn.Module, inputs: torch.Tensor, **options: bool) -> tuple[nn.Module, Plan]:
    """The network at a quarter of its multiply-adds; torch counts what was foretold, and it trains as before."""
    plan = torchslim.plan(model, inputs, macs=0.25, strict=False, **options)
    slim = torchslim.apply(model, plan)
    (budget,) = plan.budgets
    assert budget.before == counted_macs(model, inputs)
    assert budget.met == plan.predicted["macs"] == counted_macs(slim, inputs)
    assert plan.predicted["params"] == count(slim) < count(model)
    pair = torch.cat([inputs, -inputs])
    assert check_training(slim, pair) == check_training(model, pair)
    return slim, plan


# The widths of their products are read by no weight, which is all that `oracle_error` can silence;
# tests/constructs/test_attention.py silences both factors.
UNREAD = {"timm:efficientvim_m1"}


# One of each way to build a network; `make nightly` has the others.
DAILY = [
    "torchvision:squeezenet1_0", "timm:test_byobnet", "timm:test_efficientnet", "timm:fasternet_t0", "timm:test_resnet",
    "timm:resnetv2_18", "timm:skresnet18", "timm:inception_next_atto", "timm:test_convnext", "timm:test_vit",
]


@pytest.mark.parametrize("name", in_turn((CONVOLUTIONAL + HYBRID).split(), DAILY))
def test_a_family_is_cut_exactly(name: str) -> None:
    model, inputs = build(name)
    slim, plan = cut(model, inputs)
    assert torchslim.verify(model, slim, plan, inputs) < 1e-10
    if name not in UNREAD:
        assert oracle_error(model, slim, plan, inputs) < 1e-10
    (budget,) = plan.budgets
    if name in CONVOLUTIONAL.split():
        assert 0.97 * budget.asked <= budget.met <= budget.asked
    else:
        assert budget.met <= budget.asked or any(note.startswith("macs: asked for") for note in plan.notes)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_a_family_of_norms_is_cut_approximately(name: str) -> None:
    model, inputs = build(name)
    slim, plan = cut(model, inputs, allow_approximate=True)
    (budget,) = plan.budgets
    assert budget.met <= budget.asked
    assert any(note.startswith("approximate:") for note in plan.notes)
    assert torchslim.verify(model, slim, plan, inputs) < 1e-10
