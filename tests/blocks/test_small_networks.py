"""Networks for 32x32 pictures and 100 classes, written in blocks, have their published sizes: every option counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers import count, counted_macs
from torchslim import blocks as b

CLASSES = 100
PICTURE = torch.empty(1, 3, 32, 32, device="meta")


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def squeezenet() -> nn.Sequential:
    def fire(m: int, n: int, bypass: bool) -> b.Fire:
        return b.Fire(m, n // 8, n // 2, n // 2, bypass=bypass, bias=True, norm=nn.BatchNorm2d)

    layers: list[nn.Module] = [b.ConvNormAct(3, 96, bias=True), nn.MaxPool2d(2, 2)]
    widths = [96, 128, 128, 256, 256, 384, 384, 512, 512]
    for number, (m, n) in enumerate(pairwise(widths), 2):
        layers.append(fire(m, n, bypass=number in (3, 5, 7)))
        if number in (4, 8):
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, nn.Conv2d(512, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mobilenet_v1(width: float) -> nn.Sequential:
    widths = [int(width * n) for n in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    units = [b.DepthwiseSeparable(m, n, 3, stride, bias=(False, True))
             for (m, n), stride in zip(pairwise(widths), strides, strict=True)]
    return nn.Sequential(b.ConvNormAct(3, widths[0]), *units, *head(widths[-1]))


def mobilenet_v2() -> nn.Sequential:
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1)]
    layers: list[nn.Module] = [b.ConvNormAct(3, 32, 1, padding=1, bias=True, act=nn.ReLU6)]
    m = 32
    for t, n, repeats, stride in rows:
        for number in range(repeats):
            layers.append(b.LinearBottleneck(m, n, 1 if number else stride, t, expand=True, bias=True))
            m = n
    layers += [b.ConvNormAct(m, 1280, 1, bias=True, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Conv2d(1280, CLASSES, 1)]
    return nn.Sequential(*layers, nn.Flatten())


def shufflenet_v1(groups: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [b.ConvNormAct(3, 24, bias=True)]
    for (m, n), repeats in zip(pairwise([24, *widths]), (4, 8, 4), strict=True):
        layers += [b.ShuffleUnitV1(m if number == 0 else n, n, 1 if number else 2, groups=groups, bias=True)
                   for number in range(repeats)]
    return nn.Sequential(*layers, *head(widths[-1]))


def shufflenet_v2(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [b.ConvNormAct(3, 24, bias=True, act=None)]
    for (m, n), repeats in zip(pairwise([24, *widths[:3]]), (4, 8, 4), strict=True):
        layers.append(b.ShuffleUnitV2(m, n, 2, middle=m, bias=True))
        layers += [b.ShuffleUnitV2(n, n, bias=True) for _ in range(repeats - 1)]
    return nn.Sequential(*layers, b.ConvNormAct(widths[2], widths[3], 1, bias=True), *head(widths[3]))


@pytest.mark.parametrize(("make", "arguments", "params", "macs"), [
    (squeezenet, (), 781_156, 53_280_768),
    (mobilenet_v1, (1.0,), 3_315_428, 46_446_592),
    (mobilenet_v1, (0.75,), 1_897_924, 26_577_408),
    (mobilenet_v1, (0.5,), 872_868, 12_213_248),
    (mobilenet_v1, (0.25,), 240_260, 3_354_112),
    (mobilenet_v2, (), 2_369_380, 64_947_264),
    (shufflenet_v1, (1, 144, 288, 567), 997_813, 44_218_764),
    (shufflenet_v1, (2, 200, 400, 800), 1_022_548, 43_201_152),
    (shufflenet_v1, (3, 240, 480, 960), 1_012_108, 41_693_952),
    (shufflenet_v1, (4, 272, 544, 1088), 1_000_892, 40_375_552),
    (shufflenet_v1, (8, 384, 768, 1536), 1_069_036, 40_777_728),
    (shufflenet_v2, (48, 96, 192, 1024), 448_268, 10_994_176),
    (shufflenet_v2, (116, 232, 464, 1024), 1_360_896, 43_675_520),
    (shufflenet_v2, (176, 352, 704, 1024), 2_584_716, 91_189_760),
    (shufflenet_v2, (244, 488, 976, 2048), 5_550_976, 182_300_544),
])
def test_sizes(make: Callable[..., nn.Module], arguments: tuple[float, ...], params: int, macs: int) -> None:
    with torch.device("meta"):
        network = make(*arguments)
    assert count(network) == params
    assert counted_macs(network, PICTURE) == macs
