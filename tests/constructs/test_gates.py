"""Squeeze-and-excitation and its kin, selective kernels, split attention."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from constructs.cutting import Cut
from helpers import conv

X = torch.randn(2, 3, 8, 8)


def around(block: nn.Module) -> nn.Module:
    """A block of 16 channels between two convolutions."""
    return nn.Sequential(conv(3, 16), nn.ReLU(), block, conv(16, 24), nn.ReLU(), conv(24, 4))


class Squeeze(nn.Module):
    """Squeeze-and-excitation by convolutions or by linear layers."""

    def __init__(self, width: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(width, width // 2) if linear else nn.Conv2d(width, width // 2, 1)
        self.up = nn.Linear(width // 2, width) if linear else nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        if self.linear:
            return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid().view(b, c, 1, 1)
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_squeeze_and_excitation(linear: bool, share: float) -> None:
    cut = Cut(around(Squeeze(16, linear)), X, macs=share)
    assert cut.kept("2.down.weight", 1) == cut.kept("2.up.weight") == cut.kept("0.weight") == cut.kept("3.weight", 1)


def test_the_squeezed_channels_go_too() -> None:
    cut = Cut(around(Squeeze(16, False)), X, params=0.3, scope="uniform")
    assert cut.kept("2.down.weight") == cut.kept("2.up.weight", 1)


@pytest.mark.parametrize("block", [timm.layers.SEModule(16, rd_channels=8), timm.layers.EffectiveSEModule(16)],
                         ids=lambda block: type(block).__name__)
def test_gates_of_timm(block: nn.Module) -> None:
    cut = Cut(around(block), X)
    assert cut.size("0.weight") == cut.size("3.weight", 1)


def test_a_gate_that_convolves_over_channels_freezes_them() -> None:
    cut = Cut(around(timm.layers.EcaModule(16)), X)
    assert cut.uncut("0.weight")
    assert "convolved over in `2.conv` (aten.convolution)" in cut.reasons("0")
    assert cut.size("3.weight") == cut.size("5.weight", 1)


def test_a_gate_that_sees_the_mean_over_channels_freezes_them() -> None:
    class Spatial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weigh = nn.Conv2d(2, 1, 7, padding=3)

        def forward(self, x: Tensor) -> Tensor:
            seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * self.weigh(seen).sigmoid()

    cut = Cut(around(Spatial()), X)
    assert cut.uncut("0.weight")
    assert "channels are mixed by `2` (aten.mean)" in cut.reasons("0")


class Selective(nn.Module):
    """Two branches weighed by a softmax over them; written with cat, stack or a view that remembers its width."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width = how, 16
        self.branches = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=d, dilation=d) for d in (1, 2))
        self.squeeze = nn.Linear(16, 8)
        self.weigh = nn.ModuleList(nn.Linear(8, 16) for _ in range(2))
        self.both = nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "cat":
            branches = torch.cat([branch(x).unsqueeze(1) for branch in self.branches], 1)
            z = self.squeeze(branches.sum(1).mean(-1).mean(-1))
            weights = torch.cat([weigh(z).unsqueeze(1) for weigh in self.weigh], 1).softmax(1)
            return (branches * weights[..., None, None]).sum(1)
        branches = torch.stack([branch(x) for branch in self.branches], 1)
        z = self.squeeze(branches.sum(1).mean((2, 3)))[:, :, None, None]
        width = self.width if self.how == "remembered" else x.shape[1]
        if self.how == "measured":
            width = branches.shape[2]
        return (branches * self.both(z).view(x.shape[0], 2, width, 1, 1).softmax(1)).sum(1)


@pytest.mark.parametrize("how", ["cat", "measured", "remembered"])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_selective_kernels(how: str, share: float) -> None:
    """The n-th channel of every branch goes with the n-th of the others and with its weights."""
    cut = Cut(around(Selective(how)), X, macs=share)
    left = cut.kept("3.weight", 1)
    assert cut.kept("2.branches.0.weight") == cut.kept("2.branches.1.weight") == cut.kept("2.squeeze.weight", 1) == left
    if how == "cat":
        assert cut.kept("2.weigh.0.weight") == cut.kept("2.weigh.1.weight") == left
    else:
        assert cut.kept("2.both.weight") == (*left, *(16 + one for one in left))
    assert cut.attribute_updates == {"2.width": (16, len(left))}


@pytest.mark.parametrize("split", [False, True])
def test_selective_kernels_of_timm(split: bool) -> None:
    cut = Cut(around(timm.layers.SelectiveKernel(16, 16, split_input=split, rd_divisor=4)), X)
    assert cut.size("2.paths.0.conv.weight") == cut.size("2.paths.1.conv.weight") == cut.size("3.weight", 1)
    assert cut.size("2.attn.fc_select.weight") == 2 * cut.size("3.weight", 1)
    if split:
        assert cut.after("2.paths.0.conv.weight")[1] * 2 == cut.size("0.weight")


class Split(nn.Module):
    """Split attention (Zhang et al. 2020): `radix` splits in each of `cardinality` groups, weighed by a softmax."""

    def __init__(self, radix: int, cardinality: int) -> None:
        super().__init__()
        self.radix, self.cardinality = radix, cardinality
        self.conv = nn.Conv2d(16, 16 * radix, 3, padding=1, groups=radix * cardinality)
        self.norm = nn.BatchNorm2d(16 * radix)
        self.down = nn.Conv2d(16, 8, 1, groups=cardinality)
        self.up = nn.Conv2d(8, 16 * radix, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        width = x.shape[1] // self.radix
        splits = x.split(width, 1)
        weights = self.up(self.down(sum(splits).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(x.shape[0], self.cardinality, self.radix, -1).transpose(1, 2)
        weights = weights.softmax(1).reshape(x.shape[0], -1, 1, 1).split(width, 1)
        return sum(weight * part for weight, part in zip(weights, splits, strict=True)).contiguous()


@pytest.mark.parametrize(("radix", "cardinality"), [(2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_split_attention(radix: int, cardinality: int, share: float) -> None:
    cut = Cut(around(Split(radix, cardinality)), X, macs=share)
    left = cut.size("3.weight", 1)
    assert cut.size("2.conv.weight") == cut.size("2.norm.weight") == cut.size("2.up.weight") == radix * left
    assert cut.slim[2].down.in_channels == left


@pytest.mark.parametrize("groups", [1, 2])
def test_split_attention_of_timm(groups: int) -> None:
    cut = Cut(around(timm.layers.SplitAttn(16, 16, kernel_size=3, radix=2, groups=groups, rd_divisor=4)), X)
    assert cut.size("2.conv.weight") == cut.size("2.fc2.weight") == 2 * cut.size("3.weight", 1)
