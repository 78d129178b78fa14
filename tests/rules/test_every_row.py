"""Every row by its name: each operation that has one runs, and what its labels say of the channels is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import mutations
from rules.movement import Movement
from torchslim import rules
from torchslim.rules import row_name, row_of
from torchslim.tracing.graph import Graph
from torchslim.tracing.undispatched import ASSIGNED, READ_OUTSIDE

Function = Callable[..., Any]
aten = torch.ops.aten
SHAPE, LINE, ROOM = (2, 6, 4, 4), (2, 6, 8), (1, 4, 2, 4, 4)
BOXES = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 4, 4]], dtype=torch.float64)
PLACES = torch.tensor([1, 0])


def norm_like(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.ones(6, dtype=x.dtype) for _ in range(4))


def at(x: Tensor) -> Tensor:
    return torch.zeros(2, 1, 4, 4, dtype=torch.long)


# Channels pass, each by itself: name of the row -> what runs it.
FREE: dict[str, Function] = {
    **{name: lambda x, name=name: getattr(torch, name)(x) for name in (
        "relu", "sigmoid", "tanh", "rsqrt", "sqrt", "clone", "detach")},
    "zeros_like": lambda x: x + torch.zeros_like(x), "ones_like": lambda x: x * torch.ones_like(x),
    **{name: lambda x, name=name: getattr(functional, name)(x) for name in (
        "hardswish", "hardsigmoid", "hardtanh", "silu", "mish", "gelu", "leaky_relu", "elu", "softplus")},
    "add": lambda x: x + 1, "sub": lambda x: x - x.relu(), "mul": lambda x: x * x.exp(), "div": lambda x: x / 2,
    "where": lambda x: torch.where(x > 0, x, 0.0), "masked_fill": lambda x: x.masked_fill_(x > 0, 1.0),
    "lerp": lambda x: x.lerp(x * 2, 0.5), "addcmul": lambda x: x.addcmul(x, x), "addcdiv": lambda x: x.addcdiv(x, x),
    "floor_divide": lambda x: aten.floor_divide(x, 0.1), "remainder": lambda x: x % 0.3, "rsub": lambda x: 2 - x,
    "logical_or": lambda x: torch.logical_or(x > 0.5, x < 0), "clamp": lambda x: x.clamp(-0.5, 0.5),
    "logical_and": lambda x: torch.logical_and(x > 0, x < 0.5), "pow": lambda x: x ** 2,
    "threshold": lambda x: functional.threshold(x, 0.1, 0.0), "copy": lambda x: torch.zeros(SHAPE).copy_(x),
    "_prelu_kernel": lambda x: functional.prelu(x, torch.full((1,), 0.2, dtype=x.dtype)),
    "alias": lambda x: aten.alias(x), "_to_copy": lambda x: x.float(),
    "lift_fresh": lambda x: aten.lift_fresh(x), "lift_fresh_copy": lambda x: aten.lift_fresh_copy(x),
    "fill": lambda x: x + torch.empty(SHAPE).copy_(x).fill_(1), "zero": lambda x: x + x.clone().zero_(),
    "lift": lambda x: aten.lift(x), "_lazy_clone": lambda x: aten._lazy_clone(x), "_neg_view": aten._neg_view,
    "set": lambda x: torch.empty(SHAPE, dtype=x.dtype).set_(x), "narrow": lambda x: torch.narrow_copy(x, 2, 1, 2),
    "resize": lambda x: torch.empty(0, dtype=x.dtype).resize_(SHAPE).copy_(x),
    "resize_as": lambda x: torch.empty(0, dtype=x.dtype).resize_as_(x).copy_(x),
    "_reshape": lambda x: aten._reshape_copy(x, (2, 6, 16)),
    "slice_scatter": lambda x: x.slice_scatter(x.exp()[:, :, :2], 2, 1, 3),
    "select_scatter": lambda x: x.select_scatter(x.amax(2), 2, 1),
    "_conj": lambda x: x.to(torch.complex128).conj(),
    "as_strided": lambda x: x.as_strided(SHAPE, (96, 16, 4, 1)),
    "zeros": lambda x: x + torch.zeros(6, 1, 1), "ones": lambda x: x + torch.ones(1, 6, 4, 4),
    "full": lambda x: x + torch.full((6, 1, 1), 2.0), "scalar_tensor": lambda x: x + aten.scalar_tensor(2.0),
    "empty": lambda x: torch.empty(6, 4, 4).fill_(1) * x, "empty_strided": lambda x: torch.empty_strided(
        SHAPE, (96, 16, 4, 1)).fill_(1) * x, "empty_permuted": lambda x: torch.empty_permuted(
        SHAPE, (0, 1, 2, 3)).fill_(1) * x,
    "empty_like": lambda x: torch.empty_like(x).copy_(x), "full_like": lambda x: x + torch.full_like(x, 3.0),
    "new_zeros": lambda x: x + x.new_zeros(SHAPE), "new_ones": lambda x: x + x.new_ones(SHAPE),
    "new_empty": lambda x: x.new_empty(SHAPE).copy_(x), "new_full": lambda x: x + x.new_full(SHAPE, 2.0),
    "new_empty_strided": lambda x: x.new_empty_strided(SHAPE, (96, 16, 4, 1)).copy_(x),
    "mean": lambda x: x.mean((2, 3)), "sum": lambda x: x.sum(3), "amax": lambda x: x.amax(2),
    "amin": lambda x: x.amin(2), "max": lambda x: x.max(2)[0], "min": lambda x: x.min(3)[0],
    "var": lambda x: x.var((2, 3)),
    "std": lambda x: x.std(2), "var_mean": lambda x: torch.var_mean(x, (2, 3)), "prod": lambda x: x.prod(2),
    "std_mean": lambda x: torch.std_mean(x, (2, 3)), "any": lambda x: (x > 0).any(2), "all": lambda x: (x > 0).all(2),
    "logsumexp": lambda x: x.logsumexp(2), "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, dim=2),
    "norm": lambda x: aten.norm(x, 2, [2, 3]), "argmax": lambda x: x.argmax(2), "argmin": lambda x: x.argmin(2),
    "_softmax": lambda x: x.softmax(2), "_log_softmax": lambda x: x.log_softmax(3), "cumsum": lambda x: x.cumsum(2),
    "_safe_softmax": lambda x: aten._safe_softmax(x, 2), "view": lambda x: x.view(2, 6, 16),
    "_unsafe_view": lambda x: aten._unsafe_view(x, (2, 96)), "permute": lambda x: x.permute(0, 2, 3, 1),
    "_reshape_alias": lambda x: aten._reshape_alias(x, (2, 6, 16), (96, 16, 1)),
    "transpose": lambda x: x.transpose_(1, 3), "t": lambda x: x.flatten(1).t_(), "unsqueeze": lambda x: x.unsqueeze_(1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze_(1), "expand": lambda x: x.expand(3, -1, -1, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1), "slice": lambda x: x[:, 1:5], "select": lambda x: x[:, :, 1],
    "split": lambda x: x.split(3, 1), "split_with_sizes": lambda x: x.split([2, 4], 1),
    "unsafe_split": lambda x: aten.unsafe_split(x, 3, 1),
    "unsafe_split_with_sizes": lambda x: aten.unsafe_split_with_sizes(x, [2, 4], 1),
    "unbind": lambda x: x.unbind(2), "cat": lambda x: torch.cat([x, x.relu()], 1),
    "stack": lambda x: torch.stack([x, x], 1), "flip": lambda x: x.flip(1), "roll": lambda x: x.roll(2, 1),
    "unfold": lambda x: x.unfold(1, 2, 2), "index": lambda x: x[:, :, PLACES],
    "_unsafe_index": lambda x: aten._unsafe_index(x, [None, None, PLACES]),
    "index_select": lambda x: x.index_select(2, PLACES), "gather": lambda x: x.gather(2, at(x).expand(2, 6, 4, 4)),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 2), "_adaptive_avg_pool2d": lambda x: functional
    .adaptive_avg_pool2d(x, 3), "max_pool2d_with_indices": lambda x: functional.max_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: functional.adaptive_max_pool2d(x, 2),
    "upsample_nearest2d": lambda x: functional.interpolate(x, scale_factor=2),
    "upsample_bilinear2d": lambda x: functional.interpolate(x, (5, 7), mode="bilinear"),
    "upsample_bicubic2d": lambda x: functional.interpolate(x, (5, 7), mode="bicubic"),
    "_upsample_nearest_exact2d": lambda x: functional.interpolate(x, (5, 7), mode="nearest-exact"),
    "_upsample_bilinear2d_aa": lambda x: functional.interpolate(x, (3, 3), mode="bilinear", antialias=True),
    "_upsample_bicubic2d_aa": lambda x: functional.interpolate(x, (3, 3), mode="bicubic", antialias=True),
    "reflection_pad2d": lambda x: functional.pad(x, (1, 1, 1, 1), "reflect"),
    "replication_pad2d": lambda x: functional.pad(x, (1, 1, 1, 1), "replicate"),
    "constant_pad_nd": lambda x: functional.pad(x, (0, 1, 1, 0, 1, 2)),
    "grid_sampler_2d": lambda x: functional.grid_sample(x, torch.zeros(2, 3, 3, 2, dtype=x.dtype),
                                                        align_corners=False),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x, 2), "im2col": lambda x: functional.unfold(x, 2),
    "col2im": lambda x: functional.fold(functional.unfold(x, 2), (4, 4), 2),
    "index_fill": lambda x: x.index_fill(2, PLACES, 0.0),
    "channel_shuffle": lambda x: functional.channel_shuffle(x, 2),
    "torchvision.roi_align": lambda x: torchvision.ops.roi_align(x, BOXES, 2),
    "torchvision.roi_pool": lambda x: torchvision.ops.roi_pool(x, BOXES, 2),
    "native_batch_norm": lambda x: functional.batch_norm(x, *norm_like(x)),
    "_native_batch_norm_legit_no_training": lambda x: aten._native_batch_norm_legit_no_training(
        x, *norm_like(x), 0.1, 1e-5)[0],
    "_native_batch_norm_legit": lambda x: aten._native_batch_norm_legit(x, *norm_like(x), False, 0.1, 1e-5)[0],
    "_batch_norm_no_update": lambda x: aten._batch_norm_no_update(x, *norm_like(x), 0.1, 1e-5)[0],
    "native_group_norm": lambda x: functional.group_norm(x, 6),
    "native_layer_norm": lambda x: functional.layer_norm(x, (4, 4)),
    **{name: lambda x, name=name: getattr(torch, name)(x, 2) for name in (
        "sort", "mode", "median", "nanmedian", "cummax", "cummin", "cumprod", "logcumsumexp", "nansum")},
    "count_nonzero": lambda x: (x > 0.2).count_nonzero(2),
    **{name: lambda x, name=name: getattr(torch, name)(x) for name in ("tril", "triu")},
    "topk": lambda x: x.topk(2, 2), "kthvalue": lambda x: x.kthvalue(2, 3), "aminmax": lambda x: x.aminmax(dim=2),
    "linalg_cross": lambda x: torch.linalg.cross(x[:, :, :3], x[:, :, 1:], dim=2),
    "_fft_r2c": lambda x: torch.fft.rfft(x).abs(), "view_as_real": lambda x: torch.view_as_real(torch.fft.rfft(x)),
    "_fft_c2r": lambda x: torch.fft.irfft2(torch.fft.rfft2(x)), "_fft_c2c": lambda x: torch.fft.fft(torch.fft.fft(x)),
    "view_as_complex": lambda x: torch.view_as_complex(x.reshape(2, 6, 8, 2)).abs(),
    "complex": lambda x: torch.complex(x, x).angle(), "polar": lambda x: torch.polar(x.abs(), x).real,
    "max_unpool2d": lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2),
    "rot90": lambda x: x.rot90(1, (2, 3)), "renorm": lambda x: x.renorm(2, 1, 1.0),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "log_sigmoid_forward": functional.logsigmoid, "isin": lambda x: torch.isin((x > 0.2).long(), torch.tensor([1])),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0], dtype=x.dtype)),
    "searchsorted": lambda x: torch.searchsorted(torch.arange(4.0, dtype=x.dtype), x),
    "scatter": lambda x: x.scatter(2, at(x).expand(2, 6, 4, 4), 0.0),
    "scatter_add": lambda x: x.scatter_add(2, torch.zeros_like(x, dtype=torch.long), x.exp()),
    "scatter_reduce": lambda x: x.scatter_reduce(2, torch.zeros_like(x, dtype=torch.long), x, "amax"),
    "index_add": lambda x: x.index_add(2, PLACES, x[:, :, 2:]), "index_copy": lambda x: x.index_copy(
        2, PLACES, x[:, :, 2:]), "index_reduce": lambda x: x.index_reduce(2, PLACES, x[:, :, 2:], "amax"),
    "_cdist_forward": lambda x: torch.cdist(x, x[:, :, 1:].exp()),
    "_euclidean_dist": lambda x: aten._euclidean_dist(x, x.exp()),
    "linalg_inv_ex": torch.linalg.inv, "_linalg_det": torch.linalg.det, "_linalg_slogdet": torch.linalg.slogdet,
    "linalg_qr": torch.linalg.qr, "_linalg_svd": torch.linalg.svd,
    "_linalg_eigh": lambda x: torch.linalg.eigh(x @ x.mT),
    "linalg_cholesky_ex": lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(4, dtype=x.dtype)),
}

# Channels are compared, mixed, or picked by number: they stay.
FROZEN: dict[str, Function] = {
    "topk": lambda x: x.topk(2, 1)[0], "sort": lambda x: x.sort(1)[0], "histc": lambda x: x.histc(4),
    "isin": lambda x: torch.isin(torch.zeros(2, dtype=x.dtype), x),
    "cumprod": lambda x: x.cumprod(1), "_fft_r2c": lambda x: torch.fft.rfft(x, dim=1), "median": lambda x: x.median(),
    "renorm": lambda x: x.renorm(2, 2, 1.0), "gather": lambda x: x.gather(1, at(x)),
    "mv": lambda x: x.flatten(1).mv(torch.ones(96, dtype=x.dtype)),
    "dot": lambda x: x.flatten().dot(x.flatten()), "vdot": lambda x: x.flatten().vdot(x.flatten()),
    "index_put": lambda x: x.index_put([torch.tensor([0])], torch.zeros((), dtype=x.dtype)),
    "_unsafe_index_put": lambda x: aten._unsafe_index_put(x, [torch.tensor([0])], torch.zeros((), dtype=x.dtype)),
    "scatter": lambda x: x.scatter_(1, at(x), 0.0),
    "index_add": lambda x: x.index_add(1, PLACES, torch.ones(2, 2, 4, 4, dtype=x.dtype)),
    "index_copy": lambda x: x.index_copy(1, PLACES, torch.ones(2, 2, 4, 4, dtype=x.dtype)),
    "torchvision.nms": lambda x: torchvision.ops.nms(x.flatten(1)[:, :4], x.flatten(1)[:, 5], 0.5),
    "_pdist_forward": lambda x: functional.pdist(x.flatten(1)),
    "nonzero": lambda x: x.nonzero(), "_unique2": lambda x: x.unique(),
    "bincount": lambda x: (x > 0).long().flatten().bincount(),
}

# The same for sequences and for volumes.
LINES: dict[str, Function] = {
    "upsample_nearest1d": lambda x: functional.interpolate(x, scale_factor=2),
    "upsample_linear1d": lambda x: functional.interpolate(x, scale_factor=2, mode="linear"),
    "_upsample_nearest_exact1d": lambda x: functional.interpolate(x, 5, mode="nearest-exact"),
    "reflection_pad1d": lambda x: functional.pad(x, (2, 1), "reflect"),
    "replication_pad1d": lambda x: functional.pad(x, (2, 1), "replicate"),
}
ROOMS: dict[str, Function] = {
    "avg_pool3d": lambda x: functional.avg_pool3d(x, 2),
    "max_pool3d_with_indices": lambda x: functional.max_pool3d(x, 2),
    "_adaptive_avg_pool3d": lambda x: functional.adaptive_avg_pool3d(x, (1, 3, 3)),
    "adaptive_max_pool3d": lambda x: functional.adaptive_max_pool3d(x, 2),
    "upsample_nearest3d": lambda x: functional.interpolate(x, scale_factor=2),
    "upsample_trilinear3d": lambda x: functional.interpolate(x, scale_factor=2, mode="trilinear"),
    "_upsample_nearest_exact3d": lambda x: functional.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "reflection_pad3d": lambda x: functional.pad(x, (1,) * 6, "reflect"),
    "replication_pad3d": lambda x: functional.pad(x, (1,) * 6, "replicate"),
    "max_unpool3d": lambda x: functional.max_unpool3d(*functional.max_pool3d(x, 2, return_indices=True), 2),
    "fractional_max_pool3d": lambda x: aten.fractional_max_pool3d(
        x, (1, 2, 2), (1, 2, 2), torch.full((1, 4, 3), 0.5).to(x)),
    "grid_sampler_3d": lambda x: functional.grid_sample(x, torch.zeros(1, 2, 2, 2, 3, dtype=x.dtype),
                                                        align_corners=False),
}

# By chance, or for devices and builds that are not here: every channel stays free, which one run can't show.
CHANCE: dict[str, Function] = {
    "native_dropout": lambda x: aten.native_dropout(x, 0.3, True), "bernoulli": lambda x: x * x.sigmoid().bernoulli_(),
    "uniform": lambda x: x * x.clone().uniform_(), "normal_": lambda x: x + x.clone().normal_(),
    "normal_functional": lambda x: x + aten.normal_functional(x), "random": lambda x: x * x.clone().random_(9),
    "exponential": lambda x: x * x.clone().exponential_(), "randint_like": lambda x: x * torch.randint_like(x, 9),
    "rand_like": lambda x: x * torch.rand_like(x), "randn_like": lambda x: x + torch.randn_like(x),
    "rrelu_with_noise": lambda x: aten.rrelu_with_noise(x, torch.empty_like(x), 0.1, 0.3, True),
    "rrelu_with_noise_functional": lambda x: aten.rrelu_with_noise_functional(
        x, torch.empty_like(x), 0.1, 0.3, True)[0],
    "fractional_max_pool2d": lambda x: aten.fractional_max_pool2d(x, (2, 2), (2, 2), torch.rand(2, 6, 2).to(x)),
    "cudnn_batch_norm": lambda x: aten.cudnn_batch_norm(x, *norm_like(x), False, 0.1, 1e-5)[0],
    "miopen_batch_norm": lambda x: aten.miopen_batch_norm(x, *norm_like(x), False, 0.1, 1e-5)[0],
    "_batch_norm_with_update": lambda x: aten._batch_norm_with_update(x, *norm_like(x), 0.1, 1e-5)[0],
}

# Six numbers that differ by position: what meets them along the channels stays, and along space it does not.
MADE: dict[str, Callable[[], Tensor]] = {
    "arange": lambda: torch.arange(6.0), "linspace": lambda: torch.linspace(0, 1, 6), "eye": lambda: torch.eye(6)[0],
    "rand": lambda: torch.rand(6), "randn": lambda: torch.randn(6), "randint": lambda: torch.randint(9, (6,)),
    "randperm": lambda: torch.randperm(6), "logspace": lambda: torch.logspace(0, 1, 6),
    "tril_indices": lambda: torch.tril_indices(3, 3)[0], "triu_indices": lambda: torch.triu_indices(3, 3)[0],
    "range": lambda: torch.ops.aten.range(0, 5), **{name: lambda name=name: getattr(torch, name)(6) for name in (
        "bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window")},
}


class Weight(nn.Module):
    """Parameters for the rows that read some."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
        self.kernel, self.g = nn.Parameter(torch.randn(5, 6, 1, 1)), nn.Parameter(torch.rand(5, 1, 1, 1))


