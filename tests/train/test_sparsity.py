"""The penalty on batch-norm scales."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchslim
from torchslim.errors import RequestError
from torchslim.surgery.plans import Plan
from torchslim.train import Slimming


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
                        nn.BatchNorm2d(5, affine=False))
    for norm in (net[1], net[4]):
        nn.init.normal_(norm.weight)
    return net


def test_it_is_the_weighted_sum_of_absolute_scales() -> None:
    net = model()
    penalty = Slimming(net, weight=0.25)
    assert penalty.names == ("1.weight", "4.weight")
    expected = 0.25 * (net[1].weight.abs().sum() + net[4].weight.abs().sum())
    torch.testing.assert_close(penalty(), expected)


def test_its_gradient_is_the_sign_of_each_scale() -> None:
    net = model()
    Slimming(net, weight=0.25)().backward()
    torch.testing.assert_close(net[1].weight.grad, 0.25 * net[1].weight.sign())
    assert net[1].bias.grad is None
    assert net[0].weight.grad is None


def test_it_sees_later_values() -> None:
    net = model()
    penalty = Slimming(net, weight=1.0)
    nn.init.zeros_(net[1].weight)
    nn.init.ones_(net[4].weight)
    assert penalty().item() == 5.0


def test_a_plan_narrows_it_to_the_scales_it_cuts() -> None:
    net = model()
    penalty = Slimming(net, Plan(kept={"3.weight": {0: (0,)}, "4.weight": {0: (0,)}}), weight=1.0)
    assert penalty.names == ("4.weight",)
    torch.testing.assert_close(penalty(), net[4].weight.abs().sum())


def test_groups_narrow_it_to_the_scales_of_channels_that_can_be_cut() -> None:
    net = model()  # the last convolution's channels are the output: its norm scales nothing that can go
    penalty = Slimming(net, torchslim.groups(net, torch.randn(1, 3, 8, 8)), weight=1.0)
    assert penalty.names == ("1.weight",)
    torch.testing.assert_close(penalty(), net[1].weight.abs().sum())


def test_a_shared_norm_counts_once() -> None:
    norm = nn.BatchNorm2d(3)
    assert Slimming(nn.Sequential(norm, nn.ReLU(), norm), weight=1.0)().item() == 3.0


def test_a_model_that_is_a_norm() -> None:
    assert Slimming(nn.BatchNorm1d(7), weight=1.0).names == ("weight",)


@pytest.mark.parametrize(("net", "plan", "weight", "words"), [
    (nn.Sequential(nn.Conv2d(3, 4, 3)), None, 1e-4, "no batch norm with a scale"),
    (nn.Sequential(nn.BatchNorm2d(3, affine=False)), None, 1e-4, "no batch norm with a scale"),
    (nn.Sequential(nn.BatchNorm2d(3)), Plan(kept={"other.weight": {0: (0,)}}), 1e-4, "cut no scale of a batch norm"),
    (nn.Sequential(nn.BatchNorm2d(3)), None, -1.0, "weight=-1.0"),
    (nn.Sequential(nn.BatchNorm2d(3)), None, float("nan"), "weight=nan"),
])
def test_requests_that_make_no_sense(net: nn.Module, plan: Plan | None, weight: float, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Slimming(net, plan, weight)
