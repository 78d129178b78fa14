"""Views, permutations, splits, concatenations: labels move as elements do."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from rules.movement import Movement
from torchslim.rules.shape import reshape_track
from torchslim.rules.tracks import Labels, squeeze_equal

Function = Callable[[Any, Tensor], Any]
Case = tuple[Labels, tuple[int, ...], tuple[int, ...]]


# reshape_track against torch.reshape


@st.composite
def factors(draw: Callable[..., Any], count: int) -> tuple[int, ...]:
    """A shape of that many elements, dimensions of one among them."""
    shape = []
    while count > 1:
        size = draw(st.sampled_from([d for d in range(2, count + 1) if count % d == 0]))
        shape.append(size)
        count //= size
    for place in draw(st.lists(st.integers(0, len(shape)), max_size=2)):
        shape.insert(place, 1)
    return tuple(shape) or (1,)


@st.composite
def reshapes(draw: Callable[..., Any]) -> Case:
    """A track, the shape of its tensor, and another shape."""
    count = draw(st.sampled_from([1, 2, 6, 12, 24, 36, 60]))
    old, new = draw(factors(count)), draw(factors(count))
    varies = [draw(st.booleans()) for _ in old]
    shape = tuple(size if own else 1 for size, own in zip(old, varies, strict=True))
    values = draw(st.lists(st.integers(0, draw(st.sampled_from([0, 2, 1000]))), min_size=prod(shape),
                           max_size=prod(shape)))
    return np.array(values, dtype=np.int64).reshape(shape), old, new


@given(reshapes())
def test_reshape_track_is_reshape_of_the_full_label_tensor(case: Case) -> None:
    track, old, new = case
    found = reshape_track(track, old, new)
    expected = torch.from_numpy(np.broadcast_to(track, old).copy()).reshape(new)
    assert found.ndim == len(new)
    assert all(size in (1, whole) for size, whole in zip(found.shape, new, strict=True))
    assert np.array_equal(np.broadcast_to(found, new), expected.numpy())


def test_reshape_track_stays_small_where_labels_do_not_change() -> None:
    channels = np.arange(64).reshape(1, 64, 1, 1)
    assert reshape_track(channels, (8, 64, 56, 56), (8, 2, 32, 56, 56)).shape == (1, 2, 32, 1, 1)
    assert reshape_track(channels, (8, 64, 56, 56), (8, 64, 3136)).shape == (1, 64, 1)
    assert reshape_track(channels, (8, 64, 56, 56), (8, 64 * 3136)).shape == (1, 64 * 3136)
    assert reshape_track(channels, (8, 64, 56, 56), (512, 56, 56)).shape == (512, 1, 1)


@given(reshapes())
def test_squeeze_equal_says_the_same(case: Case) -> None:
    track, old, _ = case
    small = squeeze_equal(np.broadcast_to(track, old).copy())
    assert np.array_equal(np.broadcast_to(small, old), np.broadcast_to(track, old))
    for dim, size in enumerate(small.shape):
        assert size == 1 or not (small == small.take([0], axis=dim)).all()


# Random chains of moves, on the tape and on a tensor of labels


def permute(draw: Callable[..., Any], x: Tensor) -> Function:
    order = draw(st.permutations(range(x.dim())))
    return lambda _, t: t.permute(order)


def view(draw: Callable[..., Any], x: Tensor) -> Function:
    shape = draw(factors(x.numel()))
    return lambda _, t: t.reshape(shape)


def roll(draw: Callable[..., Any], x: Tensor) -> Function:
    dim, by = draw(st.integers(-x.dim(), x.dim() - 1)), draw(st.integers(-3, 3))
    return lambda _, t: t.roll(by, dim)


def flip(draw: Callable[..., Any], x: Tensor) -> Function:
    dims = draw(st.lists(st.integers(0, x.dim() - 1), max_size=2, unique=True))
    return lambda _, t: t.flip(dims)


def one_more(draw: Callable[..., Any], x: Tensor) -> Function:
    dim = draw(st.integers(-x.dim() - 1, x.dim()))
    return lambda _, t: t.unsqueeze(dim)


def one_less(draw: Callable[..., Any], x: Tensor) -> Function:
    dim = draw(st.integers(-x.dim(), x.dim() - 1))
    return draw(st.sampled_from([lambda _, t: t.squeeze(dim), lambda _, t: t.squeeze()]))


def transpose(draw: Callable[..., Any], x: Tensor) -> Function:
    a, b = (draw(st.integers(-x.dim(), x.dim() - 1)) for _ in range(2))
    return lambda _, t: t.transpose(a, b)


def halves(draw: Callable[..., Any], x: Tensor) -> Function:
    dim, parts = draw(st.integers(-x.dim(), x.dim() - 1)), draw(st.integers(2, 3))
    order = draw(st.booleans())
    return lambda _, t: torch.cat(t.chunk(parts, dim)[::-1] if order else t.chunk(parts, dim), dim)


def part(draw: Callable[..., Any], x: Tensor) -> Function:
    dim = draw(st.integers(0, x.dim() - 1))
    start = draw(st.integers(0, max(0, x.shape[dim] - 2)))
    end, step = draw(st.integers(start + 1, x.shape[dim] + 1)), draw(st.integers(1, 2))
    return lambda _, t: t[(slice(None),) * dim + (slice(start, end, step),)]


def one(draw: Callable[..., Any], x: Tensor) -> Function:
    dim = draw(st.integers(-x.dim(), x.dim() - 1))
    place = draw(st.integers(-x.shape[dim], x.shape[dim] - 1))
    return lambda _, t: t.select(dim, place)


def repeat(draw: Callable[..., Any], x: Tensor) -> Function:
    times = [draw(st.integers(1, 2)) for _ in range(x.dim() + draw(st.integers(0, 1)))]
    return lambda _, t: t.repeat(times)


def expand(draw: Callable[..., Any], x: Tensor) -> Function:
    sizes = [size if size > 1 else draw(st.integers(1, 2)) for size in x.shape]
    front = draw(st.lists(st.integers(1, 2), max_size=1))
    return lambda _, t: t.expand(*front, *sizes)


def stack(draw: Callable[..., Any], x: Tensor) -> Function:
    dim = draw(st.integers(-x.dim() - 1, x.dim()))
    return lambda _, t: torch.stack(t.unbind(0), dim % t.dim() - (dim % t.dim() == t.dim())) if t.shape[0] > 1 else t


def beside(draw: Callable[..., Any], x: Tensor) -> Function:
    dim, flipped = draw(st.integers(-x.dim(), x.dim() - 1)), draw(st.integers(0, x.dim() - 1))
    return lambda _, t: torch.cat([t, t.flip(flipped)], dim)


def fold(draw: Callable[..., Any], x: Tensor) -> Function:
    dim = draw(st.integers(0, x.dim() - 1))
    size = draw(st.integers(1, min(2, x.shape[dim])))
    return lambda _, t: t.unfold(dim, size, 1)


MOVES = (permute, view, roll, flip, one_more, one_less, transpose, halves, part, one, repeat, expand, stack, beside,
         fold)
SHAPE = (2, 6, 2, 2)


@st.composite
def chains(draw: Callable[..., Any]) -> list[Function]:
    x, moves = torch.zeros(SHAPE), []
    for kind in draw(st.lists(st.sampled_from(MOVES), min_size=1, max_size=5)):
        if not 1 <= x.dim() <= 5 or not 1 < x.numel() <= 400:
            break
        moves.append(kind(draw, x))
        x = moves[-1](None, x)
    return moves


def through(moves: list[Function]) -> Function:
    def run(module: Any, x: Tensor) -> Tensor:
        for move in moves:
            x = move(module, x)
        return x
    return run


@given(chains())
def test_chains_of_moves(moves: list[Function]) -> None:
    """Every element of the result has the class of the element that it is, or that class stays."""
    moved = Movement(through(moves), SHAPE).check()
    truth = through(moves)(None, torch.arange(6).view(1, 6, 1, 1).expand(SHAPE))
    tracks = moved.outputs()[0]
    right = (tracks == torch.from_numpy(moved.classes)[truth]).any(0)
    assert (right | torch.from_numpy(moved.frozen)[truth]).all()


# Move by move


def shuffle(_: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@pytest.mark.parametrize("function", [
    lambda _, x: x.view(2, 8, 16), lambda _, x: x.flatten(1), lambda _, x: x.reshape(2, 2, 4, 4, 4),
    lambda _, x: x.permute(0, 2, 3, 1), lambda _, x: x.transpose(1, 3), lambda _, x: x.movedim(1, -1),
    lambda _, x: x.flatten(1).t(), lambda _, x: x.unsqueeze(1), lambda _, x: x.unsqueeze(-1).squeeze(-1),
    lambda _, x: x[:, :, :2, :1].squeeze(), lambda _, x: x.unflatten(1, (2, 4)), lambda _, x: x.contiguous(),
    lambda _, x: x.to(memory_format=torch.channels_last), lambda _, x: x.swapaxes(0, 1), lambda _, x: x.mT,
    lambda _, x: x[:, :, None, 1:, ::2], lambda _, x: x[..., 1], lambda _, x: x[0], lambda _, x: x[:, :, -1, -2],
    lambda _, x: x.flip(1), lambda _, x: x.flip((2, 3)), lambda _, x: x.roll(1, 1), lambda _, x: x.roll((1, 2), (2, 3)),
    lambda _, x: x.chunk(2, 1), lambda _, x: x.split(4, 1), lambda _, x: x.split([3, 5], 1),
    lambda _, x: x.tensor_split(2, 1), lambda _, x: (x[:, :3], x[:, 3:]), lambda _, x: (x[:, ::2], x[:, 1::2]),
    lambda _, x: x.split(3, 2), lambda _, x: x.unbind(2), lambda _, x: x.unbind(0),
    lambda _, x: torch.cat([x, x], 0), lambda _, x: torch.cat([x, x], 2), shuffle,
    lambda _, x: functional.channel_shuffle(x, 2), lambda _, x: x.unfold(2, 2, 1), lambda _, x: x.repeat(1, 1, 2, 1),
    lambda _, x: x[:, :, :1].expand(-1, -1, 3, -1), lambda _, x: x.narrow(1, 2, 4), lambda _, x: x.diagonal(0, 2, 3),
])
def test_moves_leave_every_channel_free(function: Function) -> None:
    moved = Movement(function, (2, 8, 4, 4)).check()
    assert moved.free
    assert not moved.space.declared.unknown_ops


@pytest.mark.parametrize(("function", "expected"), [
    (lambda _, x: x.flatten(1), [32] * 8),
    (lambda _, x: x.repeat(1, 2, 1, 1), [64] * 8),
    (lambda _, x: torch.cat([x, x.flip(1)], 1), [64] * 8),
    (lambda _, x: x[:, 2:6], [0, 0, 32, 32, 32, 32, 0, 0]),
    (lambda _, x: x[:, ::3], [32, 0, 0, 32, 0, 0, 32, 0]),
    (lambda _, x: torch.stack([x, x], 1), [64] * 8),
], ids=["flatten", "repeat", "cat", "slice", "step", "stack"])
def test_how_many_elements_go_with_each_channel(function: Function, expected: list[int]) -> None:
    assert Movement(function, (2, 8, 4, 4)).check().counts == expected


@pytest.mark.parametrize(("function", "operation", "reason"), [
    (lambda _, x: x[:, 3], "select", "picked by position"),
    (lambda _, x: x[:, 3:4], "slice", "picked by position"),
    (lambda _, x: x[:, [0, 2, 1]], "index", "picked by position"),
    (lambda _, x: x.index_select(1, torch.tensor([1, 0])), "index_select", "picked by position"),
    (lambda _, x: x.unbind(1), "unbind", "picked by position"),
    (lambda _, x: torch.gather(x, 1, torch.zeros(2, 1, 4, 4, dtype=torch.long)), "gather", "picked by position"),
    (lambda _, x: x.split(3, 1), "split", "unequal parts"),
    (lambda _, x: x.scatter(1, torch.zeros(2, 1, 4, 4, dtype=torch.long), 0.0), "scatter", "written by position"),
    (lambda _, x: x.diagonal(0, 1, 2), "diagonal", "picked by position"),
])
def test_what_names_channels_by_number_freezes_them(function: Function, operation: str, reason: str) -> None:
    moved = Movement(lambda s, x: s.inner(x), (2, 8, 4, 4), inner=Inner(function)).check()
    assert moved.frozen.all()
    assert any(reason in text and f"`inner` (aten.{operation})" in text for text in moved.reasons), moved.reasons


class Inner(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def test_positions_along_space_pass() -> None:
    """Indices into rows and columns leave the channels free (the relative positions of attention, say)."""
    places = torch.tensor([0, 2, 2])
    assert Movement(lambda _, x: x[:, :, places], (2, 8, 4, 4)).check().free
    assert Movement(lambda _, x: x[:, :, places, places], (2, 8, 4, 4)).check().free


def test_written_by_position_stays() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, torch.tensor([0, 1])] = x[:, :2]
        return y

    assert Movement(function, (2, 8, 4, 4)).check().frozen[:2].all()


def test_rows_written_into_blank_ones_carry_their_channels() -> None:
    """How regions of several levels of a pyramid are gathered."""
    def function(_: Any, x: Tensor) -> Tensor:
        y = torch.zeros(3, 8, 4, 4, dtype=x.dtype)
        y[torch.tensor([2, 0])] = x * 2
        return y

    moved = Movement(function, (2, 8, 4, 4)).check()
    assert moved.free
    assert moved.counts == [48] * 8


def test_rows_written_into_what_cannot_be_cut_stay() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        y = torch.arange(384.0, dtype=x.dtype).view(3, 8, 4, 4)
        y[torch.tensor([2, 0])] = x
        return y

    moved = Movement(function, (2, 8, 4, 4)).check()
    assert moved.frozen.all()
    assert "written by position in `model` (aten.index_put_)" in moved.reasons


def test_tensors_without_elements_carry_their_labels() -> None:
    """What a detector makes of no detections: the weights on the way are read all the same."""
    def function(s: Any, x: Tensor) -> Tensor:
        return s.linear(x.mean((2, 3))[:0].relu() * 2)

    moved = Movement(function, (2, 8, 4, 4), linear=torch.nn.Linear(8, 3))
    assert moved.free
    read = moved.space.along(moved.graph.state["linear.weight"], 1, moved.graph.ops[-1])
    assert moved.of[read].tolist() == moved.classes.tolist()


def test_a_reshape_without_elements_that_does_not_add_up_stays() -> None:
    moved = Movement(lambda _, x: x.mean((2, 3))[:0].reshape(-1, 3), (2, 8, 4, 4))
    assert moved.frozen.all()
    assert any(reason.startswith("reshaped without elements in `model` (aten.") for reason in moved.reasons)


def test_a_slice_of_nothing_is_no_part_of_a_whole() -> None:
    moved = Movement(lambda _, x: x[:, 0:-8].sum() + x, (2, 8, 4, 4))
    assert len(set(moved.classes.tolist())) == 8


def test_filling_positions_along_space_leaves_the_channels_free() -> None:
    places = torch.tensor([0, 2])
    assert Movement(lambda _, x: x.index_fill(2, places, 3.0), (2, 8, 4, 4)).check().free
    assert Movement(lambda _, x: x.relu().index_fill_(1, places, 3.0), (2, 8, 4, 4)).check().frozen.all()


def test_written_into_a_slice_goes_with_it() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        y = torch.zeros(2, 8, 4, 4)
        y[:, :4] = x[:, :4]
        y[:, 4:] += x[:, 4:]
        return y

    moved = Movement(function, (2, 8, 4, 4)).check()
    assert moved.free
    assert moved.counts == [32] * 8


def test_the_rows_of_a_chunk_lose_equally_many() -> None:
    moved = Movement(lambda _, x: x.chunk(2, 1), (2, 8, 4, 4))
    [rows] = moved.space.declared.constraints
    assert moved.of[rows.labels].tolist() == moved.classes.reshape(2, 4).tolist()


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("how", ["views", "torch"])
def test_the_rows_of_a_channel_shuffle_lose_equally_many(groups: int, how: str) -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        if how == "torch":
            return functional.channel_shuffle(x, groups)
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    moved = Movement(function, (2, 8, 4, 4)).check()
    folded = moved.classes.reshape(groups, -1)
    assert moved.outputs()[0][0, 0, :, 0, 0].tolist() == folded.T.ravel().tolist()
    # Views do not say which dimension may shrink; it is taken to be the wider one.
    expected = folded if how == "torch" or groups == 2 else folded.T
    found = [{frozenset(row) for row in moved.of[rows.labels].tolist()} for rows in moved.space.declared.constraints]
    assert {frozenset(row) for row in expected.tolist()} in found


def test_concatenation_with_what_cannot_be_cut_keeps_places() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        places = torch.arange(32.0, dtype=x.dtype).view(1, 2, 4, 4).expand(2, -1, -1, -1)
        return torch.cat([places, x, places], 1)

    moved = Movement(function, (2, 8, 4, 4)).check()
    assert moved.free
    assert moved.outputs()[0][0, 0, 2:10, 0, 0].tolist() == moved.classes.tolist()
    assert any(reason.startswith("joined as a whole in `model` (aten.cat)") for reason in moved.reasons)


def test_joined_along_another_dimension_they_become_one() -> None:
    moved = Movement(lambda _, x: torch.cat([x, x.flip(1)], 2), (2, 8, 4, 4)).check()
    assert not moved.frozen.any()
    assert [sorted(np.flatnonzero(moved.classes == one).tolist()) for one in dict.fromkeys(moved.classes)] == [
        [0, 7], [1, 6], [2, 5], [3, 4]]


def test_a_class_token_beside_tokens_with_labels_of_their_own() -> None:
    """Where each token got a label (from its position's parameter), the channels pass all the same."""
    def function(s: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) + s.place.weight
        return torch.cat([s.token.weight.unsqueeze(0).expand(2, -1, -1), tokens], 1)

    moved = Movement(function, (2, 8, 4, 4), place=torch.nn.Embedding(16, 8), token=torch.nn.Embedding(1, 8)).check()
    assert moved.free
    assert moved.counts == [2 * 17] * 8
