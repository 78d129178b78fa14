"""Tensors that are no parameters, inputs that models write into, copies of odd modules, and code that no run shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import torchslim as ts
from constructs.cutting import Cut
from helpers import Calls, conv
from torchslim.errors import TraceError

X = torch.randn(2, 3, 8, 8)
EDGES = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).view(1, 1, 3, 3)


class Edges(nn.Module):
    """Adds a map that is made by a fixed filter, which is held somewhere else than among the buffers."""

    def __init__(self, held: str) -> None:
        super().__init__()
        self.a, self.b = conv(4, 16), conv(16, 4)
        self.held = held
        if held == "attribute":
            self.kernel = EDGES.clone()
        elif held == "list":
            self.kernels = [EDGES.clone()]
        elif held == "dict":
            self.kernels = {"x": EDGES.clone()}  # type: ignore[assignment]
        elif held == "half":
            self.kernel = EDGES.half()

    def forward(self, x: Tensor) -> Tensor:
        kernel: Any = EDGES if self.held == "global" else self.kernel if self.held in (
            "attribute", "half") else self.kernels["x" if self.held == "dict" else 0]  # type: ignore[call-overload]
        grey = x.mean(1, keepdim=True)
        y = functional.conv2d(grey.to(kernel.dtype), kernel, padding=1)
        return self.b(self.a(torch.cat([x, y.to(x.dtype)], 1)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("held", ["attribute", "list", "dict", "global", "half"])
def test_fixed_filters_are_proven_in_float64_wherever_they_are_held(held: str) -> None:
    network = Edges(held).eval()
    slim, plan = ts.prune(network, X, macs=0.5)
    assert 0 in plan.kept["a.weight"]
    assert ts.verify(network, slim, plan, X) < 1e-10


def test_complex_attributes_are_proven_in_double_precision() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(torch.fft.irfft2(torch.fft.rfft2(y) * self.filter, s=(8, 8)))  # type: ignore[no-any-return]

    network = Calls(forward, a=conv(3, 16), b=conv(16, 4)).eval()
    network.filter = torch.randn(8, 5, dtype=torch.complex64)
    slim, plan = ts.prune(network, X, macs=0.5)
    assert ts.verify(network, slim, plan, X) < 1e-10


# --- inputs -------------------------------------------------------------------------------------------------

def normalises_in_place(self: Any, x: Tensor) -> Tensor:
    x.sub_(0.5).div_(0.25)
    return self.b(self.a(x).relu())  # type: ignore[no-any-return]


def replaces_in_a_list(self: Any, images: list[Tensor]) -> Tensor:
    for place, image in enumerate(images):
        images[place] = image.sub_(0.5) * 2
    return self.b(self.a(torch.stack(images)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("forward", "inputs"), [
    (normalises_in_place, X.clone()), (normalises_in_place, X.double()), (replaces_in_a_list, [*X.clone()])],
    ids=["tensor", "float64", "list"])
def test_inputs_that_a_model_writes_into_are_as_they_were(forward: Any, inputs: Any) -> None:
    network = Calls(forward, a=conv(3, 16), b=conv(16, 4)).eval()
    if isinstance(inputs, Tensor):
        network.to(inputs.dtype)
    items = list(inputs)
    before = [item.clone() for item in items]
    slim, plan = ts.prune(network, inputs, macs=0.5)
    assert ts.verify(network, slim, plan, inputs) < 1e-10
    ts.profile(network, inputs)
    ts.groups(network, inputs)
    ts.compensate(network, slim, plan, [inputs, inputs])
    assert all(a is b and torch.equal(a, c) for a, b, c in zip(inputs, items, before, strict=True)) or isinstance(
        inputs, Tensor)
    torch.testing.assert_close(torch.stack(list(inputs)), torch.stack(before), rtol=0, atol=0)


# --- modules ------------------------------------------------------------------------------------------------

def test_copies_have_the_modes_of_the_given_modules() -> None:
    network: Any = create_feature_extractor(resnet18(), {"layer2": "a", "layer4": "b"}).eval()
    network.layer1.train()
    x = torch.randn(1, 3, 64, 64)
    slim, _ = ts.prune(network, x, macs=0.5)
    modes = {name: module.training for name, module in network.named_modules()}
    assert {name: module.training for name, module in slim.named_modules()} == modes
    assert (slim.training, slim.layer1.training) == (False, True)  # type: ignore[union-attr]


def test_widths_may_be_integers_of_numpy() -> None:
    cut = Cut(nn.Sequential(nn.Conv2d(3, np.int64(8), 3), nn.ReLU(), nn.Flatten(), nn.Linear(np.prod([8, 6, 6]), 16),
                            nn.ReLU(), nn.Linear(np.int64(16), 4)), X)
    assert ts.Plan.from_json(cut.plan.to_json()) == cut.plan


def test_higher_order_operators_are_refused_by_name() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).relu()
        return torch.cond(y.mean() > 0, self.b, self.c, (y,))

    network = Calls(forward, a=conv(3, 16), b=conv(16, 4), c=conv(16, 4)).eval()
    with pytest.raises(TraceError, match="calls the higher-order operator `cond`, whose branches no run shows"):
        ts.plan(network, X, macs=0.5)
