"""Layers that work along positions, or on maps folded into the batch, while the channels that pass them are cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from constructs.cutting import Cut
from helpers import Calls, conv

X = torch.randn(2, 3, 12, 12)


def between(middle: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> nn.Module:
    """Two convolutions with a layer between them, on a map of 16 channels that is folded before it and unfolded."""
    def forward(self: Calls, x: Tensor) -> Tensor:
        y = self.a(x)  # type: ignore[operator]
        return self.b(after(self.middle(before(y))).view_as(y))  # type: ignore[operator, no-any-return]

    return Calls(forward, a=conv(3, 16), middle=middle, b=conv(16, 5))


def same(x: Tensor) -> Tensor:
    return x


def maps(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, *x.shape[2:])


def rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def turned(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def unturned(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


PASSED = {
    "PReLU of one slope": (nn.PReLU(), same, same),
    "PReLU of a slope a channel": (nn.PReLU(16), same, same),
    "LayerNorm over a row": (nn.LayerNorm(12), same, same),
    "LayerNorm over the map": (nn.LayerNorm((12, 12)), same, same),
    "RMSNorm over a row": (nn.RMSNorm(12), same, same),
    "Linear over a row": (nn.Linear(12, 12), same, same),
    "Conv2d of each map": (nn.Conv2d(1, 1, 3, padding=1), maps, same),
    "ConvTranspose2d of each map": (nn.ConvTranspose2d(1, 1, 3, padding=1), maps, same),
    "BatchNorm2d of each map": (nn.BatchNorm2d(1), maps, same),
    "InstanceNorm2d of each map": (nn.InstanceNorm2d(1, affine=True), maps, same),
    "Conv1d of each row": (nn.Conv1d(12, 12, 3, padding=1), rows, same),
    "BatchNorm1d of each row": (nn.BatchNorm1d(12), rows, same),
    "BatchNorm2d of the rows": (nn.BatchNorm2d(12), turned, unturned),
    "Conv2d of the rows": (nn.Conv2d(12, 12, 1), turned, unturned),
    "Conv2d of the rows, one tap across channels": (nn.Conv2d(12, 12, (1, 3), padding=(0, 1)), turned, unturned),
    "Conv3d with one tap across channels": (nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1)), lambda x: x.unsqueeze(1),
                                            lambda x: x.squeeze(1))}


@pytest.mark.parametrize("layer", PASSED)
def test_channels_that_pass_are_cut(layer: str) -> None:
    middle, before, after = PASSED[layer]
    cut = Cut(between(middle, before, after), X, oracle="slope a" in layer)
    assert cut.size("a.weight") == cut.size("b.weight", 1)


def test_one_activation_in_two_places() -> None:
    act = nn.PReLU()
    cut = Cut(nn.Sequential(conv(3, 16), act, conv(16, 8), act, conv(8, 4)), X)
    assert cut.size("0.weight") == cut.size("2.weight", 1)
    assert cut.size("2.weight") == cut.size("4.weight", 1)


def test_layers_on_folded_maps_are_cut_themselves() -> None:
    inner = nn.Sequential(conv(1, 8), nn.ReLU(), conv(8, 1))
    cut = Cut(between(inner, maps, same), X, oracle=False)
    assert cut.size("middle.0.weight") == cut.size("middle.2.weight", 1)


@pytest.mark.parametrize("layer", [nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, (1, 3, 3), stride=(2, 1, 1)),
                                   nn.Conv3d(1, 1, (1, 3, 3), padding=1)], ids=["taps", "stride", "padding"])
def test_channels_that_are_convolved_over_stay(layer: nn.Module) -> None:
    def forward(self: Calls, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x).unsqueeze(1)).squeeze(1))  # type: ignore[operator, no-any-return]

    depth = layer(torch.zeros(1, 1, 16, 12, 12)).shape[2]
    cut = Cut(Calls(forward, a=conv(3, 16), middle=layer, b=conv(depth, 5)), X)
    assert cut.uncut("a.weight", "b.weight")
    assert any("convolved over" in left.reason for left in cut.plan.left_alone)


PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "each map by itself": lambda x: x @ x.transpose(2, 3),
    "by a fixed matrix": lambda x: torch.matmul(x, torch.ones(12, 12).to(x)),
    "attention within maps": lambda x: nn.functional.scaled_dot_product_attention(x, x, x),
    "by the mean of all maps": lambda x: x @ x.mean(1, keepdim=True).expand_as(x).relu()}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_maps_cost_what_is_left_of_them(name: str) -> None:
    def forward(self: Calls, x: Tensor) -> Tensor:
        return self.b(PRODUCTS[name](self.a(x)))  # type: ignore[operator, no-any-return]

    cut = Cut(Calls(forward, a=conv(3, 16), b=conv(16, 5)), X)
    assert cut.plan.predicted["macs"] == ts.profile(cut.slim, X).macs
    assert ts.profile(cut.model, X).macs == cut.plan.budgets[0].before
    if name != "by the mean of all maps":
        assert cut.size("a.weight") == cut.size("b.weight", 1)
