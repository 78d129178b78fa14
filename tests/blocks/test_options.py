"""What the options of blocks do, and what blocks refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchslim as ts
from helpers import Calls, conv, count, counted_macs, oracle_error, random_statistics
from torchslim import blocks as b


def size(block: nn.Module, h: int = 32, w: int = 32, channels: int = 8) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(block(torch.randn(1, channels, h, w)).shape[2:])


CONVOLUTIONS = [b.ConvNormAct, b.GroupedConv, b.DepthwiseSeparable, b.DWConv, b.AsymmetricPair, b.GhostModule]


@pytest.mark.parametrize("make", CONVOLUTIONS)
def test_padding_is_same_or_a_number(make: Callable[..., nn.Module]) -> None:
    for kernel, dilation in ((1, 1), (3, 1), (3, 2), (5, 3)):
        assert size(make(8, 16, kernel, dilation=dilation), 15, 12) == (15, 12)
        assert size(make(8, 16, kernel, 2, dilation=dilation), 15, 12) == (8, 6)
    assert size(make(8, 16, 3, 1, 1, 2)) == (30, 30)
    assert size(make(8, 16, 3, padding=0)) == (30, 30)
    assert size(make(8, 16, 3, padding=3)) == (36, 36)


def test_sizes_of_two_numbers() -> None:
    assert size(b.ConvNormAct(8, 16, (3, 5), (1, 2), "same", (2, 1))) == (32, 16)
    assert size(b.DepthwiseSeparable(8, 16, (1, 7), padding=(0, 2))) == (32, 30)


def test_strides_of_two_numbers() -> None:
    makes: list[Callable[..., nn.Module]] = [
        b.InvertedResidual, b.InvertedResidualSE, b.UniversalInvertedBottleneck, b.StarBlock, b.SEBottleneck,
        lambda m, n, stride: b.RepBlock(m, n, 3, stride), b.ShuffleUnitV2,
        lambda m, n, stride: b.ShuffleUnitV1(m, n, stride, groups=2)]
    for make in makes:
        assert size(make(8, 16, (2, 1)), 15, 12) == (8, 12)
        assert size(make(8, 8, (1, 1)), 15, 12) == (15, 12)


def test_numbers_of_any_kind() -> None:
    number = numpy.int64
    assert size(b.ConvNormAct(number(8), number(16), number(3), number(2), dilation=[number(1), 2])) == (16, 16)


def test_a_convolution_and_its_light_stand_in() -> None:
    heavy, light = b.ConvNormAct(64, 128, dilation=2, padding=1, act=nn.Hardswish), b.DWConv(64, 128, 3, 1, 1, 2)
    assert (count(heavy), count(light)) == (73_984, 9_152)
    maps = [torch.empty(1, 64, n, n, device="meta") for n in (640, 256)]
    macs = [counted_macs(block, x) for x in maps for block in (heavy, light)]
    assert macs == [30_010_540_032, 3_568_961_792, 4_756_635_648, 565_676_288]
    assert size(b.DepthwiseSeparable(3, 16, 3), channels=3) == (32, 32)


@pytest.mark.parametrize("off", [None, False])
def test_an_activation_that_is_off_is_off(off: bool | None) -> None:
    kinds = {type(layer) for layer in b.DWConv(8, 16, act=off).modules()}
    assert kinds == {b.DWConv, b.ConvNormAct, nn.Conv2d, nn.BatchNorm2d}
    assert type(list(b.DWConv(8, 16).modules())[-1]) is nn.Hardswish


def test_norms_activations_and_biases_of_two_convolutions() -> None:
    block = b.DepthwiseSeparable(8, 16, norm=(None, lambda c: nn.GroupNorm(4, c)), act=(nn.SiLU, None))
    assert [type(layer) for part in block for layer in part] == [nn.Conv2d, nn.SiLU, nn.Conv2d, nn.GroupNorm]
    assert block[0][0].bias is not None
    assert block[1][0].bias is None
    for biases in ((True, False), [True, False]):
        pair = b.AsymmetricPair(8, 16, bias=biases, norm=None)
        assert pair[0][0].bias is not None
        assert pair[1][0].bias is None


def test_norm_and_activation_are_the_callers() -> None:
    makes: list[Callable[..., nn.Module]] = [
        *CONVOLUTIONS, b.InvertedResidual, b.InvertedResidualSE, b.UniversalInvertedBottleneck, b.ShuffleUnitV1,
        b.ShuffleUnitV2, b.SEBottleneck, b.RepBlock, b.PartialConv, b.StarBlock,
        lambda m, n, **options: b.Fire(m, 8, m // 2, m // 2, **options)]
    for make in makes:
        options = {"groups": 2} if make is b.ShuffleUnitV1 else {}
        made = make(16, 16, norm=lambda c: nn.GroupNorm(2, c), act=nn.Tanh, **options)
        kinds = [type(layer) for layer in made.modules()]
        assert nn.GroupNorm in kinds
        assert nn.Tanh in kinds
        assert not {nn.BatchNorm2d, nn.ReLU6, nn.Hardswish} & set(kinds)
        bare = make(16, 16, norm=None, act=None, **options)
        assert not {nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish} & {
            type(layer) for name, layer in bare.named_modules() if "activation" not in name}
        without = make(16, 16, bias=False, act=None, **options)
        assert all(layer.bias is None for name, layer in without.named_modules()
                   if isinstance(layer, nn.Conv2d) and "fc" not in name)


def test_shortcuts_are_where_they_fit_and_where_they_are_wanted() -> None:
    for make in (b.InvertedResidual, b.InvertedResidualSE, b.UniversalInvertedBottleneck, b.StarBlock):
        assert make(16, 16).shortcut
        assert not make(16, 24).shortcut
        assert not make(16, 16, 2).shortcut
        assert not make(16, 16, shortcut=False).shortcut
        assert make(16, 16, (1, 1)).shortcut
        assert not make(16, 16, (2, 1)).shortcut
    assert not b.PartialConv(16, 16, shortcut=False).shortcut
    assert b.SEBottleneck(16, 16, (1, 1)).shortcut is None
    assert len(b.RepBlock(16, 16, 3, (1, 1)).others) == len(b.RepBlock(16, 16).others)
    assert b.LinearBottleneck is b.InvertedResidual


# --- shuffling and splitting ---------------------------------------------------------------------------------

def test_a_shuffle_reads_rows_by_columns() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert b.channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    y = torch.randn(2, 12, 3, 5)
    assert torch.equal(b.ChannelShuffle(3)(y), y.view(2, 3, 4, 3, 5).transpose(1, 2).reshape(2, 12, 3, 5))


@pytest.mark.parametrize("shuffle", [False, True])
def test_with_a_shuffle_groups_meet(shuffle: bool) -> None:
    two = nn.Sequential(*(b.GroupedConv(8, 8, 1, groups=2, shuffle=shuffle, norm=None, act=None) for _ in range(2)))
    x = torch.randn(1, 8, 1, 1, requires_grad=True)
    two(x).flatten()[0].backward()
    assert int((x.grad != 0).sum()) == (8 if shuffle else 4)


def test_a_split_gives_views_of_equal_parts() -> None:
    x = torch.randn(2, 12, 3, 3)
    for parts in (2, 3, 4):
        split = b.ChannelSplit(parts)(x)
        assert [tuple(y.shape) for y in split] == [(2, 12 // parts, 3, 3)] * parts
        assert torch.equal(torch.cat(split, 1), x)
        assert split[1].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert str(b.ChannelSplit(3)) == "ChannelSplit(parts=3)"


def test_a_split_of_a_cut_network_is_in_halves() -> None:
    def forward(s: Calls, x: Tensor) -> Tensor:
        left, right = s.split(s.stem(x))
        return s.last(torch.cat([left, s.right(right)], 1))

    net = Calls(forward, stem=b.ConvNormAct(3, 32), split=b.ChannelSplit(), right=b.DWConv(16, 16), last=conv(32, 5, 1))
    x = torch.randn(2, 3, 8, 8)
    random_statistics(net).eval()
    slim, plan = ts.prune(net, x, macs=0.5)
    assert oracle_error(net, slim, plan, x) < 1e-9
    left, right = slim.split(slim.stem(x))
    assert left.shape == right.shape
    assert left.shape[1] < 16


# --- refusals ------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: b.GroupedConv(13, 16),
     "convolution: 13 channels cannot be split into 4 groups; keep 12 or 16"),
    (lambda: b.ConvNormAct(0, 16),
     "convolution: inputs: 0 found, a whole number of at least 1 wanted"),
    (lambda: b.ConvNormAct(8, 16, 4),
     "same_padding: a kernel of 4 with dilation 1 wants 1.5 on each side; take a kernel of 5"),
    (lambda: b.ConvNormAct(8, 16, padding="valid"),
     "padding='valid' found, a number or 'same' wanted; 'same' keeps a map's size"),
    (lambda: b.ConvNormAct(8, 16, stride=0),
     "stride: 0 found, a whole number of at least 1 wanted"),
    (lambda: b.ConvNormAct(8, 16, dilation=(1, 2, 3)),
     "dilation: (1, 2, 3) found for a map of 2 dimensions; give one number or 2"),
    (lambda: b.ConvNormAct(8, 16, padding=-1),
     "padding: -1 found, a whole number of at least 0 wanted"),
    (lambda: b.ConvNormAct(8, 16, act=nn.ReLU()),
     "act: an instance of ReLU found, what makes a module wanted, since each place needs its own; give nn.ReLU"),
    (lambda: b.DWConv(8, 16, act=True),
     "act: an instance of bool found"),
    (lambda: b.ConvNormAct(8, 16, norm="bn"),
     "norm: an instance of str found, what makes a module wanted, since each place needs its own; give nn.BatchNorm2d"),
    (lambda: b.ConvNormAct(8, 16, norm=nn.GroupNorm),
     "norm: GroupNorm can't be called with the channels alone"),
    (lambda: b.ConvNormAct(8, 16, act=functional.relu),
     "act: relu can't be called with nothing"),
    (lambda: b.Fire(64, 16, 64, 64, bypass=True),
     "Fire: a bypass from 64 to 128 channels found, equal numbers wanted"),
    (lambda: b.SqueezeExcite(16, 0),
     "SqueezeExcite: channels=16, reduction=0, squeezed=None found, whole numbers of at least 1 wanted"),
    (lambda: b.InvertedResidual(16, 16, expand=False),
     "InvertedResidual: expand=False found where 16 channels become 96"),
    (lambda: b.InvertedResidualSE(16, 16, reduction=0),
     "InvertedResidualSE: reduction=0 found, a whole number of at least 1 wanted; None leaves squeeze-and-excitation "
     "out"),
    (lambda: b.UniversalInvertedBottleneck(16, 16, 2, middle=None),
     "UniversalInvertedBottleneck: stride 2 found and no depthwise convolution that could have it"),
    (lambda: b.ShuffleUnitV1(24, 48),
     "ShuffleUnitV1: 24 to 48 channels at stride 1 found, equal numbers wanted"),
    (lambda: b.ShuffleUnitV1(48, 48, 2),
     "ShuffleUnitV1: 48 to 48 channels at stride 2 found, more at the output wanted"),
    (lambda: b.ShuffleUnitV1(40, 40),
     "convolution: 40 channels cannot be split into 3 groups; keep 39 or 42"),
    (lambda: b.ShuffleUnitV2(24, 48),
     "ShuffleUnitV2: 24 to 48 channels at stride 1 found, equal numbers wanted"),
    (lambda: b.ShuffleUnitV2(24, 25, 2),
     "ShuffleUnitV2: 25 channels cannot be split into 2 parts; keep 24 or 26"),
    (lambda: b.GhostModule(16, 13),
     "GhostModule: 13 channels cannot be split into 2 parts; keep 12 or 14"),
    (lambda: b.GhostModule(16, 16, ratio=0),
     "GhostModule: 0 parts found, a whole number of at least 1 wanted"),
    (lambda: b.PartialConv(3, 16),
     "PartialConv: 3 channels cannot be split into 4 parts; keep 4"),
    (lambda: b.GhostModule(16, 16, ratio=2.0),
     "GhostModule: 2.0 parts found, a whole number of at least 1 wanted"),
    (lambda: b.RepBlock(16, 16, branches=0),
     "RepBlock: 0 branches found, a whole number of at least 1 wanted"),
    (lambda: b.RepBlock(16, 16, branches=2.0),
     "RepBlock: 2.0 branches found, a whole number of at least 1 wanted"),
    (lambda: b.RepBlock(16, 16, (3, 2), dilation=2),
     "RepBlock: kernel_size=(3, 2) found, an odd number wanted, in whose middle the other branches are; take 3"),
    (lambda: b.SqueezeExcite(16, 2.5),
     "SqueezeExcite: channels=16, reduction=2.5, squeezed=None found, whole numbers of at least 1 wanted"),
    (lambda: b.SqueezeExcite(16, gate=nn.Hardsigmoid()),
     "gate: an instance of Hardsigmoid found, what makes a module wanted, since each place needs its own; "
     "give nn.Sigmoid"),
    (lambda: b.DepthwiseSeparable(8, 16, multiplier=1.5),
     "convolution: outputs: 12.0 found, a whole number of at least 1 wanted"),
    (lambda: b.DepthwiseSeparable(8, 16, act=(nn.ReLU,)),
     "found for two convolutions, a pair wanted, or one that goes for both"),
    (lambda: b.ConvNormAct(8, 16, bias=(True, False)),
     "bias=(True, False) found, True, False or None wanted; None is a bias where no norm follows"),
    (lambda: b.ConvNormAct(8, 12, norm=partial(nn.GroupNorm, 8)),
     "refuses 12 channels (ValueError: num_channels (12) must be divisible by num_groups (8)); give another"),
    (lambda: b.ConvNormAct(8, 16, act=lambda: None),
     "act: <lambda> made NoneType, a module wanted; act=None leaves it out"),
]


def test_an_expansion_is_a_positive_number() -> None:
    makes: list[Any] = [
        b.InvertedResidual, b.InvertedResidualSE, b.UniversalInvertedBottleneck, b.PartialConv, b.StarBlock]
    for make in makes:
        for expansion in (0, -1, float("nan"), float("inf"), None, "6"):
            message = f"{make.__name__}: expansion={expansion!r} found, a positive number wanted"
            with pytest.raises(ts.errors.RequestError, match=message):
                make(8, 8, expansion=expansion)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    for make, message in REFUSED:
        with pytest.raises(ts.errors.RequestError, match=re.escape(message)) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_shuffle_that_does_not_fit_says_so() -> None:
    with pytest.raises(RuntimeError, match="9 channels and 2 groups"):
        b.channel_shuffle(torch.randn(1, 9, 2, 2), 2)