# With a weight: name -> what runs it, the parameter and its dimension that read the channels.
READING: dict[str, tuple[Function, str, int]] = {
    "convolution": (lambda w, x: functional.conv2d(x, w.kernel, w.bias), "kernel", 1),
    "_convolution": (lambda w, x: aten._convolution(x, w.kernel, w.bias, (1, 1), (0, 0), (1, 1), False, (0, 0), 1,
                                                    False, False, True, True), "kernel", 1),
    "mm": (lambda w, x: x.mean((2, 3)) @ w.matrix.t(), "matrix", 1),
    "addmm": (lambda w, x: functional.linear(x.mean((2, 3)), w.matrix, w.bias), "matrix", 1),
    "baddbmm": (lambda w, x: torch.baddbmm(w.bias.view(1, 1, 5), x.flatten(2).mT, w.matrix.t().expand(2, 6, 5)),
                "matrix", 1),
    "bmm": (lambda w, x: x.flatten(2).mT.bmm(w.matrix.t().expand(2, 6, 5)), "matrix", 1),
    "_weight_norm_interface": (lambda w, x: functional.conv2d(x, torch._weight_norm(w.kernel, w.g, 0)), "kernel", 1),
}
TESTED_ELSEWHERE = {"_embedding_bag", "_embedding_bag_forward_only", "_trilinear", "affine_grid_generator", "conv_tbc",
                    "embedding", "glu", "pixel_shuffle", "torchvision.deform_conv2d",
                    *(row.removeprefix("aten.") for row in rules.recurrent.ROWS)}
