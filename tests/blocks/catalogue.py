"""Every block in the forms that are tested, with what it should cost in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchslim import blocks as b
from torchslim.formulas import Cost, asymmetric_pair, batch_norm, convolution, depthwise, linear

Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A block for maps of `m` channels that gives `n` (or `m` again).

    Attributes:
        make: the class.
        options: (m, n) -> what it is called with, by keyword.
        law: (m, n, rows and columns of the input) -> what it costs.
        same: whether it gives as many channels as it takes.
    """

    make: Callable[..., nn.Module]
    options: Callable[[int, int], Options]
    law: Callable[[int, int, int], Cost]
    same: bool = False

    def width(self, m: int, n: int) -> int:
        return m if self.same else n

    def built(self, m: int = 16, n: int = 32) -> nn.Module:
        return self.make(**self.options(m, self.width(m, n)))

    def cost(self, m: int, n: int, size: int) -> Cost:
        return self.law(m, self.width(m, n), size)


def ends(**more: Any) -> Callable[[int, int], Options]:
    return lambda m, n: {"in_channels": m, "out_channels": n, **more}


def full(m: int, n: int, k: int, h: int, groups: int = 1) -> Cost:
    """A convolution without bias, and its batch norm."""
    return convolution(m, n, k, (h, h), groups=groups) + batch_norm(n)


def deep(m: int, k: int, h: int) -> Cost:
    """A depthwise convolution without bias, and its batch norm."""
    return depthwise(m, k, (h, h)) + batch_norm(m)


def bare(m: int, n: int, k: int, h: int, bias: bool = True) -> Cost:
    """A convolution without norm."""
    return convolution(m, n, k, (h, h), bias=bias)


def unbiased(m: int, n: int, k: int, h: int) -> Cost:
    return bare(m, n, k, h, bias=False)


def gate(c: int, squeezed: int, bias: bool = False) -> Cost:
    return linear(c, squeezed, bias=bias) + linear(squeezed, c, bias=bias)


def residual(m: int, n: int, h: int, t: int, out: int) -> Cost:
    return full(m, t * m, 1, h) + deep(t * m, 3, out) + full(t * m, n, 1, out)


