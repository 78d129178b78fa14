"""The group lasso against sums by hand, and what it does to a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import random_statistics
from torchslim.errors import RequestError
from torchslim.train import GroupLasso, Slimming, fit


class Mixed(nn.Module):
    """A shortcut, a grouped and a depthwise convolution, a norm, and a linear layer over a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.grouped(x)
        return self.head(self.depthwise(x).relu()[:, :, ::2, ::2].flatten(1))


X = torch.rand(1, 3, 4, 4)


def by_hand(model: Mixed) -> Tensor:
    """Channel by channel: with the shortcut there is one group, whose units are two channels, one of each half."""
    total = torch.zeros((), dtype=torch.float64)
    for channel in range(8):
        parts = [model.stem.weight[channel], model.norm.weight[channel], model.norm.bias[channel],
                 model.grouped.weight[channel], model.grouped.bias[channel],
                 model.grouped.weight[4 * (channel // 4):4 * (channel // 4) + 4, channel % 4],
                 model.depthwise.weight[channel], model.depthwise.bias[channel],
                 model.head.weight[:, 4 * channel:4 * channel + 4]]
        flat = torch.cat([part.flatten() for part in parts])
        total = total + math.sqrt(len(flat)) * flat.norm()
    return total


def test_it_is_the_sum_by_hand_with_its_gradient() -> None:
    model = random_statistics(Mixed()).double()
    penalty = GroupLasso(model, torchslim.groups(model, X.double()), weight=0.3)
    torch.testing.assert_close(penalty(), 0.3 * by_hand(model), rtol=1e-12, atol=0)
    given = torch.autograd.grad(2 * penalty(), list(model.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(0.6 * by_hand(model), list(model.parameters()), allow_unused=True)
    for name, one, other in zip(dict(model.named_parameters()), given, wanted, strict=True):
        assert (one is None) == (other is None), name
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14, msg=name)
    assert "head.bias" not in penalty.names


def test_it_shrinks_whole_channels() -> None:
    """Of two networks trained alike, in the pressed one half of the channels' norms are small beside the largest."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 4, 4, 4), torch.randint(0, 2, (64,))
    x[:, :2] += 2 * y[:, None, None, None]
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(64, 2))
    norms = {}
    for weight in (0.0, 3e-3):
        torch.manual_seed(1)
        for layer in model:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        penalty = GroupLasso(model, torchslim.groups(model, x[:1]), weight=weight)
        history = fit(model, [(x, y)] * 4, epochs=40, lr=0.05, weight_decay=0.0, sparsity=penalty)
        norms[weight] = model[0].weight.flatten(1).norm(dim=1)
        assert history.loss[-1] < 0.5
    assert (norms[0.0] / norms[0.0].max()).median() > 0.2
    assert (norms[3e-3] / norms[3e-3].max()).median() < 0.02


def test_a_channel_of_zeros_stays_and_gives_no_nan() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1], model[2].weight[:, 1] = 0, 0, 0
    GroupLasso(model, torchslim.groups(model, X))().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert not model[0].weight.grad[1].any()


def test_what_can_not_be_pressed_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    groups = torchslim.groups(model, X)
    with pytest.raises(RequestError, match=r"weight=-1 found, a number from 0 wanted"):
        GroupLasso(model, groups, weight=-1)
    with pytest.raises(RequestError, match="none of the groups can be cut"):
        GroupLasso(model, [group for group in groups if group.frozen])
    small = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    with pytest.raises(RequestError, match=r"0\.weight has 2 slices along dimension 0, the groups are of a model w"):
        GroupLasso(small, groups)
    with pytest.raises(RequestError, match=r"0\.weight has 4 slices along dimension 0, .* of a model with 2"):
        GroupLasso(model, torchslim.groups(small, X))
    with pytest.raises(RequestError, match=r"0\.weight has 4 slices .* dimension 0|0\.weight has 0 slices"):
        GroupLasso(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)), groups)
    with pytest.raises(RequestError, match=r"another model, this one has no 0\.weight"):
        GroupLasso(nn.Linear(2, 2), groups)


@pytest.mark.parametrize("penalty", [Slimming, lambda model: GroupLasso(model, torchslim.groups(model, X))])
def test_a_penalty_of_another_model_is_refused(penalty: Callable[[nn.Module], Any]) -> None:
    """It would press weights that are not trained."""
    with pytest.raises(RequestError, match=r"of another model, whose \S+ is not trained here"):
        fit(Mixed(), [(X, torch.zeros(1, dtype=torch.long))], epochs=1, sparsity=penalty(Mixed()))


@pytest.mark.parametrize("sparsity", ["1e-3", None, lambda: 0.0])
def test_what_is_no_penalty_is_refused(sparsity: Any) -> None:
    with pytest.raises(RequestError, match=r"sparsity=.* found, wanted a weight, a Slimming or a GroupLasso"):
        fit(Mixed(), [(X, torch.zeros(1, dtype=torch.long))], epochs=1, sparsity=sparsity)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Weights of 300 have squares above the largest number of float16; sums of many have too few digits."""
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((300 * torch.randn_like(parameter)).to(dtype))
    half = deepcopy(model).to(dtype)
    groups = torchslim.groups(model, X)
    found, wanted = GroupLasso(half, groups, 1.0)(), GroupLasso(model, groups, 1.0)()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    found.backward()
    wanted.backward()
    for one, other in zip(half.parameters(), model.parameters(), strict=True):
        assert one.grad is None or torch.allclose(one.grad.float(), other.grad, rtol=1e-2, atol=1e-4)
