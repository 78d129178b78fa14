"""Pooling, resizing, padding, region pooling: labels pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from rules.movement import Movement

Function = Callable[[Any, Tensor], Any]
BOXES = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 4, 4], [0, 1, 0, 2, 3]], dtype=torch.float64)


@pytest.mark.parametrize("function", [
    lambda _, x: functional.max_pool2d(x, 2), lambda _, x: functional.avg_pool2d(x, 3, 1, 1),
    lambda _, x: functional.adaptive_avg_pool2d(x, 1), lambda _, x: functional.adaptive_avg_pool2d(x, (2, 3)),
    lambda _, x: functional.adaptive_max_pool2d(x, 2), lambda _, x: functional.lp_pool2d(x.abs(), 2.0, 2),
    lambda _, x: functional.max_pool2d(x, 2, return_indices=True)[0],
    lambda _, x: functional.interpolate(x, scale_factor=2),
    lambda _, x: functional.interpolate(x, (5, 7), mode="bilinear"),
    lambda _, x: functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    lambda _, x: functional.interpolate(x, scale_factor=2, mode="nearest-exact"),
    lambda _, x: functional.interpolate(x, scale_factor=0.5, mode="area"),
    lambda _, x: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True, antialias=True),
    lambda _, x: functional.pad(x, (1, 1, 2, 0)), lambda _, x: functional.pad(x, (1, 1), value=3.0),
    lambda _, x: functional.pad(x, (-1, 0, 0, -1)), lambda _, x: functional.pad(x, (1, 1, 1, 1), "reflect"),
    lambda _, x: functional.pad(x, (1, 1, 1, 1), "replicate"),
    lambda _, x: functional.pixel_shuffle(functional.pixel_unshuffle(x, 2), 2),
    lambda _, x: functional.pixel_unshuffle(x, 2),
    lambda _, x: functional.unfold(x, (2, 3), padding=1), lambda _, x: functional.unfold(x[0], 2),
    lambda _, x: functional.fold(functional.unfold(x, (3, 1)), (4, 4), (3, 1)),
    lambda _, x: functional.grid_sample(x, torch.zeros(2, 3, 3, 2, dtype=x.dtype), align_corners=False),
    lambda _, x: torchvision.ops.roi_align(x, BOXES, 2), lambda _, x: torchvision.ops.roi_pool(x, BOXES, 2),
    lambda _, x: functional.pad(x, (0, 0, 0, 0, 2, 1)), lambda _, x: functional.pad(x, (0, 0, 0, 0, 1, 0, 1, 0)),
])
def test_every_channel_stays_free(function: Function) -> None:
    moved = Movement(function, (2, 8, 4, 4)).check()
    assert moved.free
    assert not moved.space.declared.unknown_ops


@pytest.mark.parametrize(("function", "shape"), [
    (lambda _, x: functional.max_pool1d(x, 2), (2, 6, 8)), (lambda _, x: functional.avg_pool1d(x, 2), (2, 6, 8)),
    (lambda _, x: functional.adaptive_avg_pool1d(x, 1), (2, 6, 8)),
    (lambda _, x: functional.adaptive_max_pool1d(x, 2), (2, 6, 8)),
    (lambda _, x: functional.interpolate(x, scale_factor=2), (2, 6, 8)),
    (lambda _, x: functional.interpolate(x, scale_factor=2, mode="linear"), (2, 6, 8)),
    (lambda _, x: functional.pad(x, (2, 1), "reflect"), (2, 6, 8)),
    (lambda _, x: functional.max_pool3d(x, 2), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.avg_pool3d(x, 2), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.adaptive_avg_pool3d(x, 1), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.adaptive_max_pool3d(x, 1), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.interpolate(x, scale_factor=2, mode="trilinear"), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.interpolate(x, scale_factor=2), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.pad(x, (1, 1, 1, 1, 1, 1), "replicate"), (1, 4, 2, 4, 4)),
    (lambda _, x: functional.grid_sample(x, torch.zeros(1, 2, 2, 2, 3, dtype=x.dtype), align_corners=False),
     (1, 4, 2, 4, 4)),
])
def test_in_one_and_three_dimensions(function: Function, shape: tuple[int, ...]) -> None:
    moved = Movement(function, shape).check()
    assert moved.free
    assert not moved.space.declared.unknown_ops


def test_padded_channels_are_constants_that_stay_in_their_places() -> None:
    """A shortcut that pads its channels: the padding itself is never cut."""
    moved = Movement(lambda s, x: s.inner(x), (2, 8, 4, 4), inner=Padded()).check()
    places = moved.outputs()[0][0, 0, :, 0, 0]
    assert places[2:10].tolist() == moved.classes.tolist()
    assert moved.stay[places[[0, 1, 10]].numpy()].all()
    assert "padded channels in `inner` (aten.constant_pad_nd)" in moved.reasons


class Padded(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 0, 0, 2, 1))


def test_cropped_channels_stay() -> None:
    moved = Movement(lambda _, x: functional.pad(x, (0, 0, 0, 0, -1, 0)), (2, 8, 4, 4)).check()
    assert moved.frozen.all()
    assert "cropped by position in `model` (aten.constant_pad_nd)" in moved.reasons


def test_pixel_shuffle_ties_the_channels_of_one_result() -> None:
    moved = Movement(lambda _, x: functional.pixel_shuffle(x, 2), (2, 8, 3, 3)).check()
    assert not moved.frozen.any()
    assert moved.classes.reshape(2, 4).tolist() == [[moved.classes[0]] * 4, [moved.classes[4]] * 4]


def test_pixel_unshuffle_repeats_each_channel() -> None:
    moved = Movement(lambda _, x: functional.pixel_unshuffle(x, 2), (2, 4, 4, 4)).check()
    assert moved.outputs()[0][0, 0, :, 0, 0].tolist() == [one for one in moved.classes.tolist() for _ in range(4)]


def test_space_to_depth_by_views() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)

    moved = Movement(function, (2, 4, 4, 4)).check()
    assert moved.free
    assert moved.outputs()[0][0, 0, :, 0, 0].tolist() == moved.classes.tolist() * 4


def test_focus_by_slices() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)

    moved = Movement(function, (2, 4, 4, 4)).check()
    assert moved.free
    assert moved.outputs()[0][0, 0, :, 0, 0].tolist() == moved.classes.tolist() * 4


@pytest.mark.parametrize(("name", "shape"), [("avg_pool2d", (2, 8, 4, 4)), ("avg_pool3d", (2, 8, 4, 4, 4))])
def test_what_is_resized_over_channels_stays(name: str, shape: tuple[int, ...]) -> None:
    """Channels laid along the rows of a picture, and then pooled."""
    moved = Movement(lambda _, x: getattr(functional, name)(x.transpose(1, 2), 2), shape).check()
    assert moved.frozen.all()
    assert any(f"resized over in `model` (aten.{name})" in reason for reason in moved.reasons)


def test_coordinates_stay() -> None:
    moved = Movement(lambda _, x: functional.grid_sample(
        torch.ones(2, 3, 4, 4, dtype=x.dtype), x.permute(0, 2, 3, 1).tanh(), align_corners=False), (2, 2, 4, 4)).check()
    assert moved.frozen.all()
    assert any("coordinates in `model` (aten.grid_sampler_2d)" in reason for reason in moved.reasons)
