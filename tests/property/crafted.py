"""More blocks for random networks: weights that are computed, bare or tied, widths that are remembered."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


LAMBDAS = {
    "arithmetic": lambda: [Lambda(lambda x: x * 2), Lambda(torch.tanh), Lambda(lambda x: x + x.mean((2, 3), True))],
    "views": lambda: [Lambda(lambda x: x.flatten(2)), Lambda(lambda x: x.mT), Lambda(lambda x: x.softmax(1)),
                      Lambda(lambda x: x.mT.unflatten(2, (6, 6)))],
    "remembered": lambda c: [Lambda(lambda x: x.contiguous().view(-1, c, 36)), Lambda(lambda x: x.view(-1, c, 6, 6))],
    "one input": lambda: [Lambda(lambda x: torch.cat([x], 1)), Lambda(lambda x: torch.cat([x[:, :]], 1))],
}


def lambdas(c: int, how: str) -> nn.Module:
    return nn.Sequential(*(LAMBDAS[how](c) if how == "remembered" else LAMBDAS[how]()))


class Positive(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return functional.softplus(weight)


class Gain(nn.Module):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(filters, 1, 1, 1) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain


COMPUTED = ("positive", "gain", "both", "weight norm", "weight norm by hooks", "weight norm by inputs",
            "spectral norm", "spectral norm by hooks", "masked", "orthogonal")


def computed(layer: nn.Module, how: str) -> nn.Module:
    """A layer whose weight is computed of its parameters."""
    if how in ("gain", "both"):
        parametrize.register_parametrization(layer, "weight", Gain(layer.weight.shape[0]))
    if how in ("positive", "both"):
        parametrize.register_parametrization(layer, "weight", Positive())
    wrap = {"weight norm": parametrizations.weight_norm, "weight norm by hooks": weight_norm,
            "weight norm by inputs": lambda own: parametrizations.weight_norm(own, dim=1),
            "spectral norm": parametrizations.spectral_norm, "spectral norm by hooks": spectral_norm,
            "orthogonal": parametrizations.orthogonal,
            "masked": lambda own: prune.random_unstructured(own, "weight", 0.3)}
    return wrap[how](layer) if how in wrap else layer


class Standardised(nn.Conv2d):
    """Each filter at mean 0 and variance 1, with a gain."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(cout, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(spread + 1e-4) * self.gain
        return functional.conv2d(x, weight, self.bias, padding=1)


class Bare(nn.Module):
    """A convolution by hand on a parameter of its own; the groups are an attribute, if there are any."""

    reads = "kernel"

    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.kernel = nn.Parameter(torch.randn(cout, cin // groups, 3, 3) * 0.3)
        self.shift = nn.Parameter(torch.randn(cout))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernel, self.shift, padding=1, groups=self.groups)


class Mixing(nn.Module):
    """A matrix by hand over the channels."""

    reads = "matrix"

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(cout, cin) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bohw", x, self.matrix)


class Mirrored(nn.Module):
    """There and back by one weight: a convolution, and the transposed one of the same parameter."""

    def __init__(self, c: int, inner: int) -> None:
        super().__init__()
        self.there = nn.Conv2d(c, inner, 3, padding=1)
        self.back = nn.ConvTranspose2d(inner, c, 3, padding=1)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.there(x).relu())


class Remembering(nn.Module):
    """Widths in attributes: a number, a shape, a list of sizes, where to slice, the groups of a blur."""

    HOWS = ("view", "shape", "sizes", "at", "blur", "offset", "moved")

    def __init__(self, c: int, how: str) -> None:
        super().__init__()
        self.how, self.width = how, c
        self.shape = (c, 6, 6)
        self.sizes, self.at = [c // 2, c - c // 2], c // 2
        self.register_buffer("kernel", torch.rand(c, 1, 3, 3))
        self.register_buffer("mean", torch.randn(c))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view":
            return x.view(x.shape[0], self.width, -1).cumsum(2).view(x.shape[0], self.width, *x.shape[2:])
        if self.how == "shape":
            return x.flatten(1).view(-1, *self.shape)
        if self.how == "sizes":
            a, b = x.split(self.sizes, 1)
            return torch.cat([b.tanh(), a], 1)
        if self.how == "at":
            return torch.cat([x[:, :self.at].sigmoid(), x[:, self.at:]], 1)
        if self.how == "moved":
            return torch.cat([x[:, :self.at].roll(1, 0), x[:, self.at:].flip(3)], 1)
        if self.how == "blur":
            return functional.conv2d(x, self.kernel, padding=1, groups=self.width)
        return x - self.mean.view(1, self.width, 1, 1)


WAYS = {"nothing": lambda y: y, "mirrored": lambda y: y.flip(3), "turned": lambda y: y.transpose(2, 3),
        "batch": lambda y: y.roll(1, 0), "shifted": lambda y: functional.pad(y[:, :, 1:], (0, 0, 0, 1))}


class Sliced(nn.Module):
    """Slices of one input, joined in another order, some of them moved within their channels."""

    def __init__(self, left: str, right: str, step: bool, swapped: bool) -> None:
        super().__init__()
        self.left, self.right, self.step, self.swapped = left, right, step, swapped

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        a, b = (x[:, ::2], x[:, 1::2]) if self.step else (x[:, :half], x[:, half:])
        a, b = WAYS[self.left](a), WAYS[self.right](b)
        return torch.cat([b, a] if self.swapped else [a, b], 1)


class SplitAttention(nn.Module):
    """Two splits in each of some groups, weighed by a softmax."""

    def __init__(self, c: int, inner: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv = nn.Conv2d(c, 2 * c, 3, padding=1, groups=2 * groups)
        self.down, self.up = nn.Conv2d(c, inner, 1, groups=groups), nn.Conv2d(inner, 2 * c, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        splits = self.conv(x).relu().chunk(2, 1)
        weights = self.up(self.down(sum(splits).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(x.shape[0], self.groups, 2, -1).transpose(1, 2).softmax(1).reshape(x.shape[0], -1, 1, 1)
        return sum(weight * part for weight, part in zip(weights.chunk(2, 1), splits, strict=True))


class Selective(nn.Module):
    """Selective kernels whose weights are joined by cat, or come in one view of a remembered width."""

    def __init__(self, c: int, joined: bool) -> None:
        super().__init__()
        self.width, self.joined = c, joined
        self.branches = nn.ModuleList(nn.Conv2d(c, c, 3, padding=d, dilation=d) for d in (1, 2))
        self.squeeze = nn.Linear(c, 4)
        self.weigh = nn.ModuleList(nn.Linear(4, c) for _ in range(2)) if joined else nn.Linear(4, 2 * c)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([branch(x) for branch in self.branches], 1)
        z = self.squeeze(branches.sum(1).mean((2, 3)))
        if self.joined:
            weights = torch.cat([weigh(z).unsqueeze(1) for weigh in self.weigh], 1)
        else:
            weights = self.weigh(z).view(x.shape[0], 2, self.width)
        return (branches * weights.softmax(1)[..., None, None]).sum(1)
