"""Arithmetic and activations: the labels at one position become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rules.movement import Movement
from torchslim.coupling.coupling import connected_components
from torchslim.rules import move_labels
from torchslim.rules.labels import LabelSpace
from torchslim.tracing.trace import trace

Function = Callable[[Any, Tensor], Any]
SHAPE = (2, 6, 3, 3)


@pytest.mark.parametrize("function", [
    functional.relu, torch.relu_, functional.relu6, functional.silu, functional.mish, functional.gelu,
    functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.leaky_relu, functional.elu,
    functional.softplus, functional.selu, functional.celu, functional.softsign, torch.sigmoid,
    torch.tanh, torch.exp, torch.sqrt, torch.square, torch.neg, torch.abs, torch.sin, torch.erf, torch.sign,
    torch.log1p, lambda x: x + 1, lambda x: 2 - x, lambda x: x / 3, lambda x: x ** 2, lambda x: x.clamp(0, 6),
    lambda x: x.clamp_min(0),
    lambda x: x.masked_fill(x > 0, 1.0), lambda x: torch.where(x > 0, x, 0.0), lambda x: torch.where(x > 0, x, x * 2),
    lambda x: functional.threshold(x, 0.1, 0.0), lambda x: x * functional.relu6(x + 3) / 6, lambda x: x.float(),
    lambda x: functional.dropout(x, 0.3, False), lambda x: x.detach().clone(), lambda x: x.mul_(2).add_(x),
    lambda x: x.round(), lambda x: x.to(torch.float16), lambda x: x > 0,
    lambda x: x.nan_to_num(), lambda x: functional.rrelu(x), lambda x: x.addcmul(x, x), lambda x: torch.lerp(x, x, 0.3),
])
def test_activations_and_arithmetic_leave_every_channel_free(function: Callable[[Tensor], Tensor]) -> None:
    moved = Movement(lambda _, x: function(x), SHAPE).check()
    assert not moved.space.declared.unknown_ops
    assert moved.free
    assert moved.counts == [18] * 6


@pytest.mark.parametrize("function", [
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.pow, torch.hypot,
    lambda a, b: torch.where(a > b, a, b), lambda a, b: torch.lerp(a, b, 0.5), lambda a, b: a.copy_(b),
    lambda a, b: a.masked_fill(b > 0, 0.0), lambda a, b: torch.addcmul(a, b, b), lambda a, b: a.add_(b),
    lambda a, b: torch.max(a, b), lambda a, b: (a > 0) & (b > 0), lambda a, b: torch.stack([a, b]).sum(0),
])
def test_what_meets_becomes_one(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A channel and its mirror image stand at one position: they go together."""
    moved = Movement(lambda _, x: function(x.clone(), x.flip(1)), SHAPE).check()
    assert not moved.frozen.any()
    assert moved.classes.tolist() == moved.classes[::-1].tolist()
    assert len(set(moved.classes.tolist())) == 3


@pytest.mark.parametrize(("other", "free"), [
    (lambda s, x: s.scale.view(6, 1, 1), True),
    (lambda s, x: s.scale.view(1, 6, 1, 1), True),
    (lambda s, x: s.row.view(3), True),
    (lambda s, x: x.mean((2, 3), keepdim=True), True),
    (lambda s, x: x.mean(1, keepdim=True), False),
    (lambda s, x: torch.zeros(6, 1, 1), True),
    (lambda s, x: torch.full((2, 6, 3, 3), 2.0), True),
    (lambda s, x: torch.ones_like(x), True),
    (lambda s, x: x.new_zeros(1), True),
    (lambda s, x: torch.arange(3.0), True),
    (lambda s, x: torch.arange(6.0).view(6, 1, 1), False),
    (lambda s, x: torch.linspace(0, 1, 108).view(SHAPE), False),
], ids=["parameter (C, 1, 1)", "parameter (1, C, 1, 1)", "parameter over space", "own mean over space",
        "own mean over channels", "zeros", "full", "ones like", "one number", "numbers over space",
        "numbers over channels", "numbers over all"])
