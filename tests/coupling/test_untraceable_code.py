"""What code may do that no tape of shapes shows: each is noticed, and cut rightly or left alone with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchslim as ts
from helpers import Calls, check_training, conv, oracle_error, random_statistics

X = torch.randn(2, 3, 8, 8)


def cut(model: nn.Module, x: Tensor = X, **options: Any) -> tuple[nn.Module, ts.Plan]:
    """A network cut and proven; options are those of `plan`."""
    random_statistics(model).eval()
    plan = ts.plan(model, x, **{"macs": 0.5, "importance": "random", "strict": False, **options})
    slim = ts.apply(model, plan)
    assert ts.verify(model, slim, plan, x) < 1e-9
    return slim, plan


def between(function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> Calls:
    return Calls(lambda s, x: s.b(function(s, s.a(x).relu())), a=conv(3, 32), b=conv(32, 5), **layers)


def shuffled(x: Tensor, groups: int) -> Tensor:
    return x.view(x.size(0), groups, -1, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)


ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "unshuffled, rolled": (lambda h: (lambda y: y.roll(y.shape[1] // 2, 1))(functional.pixel_unshuffle(h, 2)), 128),
    "unshuffled, shuffled, reversed": (lambda h: torch.cat(
        shuffled(functional.pixel_unshuffle(h, 2), 2).chunk(4, 1)[::-1], 1), 128),
    "doubled, unshuffled, shuffled": (lambda h: shuffled(
        functional.pixel_unshuffle(torch.cat([h, h.flip(1)], 1), 2), 2), 256),
    "both signs, shuffled, rolled": (lambda h: (lambda y: y.roll(y.shape[1] // 2, 1))(
        shuffled(torch.cat([h.relu(), (-h).relu()], 1), 2)), 64),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_channel_is_in_its_place(order: str, share: float, seed: int) -> None:
    function, width = ORDERS[order]
    model = Calls(lambda s, x: s.b(function(s.a(x))), a=conv(3, 32), b=conv(width, 5))
    slim, plan = cut(model, macs=share, seed=seed)
    assert oracle_error(model, slim, plan, X) < 1e-9


def test_copies_that_met_their_mirror_image() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        left, right = torch.cat([y, y.flip(1)], 1).chunk(2, 1)
        gated = left * right.sigmoid()
        return s.b(torch.cat([s.c(gated[:, ::2]), gated[:, 1::2]], 1))

    for seed in range(5):
        slim, _ = cut(Calls(forward, a=conv(3, 16), b=conv(16, 5), c=conv(8, 8)), macs=0.3, seed=seed)
        assert slim(X).shape == (2, 5, 8, 8)


@pytest.mark.parametrize("function", [
    lambda s, h: s.b(h.view(h.size(0), -1, 2, 8, 8).amax(2)),
    lambda s, h: s.b(torch.cat(h.chunk(4, 1)[::-1], 1).view(h.size(0), -1, 2, 8, 8).amax(2)),
], ids=["pairs", "reversed pairs"])
def test_whole_groups_with_rows_after_them(function: Any) -> None:
    for seed in range(5):
        model = Calls(lambda s, x: function(s, s.g(s.a(x).relu())), a=conv(3, 16),
                      g=nn.Conv2d(16, 48, 3, padding=1, groups=8), b=conv(24, 5))
        slim, _ = cut(model, macs=0.3, whole_groups=True, seed=seed)
        assert slim(X).shape == (2, 5, 8, 8)


def test_groups_that_no_longer_divide_the_filters_are_seen() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        left, right = s.g(s.a(x).repeat_interleave(2, 1)).chunk(2, 1)
        return s.b(torch.cat([left, s.c(right)], 1))

    slim, _ = cut(Calls(forward, a=conv(3, 16), g=nn.Conv2d(32, 16, 3, padding=1, groups=8), b=conv(16, 5),
                        c=conv(8, 8)), macs=0.3, whole_groups=True)
    assert slim(X).shape == (2, 5, 8, 8)


# Widths that are no size of anything: they scale, clamp, decide.
NUMBERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "divided by a layer's width": lambda s, h: h / s.a.out_channels,
    "a layer's width decides": lambda s, h: h if s.a.out_channels >= 32 else h.sigmoid(),
    "divided by a size": lambda s, h: h / h.shape[1],
    "a size decides how much": lambda s, h: h.clamp(0, 1) if h.shape[1] >= 32 else h.clamp(0, 2),
    "asserted": lambda s, h: h if h.permute(1, 0, 2, 3).size(0) == 32 else h.missing(),
    "rows by the first size": lambda s, h: h.transpose(0, 1).reshape(32, -1).view(32, 2, 8, 8).transpose(0, 1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_widths_that_work_as_numbers_are_noticed(name: str) -> None:
    slim, plan = cut(between(NUMBERS[name]))
    assert slim(X).shape == (2, 5, 8, 8)
    assert any(entry.name == "a" and entry.channels == 32 for entry in plan.left_alone)


def test_a_picture_without_a_batch_may_be_viewed_by_its_channels() -> None:
    model = Calls(lambda s, x: s.b(s.a(x).view(32, -1).view(32, 8, 8)), a=conv(3, 32), b=conv(32, 5))
    slim, _ = cut(model, torch.randn(3, 8, 8))
    assert slim(torch.randn(3, 8, 8)).shape == (5, 8, 8)


class TrainedOtherwise(nn.Module):
    """Code of its own in train mode, which reads no parameter."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = conv(3, 32), conv(32, 5), how
        self.register_buffer("average", torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.training and self.how == "average":
            self.average.lerp_(h.detach().mean((0, 2, 3)), 0.1)
        elif self.training and self.how == "noise":
            h = h * torch.bernoulli(torch.full((1, 32, 1, 1), 0.9))
        elif self.training:
            h = h.view(-1, 4, 8, 8, 8).flip(0).reshape(-1, 32, 8, 8)
        return self.b(h)


@pytest.mark.parametrize("how", ["average", "noise", "views"])
def test_code_that_only_training_runs_survives(how: str) -> None:
    model = TrainedOtherwise(how)
    slim, _ = cut(model)
    assert check_training(slim, X) == check_training(model, X)


def test_group_norm_keeps_its_groups_where_the_approximation_is_allowed() -> None:
    for seed in range(3):
        _, plan = cut(between(lambda s, h: s.n(h), n=nn.GroupNorm(4, 32)), allow_approximate=True, seed=seed)
        counts = [sum(index // 8 == group for index in plan.kept["a.weight"][0]) for group in range(4)]
        assert len(set(counts)) == 1
        cut(between(lambda s, h: s.n(functional.channel_shuffle(h, 4)), n=nn.GroupNorm(4, 32)), allow_approximate=True,
            seed=seed)


def test_a_group_norm_of_single_channels_is_an_instance_norm() -> None:
    slim, plan = cut(between(lambda s, h: s.n(h), n=nn.GroupNorm(32, 32)))
    assert slim.n.num_groups == slim.n.num_channels == len(plan.kept["a.weight"][0]) < 32


def test_a_layer_norm_over_channels_and_space() -> None:
    slim, _ = cut(between(lambda s, h: s.n(h), n=nn.LayerNorm([32, 8, 8])), allow_approximate=True)
    assert slim.n.normalized_shape[0] == slim.a.out_channels < 32


def test_a_network_that_draws_numbers_is_compared_with_itself() -> None:
    slim, _ = cut(between(lambda s, h: h * torch.rand(1)))
    assert slim.a.out_channels < 32


def test_inference_mode_and_autocast_around_the_call_change_nothing() -> None:
    model = random_statistics(between(lambda s, h: h)).eval()
    plan = ts.plan(model, X, macs=0.5, strict=False)
    with torch.inference_mode():
        assert ts.profile(model, X).macs == ts.profile(model, X).macs > 0
        assert ts.plan(model, X, macs=0.5, strict=False) == plan
    with torch.autocast("cpu"):
        assert ts.plan(model, X, macs=0.5, strict=False) == plan


class Holding(nn.Module):
    """Layers that a copy of the network would not hold, or not its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = conv(3, 32), conv(32, 5)
        self.how = how
        if how == "functions":
            self.steps = [lambda x: self.a(x).relu(), lambda x: self.b(x)]
        elif how == "a list":
            self.layers = [conv(32, 32)]
        elif how == "a script":
            self.script = torch.jit.trace(nn.Sequential(conv(32, 32), nn.ReLU()), torch.randn(1, 32, 8, 8))
        elif how == "a lazy layer":
            self.lazy = nn.LazyConv2d(8, 1)

    def forward(self, x: Tensor) -> Any:
        if self.how == "functions":
            for step in self.steps:
                x = step(x)
            return x
        x = self.a(x).relu()
        if self.how == "a list":
            x = self.layers[0](x)
        elif self.how == "a script":
            x = self.script(x)
        y = self.b(x)
        return Answer(y) if self.how == "an object" else y


class Answer:
    __slots__ = ("y",)  # of what an object has in its `__dict__` tensors are found

    def __init__(self, y: Tensor) -> None:
        self.y = y


@pytest.mark.parametrize(("how", "wanted"), [
    ("functions", r"`model.steps`: a function that closes over Holding"), ("a list", "not registered with it"),
    ("a script", "`script`: TopLevelTracedModule is a scripted module"), ("an object", "returns no tensor"),
    ("a lazy layer", "`lazy.weight`: is not initialised")])
def test_what_a_copy_would_not_hold_is_refused_by_name(how: str, wanted: str) -> None:
    model = Holding(how).eval()
    with pytest.raises(ts.errors.UnsupportedModel, match=wanted):
        ts.plan(model, X, macs=0.5, strict=False)


@pytest.mark.parametrize(("before", "after"), [(0.4, -9.0), (-9.0, 0.4)])
def test_where_the_data_decides_the_way_not_taken_goes_on_working(before: float, after: float) -> None:
    def way(threshold: float) -> Callable[[Any, Tensor], Tensor]:
        return lambda s, x: s.last(s.b(s.a(x)) if x.mean() > threshold else s.c(s.a(x)).relu())

    model = Calls(way(before), a=conv(3, 32), b=conv(32, 24), c=conv(32, 24), last=nn.Sequential(
        conv(24, 20), conv(20, 5))).eval()
    slim, plan = ts.prune(model, X, macs=0.5, strict=False)
    left = "c" if before < after else "b"
    assert any(f"no run read {left}: what is as wide" in note for note in plan.notes)
    assert any(f"`{left}` meets, which no run read: 32 channels" in one.reason for one in plan.left_alone)
    assert "last.0.weight" in plan.kept
    assert "a.weight" not in plan.kept
    slim._forward = way(after)
    slim(X)


def test_unread_layers_of_a_network_that_fails_in_training_go_on_working() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        if s.training:
            raise ValueError("wants targets")
        return s.head(s.a(x))

    model = Calls(forward, a=conv(3, 32), head=nn.Sequential(conv(32, 20), conv(20, 5)), auxiliary=conv(32, 5)).eval()
    plan = ts.plan(model, X, macs=0.9, strict=False)
    assert set(plan.kept) == {"head.0.weight", "head.0.bias", "head.1.weight"}
    assert any("no run read auxiliary: in train mode the network fails" in note for note in plan.notes)
