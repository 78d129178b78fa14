"""One thing, many spellings: what a call of torch arrives as differs between versions, and what it does to channels
does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from constructs.cutting import Cut, Lambda
from helpers import conv

aten = torch.ops.aten
X = torch.randn(2, 3, 8, 8)


def strided(x: Tensor) -> tuple[list[int], list[int]]:
    return list(x.shape), list(x.stride())


def written(target: Tensor, function: Callable[[Tensor], object]) -> Tensor:
    function(target)
    return target


def parts(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(x[:, :, :4]) for _ in range(2)]


# Every channel comes out as it went in, or as a function of itself alone: how it is written -> what runs it.
SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    # new tensors, overwritten or added
    "empty_like": lambda x: torch.empty_like(x).copy_(x),
    "empty": lambda x: torch.empty(x.shape, dtype=x.dtype).copy_(x),
    "empty_strided": lambda x: torch.empty_strided(*strided(x), dtype=x.dtype).copy_(x),
    "empty_permuted": lambda x: torch.empty_permuted(x.shape, (0, 1, 2, 3), dtype=x.dtype).copy_(x),
    "new_empty": lambda x: x.new_empty(x.shape).copy_(x),
    "new_empty_strided": lambda x: x.new_empty_strided(*strided(x)).copy_(x),
    "new_zeros": lambda x: x + x.new_zeros(x.shape), "new_ones": lambda x: x * x.new_ones(x.shape[1], 1, 1),
    "new_full": lambda x: x + x.new_full(x.shape, 0.5), "zeros": lambda x: x + torch.zeros(x.shape, dtype=x.dtype),
    "ones_like": lambda x: x * torch.ones_like(x), "full_like": lambda x: x + torch.full_like(x, 0.5),
    "full": lambda x: x * torch.full((x.shape[1], 1, 1), 0.5, dtype=x.dtype),
    "rand_like": lambda x: x + 0 * torch.rand_like(x), "randint_like": lambda x: x + 0 * torch.randint_like(x, 5),
    "scalar_tensor": lambda x: x + torch.scalar_tensor(0.5, dtype=x.dtype),
    "arange": lambda x: x + torch.arange(x.shape[3], dtype=x.dtype),
    "range": lambda x: x + aten.range(1, x.shape[3], dtype=x.dtype),
    "eye": lambda x: x + torch.eye(x.shape[3], dtype=x.dtype),
    "tril_indices": lambda x: x + torch.tril_indices(8, 4).to(x.dtype)[0, :8],
    "hamming_window": lambda x: x + torch.hamming_window(x.shape[3], dtype=x.dtype),
    "resize_": lambda x: x.new_empty(0).resize_(x.shape).copy_(x),
    "resize_, not on meta": lambda x: torch.empty(0, dtype=x.dtype).resize_as_(x).copy_(x),
    "resize_as_": lambda x: x.new_empty(0).resize_as_(x).copy_(x),
    "fill": lambda x: x + aten.fill(x, 0.5), "fill_": lambda x: x + x.clone().fill_(0.5),
    "zero": lambda x: x + aten.zero(x), "zero_": lambda x: x + x.clone().zero_(),
    "random_": lambda x: x + 0 * x.clone().random_(3), "uniform": lambda x: x + 0 * aten.uniform(x),
    # copies
    "clone": lambda x: x.clone(), "copy": lambda x: aten.copy(torch.empty_like(x), x),
    "_to_copy": lambda x: x.half().to(x.dtype),
    "lift": lambda x: aten.lift(x), "lift_fresh": lambda x: aten.lift_fresh(x),
    "lift_fresh_copy": lambda x: aten.lift_fresh_copy(x), "alias": lambda x: aten.alias(x),
    "alias_copy": lambda x: aten.alias_copy(x), "detach": lambda x: x.detach(),
    "detach_": lambda x: x.clone().detach_(),
    "detach_copy": lambda x: aten.detach_copy(x), "_lazy_clone": lambda x: aten._lazy_clone(x),
    "set_": lambda x: x.new_empty(0).set_(x), "data": lambda x: x.data, "contiguous": lambda x: x.mT.contiguous().mT,
    "setitem": lambda x: written(torch.zeros_like(x), lambda z: z.__setitem__(slice(None), x)),
    "a row of a number": lambda x: written(x.clone(), lambda z: z.__setitem__((slice(None), slice(None), 0), 0.5)),
    "a row of one number each": lambda x: written(x.clone(), lambda z: z[:, :, 0].copy_(z.amax((2, 3))[..., None])),
    "a column of a position each": lambda x: written(
        x.clone(), lambda z: z[:, :, 0].copy_(torch.arange(8.0, dtype=x.dtype))),
    "slice_scatter": lambda x: x.slice_scatter(x.sigmoid()[:, :, :4], 2, 2, 6),
    "select_scatter": lambda x: x.select_scatter(x.amax(3), 3, 1),
    # views and their copies
    "view": lambda x: x.view(x.shape[0], -1, 64).view(x.shape), "view_copy": lambda x: aten.view_copy(x, x.shape),
    "_unsafe_view": lambda x: aten._unsafe_view(x, x.shape),
    "_reshape_alias": lambda x: aten._reshape_alias(x, *strided(x)),
    "_reshape_copy": lambda x: aten._reshape_copy(x, x.shape), "as_strided": lambda x: x.as_strided(*strided(x)),
    "as_strided_": lambda x: x.clone().as_strided_(*strided(x)),
    "as_strided_copy": lambda x: aten.as_strided_copy(x, *strided(x)),
    "permute_copy": lambda x: torch.permute_copy(x, (0, 1, 3, 2)),
    "transpose_copy": lambda x: torch.transpose_copy(x, 2, 3), "transpose_": lambda x: x.clone().transpose_(2, 3),
    "t_copy": lambda x: torch.t_copy(torch.t_copy(x.flatten(1))).view(x.shape),
    "expand_copy": lambda x: torch.expand_copy(x, (1, *x.shape))[0],
    "unsqueeze_copy": lambda x: torch.squeeze_copy(torch.unsqueeze_copy(x, 1), 1),
    "squeeze_": lambda x: x.clone().unsqueeze_(1).squeeze_(1), "slice_copy": lambda x: torch.slice_copy(x, 2, 0, 4),
    "narrow_copy": lambda x: torch.narrow_copy(x, 2, 1, 5),
    "select_copy": lambda x: torch.select_copy(x, 2, 1)[:, :, None] + x,
    "split_copy": lambda x: torch.cat(torch.split_copy(x, 4, 2), 2),
    "split_with_sizes_copy": lambda x: torch.cat(torch.split_with_sizes_copy(x, [3, 5], 2), 2),
    "unsafe_split": lambda x: torch.cat(torch.unsafe_split(x, 4, 2), 2),
    "unsafe_split_with_sizes": lambda x: torch.cat(torch.unsafe_split_with_sizes(x, [3, 5], 2), 2),
    "unbind_copy": lambda x: torch.stack(torch.unbind_copy(x, 2), 2),
    "unfold_copy": lambda x: torch.unfold_copy(x, 2, 2, 2).amax(-1),
    # broadcast by torch, or expanded by the caller
    "expand_as": lambda x: x * x.new_full((1, 1, 8, 8), 0.5).expand_as(x),
    "expand": lambda x: x + x.new_ones(()).expand(x.shape).detach(),
    "broadcast_tensors": lambda x: torch.add(*torch.broadcast_tensors(x, torch.arange(8.0, dtype=x.dtype))),
    # in place
    "add_": lambda x: x.clone().add_(x.sigmoid()), "sigmoid_": lambda x: x.clone().sigmoid_(),
    "masked_fill_": lambda x: x.clone().masked_fill_(x > 1, 0.5), "le_": lambda x: x + x.clone().le_(0),
    "where": lambda x: torch.where(x > 0, x, 0.5 * x), "where.self_out": lambda x: torch.where(
        x > 0, x, -x, out=torch.empty_like(x)),
    # into a tensor that was there before
    "add.out": lambda x: torch.add(x, x.sigmoid(), out=torch.empty_like(x)),
    "add.out, into itself": lambda x: written(x.clone(), lambda z: torch.add(z, x, out=z)),
    "mul.out, from nothing": lambda x: torch.mul(x, 2, out=x.new_empty(0)),
    "exp.out": lambda x: torch.exp(x, out=torch.zeros_like(x)),
    "relu.out": lambda x: aten.relu.out(x, out=torch.empty_like(x)),
    "hardtanh.out": lambda x: aten.hardtanh.out(x, out=torch.empty_like(x)),
    "masked_fill.out": lambda x: aten.masked_fill.Scalar_out(x, x > 0, 0.5, out=torch.empty_like(x)),
    "clone.out": lambda x: aten.clone.out(x, out=torch.empty_like(x)),
    "view_copy.out": lambda x: torch.view_copy(x, x.shape, out=torch.empty_like(x)),
    "zeros.out": lambda x: x + torch.zeros(x.shape, out=torch.empty_like(x)),
    "arange.out": lambda x: x + torch.arange(8, out=torch.empty(8, dtype=x.dtype)),
    "sum.out": lambda x: x + torch.sum(x, 3, keepdim=True, out=x.new_empty(*x.shape[:3], 1)),
    "max.out": lambda x: x + torch.max(x, 3, keepdim=True, out=(
        x.new_empty(*x.shape[:3], 1), torch.empty(*x.shape[:3], 1, dtype=torch.long)))[0],
    "bmm.out": lambda x: torch.bmm(x.flatten(0, 1), torch.eye(8, dtype=x.dtype).expand(x.shape[0] * x.shape[1], 8, 8),
                                   out=torch.empty_like(x.flatten(0, 1))).view(x.shape),
    "avg_pool2d.out": lambda x: aten.avg_pool2d.out(x, [2, 2], [2, 2], out=x.new_empty(0)),
    "cat.out": lambda x: torch.cat([x, x], 2, out=x.new_empty(0)),
    "cat.out, over a map": lambda x: torch.cat([x[:, :, :4], x[:, :, 4:]], 2, out=torch.empty_like(x)),
    "out, a part of a map": lambda x: written(x.clone(), lambda z: torch.mul(x[:, :, :4], 2, out=z[:, :, :4])),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_channels_pass_however_it_is_written(spelling: str) -> None:
    function = torch.no_grad()(SPELLINGS[spelling])  # most of these forms have no derivative
    model = nn.Sequential(conv(3, 16), nn.ReLU(), Lambda(function), conv(16, 20), nn.ReLU(), conv(20, 4))
    cut = Cut(model, X)
    assert not any("no rule" in note for note in cut.plan.notes)
    assert cut.size("0.weight") == cut.size("3.weight", 1)