def test_broadcasting(other: Function, free: bool) -> None:
    moved = Movement(lambda s, x: x + other(s, x), SHAPE, scale=Held(torch.ones(6)), row=Held(torch.ones(3)))
    assert moved.check().free is free
    assert moved.frozen.all() is not free


class Held(nn.Module):
    """A parameter that is used where it stands."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def view(self, *shape: int) -> Tensor:
        return self.values.view(shape)


def test_a_parameter_that_meets_channels_follows_them() -> None:
    moved = Movement(lambda s, x: x * s.scale.view(6, 1, 1), SHAPE, scale=Held(torch.ones(6))).check()
    own = moved.space.along(moved.graph.state["scale.values"], 0, moved.graph.ops[0])
    assert own is not None
    assert moved.of[own].tolist() == moved.classes.tolist()


def test_a_parameter_over_space_stays_whole() -> None:
    moved = Movement(lambda s, x: x * s.row.view(1, 1, 3, 3), SHAPE, row=Held(torch.ones(9))).check()
    assert moved.free
    assert moved.counts == [18] * 6


@pytest.mark.parametrize("number", [True, False])
def test_prelu(number: bool) -> None:
    layer = nn.PReLU(1 if number else 6)
    moved = Movement(lambda s, x: s.act(x), SHAPE, act=layer).check()
    assert moved.free
    touched = {(touch.name, touch.dim) for touch in moved.space.declared.labeled_dims}
    assert (("act.weight", 0) in touched) is not number


def test_what_meets_a_tensor_that_cannot_be_cut_stays_and_says_where() -> None:
    moved = Movement(lambda s, x: s.inner(x), SHAPE, inner=Meets()).check()
    assert moved.frozen.all()
    assert "meets a tensor that can't be cut in `inner` (aten.mul)" in moved.reasons


class Meets(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(6.0).view(6, 1, 1)


@pytest.mark.parametrize(("function", "joined"), [
    (lambda x: x + x.flip(1), True), (lambda x: x - x.relu(), True), (lambda x: torch.maximum(x, x * 2), True),
    (lambda x: x * x.sigmoid(), False), (lambda x: x + 1, False), (lambda x: x / x.exp(), False),
])
def test_sums_join_branches_and_products_are_gates(function: Callable[[Tensor], Tensor], joined: bool) -> None:
    assert bool(Movement(lambda _, x: function(x), SHAPE).space.declared.joined_branches) is joined


@pytest.mark.parametrize("function", [
    lambda x: torch.as_strided(x, (2, 6), (54, 9)), torch.linalg.matrix_exp, torch.linalg.eigvals,
])
def test_what_has_no_rule_freezes_and_is_listed(function: Callable[[Tensor], Tensor]) -> None:
    moved = Movement(lambda _, x: function(x), SHAPE).check()
    assert moved.frozen.all()
    assert moved.reasons


def test_results_made_from_nothing_read_no_channels() -> None:
    moved = Movement(lambda _, x: (x, torch.arange(6), torch.eye(3), torch.zeros(2, 6)), SHAPE).check()
    assert moved.free
    assert not moved.space.declared.unknown_ops


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(),
                                   nn.RReLU()], ids=str)
def test_dropout_in_train_mode_leaves_every_channel_free(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.Conv2d(6, 2, 1))
    space = LabelSpace()
    graph = trace(model, torch.zeros(2, 3, 4, 4), training=True)
    for op in graph.ops:
        move_labels(space, op)
    assert not space.declared.unknown_ops
    of = connected_components(space.num_labels, space.declared.unions)
    stay = {one for entry in space.declared.frozen for one in of[entry.labels].tolist()}
    made = space.along(graph.state["0.weight"], 0, graph.ops[0])
    read = space.along(graph.state["2.weight"], 1, graph.ops[0])
    assert made is not None
    assert read is not None
    assert of[made].tolist() == of[read].tolist()
    assert stay.isdisjoint(of[made].tolist())
