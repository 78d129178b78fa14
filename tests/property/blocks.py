"""Blocks as people write them, for random networks: each takes a map of `c` channels and says what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from property import crafted, reordering

Draw = Callable[..., Any]


@dataclass(frozen=True)
class Style:
    """How the convolutions of one block are dressed."""

    norm: bool
    bias: bool
    act: str


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
        return getattr(functional, self.name)(x)


class ConvBlock(nn.Sequential):
    """Convolution, perhaps batch norm, activation."""

    def __init__(self, cin: int, cout: int, style: Style, k: int = 3, **options: Any) -> None:
        layers: list[nn.Module] = [nn.Conv2d(cin, cout, k, padding=k // 2, bias=style.bias, **options)]
        if style.norm:
            layers.append(nn.BatchNorm2d(cout))
        super().__init__(*layers, Act(style.act))


class Residual(nn.Module):
    def __init__(self, c: int, inner: int, style: Style, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = ConvBlock(c, inner, style), ConvBlock(inner, c, style, 1), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        if self.how == "in place":
            y = y.clone()
            y += x
            return y
        if self.how == "scaled":
            return torch.add(x, y, alpha=0.5)
        return x + y


class Projected(nn.Module):
    """A residual unit whose shortcut has a convolution, or pads its channels."""

    def __init__(self, c: int, out: int, style: Style, padded: bool) -> None:
        super().__init__()
        self.a, self.b = ConvBlock(c, out, style), ConvBlock(out, out, style, 3)
        self.shortcut = None if padded else ConvBlock(c, out, style, 1)
        self.more = out - c

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        if self.shortcut is not None:
            return y + self.shortcut(x)
        return y + functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


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
            parts.append(functional.max_pool2d(x, 3, 1, 1))
        return torch.cat(parts, 1)


class Dense(nn.Module):
    """Each layer reads all before it."""

    def __init__(self, c: int, growth: int, style: Style) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvBlock(c + i * growth, growth, style) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Halves(nn.Module):
    """Two halves of the channels go different ways; how they are halved differs from author to author."""

    CUTS = ("chunk", "split", "slices", "every other", "view", "remembered split", "remembered sizes",
            "remembered slices")
    WAYS = ("nothing", "layer", "pooled", "activated", "scaled")

    def __init__(self, c: int, style: Style, cut: str, left: str, right: str, shuffle: bool) -> None:
        super().__init__()
        self.half, self.cut, self.left, self.right, self.shuffle = c // 2, cut, left, right, shuffle
        self.layers = nn.ModuleDict({side: ConvBlock(c // 2, c // 2, style) for side in ("left", "right")
                                     if getattr(self, side) == "layer"})

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.halves(x)
        y = torch.cat([self.way("left", a), self.way("right", b)], 1)
        return shuffled(y, 2) if self.shuffle else y

    def way(self, side: str, x: Tensor) -> Tensor:
        kind = getattr(self, side)
        if kind == "layer":
            return self.layers[side](x)
        if kind == "pooled":
            return functional.avg_pool2d(x, 3, 1, 1)
        return {"nothing": x, "activated": x.sigmoid(), "scaled": x * 3}[kind]

    def halves(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.cut == "chunk":
            return x.chunk(2, dim=1)
        if self.cut == "split":
            return x.split(x.shape[1] // 2, dim=1)
        if self.cut == "view":
            b, c, h, w = x.shape
            return x.view(b, 2, c // 2, h, w).unbind(1)
        if self.cut == "remembered split":
            return torch.split(x, self.half, dim=1)
        if self.cut == "remembered sizes":
            return torch.split(x, [self.half, self.half], dim=1)
        if self.cut == "slices":
            return x[:, :x.size(1) // 2], x[:, x.size(1) // 2:]
        if self.cut == "remembered slices":
            return x[:, :self.half], x[:, self.half:]
        assert self.cut == "every other"
        return x[:, ::2], x[:, 1::2]


class Partial(nn.Module):
    """A convolution on the first channels alone, written back in place or joined."""

    def __init__(self, c: int, part: int, style: Style, in_place: bool) -> None:
        super().__init__()
        self.part, self.in_place, self.layer = part, in_place, ConvBlock(part, part, style)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x = x.clone()
            x[:, :self.part] = self.layer(x[:, :self.part].clone())
            return x
        a, b = torch.split(x, [self.part, x.shape[1] - self.part], 1)
        return torch.cat([self.layer(a), b], 1)


class Shuffle(nn.Module):
    def __init__(self, groups: int, how: str) -> None:
        super().__init__()
        self.groups, self.how = groups, how

    def forward(self, x: Tensor) -> Tensor:
        return functional.channel_shuffle(x, self.groups) if self.how == "torch" else shuffled(x, self.groups)


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
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * self.up(self.down(pooled).relu()).sigmoid()


class Select(nn.Module):
    """Selective kernels: branches weighed by a softmax over them."""

    def __init__(self, c: int, style: Style, stacked: bool) -> None:
        super().__init__()
        self.a, self.b = ConvBlock(c, c, style), ConvBlock(c, c, style, 1)
        self.weigh, self.stacked = nn.Conv2d(c, 2 * c, 1), stacked

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.a(x), self.b(x)]
        if self.stacked:
            both = torch.stack(branches, 1)
            weights = self.weigh(both.sum(1).mean((2, 3), keepdim=True))
            return (both * weights.view(x.shape[0], 2, -1, 1, 1).softmax(1)).sum(1)
        left, right = self.weigh(x.mean((2, 3), keepdim=True)).chunk(2, 1)
        return branches[0] * left.sigmoid() + branches[1] * right.sigmoid()


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
    """Larger, and cropped again."""

    def __init__(self, c: int, out: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.layer = nn.ConvTranspose2d(c, out, 2, stride=2) if how == "transposed" else nn.Conv2d(c, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if self.how != "transposed":
            x = functional.interpolate(x, scale_factor=2, mode=self.how)
        return self.layer(x)[:, :, :size, :size]


class Blur(nn.Module):
    """A fixed filter held as a buffer, one for every channel or one for all."""

    def __init__(self, c: int, wide: bool) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(c if wide else 1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return functional.conv2d(x, self.kernel.expand(c, -1, -1, -1), padding=1, groups=c)


class Norm(nn.Module):
    """A norm that mixes channels."""

    def __init__(self, c: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = {"layer": lambda: nn.LayerNorm(c), "group": lambda: nn.GroupNorm(2, c),
                     "instance": lambda: nn.InstanceNorm2d(c, affine=True),
                     "single": lambda: nn.GroupNorm(c, c)}[how]()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.how == "layer" else self.norm(x)


class Scale(nn.Module):
    """A free parameter for every channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(c, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Positions look at each other, in heads."""

    def __init__(self, c: int, heads: int, how: str) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.qkv, self.out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        heads = self.heads
        if self.how == "chunk":
            q, k, v = (part.reshape(b, heads, c // heads, h * w) for part in self.qkv(x).chunk(3, 1))
        else:
            q, k, v = self.qkv(x).view(b, 3, heads, c // heads, h * w).unbind(1)
        weights = (q.transpose(-2, -1) @ k).softmax(-1)
        return x + self.out((v @ weights.transpose(-2, -1)).reshape(b, c, h, w))


class SpaceToDepth(nn.Module):
    """Four pixels become four channels, and back."""

    def __init__(self, c: int, out: int, how: str) -> None:
        super().__init__()
        self.how, self.layer = how, nn.Conv2d(4 * c, 4 * out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "torch":
            y = functional.pixel_unshuffle(x, 2)
        else:
            y = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        return functional.pixel_shuffle(self.layer(y), 2)


class Mixed(nn.Module):
    """Channels meet their mirror image, or the greatest of each pair stays."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "mirror":
            return x + x.flip(1)
        if self.how == "doubled":
            return torch.cat([x, -x], 1).relu()
        b, c, h, w = x.shape
        pairs = x.view(b, 2, c // 2, h, w) if self.how == "maximum of halves" else x.view(b, c // 2, 2, h, w)
        return pairs.amax(1 if self.how == "maximum of halves" else 2)


def styles(draw: Draw) -> Style:
    return Style(draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(["relu", "relu_", "silu", "none"])))


def widths(draw: Draw) -> int:
    return draw(st.sampled_from([4, 8, 12, 6, 5]))


def even(draw: Draw) -> int:
    return draw(st.sampled_from([4, 8, 6]))


def pick(draw: Draw, *options: Any) -> Any:
    return draw(st.sampled_from(options))


Built = tuple[nn.Module, int]


def conv(draw: Draw, c: int) -> Built:
    out = widths(draw)
    return ConvBlock(c, out, styles(draw), pick(draw, 1, 3)), out


def depthwise(draw: Draw, c: int) -> Built:
    times = pick(draw, 1, 1, 2)
    return ConvBlock(c, times * c, styles(draw), groups=c), times * c


def grouped(draw: Draw, c: int) -> Built:
    groups = pick(draw, *(g for g in (2, 3, 4) if c % g == 0))
    out = groups * pick(draw, 1, 2, 3)
    return ConvBlock(c, out, styles(draw), groups=groups), out


def residual(draw: Draw, c: int) -> Built:
    return Residual(c, widths(draw), styles(draw), pick(draw, "plain", "in place", "scaled")), c


def projected(draw: Draw, c: int) -> Built:
    padded = draw(st.booleans())
    out = c + pick(draw, 0, 2, 3) if padded else widths(draw)
    return Projected(c, out, styles(draw), padded), out


def concat(draw: Draw, c: int) -> Built:
    parts = [widths(draw) for _ in range(pick(draw, 1, 2))]
    keep = pick(draw, "input", "pooled", "nothing")
    return Concat(c, parts, styles(draw), keep), sum(parts) + (0 if keep == "nothing" else c)


def dense(draw: Draw, c: int) -> Built:
    growth = pick(draw, 3, 4)
    return Dense(c, growth, styles(draw)), c + 2 * growth


def halves(draw: Draw, c: int) -> Built:
    return Halves(c, styles(draw), pick(draw, *Halves.CUTS), pick(draw, *Halves.WAYS), pick(draw, *Halves.WAYS),
                  draw(st.booleans())), c


def partial(draw: Draw, c: int) -> Built:
    return Partial(c, pick(draw, 2, c // 2, c - 2), styles(draw), draw(st.booleans())), c


def shuffle(draw: Draw, c: int) -> Built:
    return Shuffle(pick(draw, *(g for g in (2, 3, 4) if c % g == 0)), pick(draw, "torch", "views")), c


def gate(draw: Draw, c: int) -> Built:
    return Gate(c, pick(draw, 2, 3, 4), draw(st.booleans())), c


def select(draw: Draw, c: int) -> Built:
    return Select(c, styles(draw), draw(st.booleans())), c


def twice(draw: Draw, c: int) -> Built:
    return Twice(c, styles(draw)), c


def shared(draw: Draw, c: int) -> Built:
    out = widths(draw)
    return SharedBranches(c, out, styles(draw), draw(st.booleans())), out


def up(draw: Draw, c: int) -> Built:
    out = widths(draw)
    return Up(c, out, pick(draw, "transposed", "nearest", "bilinear")), out


def blur(draw: Draw, c: int) -> Built:
    return Blur(c, draw(st.booleans())), c


def norm(draw: Draw, c: int) -> Built:
    return Norm(c, pick(draw, "layer", "instance", "single", *(["group"] if c % 2 == 0 else []))), c


def scale(draw: Draw, c: int) -> Built:
    return (draw(st.booleans()) and Scale(c)) or nn.PReLU(c), c


def attention(draw: Draw, c: int) -> Built:
    return Attention(c, 2, pick(draw, "chunk", "view")), c


def space(draw: Draw, c: int) -> Built:
    out = pick(draw, 4, 6)
    return SpaceToDepth(c, out, pick(draw, "torch", "slices")), out


def mixed(draw: Draw, c: int) -> Built:
    how = pick(draw, "mirror", "doubled", *(["maximum of halves", "maximum of pairs"] if c % 2 == 0 and c > 4 else []))
    return Mixed(how), {"mirror": c, "doubled": 2 * c}.get(how, c // 2)


def computed(draw: Draw, c: int) -> Built:
    out, k = widths(draw), pick(draw, 1, 3)
    layer = crafted.computed(nn.Conv2d(c, out, k, padding=k // 2), pick(draw, *crafted.COMPUTED))
    return nn.Sequential(layer, Act(pick(draw, "relu", "none"))), out


def standardised(draw: Draw, c: int) -> Built:
    out = widths(draw)
    return crafted.Standardised(c, out), out


def bare(draw: Draw, c: int) -> Built:
    groups = pick(draw, 1, 1, c, *(g for g in (2, 3) if c % g == 0))
    out = c if groups == c else groups * pick(draw, 2, 3, 4)
    return crafted.Bare(c, out, groups), out


def mixing(draw: Draw, c: int) -> Built:
    out = widths(draw)
    return crafted.Mixing(c, out), out


def mirrored(draw: Draw, c: int) -> Built:
    return crafted.Mirrored(c, widths(draw)), c


def lambdas(draw: Draw, c: int) -> Built:
    return crafted.lambdas(c, pick(draw, *crafted.LAMBDAS)), c


def remembering(draw: Draw, c: int) -> Built:
    return crafted.Remembering(c, pick(draw, *crafted.Remembering.HOWS)), c


def sliced(draw: Draw, c: int) -> Built:
    ways = tuple(crafted.WAYS)
    return crafted.Sliced(pick(draw, *ways), pick(draw, *ways), draw(st.booleans()), draw(st.booleans())), c


def split_attention(draw: Draw, c: int) -> Built:
    groups = pick(draw, 1, 2) if c % 4 == 0 else 1
    return crafted.SplitAttention(c, 4, groups), c


def selective(draw: Draw, c: int) -> Built:
    return crafted.Selective(c, draw(st.booleans())), c


def reordered(draw: Draw, c: int) -> Built:
    """One after the other, as long as there are few channels."""
    ways: list[str] = []
    for _ in range(pick(draw, 1, 1, 2)):
        way = pick(draw, *reordering.WAYS)
        if c % 2 == 0 and c * reordering.WAYS[way][1] <= 48:
            ways, c = [*ways, way], int(c * reordering.WAYS[way][1])
    return reordering.Reordered(*ways), c


ANY = (conv, conv, depthwise, residual, projected, concat, dense, gate, select, twice, shared, up, blur, norm, scale,
       space, mixed, computed, computed, standardised, bare, mixing, mirrored, lambdas, remembering, selective)
EVEN = (halves, halves, partial, attention, sliced, sliced, split_attention, reordered, reordered)
DIVISIBLE = (grouped, shuffle)


def block(draw: Draw, c: int) -> Built:
    """Any block that fits behind `c` channels."""
    kinds = ANY
    if c % 2 == 0 and c > 2:
        kinds += EVEN
    if c % 2 == 0 or c % 3 == 0:
        kinds += DIVISIBLE
    built, out = draw(st.sampled_from(kinds))(draw, c)
    if out > 20:
        return nn.Sequential(built, ConvBlock(out, 8, Style(True, False, "relu"), 1)), 8
    return built, out


class Head(nn.Module):
    """From a map to the answer: flattened, pooled, convolved, or two answers."""

    HOWS = ("flatten", "pool", "conv", "hidden", "two")

    def __init__(self, c: int, size: int, how: str, hidden: int) -> None:
        super().__init__()
        self.how = how
        flat = c * size * size if how in ("flatten", "hidden") else c
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


class Net(nn.Module):
    """Stem, blocks, head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x)))


@st.composite
def networks(draw: Draw) -> nn.Module:
    """A network for inputs of 2 x 3 x 6 x 6."""
    c, size, built = widths(draw), 6, []
    stem = ConvBlock(3, c, styles(draw))
    for _ in range(draw(st.integers(1, 5))):
        layer, c = block(draw, c)
        built.append(layer)
    if draw(st.booleans()):
        built.append(nn.AvgPool2d(2) if draw(st.booleans()) else nn.MaxPool2d(2))
        size = 3
    return Net(stem, built, Head(c, size, pick(draw, *Head.HOWS), widths(draw)))
