"""Norms, softmax, reductions, sorting: where one channel changes another's value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rules.movement import Movement

Function = Callable[[Any, Tensor], Any]
SHAPE = (2, 6, 3, 3)


@pytest.mark.parametrize("norm", [
    nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, track_running_stats=False),
    nn.InstanceNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(6, track_running_stats=True),
    nn.GroupNorm(6, 6), nn.GroupNorm(6, 6, affine=False),
], ids=str)
def test_norms_channel_by_channel_leave_every_channel_free(norm: nn.Module) -> None:
    moved = Movement(lambda s, x: s.norm(x), SHAPE, norm=norm).check()
    assert moved.free
    assert not moved.space.declared.unknown_ops
    touched = {touch.name: moved.of[touch.labels].tolist() for touch in moved.space.declared.labeled_dims}
    for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
        if tensor.dim():
            assert touched[f"norm.{name}"] == moved.classes.tolist()


def test_the_scales_of_batch_norms_are_known() -> None:
    assert Movement(lambda s, x: s.norm(x), SHAPE, norm=nn.BatchNorm2d(6)).space.declared.norm_scales == {"norm.weight"}


@pytest.mark.parametrize(("norm", "operation"), [
    (lambda s, x: functional.group_norm(x, 1), "native_group_norm"),
    (lambda s, x: functional.layer_norm(x, (6, 3, 3)), "native_layer_norm"),
    (lambda s, x: functional.layer_norm(x.permute(0, 2, 3, 1), (6,)), "native_layer_norm"),
    (lambda s, x: x.softmax(1), "_softmax"), (lambda s, x: x.log_softmax(1), "_log_softmax"),
    (lambda s, x: x.cumsum(1), "cumsum"), (lambda s, x: functional.normalize(x, dim=1), "linalg_vector_norm"),
    (lambda s, x: x.mean(1), "mean"), (lambda s, x: x.sum(1, keepdim=True), "sum"), (lambda s, x: x.amax(1), "amax"),
    (lambda s, x: x.max(1).values, "max"), (lambda s, x: x.min(1)[0], "min"), (lambda s, x: x.var(1), "var"),
    (lambda s, x: x.std(1, keepdim=True), "std"), (lambda s, x: x.mean(), "mean"), (lambda s, x: x.sum(), "sum"),
    (lambda s, x: x.max(), "max"), (lambda s, x: x.norm(dim=1), "linalg_vector_norm"),
    (lambda s, x: x.logsumexp(1), "logsumexp"), (lambda s, x: x.argmax(1), "argmax"),
    (lambda s, x: x.topk(2, 1)[0], "topk"), (lambda s, x: x.sort(1)[0], "sort"), (lambda s, x: x.argsort(1), "sort"),
    (lambda s, x: x.prod(1), "prod"), (lambda s, x: x.mean((1, 2)), "mean"),
])
def test_what_mixes_channels_freezes_them_and_says_where(norm: Function, operation: str) -> None:
    moved = Movement(lambda s, x: s.inner(x), SHAPE, inner=Inner(norm)).check()
    assert moved.frozen.all()
    assert any(f"`inner` (aten.{operation})" in reason for reason in moved.reasons), moved.reasons


class Inner(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize("function", [
    lambda x: x.mean((2, 3)), lambda x: x.mean([-1, -2], keepdim=True), lambda x: x.sum(2), lambda x: x.amax((2, 3)),
    lambda x: x.max(2).values, lambda x: x.max(2)[1], lambda x: x.var((2, 3)), lambda x: x.std(-1),
    lambda x: torch.var_mean(x, (2, 3)), lambda x: x.flatten(2).softmax(-1), lambda x: x.cumsum(2),
    lambda x: functional.normalize(x, dim=-1), lambda x: x.flatten(2).logsumexp(-1), lambda x: x.mean(0),
    lambda x: functional.layer_norm(x, (3,)), lambda x: functional.layer_norm(x, (3, 3)),
    lambda x: x.flatten(2).argmax(2),
    lambda x: x.norm(dim=(2, 3)), lambda x: x.flatten(2).prod(-1), lambda x: (x > 0).any(2),
    lambda x: functional.normalize(x.flatten(2), p=1.0, dim=2), lambda x: x.sum((0, 2, 3)),
])
def test_over_space_or_batch_every_channel_stays_free(function: Callable[[Tensor], Any]) -> None:
    moved = Movement(lambda _, x: function(x), SHAPE).check()
    assert moved.free
    assert not moved.space.declared.unknown_ops


def test_branches_that_are_compared_become_one() -> None:
    """Selective kernels: a softmax over branches leaves channels apart and ties the branches."""
    def function(_: Any, x: Tensor) -> Tensor:
        branches = torch.stack([x, x.flip(1)], 1)
        return (branches * branches.softmax(1)).sum(1)

    moved = Movement(function, SHAPE).check()
    assert not moved.frozen.any()
    assert moved.classes.tolist() == moved.classes[::-1].tolist()
    assert len(set(moved.classes.tolist())) == 3


def test_rows_of_channels_that_are_reduced_become_one() -> None:
    moved = Movement(lambda _, x: x.view(2, 2, 3, 3, 3).sum(1), SHAPE).check()
    assert not moved.frozen.any()
    assert moved.classes[:3].tolist() == moved.classes[3:].tolist()


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 6), nn.LayerNorm((6, 3, 3))], ids=str)
def test_an_approximation_that_is_allowed_is_listed(norm: nn.Module) -> None:
    frozen = Movement(lambda s, x: s.norm(x), SHAPE, norm=norm)
    assert frozen.frozen.all()
    allowed = Movement(lambda s, x: s.norm(x), SHAPE, allow_approximate=True, norm=norm)
    assert allowed.free
    [reason] = {entry.reason for entry in allowed.space.declared.mixed}
    assert reason.startswith("channels are mixed by `norm` (aten.native_")
    assert reason in frozen.reasons


def test_a_layer_norm_over_channels_last_follows_the_channels() -> None:
    norm = nn.LayerNorm(6)
    moved = Movement(lambda s, x: s.norm(x.permute(0, 2, 3, 1)), SHAPE, allow_approximate=True, norm=norm)
    touched = {touch.name: moved.of[touch.labels].tolist() for touch in moved.space.declared.labeled_dims}
    assert touched["norm.weight"] == touched["norm.bias"] == moved.classes.tolist()


@pytest.mark.parametrize("norm", [nn.GroupNorm(3, 6), nn.GroupNorm(3, 6, affine=False)], ids=str)
def test_the_channels_of_a_group_of_a_norm_are_one(norm: nn.Module) -> None:
    moved = Movement(lambda s, x: s.norm(x), SHAPE, norm=norm).check()
    assert not moved.frozen.any()
    assert len(set(moved.classes.tolist())) == 3
    assert moved.classes[::2].tolist() == moved.classes[1::2].tolist()


def test_the_groups_of_an_approximate_group_norm_lose_equally_many() -> None:
    moved = Movement(lambda s, x: s.norm(x), SHAPE, allow_approximate=True, norm=nn.GroupNorm(2, 6))
    rows = [moved.of[rows.labels].tolist() for rows in moved.space.declared.constraints]
    assert rows == [moved.classes.reshape(2, 3).tolist()]


@pytest.mark.parametrize("function", [
    lambda x: functional.local_response_norm(x, 3), lambda x: functional.local_response_norm(x, 4),
    lambda x: functional.max_pool3d(x.unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1),
    lambda x: functional.avg_pool2d(x.flatten(2), (3, 1), 1)])
def test_channels_pooled_with_their_neighbours_stay_where_they_are(function: Callable[[Tensor], Tensor]) -> None:
    assert Movement(lambda _, x: function(x), SHAPE).check().frozen.all()
    allowed = Movement(lambda _, x: function(x), SHAPE, allow_approximate=True)
    channels, made = allowed.classes.tolist(), allowed.outputs()[0].flatten(3)[0, 0, :, 0].tolist()
    assert made == (channels if len(made) == 6 else channels[1:5])  # without padding those at the ends are no centres
    assert not allowed.stay[made].any()


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 1, "dilation": 2}])
def test_channels_pooled_into_fewer_stay(options: dict[str, int]) -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        sizes = {name: (size, 1, 1) for name, size in options.items()}
        return functional.max_pool3d(x.unsqueeze(1), (3, 1, 1), **sizes)

    moved = Movement(function, SHAPE, allow_approximate=True)
    assert moved.frozen.all()
    assert "resized over in `model` (aten.max_pool3d_with_indices)" in moved.reasons
