"""Well-known networks, rewritten: they run, train, are cut and proven; and the U-Net ladder to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchslim as ts
from helpers import check_training, count, random_statistics
from torchslim.rewriting import lighten_with_report

EXACT = 1e-9


def double(inputs: int, middle: int, outputs: int, padding: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((inputs, middle), (middle, outputs)):
        layers += [nn.Conv2d(a, b, 3, padding=padding), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Five encoder stages, three decoder stages that run and one that does not, and a head."""

    def __init__(self, width: int = 64, padding: int = 0) -> None:
        super().__init__()
        sizes = [width * 2**stage for stage in range(5)]
        self.enc = nn.ModuleList(double(a, b, b, padding) for a, b in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in sizes[3::-1])
        self.dec = nn.ModuleList(double(2 * c, c, c, padding) for c in sizes[3::-1])
        self.head = nn.Sequential(*double(2 * width, width, width, padding), nn.Conv2d(width, 2, 3, padding=padding))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.enc:
            x = stage(x if not skips else nn.functional.max_pool2d(skips[-1], 3, 2, 1))
            skips.append(x)
        for up, stage, skip in zip(self.up, [*list(self.dec)[:3], self.head], skips[3::-1], strict=True):
            x = up(x)
            high, wide = (a - b for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            x = nn.functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            x = stage(torch.cat([skip, x], 1))
        return x


Step = tuple[str, Sequence[str]]
LADDER: list[tuple[list[Step], int, int]] = [
    ([], 31_155_586, 35_625_950_464),
    ([("pointwise-after:norm", ["enc.*.0"])], 28_719_900, 34_135_523_908),
    ([("pointwise-before:norm", ["dec.*.0"])], 26_285_660, 30_221_124_164),
    ([("grouped:4", ["enc.*.3", "dec.*"])], 11_635_292, 15_342_322_244),
    ([("asymmetric:norm", ["enc.*", "dec.*"])], 9_035_594, 13_296_976_748),
    ([("depthwise", ["enc.*.3", "dec.*"])], 5_919_434, 10_207_360_364)]


def test_the_ladder_from_its_first_rung() -> None:
    """Uncalled modules are rewritten like the others; the 1x1 keep their groups, the ungrouped first pair stays."""
    with torch.device("meta"):
        unet = UNet()
        x = torch.empty(1, 3, 256, 256)
    steps: list[Step] = []
    for more, params, macs in LADDER:
        steps += more
        light = ts.lighten(unet, steps, ends=True) if steps else unet
        assert count(light) == params
        assert ts.profile(light, x).macs == macs
        assert light(x).shape == (1, 2, 246, 246)


def test_the_last_rung_runs_and_trains() -> None:
    steps = [step for more, *_ in LADDER for step in more]
    light = ts.lighten(UNet(8, padding=1), steps, ends=True)
    assert light(torch.randn(2, 3, 32, 32)).shape == (2, 2, 32, 32)
    assert len(check_training(light, torch.randn(2, 3, 32, 32))) > 50


def vgg() -> nn.Module:
    """VGG-16 with a classifier that is not most of the test's time."""
    model = torchvision.models.vgg16()
    model.classifier = nn.Sequential(nn.Linear(25088, 16), nn.ReLU(), nn.Linear(16, 10))
    return model


@pytest.mark.parametrize(("build", "rules", "side"), [
    pytest.param(lambda: torchvision.models.resnet50(num_classes=10), "separable", 64, marks=pytest.mark.nightly),
    (lambda: torchvision.models.resnet50(num_classes=10), ["grouped:4:shuffle"], 64),
    pytest.param(lambda: torchvision.models.resnet18(num_classes=10), ["ghost", "lowrank:0.25"], 64,
                 marks=pytest.mark.nightly),
    (vgg, ["separable", ("grouped:2", ["*.pointwise"])], 32),
    (lambda: UNet(8, padding=1), ["separable", ("asymmetric", ["up.*"])], 64),
    (lambda: UNet(8, padding=1), ["fire:4", "asymmetric:norm"], 64),
    *(pytest.param(lambda: torchvision.models.densenet121(num_classes=10), rule, 64, marks=pytest.mark.nightly)
      for rule in ("asymmetric:8", "grouped:2"))])
def test_a_rewritten_network_runs_trains_and_is_cut_exactly(build: Any, rules: Any, side: int) -> None:
    model, x = random_statistics(build()), torch.randn(2, 3, side, side)
    found = lighten_with_report(model, rules, x)
    light = found.model
    assert found.macs is not None
    assert found.macs[1] < found.macs[0]
    assert light.eval()(x).shape == model.eval()(x).shape
    reached = check_training(light, x)
    assert {f"{row.layer}.{name}" for row in found.layers if "dec.3" not in row.layer
            for name, _ in light.get_submodule(row.layer).named_parameters()} <= reached
    plan = ts.plan(light, x, macs=0.6)
    slim = ts.apply(light, plan)
    assert ts.verify(light, slim, plan, x) < EXACT
    check_training(slim, x)


@pytest.mark.nightly
def test_a_rewritten_detector_runs_trains_and_is_cut_exactly() -> None:
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=96)
    images = [torch.rand(3, 96, 96)]
    found = lighten_with_report(model, "separable", images)
    names = {row.layer for row in found.layers}
    assert "backbone.body.conv1" not in names
    assert {"backbone.body.layer1.0.conv2", "backbone.fpn.layer_blocks.0.0", "rpn.head.conv.0.0"} <= names
    ends = {row.layer for row in lighten_with_report(
        model, "lowrank:4", images, fresh=True, only=["r*_*", "rpn*"]).layers}
    assert "roi_heads.box_head.fc6" in ends
    assert not ends & {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}
    light = found.model
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([2])}]
    losses = light.train()(images, targets)
    sum(losses.values()).backward()
    assert light.get_parameter("backbone.fpn.layer_blocks.0.0.depthwise.weight").grad is not None
    light.eval().zero_grad()
    plan = ts.plan(light, images, macs=0.6)
    assert ts.verify(light, ts.apply(light, plan), plan, images) < EXACT
