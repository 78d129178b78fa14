"""Slices, splits and chunks of channels that go different ways and are joined again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import Calls, conv

X = torch.randn(2, 3, 8, 8)


def joined(function: Any, read: int = 16) -> nn.Module:
    """16 channels, cut up and joined to `read` of them."""
    return Calls(lambda s, x: s.c(s.b(function(s, s.a(x).relu())).relu()), a=conv(3, 16), b=conv(read, 24),
                 c=conv(24, 4), inner=conv(8, 8))


def halves(_: Any, y: Tensor) -> Tensor:
    half = y.shape[1] // 2
    return torch.cat([y[:, half:], y[:, :half].tanh()], 1)


def chunks(_: Any, y: Tensor) -> Tensor:
    a, b, c, d = y.chunk(4, 1)
    return torch.cat([d, a.tanh(), c.sigmoid(), b], 1)


def every_other(_: Any, y: Tensor) -> Tensor:
    return torch.cat([y[:, ::2].tanh(), y[:, 1::2]], 1)


def narrowed(_: Any, y: Tensor) -> Tensor:
    half = y.shape[1] // 2
    return torch.cat([y.narrow(1, 0, half).tanh(), y.narrow(1, half, half)], 1)


def through_a_layer(s: Any, y: Tensor) -> Tensor:
    left, right = y.chunk(2, 1)
    return torch.cat([left, s.inner(right)], 1)


def viewed(_: Any, y: Tensor) -> Tensor:
    left, right = y.view(y.shape[0], 2, -1, 8, 8).unbind(1)
    return torch.cat([right, left.sigmoid()], 1)


@pytest.mark.parametrize("function", [chunks, through_a_layer, viewed, halves, every_other, narrowed],
                         ids=lambda f: f.__name__)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_parts_that_are_joined_again(function: Any, share: float) -> None:
    cut = Cut(joined(function), X, macs=share)
    assert cut.size("a.weight") == len(cut.kept("a.bias"))
    parts = 4 if function is chunks else 2
    assert cut.size("a.weight") % parts == 0
    assert sorted(cut.kept("a.weight")) == sorted(dict.fromkeys(cut.kept("a.weight")))
    assert cut.size("b.weight") == cut.size("c.weight", 1)


@pytest.mark.parametrize("way", [
    lambda y: y.roll(1, 0), lambda y: y.roll(3), lambda y: y.flip(3), lambda y: y.transpose(2, 3),
    lambda y: y.permute(0, 1, 3, 2), lambda y: functional.pad(y[:, :, 1:], (0, 0, 0, 1)),
    lambda y: y[:, :, torch.tensor([3, 1, 2, 0, 7, 6, 5, 4])], lambda y: y.index_select(3, torch.arange(7, -1, -1)),
    lambda y: y.unfold(2, 1, 1)[:, :, [0, 2, 1, 3, 4, 5, 6, 7]].squeeze(-1), lambda y: y.mT,
], ids=["batch", "all", "mirrored", "transposed", "permuted", "shifted", "indexed", "selected", "unfolded", "turned"])
@pytest.mark.parametrize("half", ["first", "second"])
def test_a_half_whose_pixels_move_is_no_other_half(way: Any, half: str) -> None:
    """Temporal shift and its kin: both halves reach the same weights, and only one of them is moved."""
    def function(_: Any, y: Tensor) -> Tensor:
        middle = y.shape[1] // 2
        left, right = y[:, :middle], y[:, middle:]
        return torch.cat([way(left), right] if half == "first" else [left, way(right)], 1)

    cut = Cut(joined(function), X)
    first = cut.kept("a.weight") if "a.weight" in cut.plan.kept else tuple(range(16))
    assert sum(one < 8 for one in first) == sum(one >= 8 for one in first)
    assert cut.size("b.weight") == cut.size("c.weight", 1)


def test_each_slice_by_itself_or_both() -> None:
    """One half is read twice, and once more by a layer of its own."""
    def function(s: Any, y: Tensor) -> Tensor:
        left, right = y.chunk(2, 1)
        return torch.cat([y, left, s.inner(right)], 1)

    cut = Cut(joined(function, 32), X)
    first = cut.kept("a.weight")
    assert sum(one < 8 for one in first) == sum(one >= 8 for one in first)
    assert cut.size("inner.weight", 1) == len(first) // 2
    assert cut.kept("b.weight", 1)[:len(first)] == first


@pytest.mark.parametrize(("function", "read", "reason"), [
    (lambda _, y: torch.cat([y[:, 6:], y[:, :6].tanh()], 1), 16, "remembers a width in `model` (aten.slice)"),
    (lambda _, y: torch.cat([y[:, :10], y[:, 6:].tanh()], 1), 20, "remembers a width in `model` (aten.slice)"),
    (lambda _, y: torch.cat([y[:, :1].tanh(), y[:, 1:]], 1), 16, "picked by position in `model` (aten.slice)"),
    (lambda _, y: torch.cat([y[:, 3:4], y], 1), 17, "picked by position in `model` (aten.slice)"),
    (lambda _, y: torch.cat([y, y[:, [0, 5]]], 1), 18, "picked by position in `model` (aten.index)"),
    (lambda _, y: torch.cat([p.tanh() for p in y.split(6, 1)], 1), 16,
     "split into unequal parts in `model` (aten.split)"),
], ids=["at a number", "overlapping", "the first", "one of them", "by number", "unequal"])
def test_slices_by_number_freeze_their_channels(function: Any, read: int, reason: str) -> None:
    cut = Cut(joined(function, read), X)
    assert cut.uncut("a.weight", "a.bias")
    assert reason in cut.reasons("a")
    assert cut.size("b.weight") == cut.size("c.weight", 1)


class Ghost(nn.Module):
    """Han et al. 2020: half of the channels are cheap copies, of which the last may be dropped."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.cout, own = cout, (cout + 1) // 2
        self.primary, self.cheap = nn.Conv2d(cin, own, 1), conv(own, own, groups=own)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x).relu()
        return torch.cat([y, self.cheap(y).relu()], 1)[:, :self.cout]


