"""Cuts through norms that mix channels: refused by default; allowed, they equal norms over the channels that stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import random_statistics


class Mixing(nn.Module):
    """Two convolutions with something between that mixes channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = norm
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.norm(self.first(x)).relu()).relu())


class LastDimNorm(nn.Module):
    """Layer norm over channels, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2): a mean over channels of norms over space."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + x * self.weight * (size / (size.mean(dim=1, keepdim=True) + 1e-6))


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * self.weight


class ChannelSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1) * 12


NORMS = [LastDimNorm, ResponseNorm, RootMeanSquare, ChannelSoftmax, lambda: nn.GroupNorm(3, 12),
         lambda: nn.GroupNorm(1, 12)]
NAMES = ["layer norm", "response norm", "rms norm", "softmax", "group norm", "one group"]


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.normal_(1, 0.3)
                module.bias.normal_(0, 0.3)
    return random_statistics(model).eval()


@pytest.mark.parametrize("norm", [norm for norm, name in zip(NORMS, NAMES, strict=True) if name != "group norm"])
def test_mixed_channels_stay_by_default(norm: type[nn.Module]) -> None:
    model = randomised(Mixing(norm()))
    slim, plan = torchslim.prune(model, torch.randn(2, 3, 8, 8), macs=0.6, strict=False)
    assert slim.first.out_channels == 12
    assert slim.second.out_channels < 8
    assert any(entry.name == "first" and "mixed by `norm" in entry.reason for entry in plan.left_alone)


@pytest.mark.parametrize("norm", NORMS, ids=NAMES)
def test_an_approximate_cut_equals_a_norm_over_what_stays(norm: type[nn.Module]) -> None:
    model = randomised(Mixing(norm()))
    inputs = torch.randn(2, 3, 8, 8)
    slim, plan = torchslim.prune(model, inputs, scope={"first": 0.5}, allow_approximate=True)
    assert slim.first.out_channels == 6
    assert any(note.startswith("approximate: channels are mixed by `norm") for note in plan.notes)
    assert torchslim.verify(model, slim, plan, inputs) < 1e-12
    with torch.no_grad():  # the proof of an approximate cut can fail, too
        slim.second.weight[:, [0, 1]] = slim.second.weight[:, [1, 0]]
    assert torchslim.verify(model, slim, plan, inputs) > 1e-3


def test_the_reference_by_hand() -> None:
    """A layer norm over the kept channels, written out here without the library."""
    model = randomised(Mixing(LastDimNorm())).double()
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    slim, plan = torchslim.prune(model, inputs, scope={"first": 0.5}, allow_approximate=True)
    kept = list(plan.kept["first.weight"][0])
    with torch.no_grad():
        x = model.first(inputs)[:, kept].permute(0, 2, 3, 1)
        inner = model.norm.inner
        x = torch.nn.functional.layer_norm(x, (6,), inner.weight[kept], inner.bias[kept]).permute(0, 3, 1, 2).relu()
        x = torch.nn.functional.conv2d(x, model.second.weight[:, kept], model.second.bias, padding=1).relu()
        expected = model.head(x)
        assert (slim(inputs) - expected).abs().max() < 1e-12 * expected.abs().max()


class ConvertsItsMean(nn.Module):
    """A plain tensor in the type of the input, before attention, whose heads no weight reads."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.stem = torch.full((1, 3, 1, 1), 0.5), nn.Conv2d(3, 16, 2, 2)
        self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        x = self.stem(x - self.mean).flatten(2).transpose(1, 2)
        return self.head(x + self.attention(x, x, x)[0])  # type: ignore[no-any-return]


def test_tensors_of_another_type_that_the_code_converts() -> None:
    model, x = random_statistics(ConvertsItsMean()).eval(), torch.randn(2, 3, 8, 8)
    plan = torchslim.plan(model, x, macs=0.5)
    assert torchslim.verify(model, torchslim.apply(model, plan), plan, x) < 1e-12
    assert model.mean.dtype == torch.float32
