"""Widths that code remembers: mended and listed in the plan, or frozen with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import conv

X = torch.randn(2, 3, 8, 8)


class Middle(nn.Module):
    """Two convolutions, something between them that remembers its 16 channels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = conv(3, 16), conv(16, 24), conv(24, 4)
        self.remember()

    def remember(self) -> None:
        """What the module keeps."""

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.middle(self.stem(x).relu())).relu())


def built(remember: Callable[[Any], object], middle: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """A network whose class is made on the spot: a fresh one for each test, as a user's would be."""
    return type("Remembering", (Middle,), {"remember": remember, "middle": middle})()


def keeping(**values: Any) -> Callable[[Any], object]:
    return lambda self: [setattr(self, name, value) for name, value in values.items()]


def binomial(self: Any) -> None:
    filters = torch.tensor([1.0, 2.0, 1.0])
    self.register_buffer("kernel", (filters[:, None] * filters / 16).repeat(16, 1, 1, 1))
    self.channels = 16


def grouped(groups: int) -> Callable[[Any], None]:
    def remember(self: Any) -> None:
        self.groups, self.weight = groups, nn.Parameter(torch.randn(16, 16 // groups, 3, 3) * 0.3)
    return remember


def by_channel(self: Any) -> None:
    self.channels = 16
    self.register_buffer("mean", torch.randn(16))
    self.register_buffer("spread", torch.rand(1, 16, 1, 1) + 0.5)
    self.register_buffer("grid", torch.randn(1, 1, 8, 8), persistent=False)


def blurred(x: Tensor, kernel: Tensor, groups: int) -> Tensor:
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), "reflect"), kernel, groups=groups)


def shift(x: Tensor, part: int) -> Tensor:
    return torch.cat([x[:, :part].roll(1, 0), x[:, part:]], 1)