OUTSIDE = {*READ_OUTSIDE, ASSIGNED}  # no operations of ATen; tests/constructs/test_undispatched.py has them


def key(name: str) -> str:
    return name if name.startswith("torchvision.") else f"aten.{name}"


def reached(graph: Graph) -> set[str]:
    """Names of the rows that the run's operations have."""
    return {row_name(op) for op in graph.ops if row_of(op)}


def run(name: str, function: Function, shape: tuple[int, ...] = SHAPE, **options: Any) -> Movement:
    moved = Movement(lambda _, x: function(x), shape, **options)
    assert key(name) in reached(moved.graph)
    assert not moved.space.declared.unknown_ops
    return moved


# Two tensors meet, the second with its channels in the opposite order: what is at one position goes together.
MIRRORED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linalg_cross": lambda x, y: torch.linalg.cross(x[..., :3], y[..., :3], dim=3),
    "max_unpool2d": lambda x, y: functional.max_unpool2d(
        functional.max_pool2d(x, 2), functional.max_pool2d(y, 2, return_indices=True)[1], 2),
    "scatter_add": lambda x, y: x.scatter_add(2, torch.zeros_like(x, dtype=torch.long), y),
    "_cdist_forward": torch.cdist, "_euclidean_dist": aten._euclidean_dist,
    "scatter_reduce": lambda x, y: x.scatter_reduce(2, torch.zeros_like(x, dtype=torch.long), y, "amax"),
    "index_add": lambda x, y: x.index_add(2, PLACES, y[:, :, 2:]), "index_copy": lambda x, y: x.index_copy(
        2, PLACES, y[:, :, 2:]), "index_reduce": lambda x, y: x.index_reduce(2, PLACES, y[:, :, 2:], "amax"),
    "polar": lambda x, y: torch.polar(x.abs(), y).real, "complex": lambda x, y: torch.complex(x, y).abs(),
    "slice_scatter": lambda x, y: x.slice_scatter(y[:, :, :2], 2, 1, 3),
    "select_scatter": lambda x, y: x.select_scatter(y.amax(2), 2, 1),
    "gather": lambda x, y: x.gather(2, (y > 0).long())}


