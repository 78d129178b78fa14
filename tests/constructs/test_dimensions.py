"""Convolutions in one, two and three dimensions, transposed or not, and what trades channels for space."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import Calls, conv

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
X = torch.randn(2, 3, 8, 8)


def maps(ndim: int) -> Tensor:
    return torch.randn(2, 3, *(4,) * ndim)


def chain(ndim: int, middle: nn.Module, out: int = 24) -> nn.Module:
    """A convolution, the layer in question with its norm, and a head."""
    return nn.Sequential(CONV[ndim](3, 16, 3, padding=1), NORM[ndim](16), nn.ReLU(), middle, NORM[ndim](out),
                         nn.ReLU(), CONV[ndim](out, 20, 1), nn.ReLU(), CONV[ndim](20, 4, 1))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_convolutions(ndim: int, share: float) -> None:
    cut = Cut(chain(ndim, CONV[ndim](16, 24, 3, padding=1)), maps(ndim), macs=share)
    assert cut.kept("3.weight", 1) == cut.kept("0.weight") == cut.kept("1.running_var")
    assert cut.kept("3.weight", 0) == cut.kept("4.weight") == cut.kept("6.weight", 1)
    assert cut.after("3.weight")[2:] == (3,) * ndim


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_transposed_convolutions(ndim: int, share: float) -> None:
    cut = Cut(chain(ndim, TRANSPOSED[ndim](16, 24, 2, stride=2)), maps(ndim), macs=share)
    assert cut.kept("3.weight", 0) == cut.kept("0.weight")
    assert cut.kept("3.weight", 1) == cut.kept("3.bias") == cut.kept("6.weight", 1)
    assert (cut.slim[3].in_channels, cut.slim[3].out_channels) == cut.after("3.weight")[:2]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_grouped_convolutions(ndim: int) -> None:
    cut = Cut(chain(ndim, CONV[ndim](16, 24, 3, padding=1, groups=4)), maps(ndim))
    assert cut.plan.grouped["3.weight"] == (4, 4)
    assert cut.size("0.weight") == 4 * cut.after("3.weight")[1] == cut.slim[3].in_channels
    assert cut.size("3.weight") % 4 == 0


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("times", [1, 2])
def test_depthwise_convolutions(ndim: int, times: int) -> None:
    cut = Cut(chain(ndim, CONV[ndim](16, 16 * times, 3, padding=1, groups=16), 16 * times), maps(ndim))
    assert cut.attribute_updates == {"3.groups": (16, cut.size("0.weight"))}
    assert cut.size("3.weight") == times * cut.size("0.weight") == cut.size("6.weight", 1)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_depthwise_transposed_convolutions(ndim: int) -> None:
    cut = Cut(chain(ndim, TRANSPOSED[ndim](16, 16, 2, stride=2, groups=16), 16), maps(ndim))
    assert cut.attribute_updates == {"3.groups": (16, cut.size("0.weight"))}
    assert cut.kept("3.weight") == cut.kept("0.weight") == cut.kept("6.weight", 1)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("out", [8, 32])
def test_grouped_transposed_convolutions_lose_equally_many_of_each_group(ndim: int, out: int) -> None:
    cut = Cut(chain(ndim, TRANSPOSED[ndim](16, out, 2, stride=2, groups=4), out), maps(ndim))
    assert cut.size("0.weight") < 16
    assert cut.kept("3.weight", 0) == cut.kept("0.weight")
    assert cut.kept("3.weight", 1) == cut.kept("6.weight", 1)
    for kept, size in ((cut.kept("0.weight"), 16), (cut.kept("6.weight", 1), out)):
        counts = [sum(index * 4 // size == group for index in kept) for group in range(4)]
        assert len(set(counts)) == 1


def test_a_map_without_a_batch() -> None:
    cut = Cut(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 24), nn.ReLU(), conv(24, 4)), torch.randn(3, 8, 8))
    assert cut.kept("2.weight", 1) == cut.kept("0.weight")
    assert cut.kept("2.weight", 0) == cut.kept("4.weight", 1)


def test_pictures_that_become_sequences_that_become_clips() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        rows = s.rows(s.stem(x).relu().flatten(2)).relu()
        return s.clips(rows.view(x.shape[0], -1, 1, 8, 8)).mean((2, 3, 4))

    cut = Cut(Calls(forward, stem=conv(3, 16), rows=nn.Conv1d(16, 20, 3, padding=1), clips=nn.Conv3d(20, 4, 1)), X)
    assert cut.kept("rows.weight", 1) == cut.kept("stem.weight")
    assert cut.kept("clips.weight", 1) == cut.kept("rows.weight")


# Channels for space


def test_pixel_shuffle_loses_the_channels_of_a_pixel_together() -> None:
    cut = Cut(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 64), nn.PixelShuffle(2), nn.ReLU(), conv(16, 4)), X)
    left = cut.kept("5.weight", 1)
    assert cut.kept("2.weight") == tuple(4 * one + part for one in left for part in range(4))
    assert len(left) < 16


def test_pixel_unshuffle_gives_four_of_each() -> None:
    cut = Cut(nn.Sequential(conv(3, 16), nn.PixelUnshuffle(2), nn.ReLU(), conv(64, 24), nn.ReLU(), conv(24, 4)), X)
    assert cut.kept("3.weight", 1) == tuple(4 * one + part for one in cut.kept("0.weight") for part in range(4))


def views(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def slices(x: Tensor) -> Tensor:
    return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


def unfolded(x: Tensor) -> Tensor:
    return functional.unfold(x, 2, stride=2).view(x.shape[0], -1, x.shape[2] // 2, x.shape[3] // 2)


@pytest.mark.parametrize("how", [views, slices, unfolded], ids=lambda how: how.__name__)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_space_to_depth(how: Callable[[Tensor], Tensor], share: float) -> None:
    model = Calls(lambda s, x: s.c(s.b(how(s.a(x).relu())).relu()), a=conv(3, 16), b=conv(64, 24), c=conv(24, 4))
    cut = Cut(model, X, macs=share)
    first = cut.kept("a.weight")
    expected = [4 * one + part for one in first for part in range(4)] if how is unfolded else [
        16 * part + one for part in range(4) for one in first]
    assert cut.kept("b.weight", 1) == tuple(expected)
    assert cut.size("b.weight") == cut.size("c.weight", 1)


def test_depth_to_space_by_views() -> None:
    """The channels of one result lie far apart, and go together."""
    def spread(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)

    model = Calls(lambda s, x: s.c(spread(s.b(s.a(x).relu())).relu()), a=conv(3, 16), b=conv(16, 64), c=conv(16, 4))
    cut = Cut(model, X, macs=0.5, only=["b"])
    left = cut.kept("c.weight", 1)
    assert cut.kept("b.weight") == tuple(16 * part + one for part in range(4) for one in left)


def test_a_patch_embedding_and_its_way_back() -> None:
    """Patches as tokens, linear layers on them, and a transposed convolution back to pixels."""
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        tokens = s.patches(x).flatten(2).mT
        tokens = s.down(functional.gelu(s.up(tokens)))
        return s.pixels(tokens.mT.reshape(x.shape[0], -1, 4, 4))

    cut = Cut(Calls(forward, patches=nn.Conv2d(3, 24, 2, 2), up=nn.Linear(24, 32), down=nn.Linear(32, 16),
                    pixels=nn.ConvTranspose2d(16, 3, 2, 2)), X)
    assert cut.kept("up.weight", 1) == cut.kept("patches.weight")
    assert cut.kept("down.weight", 1) == cut.kept("up.weight")
    assert cut.kept("pixels.weight", 0) == cut.kept("down.weight")
