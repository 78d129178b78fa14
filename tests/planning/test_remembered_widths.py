"""Widths that only code off the traced path reads are updated where that is safe; what is calculated with never is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchslim as ts
from helpers import Calls, conv, random_statistics

X = torch.randn(2, 3, 8, 8)


class Split(nn.Module):
    """The block of a detector whose exporter splits by a remembered width where training takes halves."""

    def __init__(self, cin: int, cout: int, width: int, scale: bool) -> None:
        super().__init__()
        self.c, self.scale = width, width if scale else 1
        self.cv1, self.cv2 = conv(cin, 2 * width), conv(3 * width, cout)
        self.m = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        return self.cv2(torch.cat([*y, self.m(y[-1] / self.scale)], 1))

    def forward_split(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        return self.cv2(torch.cat([*y, self.m(y[-1] / self.scale)], 1))

    def forward_broken(self, x: Tensor) -> Tensor:
        return self.gone(x, self.c)


@pytest.mark.parametrize("share", [0.7, 0.3])
@pytest.mark.parametrize("data", [False, True], ids=["on shapes", "on data"])
def test_methods_that_stand_in_for_forward_work_again(share: float, data: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.body(x + 1 if data and x.abs().max().item() < 0 else x)

    model = random_statistics(Calls(forward, body=nn.Sequential(
        Split(3, 8, 16, True), nn.ReLU(), Split(8, 8, 12, False), conv(8, 4)))).eval()
    slim, plan = ts.prune(model, X, macs=share)
    for index in (0, 2):
        block, x = slim.body[index], torch.randn(2, slim.body[index].cv1.in_channels, 8, 8)
        assert block.c == block.cv1.out_channels / 2 < model.body[index].c
        assert torch.equal(block(x), block.forward_split(x))
        assert block.scale == model.body[index].scale
    assert {update.attribute for update in plan.attribute_updates} == {"c", "in_channels", "out_channels"}


class Named(nn.Module):
    """A block that knows its widths by name, one of which two layers of different widths have."""

    def __init__(self, cin: int, width: int, cout: int) -> None:
        super().__init__()
        self.in_channels, self.hidden_dim, self.out_channels = cin, width, cout
        self.planes, self.number, self.factor = cin, width, cout
        self.first, self.second = conv(cin, width), conv(width, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) / self.factor


def test_widths_are_updated_by_their_names() -> None:
    model = random_statistics(nn.Sequential(conv(3, 16), Named(16, 24, 16), nn.ReLU(), conv(16, 4))).eval()
    slim, plan = ts.prune(model, X, scope={"0": 0.5, "1.first": 0.75, "1.second": 0.25})
    block = slim[1]
    assert (block.in_channels, block.hidden_dim, block.out_channels) == (8, 18, 4)
    assert (block.planes, block.number, block.factor) == (16, 24, 16)  # two widths; no width's name; calculated with
    assert "1.hidden_dim: 24 -> 18" in str(plan)
    assert ts.Plan.from_json(plan.to_json()) == plan


CALCULATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a quotient": lambda s, y: y / math.sqrt(s.width),
    "a tensor": lambda s, y: y * torch.tensor(float(s.width)),
    "a filling": lambda s, y: y * torch.full((1,), s.width),
    "a power": lambda s, y: y.abs() ** (1 / s.width),
    "a bound": lambda s, y: y.clamp(max=s.width / 16),
    "padding": lambda s, y: functional.pad(y, (1, 1), value=s.width),
    "a weighted sum": lambda s, y: torch.add(y, y.sin(), alpha=s.width),
}


@pytest.mark.parametrize("data", [False, True], ids=["on shapes", "on data"])
@pytest.mark.parametrize("calculation", CALCULATIONS)
def test_a_width_that_is_calculated_with_keeps_its_value(calculation: str, data: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x + 1 if data and x.abs().max().item() < 0 else x
        return self.head(self.mid(CALCULATIONS[calculation](self, self.stem(x).view(-1, self.width, 8, 8))).relu())

    def off_path(self: Any, x: Tensor) -> Tensor:
        x = x + 1 if data and x.abs().max().item() < 0 else x
        return self.head(self.mid(CALCULATIONS[calculation](self, self.stem(x))).relu())

    for function, cut in ((forward, False), (off_path, True)):
        model = random_statistics(Calls(function, stem=conv(3, 16), mid=conv(16, 8), head=conv(8, 4))).eval()
        model.width = 16
        slim, plan = ts.prune(model, X, macs=0.5)
        assert slim.width == 16
        assert (slim.stem.out_channels < 16) is cut
        (reason,) = [left.reason for left in plan.left_alone if left.name == "stem" and left.channels == 16] or [""]
        assert cut or ("`width` is a width, and something else" if data else "remembers a width") in reason


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timm_networks_know_their_features_and_make_new_classifiers(name: str, tmp_path: Path) -> None:
    model = random_statistics(timm.create_model(name)).eval()
    x = torch.randn(2, 3, 64, 64)
    slim, plan = ts.prune(model, x, params=0.5, allow_approximate=True)
    features = slim.forward_intermediates(x, intermediates_only=True)
    widths = [feature.shape[1] for feature in features]
    assert [entry["num_chs"] for entry in slim.feature_info][-len(widths):] == widths
    assert widths != [entry["num_chs"] for entry in model.feature_info][-len(widths):]
    loaded = ts.load(ts.save(slim, tmp_path / "slim.safetensors", plan), model=timm.create_model(name))
    assert loaded.feature_info == slim.feature_info
    for network in (slim, loaded):
        network.reset_classifier(10)
        assert network(x).shape == (2, 10)
    wrapped = nn.Sequential(model, nn.Linear(1000, 3))
    slim = ts.apply(wrapped, ts.plan(wrapped, x, params=0.5, allow_approximate=True))
    assert slim[0].num_features == slim[0].get_classifier().in_features < model.num_features


def test_extracted_features_say_how_wide_they_are() -> None:
    model = timm.create_model("test_resnet", features_only=True, out_indices=(1, 3)).eval()
    network = nn.Sequential(Calls(lambda s, x: s.net(x)[0], net=model), conv(model.feature_info.channels()[0], 4))
    slim = ts.apply(network, ts.plan(network, torch.randn(1, 3, 64, 64), macs=0.5))
    first, last = slim[0].net(torch.randn(1, 3, 64, 64))
    assert slim[0].net.feature_info.channels() == [first.shape[1], last.shape[1]]
    assert first.shape[1] < model.feature_info.channels()[0]


def test_an_encoder_that_has_lost_its_classifier_is_cut() -> None:
    """As segmentation networks use timm's: the layer is taken out, and the method that names it fails."""
    encoder: Any = ts.create_model("timm:test_efficientnet").eval()
    del encoder.classifier
    encoder.forward = encoder.forward_features
    x = torch.randn(1, 3, 64, 64)
    plan = ts.plan(encoder, x, macs=0.5)
    assert ts.verify(encoder, ts.apply(encoder, plan), plan, x) < 1e-12