@pytest.mark.parametrize("name", MIRRORED)
def test_channels_that_meet_go_together(name: str) -> None:
    moved = run(name, lambda x: MIRRORED[name](x, x.flip(1)), SHAPE).check()
    assert not moved.frozen.any()
    assert moved.classes.tolist() == moved.classes[::-1].tolist()


def test_maps_of_three_dimensions_meet_their_indices() -> None:
    def unpooled(x: Tensor) -> Tensor:
        indices = functional.max_pool3d(x.flip(1), 2, return_indices=True)[1]
        return functional.max_unpool3d(functional.max_pool3d(x, 2), indices, 2)

    moved = run("max_unpool3d", unpooled, ROOM).check()
    assert moved.classes.tolist() == moved.classes[::-1].tolist()


def test_gated_halves_go_together() -> None:
    moved = run("glu", lambda x: functional.glu(x, 1), SHAPE).check()
    assert not moved.frozen.any()
    assert moved.classes[:3].tolist() == moved.classes[3:].tolist()


@pytest.mark.parametrize(("name", "function"), [
    ("resize", lambda x: x.clone().resize_(SHAPE)), ("resize_as", lambda x: x.clone().resize_as_(x))])
def test_a_tensor_that_is_resized_to_its_own_shape_keeps_its_channels(name: str, function: Function) -> None:
    assert run(name, function, SHAPE).check().free