MENDED = {
    "a fixed blur and its width": (
        binomial, lambda s, x: blurred(x, s.kernel, s.channels), {"channels"}),
    "a fixed blur as wide as its input": (
        binomial, lambda s, x: blurred(x, s.kernel, x.shape[1]), {"channels"}),
    "a list of split sizes": (
        keeping(sizes=[10, 6]), lambda s, x: torch.cat([p.tanh() for p in x.split(s.sizes, 1)], 1), {"sizes"}),
    "a tuple of split sizes": (
        keeping(sizes=(4, 8, 4)), lambda s, x: torch.cat(torch.split(x, s.sizes, 1)[::-1], 1), {"sizes"}),
    "one split size": (
        keeping(width=8), lambda s, x: torch.cat(x.split(s.width, 1)[::-1], 1), {"width"}),
    "where to slice": (
        keeping(at=5), lambda s, x: torch.cat([x[:, s.at:].tanh(), x[:, :s.at]], 1), {"at"}),
    "a stored shape": (
        keeping(shape=(16, 8, 8)), lambda s, x: x.flatten(1).view(-1, *s.shape), {"shape"}),
    "a stored torch.Size": (
        keeping(shape=torch.Size((16, 8, 8))), lambda s, x: x.flatten(1).reshape(x.shape[:1] + s.shape), {"shape"}),
    "an attribute used in view": (
        keeping(width=16), lambda s, x: x.view(x.shape[0], s.width, -1).cumsum(2).view(x.shape[0], s.width, 8, 8),
        {"width"}),
    "a view that leaves the batch open": (
        keeping(width=16), lambda s, x: x.view(-1, s.width, 8, 8), {"width"}),
    "a flattened width": (
        keeping(flat=1024, width=16), lambda s, x: x.view(-1, s.flat).view(-1, s.width, 8, 8), {"flat", "width"}),
    "heads and their width": (
        keeping(heads=4, of_head=4), lambda s, x: x.view(-1, s.heads, s.of_head, 8, 8).softmax(-1).flatten(1, 2),
        {"of_head"}),
    "groups of a channel shuffle": (
        keeping(groups=2, width=16),
        lambda s, x: x.view(-1, s.groups, s.width // s.groups, 8, 8).transpose(1, 2).reshape(-1, s.width, 8, 8),
        {"width"}),
    "a hand-written grouped convolution": (
        grouped(4), lambda s, x: functional.conv2d(x, s.weight, padding=1, groups=s.groups), set()),
    "a hand-written depthwise convolution": (
        grouped(16), lambda s, x: functional.conv2d(x, s.weight, padding=1, groups=s.groups), {"groups"}),
    "buffers for every channel": (
        by_channel, lambda s, x: (x - s.mean.view(1, -1, 1, 1)) / s.spread + s.grid, {"channels"}),
    "a buffer viewed by a width": (
        by_channel, lambda s, x: x - s.mean.view(1, s.channels, 1, 1), {"channels"}),
    "zeros made to measure": (
        keeping(width=16), lambda s, x: x + x.new_zeros(1, s.width, 1, 1), {"width"}),
    "a plain tensor for every channel": (
        lambda s: setattr(s, "offset", torch.randn(1, 16, 1, 1)), lambda s, x: x + s.offset.to(x.dtype), set()),
    "an assertion": (
        keeping(width=16), lambda s, x: refusing(x, s.width), {"width"}),
}


def refusing(x: Tensor, width: int) -> Tensor:
    if x.shape[1] != width:
        raise ValueError(f"{width} channels wanted")
    return x


@pytest.mark.parametrize("case", MENDED)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_what_is_remembered_is_mended(case: str, share: float) -> None:
    remember, middle, attribute_updates = MENDED[case]
    model = built(remember, middle)
    functional_layer, plain = hasattr(model, "weight"), hasattr(model, "offset")
    cut = Cut(model, X, macs=share, oracle=not functional_layer and not plain)
    assert cut.size("stem.weight") < 16
    assert cut.size("mix.weight") < 24
    assert set(cut.attribute_updates) == attribute_updates
    for name, (old, new) in cut.attribute_updates.items():
        assert getattr(cut.slim, name) == (list(new) if isinstance(getattr(model, name), list) else new) != old
    for name in ("kernel", "mean"):
        if hasattr(model, name):
            assert cut.size(name) == cut.size("stem.weight")


def order(self: Any) -> None:
    self.register_buffer("order", torch.randperm(16))


FROZEN = {
    "a width written into the code": (
        keeping(), lambda s, x: x.view(x.shape[0], 16, -1).view(x.shape),
        "remembers a width in `model` (aten.view)"),
    "split sizes written into the code": (
        keeping(), lambda s, x: torch.cat([p.tanh() for p in x.split([4, 12], 1)], 1),
        "the slim network fails: `model` failed while the model was run on the given inputs: RuntimeError: "
        "split_with_sizes"),
    "a width in a dict": (
        keeping(facts={"width": 16}), lambda s, x: x.view(-1, s.facts["width"], 8, 8),
        "the slim network fails: `model` failed while the model was run on the given inputs: RuntimeError: shape"),
    "sizes in a list of lists": (
        keeping(sizes=[[10, 6]]), lambda s, x: torch.cat([p.tanh() for p in x.split(s.sizes[0], 1)], 1),
        "the slim network fails: `model` failed"),
    "zeros of a width written into the code": (
        keeping(), lambda s, x: x + torch.zeros(1, 16, 1, 1, dtype=x.dtype),
        "the slim network fails: `model` failed"),
    "a share of the width": (
        keeping(), lambda s, x: shift(x, x.shape[1] // 8 + 1), "remembers a width in `model` (aten.slice)"),
    "channels taken by number": (
        order, lambda s, x: x[:, s.order], "picked by position in `model` (aten.index)"),
    "channels taken by index_select": (
        order, lambda s, x: x.index_select(1, s.order), "picked by position in `model` (aten.index_select)"),
    "one kernel stretched over all channels": (
        binomial, lambda s, x: blurred(x, s.kernel[:1].expand(s.channels, -1, -1, -1), s.channels),
        "filters channels that can't be cut in `model` (aten.convolution)"),
    "an assertion on a number": (
        keeping(), lambda s, x: refusing(x, 16), "the slim network fails: `model` failed while the model was run on "
        "the given inputs: ValueError: 16 channels wanted"),
}


@pytest.mark.parametrize("case", FROZEN)
def test_what_cannot_be_mended_stays_with_its_reason(case: str) -> None:
    remember, middle, reason = FROZEN[case]
    cut = Cut(built(remember, middle), X, macs=0.6)
    assert cut.uncut("stem.weight", "stem.bias")
    assert cut.size("mix.weight") < 24
    assert cut.attribute_updates == {}
    assert any(found.startswith(reason) for found in cut.reasons("stem")), cut.reasons("stem")


def test_a_shift_of_the_first_channels_by_a_remembered_part() -> None:
    """How temporal shift modules are written: an eighth of the channels comes from the picture before."""
    cut = Cut(built(keeping(part=4), lambda s, x: shift(x, s.part)), X)
    assert cut.attribute_updates["part"] == (4, sum(one < 4 for one in cut.kept("stem.weight")))


def test_a_mend_reaches_every_module_of_the_kind() -> None:
    class Block(nn.Module):
        def __init__(self, cin: int, width: int) -> None:
            super().__init__()
            self.width, self.layer = width, conv(cin, 2 * width)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.layer(x).split(self.width, 1)
            return a * b.sigmoid()

    model = nn.Sequential(Block(3, 12), Block(12, 16), Block(16, 8), conv(8, 4))
    cut = Cut(model, X)
    assert {name.rpartition(".")[0] for name in cut.attribute_updates} == {"0", "1", "2"}
    for place in (0, 1, 2):
        assert cut.slim[place].width * 2 == cut.size(f"{place}.layer.weight")


def test_a_width_of_a_parent_that_its_child_reads() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 16
            self.a, self.b, self.c = conv(3, 16), conv(16, 24), conv(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu().reshape(-1, self.width, 8, 8)).relu())

    cut = Cut(nn.Sequential(nn.Sequential(Parent())), X)
    assert cut.attribute_updates == {"0.0.width": (16, cut.size("0.0.a.weight"))}