@pytest.mark.parametrize("width", [20, 19])
def test_ghost_modules(width: int) -> None:
    cut = Cut(nn.Sequential(conv(3, 16), Ghost(16, width), conv(width, 24), nn.ReLU(), conv(24, 4)), X)
    own = cut.kept("1.primary.weight")
    cheap = [10 + one for one in own if 10 + one < width]
    assert cut.kept("2.weight", 1) == (*own, *cheap)
    assert cut.kept("1.cheap.weight") == own


def test_a_stage_that_joins_all_its_steps() -> None:
    """As in cross-stage partial networks: two halves, one through blocks, each step kept."""
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.into, self.out = conv(16, 16, 1), conv(32, 20, 1)
            self.blocks = nn.ModuleList(nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.SiLU()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            steps = list(self.into(x).split((self.width, self.width), 1))
            for block in self.blocks:
                steps.append(block(steps[-1]))
            return self.out(torch.cat(steps, 1))

    cut = Cut(nn.Sequential(conv(3, 16), Stage(), nn.ReLU(), conv(20, 4)), X)
    assert cut.size("1.out.weight", 1) == sum(
        cut.after(name)[0] for name in ("1.into.weight", "1.blocks.0.0.weight", "1.blocks.1.0.weight"))
    assert cut.attribute_updates["1.width"] == (8, cut.size("1.into.weight") // 2)


def test_two_shuffled_halves() -> None:
    """Half of the channels through a layer, both halves shuffled, twice."""
    def unit(s: Any, x: Tensor) -> Tensor:
        for layer in (s.p, s.q):
            left, right = functional.channel_shuffle(x, 2).chunk(2, 1)
            x = torch.cat([left, layer(right).relu()], 1)
        return s.out(x)

    cut = Cut(Calls(lambda s, x: unit(s, s.a(x)), a=conv(3, 16), p=conv(8, 8), q=conv(8, 8), out=conv(16, 4)), X)
    assert cut.size("a.weight") == cut.size("out.weight", 1) == 2 * cut.size("p.weight", 1)


@pytest.mark.parametrize("way", [torch.sigmoid, lambda y: functional.avg_pool2d(y, 3, 1, 1), lambda y: y.flip(3)],
                         ids=["activated", "pooled", "mirrored"])
def test_copies_of_a_channel_that_went_different_ways_are_told_apart(way: Any) -> None:
    """Each channel has a copy in either half; the shuffle's order of the two changes with the width."""
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        left, right = (y + y.flip(1)).split(y.shape[1] // 2, 1)
        b, c, h, w = y.shape
        shuffled = torch.cat([way(left), right], 1).view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return s.out(shuffled.flatten(1))

    cut = Cut(Calls(forward, a=conv(3, 8), out=nn.Linear(512, 4)), X, macs=0.4)
    assert cut.size("out.weight", 1) == 64 * cut.size("a.weight")