def test_what_mutants_forget_is_what_rows_can_declare() -> None:
    assert [name for name in mutations.DECLARED if not hasattr(mutations.owner(name), name)] == []


def test_every_row_is_in_a_table() -> None:
    named = {*FREE, *FROZEN, *LINES, *ROOMS, *CHANCE, *MADE, *READING, *TESTED_ELSEWHERE}
    assert {key(name) for name in named} | OUTSIDE == set(rules.ROWS)


@pytest.mark.parametrize(("name", "shape"), [
    *((name, SHAPE) for name in FREE), *((name, LINE) for name in LINES), *((name, ROOM) for name in ROOMS)])
def test_channels_pass_each_by_itself(name: str, shape: tuple[int, ...]) -> None:
    moved = run(name, {**FREE, **LINES, **ROOMS}[name], shape).check()
    assert moved.free
    assert all(moved.counts) or name == "slice"


@pytest.mark.parametrize("name", CHANCE)
def test_channels_pass_by_chance(name: str) -> None:
    moved = run(name, CHANCE[name])
    assert moved.free
    assert moved.outputs()[0][0, 0, :, 0, 0].tolist() == moved.classes.tolist()


@pytest.mark.parametrize("name", FROZEN)
def test_channels_that_are_compared_stay(name: str) -> None:
    moved = run(name, FROZEN[name]).check()
    assert moved.frozen.all()
    assert any(f"({key(name)})" in reason.replace("_)", ")") for reason in moved.reasons)


