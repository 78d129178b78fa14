"""Least squares in closed form, held against torch's own solver on what each layer sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import conv
from torchslim.compensation import moments
from torchslim.rewriting import lighten_with_report, regression


@pytest.fixture(autouse=True)
def _no_ridge_and_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "RIDGES", (1e-12,))
    monkeypatch.setattr(moments, "PLACES", 10000)


def jacobian(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's outputs as a matrix times its parameters, which it does not know: by probing each of them."""
    flat = nn.utils.parameters_to_vector(layer.parameters()).detach()
    columns = []
    for place in range(len(flat)):
        nn.utils.vector_to_parameters(torch.eye(len(flat), dtype=flat.dtype)[place], layer.parameters())
        columns.append(layer(x).detach().flatten())
    nn.utils.vector_to_parameters(flat, layer.parameters())
    return torch.stack(columns, 1), flat


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.Conv2d(4, 4, 3, groups=4, padding=2),
    nn.Conv2d(4, 6, (1, 3), groups=2, dilation=2, padding_mode="reflect", padding=1), nn.Conv1d(4, 6, 3, groups=2),
    nn.Conv3d(2, 2, 2, bias=False), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
    nn.ConvTranspose2d(4, 4, 2, groups=4, bias=False), nn.Linear(5, 3), nn.Linear(5, 3, bias=False)], ids=str)
def test_the_weights_are_those_of_least_squares(layer: Any) -> None:
    layer = layer.double()
    x = torch.randn(7, 5) if isinstance(layer, nn.Linear) else torch.randn(3, layer.in_channels, *[11] * (
        layer.weight.dim() - 2))
    x = x.double() + 0.5
    y = torch.randn_like(layer(x)) + 1
    matrix, _ = jacobian(layer, x)
    regression.fit_layer(layer, [(x[:2], y[:2]), (x[2:], y[2:])])
    wanted = torch.linalg.lstsq(matrix, y.flatten()).solution
    found = nn.utils.parameters_to_vector(layer.parameters()).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", [1, 2])
def test_what_filters_see_of_small_maps_alone_changes_and_the_rest_stays(side: int) -> None:
    layer = nn.Conv2d(4, 6, 5, padding=2, groups=2).double()
    before = layer.weight.detach().clone()
    x, y = torch.randn(40, 4, side, side).double() + 0.5, torch.randn(40, 6, side, side).double()
    matrix, flat = jacobian(layer, x)
    regression.fit_layer(layer, [(x[:3], y[:3]), (x[3:], y[3:])])
    seen = matrix.abs().sum(0) > 0
    wanted = flat.clone()
    wanted[seen] = torch.linalg.lstsq(matrix[:, seen], y.flatten()).solution
    found = nn.utils.parameters_to_vector(layer.parameters()).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.weight[:, :, 4], before[:, :, 4])  # padding on both sides of it


def test_two_factors_are_the_best_of_their_rank() -> None:
    first, last = nn.Linear(6, 2, bias=False).double(), nn.Linear(2, 5).double()
    x, y = torch.randn(40, 6).double() @ torch.randn(6, 6).double(), torch.randn(40, 5).double()
    regression.fit_low_rank(first, last, torch.zeros(5, 6).double(), [(x, y)])
    # Centred, what least squares give, and of that the nearest matrix of rank 2.
    a, b = x - x.mean(0), y - y.mean(0)
    left, sizes, right = torch.linalg.svd(a @ torch.linalg.lstsq(a, b).solution, full_matrices=False)
    wanted = y.mean(0) + (left[:, :2] * sizes[:2]) @ right[:2]
    torch.testing.assert_close(last(first(x)).detach(), wanted, rtol=1e-6, atol=1e-6)


def network() -> nn.Sequential:
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8))


@pytest.mark.parametrize("rule", ["grouped:2", "ghost", "separable:norm"])
def test_norms_follow_what_the_new_layers_give(rule: str) -> None:
    model, x = network(), torch.randn(64, 3, 8, 8)
    for _ in range(100):
        model(x)  # the norms have the statistics of these inputs
    model.eval()
    light: Any = lighten_with_report(model, rule, x[:1], data=[(x,)]).model  # nothing is kept back
    with torch.no_grad():
        reads = light[:4](x)
    torch.testing.assert_close(light[4].running_mean, reads.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(light[4].running_var, reads.var((0, 2, 3)), rtol=1e-2, atol=1e-3)
    # Those before the new layers read what they read before.
    torch.testing.assert_close(light[1].running_var, model[1].running_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", ["separable:norm", "asymmetric:8:norm", "pointwise-after:norm"])
def test_layers_with_norms_between_their_parts_are_fitted(rule: str) -> None:
    x = torch.randn(32, 3, 8, 8)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 16), nn.ReLU(), conv(16, 4)).eval()
    (row,), (plain,) = (lighten_with_report(model, rule, x[:1], only=["2"], **way).layers
                        for way in ({"data": [x]}, {}))
    assert plain.error is None
    assert row.error is not None
    assert row.error < 0.75
