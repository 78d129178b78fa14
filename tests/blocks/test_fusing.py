"""A `RepBlock` and the convolution that it becomes give the same, to rounding in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Untouched, random_statistics
from torchslim.blocks import ConvNormAct, RepBlock


def trained(*arguments: int, **options: Any) -> RepBlock:
    block = RepBlock(*arguments, **options)
    random_statistics(block).double().eval()
    return block


def difference(block: nn.Module, fused: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted = block(x)
        return float((fused(x) - wanted).abs().max() / wanted.abs().max())


BLOCKS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((8, 8), {}),
    ((8, 12), {}),
    ((8, 8, 3, 2), {}),
    ((8, 8, 5), {"branches": 3}),
    ((8, 8, 1), {"branches": 4}),
    ((8, 8), {"dilation": 2}),
    ((8, 8), {"groups": 4}),
    ((8, 16), {"groups": 4, "dilation": 2}),
    ((8, 8, 7), {"groups": 8, "branches": 2}),
    ((8, 8, (3, 5)), {}),
    ((8, 8), {"bias": True}),
    ((8, 8), {"norm": None}),
    ((8, 8), {"norm": lambda c: nn.BatchNorm2d(c, eps=0.1, affine=False)}),
    ((8, 8), {"pointwise": False, "identity": False}),
]


def test_one_convolution_gives_the_same() -> None:
    for arguments, options in BLOCKS:
        block, x = trained(*arguments, **options), torch.randn(2, 8, 9, 12).double()
        before = Untouched(block)
        fused = block.fuse()
        before.check()
        assert type(fused) is nn.Conv2d
        assert difference(block, fused, x) < 1e-13, (arguments, options)


def test_what_identity_and_1x1_add_is_there() -> None:
    assert len(RepBlock(8, 8).others) == 2
    assert len(RepBlock(8, 8, 1).others) == len(RepBlock(8, 12).others) == len(RepBlock(8, 8, 3, 2).others) == 1


def test_the_activation_stays_behind_the_convolution() -> None:
    block = trained(8, 8, act=nn.ReLU)
    fused = block.fuse()
    assert [type(layer) for layer in fused.children()] == [nn.Conv2d, nn.ReLU]
    assert difference(block, fused, torch.randn(2, 8, 9, 12).double()) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_convolution_is_of_the_blocks_kind(dtype: torch.dtype) -> None:
    block = RepBlock(8, 8).to(dtype).train()
    fused = block.fuse()
    assert fused.training
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert all(p.requires_grad for p in fused.parameters())
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in block.parameters()}


def test_the_result_shares_nothing_and_keeps_what_the_block_is() -> None:
    block = trained(8, 8, act=nn.PReLU).to(memory_format=torch.channels_last).requires_grad_(False)
    fused = block.fuse()
    assert not fused.training
    assert fused[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in fused.parameters())
    assert fused[1] is not block.act
    fused.train()
    assert not block.act.training
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in block.parameters()}


def test_computed_weights_and_the_meta_device_fuse() -> None:
    block = trained(8, 8)
    torch.nn.utils.parametrizations.weight_norm(block.first[0])
    fused = block.fuse()
    assert type(fused) is nn.Conv2d
    assert fused.weight.requires_grad
    assert difference(block, fused, torch.randn(2, 8, 9, 12).double()) < 1e-13
    with torch.device("meta"):
        assert RepBlock(8, 12, groups=4).fuse()(torch.empty(1, 8, 4, 4)).shape == (1, 12, 4, 4)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_cut_block_fuses(groups: int) -> None:
    net = nn.Sequential(ConvNormAct(3, 16), RepBlock(16, 16, groups=groups, branches=2), nn.Conv2d(16, 5, 1))
    x = torch.randn(2, 3, 8, 8)
    slim, _ = ts.prune(random_statistics(net).eval(), x, macs=0.5)
    block, y = slim[1].double(), torch.randn(2, slim[0][0].out_channels, 8, 8).double()
    assert block.fuse().in_channels == y.shape[1] < 16
    assert difference(block, block.fuse(), y) < 1e-13


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(4, c),
                                  lambda c: nn.BatchNorm2d(c, track_running_stats=False)])
def test_other_norms_are_refused(norm: Any) -> None:
    with pytest.raises(ts.errors.RequestError, match="found, a batch norm with running statistics wanted"):
        RepBlock(8, 8, norm=norm).fuse()