@pytest.mark.parametrize("name", MADE)
def test_numbers_made_from_nothing(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return x * torch.full((6, 1, 1), 1.0).copy_(MADE[name]().view(6, 1, 1))

    assert run(name, lambda x: x * MADE[name]().view(6, 1, 1)).frozen.all()
    assert run(name, lambda x: x.flatten(2)[:, :, :6] * MADE[name]()).free
    assert run(name, function).frozen.all()


@pytest.mark.parametrize("name", READING)
def test_weights_read_and_make(name: str) -> None:
    function, parameter, dim = READING[name]
    options = {"allow_approximate": True} if name == "_weight_norm_interface" else {}
    moved = Movement(lambda s, x: function(s.w, x), SHAPE, w=Weight(), **options)
    assert key(name) in reached(moved.graph)
    space = moved.space
    macs, making, reading = {"mm": (60, 1, 1), "addmm": (60, 1, 1), "bmm": (960, 8, 1),
                             "baddbmm": (960, 8, 1)}.get(name, (960, 16, 16))
    assert [rules.macs(op) for op in moved.graph.ops if rules.multiplies(op)] == [1152, macs]
    touched = {(touch.name, touch.dim): moved.of[touch.labels].tolist() for touch in moved.space.declared.labeled_dims}
    assert touched[f"w.{parameter}", dim] == moved.classes.tolist()
    made = touched[f"w.{parameter}", 1 - dim]
    tracks = [moved.of[track].ravel().tolist() for track in space.tracks(moved.graph.outputs[0])]
    assert tracks == [made]
    assert [(moved.of[labels].tolist(), size) for labels, size in space.declared.producers[1:]] == [(made, making)]
    readers = [(moved.of[labels].tolist(), size) for labels, size in space.declared.readers[1:]]
    assert (moved.classes.tolist(), reading) in readers
    cost = space.declared.mac_costs[-1]
    assert cost.amount == macs
    assert sorted(moved.of[labels].tolist() for labels in cost.along) == sorted([made, moved.classes.tolist()])
    for other in ("bias", "g"):
        assert touched.get((f"w.{other}", 0), made) == made
    assert moved.free


# Both arguments' channels at one position become one: name -> a channel meets its mirror image.
MEETING: dict[str, Function] = {
    "where": lambda x, y: torch.where(torch.ones(1, dtype=torch.bool), x, y), "div": lambda x, y: x / y.exp(),
    "_prelu_kernel": lambda x, y: aten._prelu_kernel(x, y), "addcdiv": lambda x, y: x.addcdiv(x, y.exp()),
    "addcmul": lambda x, y: x.addcmul(x, y), "lerp": lambda x, y: x.lerp(y, 0.3), "add": lambda x, y: x + y,
    "logical_or": torch.logical_or, "logical_and": torch.logical_and, "mul": lambda x, y: x * y,
    "sub": lambda x, y: x - y, "remainder": lambda x, y: x % y.exp(), "copy": lambda x, y: x.clone().copy_(y) + x,
    "floor_divide": lambda x, y: aten.floor_divide(x, y.exp()), "pow": lambda x, y: x.abs() ** y,
}


@pytest.mark.parametrize("name", MEETING)
def test_what_meets_becomes_one(name: str) -> None:
    moved = run(name, lambda x: MEETING[name](x, x.flip(1))).check()
    assert not moved.frozen.any()
    assert moved.classes.tolist() == moved.classes[::-1].tolist()


@pytest.mark.parametrize("name", MEETING)
def test_what_meets_numbers_of_its_own_place_stays(name: str) -> None:
    numbers = torch.arange(1.0, 7.0, dtype=torch.float64).view(6, 1, 1)
    moved = run(name, lambda x: MEETING[name](x, numbers))
    assert moved.frozen.all()
    assert any(f"meets a tensor that can't be cut in `model` ({key(name)})" in reason.replace("_)", ")")
               for reason in moved.reasons) or name == "copy"


class Statistics(nn.Module):
    """What a batch norm holds."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, torch.rand(6) + 0.5)

    def forward(self, x: Tensor, norm: Function, *more: Any) -> Tensor:
        return norm(x, self.weight, self.bias, self.mean, self.variance, *more)[0]


@pytest.mark.parametrize(("name", "more"), [
    ("native_batch_norm", (False, 0.1, 1e-5)), ("_native_batch_norm_legit", (False, 0.1, 1e-5)),
    ("cudnn_batch_norm", (False, 0.1, 1e-5)), ("miopen_batch_norm", (False, 0.1, 1e-5)),
    ("_native_batch_norm_legit_no_training", (0.1, 1e-5)), ("_batch_norm_no_update", (0.1, 1e-5)),
    ("_batch_norm_with_update", (0.1, 1e-5))])
def test_what_batch_norms_hold_follows(name: str, more: tuple[Any, ...]) -> None:
    moved = Movement(lambda s, x: s.held(x, getattr(aten, name), *more), SHAPE, held=Statistics())
    assert key(name) in reached(moved.graph)
    touched = {touch.name: moved.of[touch.labels].tolist() for touch in moved.space.declared.labeled_dims}
    for held in ("weight", "bias", "mean", "variance"):
        assert touched[f"held.{held}"] == moved.classes.tolist()


@pytest.mark.parametrize(("name", "function"), [
    ("split", lambda x: x.split(3, 1)), ("unsafe_split", lambda x: aten.unsafe_split(x, 3, 1)),
    ("split", lambda x: aten.split_copy(x, 3, 1)),
    ("unsafe_split_with_sizes", lambda x: aten.unsafe_split_with_sizes(x, [3, 3], 1)),
    ("split_with_sizes", lambda x: x.split([3, 3], 1)),
    ("slice", lambda x: (x[:, :3], x[:, 3:])), ("stack", lambda x: torch.stack([x[:, :3], x[:, 3:]], 1)),
    ("view", lambda x: x.view(2, 2, 3, 4, 4)), ("_unsafe_view", lambda x: aten._unsafe_view(x, (2, 2, 3, 4, 4)))])
def test_equal_parts_lose_equally_many_and_keep_two(name: str, function: Function) -> None:
    moved = run(name, function)
    rows = [moved.of[rows.labels].tolist() for rows in moved.space.declared.constraints]
    assert moved.classes.reshape(2, 3).tolist() in rows
    assert all(rows.min_kept == 2 for rows in moved.space.declared.constraints)
    parts = [moved.of[part].tolist() for part in moved.space.declared.sub_tensors]
    expected = [] if name.endswith("view") else moved.classes.reshape(2, 3).tolist()
    assert parts == expected


def test_rows_of_one_tensor_lose_equally_many() -> None:
    one = run("stack", lambda x: torch.stack([x, x.flip(1)], 1))
    own = one.classes.tolist()
    assert [one.of[rows.labels].tolist() for rows in one.space.declared.constraints] == [[own, own[::-1]]]
    windows = run("unfold", lambda x: x.unfold(1, 2, 2))
    assert [windows.of[rows.labels].tolist() for rows in windows.space.declared.constraints] == [
        windows.classes.reshape(3, 2).T.tolist()]


def test_every_other_channel_is_one_of_two_parts() -> None:
    moved = run("slice", lambda x: (x[:, ::2], x[:, 1::2]))
    rows = [moved.of[rows.labels].tolist() for rows in moved.space.declared.constraints]
    assert rows == [moved.classes.reshape(3, 2).T.tolist()] * 2


@pytest.mark.parametrize("name", ["_softmax", "_log_softmax", "_safe_softmax", "cumsum", "logsumexp", "amax", "sum"])
def test_rows_that_are_compared_become_one(name: str) -> None:
    functions = {**FREE, "_softmax": lambda x, dim: x.softmax(dim), "_log_softmax": lambda x, dim: x.log_softmax(dim),
                 "_safe_softmax": aten._safe_softmax, "cumsum": torch.cumsum, "logsumexp": torch.logsumexp,
                 "amax": torch.amax, "sum": torch.sum}
    moved = run(name, lambda x: functions[name](x.view(2, 2, 3, 4, 4), 1)).check()
    assert not moved.frozen.any()
    assert moved.classes[:3].tolist() == moved.classes[3:].tolist()


def test_weight_norm_mixes_the_inputs_of_a_filter() -> None:
    moved = Movement(lambda s, x: READING["_weight_norm_interface"][0](s.w, x), SHAPE, w=Weight())
    assert moved.frozen.all()
    assert "channels are mixed by `model` (aten._weight_norm_interface)" in moved.reasons


def test_fold_makes_the_rows_of_one_channel_one() -> None:
    moved = run("col2im", lambda x: functional.fold(x, (4, 4), 2), (2, 8, 9)).check()
    assert not moved.frozen.any()
    assert moved.classes.tolist() == [one for one in moved.classes[::4].tolist() for _ in range(4)]


def test_coordinates_in_volumes_stay() -> None:
    def function(x: Tensor) -> Tensor:
        grid = x.permute(0, 2, 3, 4, 1)[..., :3].tanh()
        return functional.grid_sample(torch.ones(1, 2, 4, 4, 4, dtype=x.dtype), grid, align_corners=False)

    moved = run("grid_sampler_3d", function, ROOM)
    assert "coordinates in `model` (aten.grid_sampler_3d)" in moved.reasons


def test_coordinates_that_are_made_of_channels_keep_them() -> None:
    """As in spatial transformers: the numbers of a transformation are no channels."""
    def function(x: Tensor) -> Tensor:
        theta = x.mean((2, 3)).view(2, 2, 3)
        return functional.grid_sample(torch.ones_like(x), functional.affine_grid(theta, (2, 6, 4, 4), False),
                                      align_corners=False)

    moved = run("affine_grid_generator", function)
    assert moved.frozen.all()
    assert "coordinates in `model` (aten.affine_grid_generator)" in moved.reasons
