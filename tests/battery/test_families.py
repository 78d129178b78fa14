"""The smallest network of many families, on small pictures: cut to a quarter, and proven twice over.

`benchmarks/coverage.py` puts every family through this at its usual size; here are those that take seconds.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchslim
from helpers import check_training, count, counted_macs, oracle_error, random_statistics
from torchslim.surgery.plans import Plan

# Convolutions throughout: a quarter of the multiply-adds is met to the channel.
CONVOLUTIONAL = """
    torchvision:alexnet torchvision:squeezenet1_0 torchvision:regnet_x_400mf
    timm:test_byobnet timm:repvgg_a0 timm:gernet_s timm:cs3darknet_focus_s timm:darknet17
    timm:cspnext_tiny timm:dla46x_c timm:dpn48b timm:test_efficientnet timm:mixnet_s timm:tinynet_e timm:fbnetc_100
    timm:fasternet_t0 timm:fastvit_t8 timm:ghostnet_050 timm:hardcorenas_b timm:hgnetv2_b0 timm:hrnet_w18_small
    timm:lcnetv2_small timm:mobilenetv3_small_050 timm:lcnet_035 timm:mobilenetv4_conv_small_035 timm:regnetx_002
    timm:regnety_002 timm:repghostnet_050 timm:repvit_m1 timm:resnest14d timm:test_resnet timm:resnetv2_18
    timm:selecsls42 timm:legacy_seresnet18 timm:skresnet18 timm:starnet_s050 timm:ese_vovnet19b_slim_dw
"""

# Norms and attention mix channels, which are left alone: what is cut around them may not come to a quarter.
HYBRID = """
    torchvision:convnext_tiny timm:test_convnext timm:edgenext_xx_small timm:efficientvit_b0 timm:efficientvim_m1
    timm:inception_next_atto timm:iformer_t timm:test_mambaout timm:poolformerv2_s12 timm:mobilevitv2_050
    timm:swiftformer_xs timm:test_vit
"""

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


@pytest.mark.parametrize("name", (CONVOLUTIONAL + HYBRID).split())
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
