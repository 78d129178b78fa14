"""Networks whose code reads no width are planned without a second run; the second run would say the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import torchslim as ts
from helpers import random_statistics
from torchslim.tracing.trace import trace

X = torch.randn(1, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions, and between them whatever a test wants."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 8, 1, groups=groups), nn.Linear(8, 2)
        self.between, self.width = between, 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.between(self, self.norm(self.a(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


BLIND: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "activation": lambda net, x: functional.relu6(x, inplace=True),
    "arithmetic": lambda net, x: x * 2 + torch.sigmoid(x) - x / 3,
    "concatenation": lambda net, x: torch.cat([x, -x], 2),
    "batch size": lambda net, x: x + float(x.size(0)),
    "dtype and device": lambda net, x: x.to(x.device, x.dtype),
    "rank": lambda net, x: x if x.ndim == 4 and x.dim() == 4 else x.relu(),
    "pooling and resizing": lambda net, x: functional.interpolate(functional.max_pool2d(x, 2), scale_factor=2.0),
    "mean over space": lambda net, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "padding": lambda net, x: functional.pad(x, (1, 1, 1, 1)),
}
READING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "shape": lambda net, x: x if x.shape[1] == net.width else x.relu(),
    "size": lambda net, x: x if x.size(1) == net.width else x.relu(),
    "length": lambda net, x: x if len(x) else x.relu(),
    "view": lambda net, x: x.view(1, 2, 4, 6, 6).view(1, 8, 6, 6),
    "slice": lambda net, x: torch.cat([x[:, :4], x[:, 4:]], 1),
    "split": lambda net, x: torch.cat(torch.split(x, 4, 1), 1),
    "padded channels": lambda net, x: functional.pad(x, (0, 0, 0, 0, 4, 4))[:, 4:12],
    "a weight's size": lambda net, x: x if net.b.weight.size(0) == 8 else x.relu(),
    "fresh tensor": lambda net, x: x + torch.zeros(8, 1, 1),
    "layer norm": lambda net, x: functional.layer_norm(x, (8, 6, 6)),
    "hand-written groups": lambda net, x: functional.conv2d(x, net.b.weight[:, :1], groups=8),
}


@pytest.mark.parametrize("name", BLIND)
def test_code_that_takes_sizes_as_they_come_is_blind(name: str) -> None:
    assert trace(Net(BLIND[name]), X).width_independent


@pytest.mark.parametrize("name", READING)
def test_code_that_asks_for_a_size_or_names_one_is_not(name: str) -> None:
    assert not trace(Net(READING[name]), X).width_independent


def test_what_a_scripted_function_does_is_not_seen_and_counts_as_reading() -> None:
    @torch.jit.script
    def halves(x: Tensor) -> Tensor:
        return x.view(x.size(0), 2, 4, 6, 6).view(x.size(0), 8, 6, 6)

    assert not trace(Net(lambda net, x: halves(x)), X).width_independent
    assert not trace(Net(lambda net, x: torch.ops.aten.view.default(x, [1, 8, 36]).view_as(x)), X).width_independent


def test_a_computed_weight_or_a_real_run_is_not_blind() -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 2

    model = Net(BLIND["activation"])
    assert not trace(model, X, meta=False).width_independent
    assert not trace(model, X, detect_width_reads=False).width_independent
    parametrize.register_parametrization(model.b, "weight", Twice())
    assert not trace(model, X).width_independent


def test_a_layer_that_holds_its_groups_is_blind_and_one_that_is_told_is_not() -> None:
    class Told(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight, groups=4)

    assert trace(Net(BLIND["activation"], groups=4), X).width_independent
    model = Net(BLIND["activation"], groups=4)
    told = Told(8, 8, 1, groups=4, bias=False)
    told.groups = 1
    model.b = told
    assert not trace(model, X).width_independent


@pytest.mark.parametrize(("network", "options"), [
    ("resnet18", {"macs": 0.4}),
    ("mobilenet_v2", {"macs": 0.5, "importance": "random"}),
    ("mobilenet_v3_small", {"params": 0.3}),
    ("densenet121", {"macs": 0.5, "scope": "uniform"}),
    ("resnext50_32x4d", {"macs": 0.5, "importance": "random", "seed": 3}),
    ("regnet_y_400mf", {"macs": 0.3, "round_to": 2}),
    ("googlenet", {"macs": 0.4, "shortcuts": False}),
])
def test_the_foreseen_cut_is_what_a_second_run_finds(network: str, options: dict[str, Any],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = random_statistics(ts.create_model(f"torchvision:{network}", num_classes=10)).eval()
    x = torch.randn(1, 3, 64, 64)
    foreseen = ts.plan(model, x, **options)
    monkeypatch.setattr("torchslim.planning.channel_matching.predict_cut", lambda *_: None)
    found = ts.plan(model, x, **options)
    assert found.kept
    assert foreseen == found