CASES = {
    "ConvNormAct": Case(b.ConvNormAct, ends(), lambda m, n, h: full(m, n, 3, h)),
    "ConvNormAct, plain": Case(
        b.ConvNormAct, ends(kernel_size=5, stride=2, dilation=2, norm=None, act=None),
        lambda m, n, h: bare(m, n, 5, h // 2)),
    "GroupedConv": Case(b.GroupedConv, ends(), lambda m, n, h: full(m, n, 3, h, groups=4)),
    "GroupedConv, shuffled": Case(
        b.GroupedConv, ends(kernel_size=1, groups=2, shuffle=True), lambda m, n, h: full(m, n, 1, h, groups=2)),
    "DepthwiseSeparable": Case(b.DepthwiseSeparable, ends(), lambda m, n, h: deep(m, 3, h) + full(m, n, 1, h)),
    "DepthwiseSeparable, doubled": Case(
        b.DepthwiseSeparable, ends(stride=2, multiplier=2, bias=(True, False)),
        lambda m, n, h: (depthwise(m, 3, (h // 2, h // 2), multiplier=2, bias=True) + batch_norm(2 * m)
                         + full(2 * m, n, 1, h // 2))),
    "DWConv": Case(b.DWConv, ends(dilation=2), lambda m, n, h: deep(m, 3, h) + full(m, n, 1, h)),
    "AsymmetricPair": Case(
        b.AsymmetricPair, ends(),
        lambda m, n, h: asymmetric_pair(m, n, 3, (h, h)) + batch_norm(n) + batch_norm(n)),
    "AsymmetricPair, in groups": Case(
        b.AsymmetricPair, ends(kernel_size=5, stride=2, groups=2, middle=8, norm=None),
        lambda m, n, h: asymmetric_pair(m, n, 5, (h // 2, h // 2), middle=8, rows=h, groups=2, bias=True)),
    "Fire": Case(
        b.Fire, lambda m, n: {"in_channels": m, "squeezed": m // 4, "expand1x1": n // 2, "expand3x3": n // 2},
        lambda m, n, h: bare(m, m // 4, 1, h) + bare(m // 4, n // 2, 1, h) + bare(m // 4, n // 2, 3, h)),
    "Fire, bypassed": Case(
        b.Fire, lambda m, n: {"in_channels": m, "squeezed": m // 2, "expand1x1": n // 4, "expand3x3": n - n // 4,
                              "bypass": True, "norm": nn.BatchNorm2d},
        lambda m, n, h: full(m, m // 2, 1, h) + full(m // 2, n // 4, 1, h) + full(m // 2, n - n // 4, 3, h), same=True),
    "SqueezeExcite": Case(b.SqueezeExcite, lambda m, n: {"channels": m}, lambda m, n, h: gate(m, m // 16), same=True),
    "SqueezeExcite, linear": Case(
        b.SqueezeExcite, lambda m, n: {"channels": m, "reduction": 4, "linear": True, "bias": True,
                                       "gate": nn.Hardsigmoid},
        lambda m, n, h: gate(m, m // 4, bias=True), same=True),
    "SEBottleneck": Case(
        b.SEBottleneck, ends(),
        lambda m, n, h: (full(m, n // 4, 1, h) + full(n // 4, n // 4, 3, h) + full(n // 4, n, 1, h) + full(m, n, 1, h)
                         + gate(n, n // 16))),
    "SEBottleneck, identity": Case(
        b.SEBottleneck, ends(groups=2, middle=8, reduction=4, se_bias=True),
        lambda m, n, h: (full(m, 8, 1, h) + full(8, 8, 3, h, groups=2) + full(8, n, 1, h) + gate(n, n // 4, bias=True)),
        same=True),
    "InvertedResidual": Case(b.InvertedResidual, ends(), lambda m, n, h: residual(m, n, h, 6, h)),
    "InvertedResidual, added": Case(b.InvertedResidual, ends(), lambda m, n, h: residual(m, n, h, 6, h), same=True),
    "InvertedResidual, strided": Case(
        b.InvertedResidual, ends(stride=2, expansion=2), lambda m, n, h: residual(m, n, h, 2, h // 2)),
    "InvertedResidual, t = 1": Case(
        b.InvertedResidual, ends(expansion=1), lambda m, n, h: deep(m, 3, h) + full(m, n, 1, h)),
    "InvertedResidual, t = 1, expanded": Case(
        b.InvertedResidual, ends(expansion=1, expand=True), lambda m, n, h: residual(m, n, h, 1, h)),
    "InvertedResidualSE": Case(
        b.InvertedResidualSE, ends(), lambda m, n, h: residual(m, n, h, 4, h) + gate(4 * m, m, bias=True)),
    "InvertedResidualSE, added": Case(
        b.InvertedResidualSE, ends(expanded=24, kernel_size=5, squeezed=4, act=nn.SiLU, gate=nn.Sigmoid),
        lambda m, n, h: full(m, 24, 1, h) + deep(24, 5, h) + gate(24, 4, bias=True) + full(24, n, 1, h), same=True),
    "UniversalInvertedBottleneck": Case(
        b.UniversalInvertedBottleneck, ends(), lambda m, n, h: residual(m, n, h, 4, h)),
    "UniversalInvertedBottleneck, both": Case(
        b.UniversalInvertedBottleneck, ends(start=5, middle=3, stride=2),
        lambda m, n, h: deep(m, 5, h) + residual(m, n, h, 4, h // 2)),
    "UniversalInvertedBottleneck, start": Case(
        b.UniversalInvertedBottleneck, ends(start=3, middle=None, stride=2),
        lambda m, n, h: deep(m, 3, h // 2) + full(m, 4 * m, 1, h // 2) + full(4 * m, n, 1, h // 2)),
    "UniversalInvertedBottleneck, neither": Case(
        b.UniversalInvertedBottleneck, ends(middle=None, expansion=2),
        lambda m, n, h: full(m, 2 * m, 1, h) + full(2 * m, n, 1, h), same=True),
    "ChannelShuffle": Case(b.ChannelShuffle, lambda m, n: {"groups": 4}, lambda m, n, h: Cost(), same=True),
    "ShuffleUnitV1": Case(
        b.ShuffleUnitV1, ends(stride=2, groups=4),
        lambda m, n, h: (full(m, n // 4, 1, h, groups=4) + deep(n // 4, 3, h // 2)
                         + full(n // 4, n - m, 1, h // 2, groups=4))),
    "ShuffleUnitV1, added": Case(
        b.ShuffleUnitV1, ends(groups=2, bottleneck=8, grouped_first=False),
        lambda m, n, h: full(m, 8, 1, h) + deep(8, 3, h) + full(8, n, 1, h, groups=2), same=True),
    "ShuffleUnitV2": Case(
        b.ShuffleUnitV2, ends(stride=2),
        lambda m, n, h: (deep(m, 3, h // 2) + full(m, n // 2, 1, h // 2)
                         + full(m, n // 2, 1, h) + deep(n // 2, 3, h // 2) + full(n // 2, n // 2, 1, h // 2))),
    "ShuffleUnitV2, wide": Case(
        b.ShuffleUnitV2, lambda m, n: {"in_channels": m, "out_channels": n, "stride": 2, "middle": m},
        lambda m, n, h: (deep(m, 3, h // 2) + full(m, n // 2, 1, h // 2)
                         + full(m, m, 1, h) + deep(m, 3, h // 2) + full(m, n // 2, 1, h // 2))),
    "ShuffleUnitV2, split": Case(
        b.ShuffleUnitV2, ends(),
        lambda m, n, h: full(m // 2, n // 2, 1, h) + deep(n // 2, 3, h) + full(n // 2, n // 2, 1, h), same=True),
    "GhostModule": Case(
        b.GhostModule, ends(kernel_size=3), lambda m, n, h: full(m, n // 2, 3, h) + deep(n // 2, 3, h)),
    "GhostModule, in four": Case(
        b.GhostModule, ends(stride=2, ratio=4, cheap_kernel=5),
        lambda m, n, h: (full(m, n // 4, 1, h // 2) + depthwise(n // 4, 5, (h // 2, h // 2), multiplier=3)
                         + batch_norm(3 * n // 4))),
    "RepBlock": Case(b.RepBlock, ends(), lambda m, n, h: full(m, n, 3, h) + full(m, n, 1, h)),
    "RepBlock, four": Case(
        b.RepBlock, ends(branches=2, act=nn.ReLU),
        lambda m, n, h: full(m, n, 3, h) + full(m, n, 3, h) + full(m, n, 1, h) + batch_norm(m), same=True),
    "RepBlock, depthwise": Case(
        b.RepBlock, lambda m, n: {"in_channels": m, "out_channels": m, "groups": m},
        lambda m, n, h: deep(m, 3, h) + deep(m, 1, h) + batch_norm(m), same=True),
    "PartialConv": Case(
        b.PartialConv, ends(),
        lambda m, n, h: unbiased(m // 4, m // 4, 3, h) + full(m, 2 * m, 1, h) + unbiased(2 * m, n, 1, h)),
    "PartialConv, added": Case(
        b.PartialConv, ends(parts=2, expansion=3, act=nn.GELU),
        lambda m, n, h: unbiased(m // 2, m // 2, 3, h) + full(m, 3 * m, 1, h) + unbiased(3 * m, n, 1, h),
        same=True),
    "StarBlock": Case(
        b.StarBlock, ends(),
        lambda m, n, h: (deep(m, 7, h) + bare(m, 4 * m, 1, h) + bare(m, 4 * m, 1, h) + full(4 * m, n, 1, h)
                         + depthwise(n, 7, (h, h), bias=True))),
    "StarBlock, added": Case(
        b.StarBlock, ends(expansion=3, kernel_size=3, bias=False),
        lambda m, n, h: (deep(m, 3, h) + unbiased(m, 3 * m, 1, h) + unbiased(m, 3 * m, 1, h)
                         + full(3 * m, n, 1, h) + depthwise(n, 3, (h, h))), same=True),
}
