"""Blocks that torchvision or timm have as well: as many parameters, and with their weights the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenetv2, mobilenetv3, shufflenetv2
from torchvision.models.resnet import Bottleneck
from torchvision.models.squeezenet import Fire
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from helpers import count, random_statistics
from torchslim import blocks as b

Pair = tuple[nn.Module, nn.Module]  # ours, theirs


def equal(ours: nn.Module, theirs: nn.Module, channels: int) -> None:
    """With `theirs`' weights, in order, `ours` gives the same; timm has two parts before what they come after here."""
    assert count(ours) == count(theirs)
    state = random_statistics(theirs).state_dict()
    given = [state[key] for key in sorted(state, key=lambda key: key.startswith(("identity.", "mlp.")))]
    ours.load_state_dict(dict(zip(ours.state_dict(), given, strict=True)))
    x = torch.randn(2, channels, 9, 12).double()
    with torch.no_grad():
        found, wanted = (model.double().eval()(x) for model in (ours, theirs))
    assert float((found - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())


def v3(m: int, k: int, wide: int, n: int, se: bool, act: str, stride: int) -> Pair:
    row = mobilenetv3.InvertedResidualConfig(m, k, wide, n, se, act, stride, 1, 1.0)
    theirs = mobilenetv3.InvertedResidual(row, nn.BatchNorm2d)
    ours = b.InvertedResidualSE(m, n, stride, expanded=wide, kernel_size=k, reduction=4 if se else None,
                                act=nn.Hardswish if act == "HS" else nn.ReLU)
    return ours, theirs


class WithSE(nn.Module):
    """torchvision's bottleneck with torchvision's squeeze-and-excitation where SE-ResNet has it."""

    def __init__(self, plain: Bottleneck, channels: int, squeezed: int) -> None:
        super().__init__()
        self.plain = plain
        plain.bn3 = nn.Sequential(plain.bn3, SqueezeExcitation(channels, squeezed))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x)


def se_bottleneck(m: int, n: int, stride: int, groups: int = 1) -> Pair:
    down = None if stride == 1 and m == n else nn.Sequential(nn.Conv2d(m, n, 1, stride, bias=False), nn.BatchNorm2d(n))
    theirs = WithSE(Bottleneck(m, n // 4, stride, down, groups, base_width=64 // groups), n, n // 16)
    return b.SEBottleneck(m, n, stride, groups=groups, se_bias=True), theirs


TORCHVISION: dict[str, tuple[int, Callable[[], Pair]]] = {
    "convolution": (8, lambda: (b.ConvNormAct(8, 16, 5, 2), Conv2dNormActivation(8, 16, 5, 2))),
    "dilated": (8, lambda: (b.ConvNormAct(8, 16, (3, 5), dilation=2, act=nn.Hardswish),
                            Conv2dNormActivation(8, 16, (3, 5), dilation=2, activation_layer=nn.Hardswish))),
    "no norm": (8, lambda: (b.ConvNormAct(8, 16, norm=None, groups=4),
                            Conv2dNormActivation(8, 16, norm_layer=None, groups=4))),
    "squeeze-and-excitation": (32, lambda: (b.SqueezeExcite(32, 4, bias=True, gate=nn.Hardsigmoid),
                                            SqueezeExcitation(32, 8, scale_activation=nn.Hardsigmoid))),
    "MobileNetV2": (16, lambda: (b.InvertedResidual(16, 16), mobilenetv2.InvertedResidual(16, 16, 1, 6))),
    "MobileNetV2, strided": (16, lambda: (b.InvertedResidual(16, 24, 2, 4),
                                          mobilenetv2.InvertedResidual(16, 24, 2, 4))),
    "MobileNetV2, t = 1": (16, lambda: (b.InvertedResidual(16, 8, 1, 1), mobilenetv2.InvertedResidual(16, 8, 1, 1))),
    "MobileNetV3": (40, lambda: v3(40, 5, 240, 40, True, "HS", 1)),
    "MobileNetV3, strided": (16, lambda: v3(16, 3, 64, 24, False, "RE", 2)),
    "MobileNetV3, not expanded": (16, lambda: v3(16, 3, 16, 16, True, "RE", 2)),
    "ShuffleNetV2": (24, lambda: (b.ShuffleUnitV2(24, 24), shufflenetv2.InvertedResidual(24, 24, 1))),
    "ShuffleNetV2, strided": (24, lambda: (b.ShuffleUnitV2(24, 58, 2), shufflenetv2.InvertedResidual(24, 58, 2))),
    "SqueezeNet": (32, lambda: (b.Fire(32, 8, 16, 24), Fire(32, 8, 16, 24))),
    "SE-ResNet": (64, lambda: se_bottleneck(64, 64, 1)),
    "SE-ResNet, strided": (32, lambda: se_bottleneck(32, 64, 2)),
    "SE-ResNeXt": (64, lambda: se_bottleneck(64, 64, 1, groups=4)),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_equals_torchvisions(name: str) -> None:
    channels, pair = TORCHVISION[name]
    equal(*pair(), channels)


def timms(name: str) -> Pair:
    byobnet = pytest.importorskip("timm.models.byobnet")
    from timm.models import _efficientnet_blocks as efficientnet
    from timm.models import fasternet, ghostnet, starnet

    def uib(n: int, start: int, middle: int, **options: Any) -> Pair:
        ours = b.UniversalInvertedBottleneck(16, n, start=start or None, middle=middle or None, **options)
        theirs = efficientnet.UniversalInvertedResidual(16, n, start, middle, exp_ratio=4.0,
                                                        layer_scale_init_value=None, **options)
        return ours, theirs

    pairs: dict[str, Callable[[], Pair]] = {
        "ghost": lambda: (b.GhostModule(16, 32, 3), ghostnet.GhostModule(16, 32, 3)),
        "ghost, in four": lambda: (b.GhostModule(16, 32, ratio=4, cheap_kernel=5),
                                   ghostnet.GhostModule(16, 32, ratio=4, dw_size=5)),
        "RepVGG": lambda: (b.RepBlock(16, 16, act=nn.ReLU), byobnet.RepVggBlock(16, 16)),
        "RepVGG, strided": lambda: (b.RepBlock(16, 24, stride=2, groups=4, act=nn.ReLU),
                                    byobnet.RepVggBlock(16, 24, stride=2, group_size=4)),
        "UIB": lambda: uib(16, 0, 3),
        "UIB, both": lambda: uib(24, 5, 3, stride=2),
        "UIB, start": lambda: uib(16, 5, 0),
        "UIB, neither": lambda: uib(16, 0, 0),
        "partial": lambda: (b.PartialConv(16, 16),
                            fasternet.MLPBlock(16, 4, 2.0, 0.0, 0, nn.ReLU, nn.BatchNorm2d)),
        "star": lambda: (b.StarBlock(16, 16, expansion=3, bias=True), starnet.Block(16, 3)),
    }
    return pairs[name]()


@pytest.mark.parametrize("name", ["ghost", "ghost, in four", "RepVGG", "RepVGG, strided", "UIB", "UIB, both",
                                  "UIB, start", "UIB, neither", "partial", "star"])
def test_equals_timms(name: str) -> None:
    equal(*timms(name), 16)
