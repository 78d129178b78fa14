"""Random small networks, cut at random: always exact, never above the budget, always trainable.

    pytest tests/property --hypothesis-profile=nightly      2000 networks instead of 100
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchslim as ts
from helpers import Untouched, check_training, count, counted_macs, oracle_error, random_statistics

EXACT = 1e-9


class Act(nn.Module):
    """An activation by name, called as a function, in place or not."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "none":
            return x
        if self.name == "relu_":
            return x.relu_()
        return getattr(nn.functional, self.name)(x)


class ConvBlock(nn.Sequential):
    """Convolution, perhaps batch norm, activation."""

    def __init__(self, cin: int, cout: int, style: Style, k: int = 3, **options: Any) -> None:
        layers: list[nn.Module] = [nn.Conv2d(cin, cout, k, padding=k // 2, bias=style.bias, **options)]
        if style.norm:
            layers.append(nn.BatchNorm2d(cout))
        super().__init__(*layers, Act(style.act))


class Style:
    """How the convolutions of one block are dressed."""

    def __init__(self, norm: bool, bias: bool, act: str) -> None:
        self.norm, self.bias, self.act = norm, bias, act

    def __repr__(self) -> str:
        return f"Style({self.norm}, {self.bias}, {self.act!r})"


class Residual(nn.Module):
    def __init__(self, c: int, inner: int, style: Style, in_place: bool) -> None:
        super().__init__()
        self.a, self.b, self.in_place = ConvBlock(c, inner, style), ConvBlock(inner, c, style, 1), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        if self.in_place:
            y += x
            return y
        return x + y


class Projected(nn.Module):
    """A residual unit whose shortcut has a convolution and a stride."""

    def __init__(self, c: int, out: int, style: Style) -> None:
        super().__init__()
        self.a, self.b = ConvBlock(c, out, style, 3, stride=2), ConvBlock(out, out, style, 3)
        self.shortcut = ConvBlock(c, out, style, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.shortcut(x)


class Concat(nn.Module):
    """Branches side by side, one perhaps the input itself, or pooled."""

    def __init__(self, c: int, widths: list[int], style: Style, keep: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvBlock(c, w, style, 1 + 2 * (i % 2)) for i, w in enumerate(widths))
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.keep == "input":
            parts.insert(0, x)
        elif self.keep == "pooled":
            parts.append(nn.functional.max_pool2d(x, 3, 1, 1))
        return torch.cat(parts, 1)


class Halves(nn.Module):
    """Two halves of the channels go different ways; how they are halved differs from author to author."""

    def __init__(self, c: int, style: Style, how: str, both: bool, shuffle: bool) -> None:
        super().__init__()
        self.half, self.how, self.shuffle = c // 2, how, shuffle
        self.right = ConvBlock(c // 2, c // 2, style)
        self.left = ConvBlock(c // 2, c // 2, style, 1) if both else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.halves(x)
        y = torch.cat([self.left(a), self.right(b)], 1)
        return shuffled(y, 2) if self.shuffle else y

    def halves(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.how == "chunk":
            return x.chunk(2, dim=1)
        if self.how == "split":
            return x.split(x.shape[1] // 2, dim=1)
        if self.how == "remembered split":
            return torch.split(x, self.half, dim=1)
        if self.how == "remembered sizes":
            return torch.split(x, [self.half, self.half], dim=1)
        if self.how == "slices":
            return x[:, :x.size(1) // 2], x[:, x.size(1) // 2:]
        if self.how == "remembered slices":
            return x[:, :self.half], x[:, self.half:]
        assert self.how == "every other"
        return x[:, ::2], x[:, 1::2]


HALVES = ("chunk", "split", "slices", "every other", "remembered split", "remembered sizes", "remembered slices")


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Shuffle(nn.Module):
    def __init__(self, groups: int, how: str) -> None:
        super().__init__()
        self.groups, self.how = groups, how

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.channel_shuffle(x, self.groups) if self.how == "torch" else shuffled(x, self.groups)


class Gate(nn.Module):
    """Squeeze-and-excitation, by convolutions or by linear layers."""

    def __init__(self, c: int, squeezed: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(c, squeezed) if linear else nn.Conv2d(c, squeezed, 1)
        self.up = nn.Linear(squeezed, c) if linear else nn.Conv2d(squeezed, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
            return x * gate.view(x.shape[0], -1, 1, 1)
        pooled = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * self.up(self.down(pooled).relu()).sigmoid()


class Twice(nn.Module):
    """One layer called twice: its output channels are its input channels."""

    def __init__(self, c: int, style: Style) -> None:
        super().__init__()
        self.layer = ConvBlock(c, c, style)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class SharedBranches(nn.Module):
    """One layer reads two things; one tensor is held by two layers."""

    def __init__(self, c: int, out: int, style: Style, tied: bool) -> None:
        super().__init__()
        self.shared = ConvBlock(c, out, style)
        self.a, self.b = ConvBlock(c, c, style), ConvBlock(c, c, style)
        if tied:
            self.b[0].weight = self.a[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.a(x)) * 0.5 + self.shared(self.b(x))


class Up(nn.Module):
    def __init__(self, c: int, out: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.layer = nn.ConvTranspose2d(c, out, 2, stride=2) if how == "transposed" else nn.Conv2d(c, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how != "transposed":
            x = nn.functional.interpolate(x, scale_factor=2, mode=self.how)
        return self.layer(x)[:, :, :6, :6]


class Drop(nn.Sequential):
    pass


class Net(nn.Module):
    """Stem, blocks, head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x)))


class Head(nn.Module):
    """From a map to the answer: flattened, pooled, convolved, or two answers."""

    def __init__(self, c: int, size: int, how: str, hidden: int) -> None:
        super().__init__()
        self.how = how
        flat = {"flatten": c * size * size, "pool": c, "hidden": c * size * size, "two": c}.get(how, c)
        if how == "conv":
            self.last: nn.Module = nn.Conv2d(c, 3, 1)
        elif how == "hidden":
            self.last = nn.Sequential(nn.Linear(flat, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5),
                                      nn.Linear(hidden, 3))
        else:
            self.last = nn.Linear(flat, 3)
        if how == "two":
            self.map = nn.Conv2d(c, 2, 3)

    def forward(self, x: Tensor) -> Any:
        if self.how == "conv":
            return self.last(x).mean((2, 3))
        if self.how in ("flatten", "hidden"):
            return self.last(x.flatten(1))
        pooled = self.last(x.mean([-2, -1]))
        return {"pooled": pooled, "map": self.map(x)} if self.how == "two" else pooled


@st.composite
def styles(draw: Callable[..., Any]) -> Style:
    return Style(draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(["relu", "relu_", "silu", "none"])))


KINDS = ("conv", "depthwise", "multiplied", "grouped", "residual", "projected", "concat", "halves", "shuffle", "gate",
         "twice", "shared", "up", "pool", "prelu")


@st.composite
def networks(draw: Callable[..., Any]) -> nn.Module:
    """A network for 2 x 3 x 6 x 6 inputs; widths are multiples of 4, so that most blocks fit behind most others."""
    widths = st.sampled_from([4, 8, 12])
    torch.manual_seed(0)
    c, size = draw(widths), 6
    stem = ConvBlock(3, c, draw(styles()))
    blocks: list[nn.Module] = []
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5)):
        style = draw(styles())
        if kind == "conv":
            out = draw(widths)
            block: nn.Module = ConvBlock(c, out, style, draw(st.sampled_from([1, 3])))
            c = out
        elif kind == "depthwise":
            block = ConvBlock(c, c, style, groups=c)
        elif kind == "multiplied":
            block = nn.Sequential(ConvBlock(c, 2 * c, style, groups=c), ConvBlock(2 * c, c, style, 1))
        elif kind == "grouped":
            out = draw(widths)
            block = ConvBlock(c, out, style, groups=draw(st.sampled_from([2, 4])))
            c = out
        elif kind == "residual":
            block = Residual(c, draw(widths), style, draw(st.booleans()))
        elif kind == "projected" and size == 6:
            out = draw(widths)
            block, size, c = Projected(c, out, style), 3, out
        elif kind == "concat":
            branches, keep = draw(st.lists(widths, min_size=1, max_size=3)), draw(st.sampled_from(
                ["input", "pooled", "nothing"]))
            block = Concat(c, branches, style, keep)
            c = sum(branches) + (c if keep != "nothing" else 0)
            if c > 24:
                blocks.append(block)
                block, c = ConvBlock(c, 8, style, 1), 8
        elif kind == "halves":
            block = Halves(c, style, draw(st.sampled_from(HALVES)), draw(st.booleans()), draw(st.booleans()))
        elif kind == "shuffle":
            block = Shuffle(draw(st.sampled_from([2, 4])), draw(st.sampled_from(["torch", "views"])))
        elif kind == "gate":
            block = Gate(c, draw(st.sampled_from([2, 3, 4])), draw(st.booleans()))
        elif kind == "twice":
            block = Twice(c, style)
        elif kind == "shared":
            out = draw(widths)
            block = SharedBranches(c, out, style, draw(st.booleans()))
            c = out
        elif kind == "up":
            out = draw(widths)
            block, size, c = Up(c, out, draw(st.sampled_from(["transposed", "nearest", "bilinear"]))), 6, out
        elif kind == "pool" and size == 6:
            block, size = nn.AvgPool2d(2) if draw(st.booleans()) else nn.MaxPool2d(2), 3
        else:
            block = nn.PReLU(c)
        blocks.append(block)
    head = Head(c, size, draw(st.sampled_from(["flatten", "pool", "conv", "hidden", "two"])), draw(widths))
    return random_statistics(Net(stem, blocks, head).double(), draw(st.integers(0, 3)))


@st.composite
def requests(draw: Callable[..., Any]) -> dict[str, Any]:
    """What a caller may ask `plan` for."""
    asked = {draw(st.sampled_from(["macs", "params", "channels"])): draw(st.sampled_from([0.15, 0.3, 0.5, 0.7, 0.9]))}
    if draw(st.booleans()):
        asked["params"] = draw(st.sampled_from([0.3, 0.6]))
    return {**asked,
            "importance": draw(st.sampled_from(["random", "l2", "l1", "fpgm"])),
            "seed": draw(st.integers(0, 9)),
            "scope": draw(st.sampled_from(["global", "uniform"])),
            "shortcuts": draw(st.sampled_from([True, True, False])),
            "round_to": draw(st.sampled_from([1, 1, 2])),
            "min_channels": draw(st.sampled_from([1, 3]))}


@given(networks(), requests())
def test_every_cut_is_exact_and_fits_and_trains(model: nn.Module, request: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = Untouched(model)
    plan = ts.plan(model, x, **request)
    slim = ts.apply(model, plan)

    assert ts.verify(model, slim, plan, x) < EXACT
    assert oracle_error(model, slim, plan, x) < EXACT

    assert plan.predicted == {"params": count(slim), "macs": counted_macs(slim, x)}
    for budget in plan.budgets:
        assert budget.met <= budget.asked or any(note.startswith(budget.resource) for note in plan.notes)
    assert ts.Plan.from_json(plan.to_json()) == plan
    before.check()
    check_training(slim, x)


