"""Weights that are computed: parametrisations, weight norm, spectral norm, pruning masks, weight standardisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import torchslim as ts
from constructs.cutting import EXACT, Cut
from helpers import check_training, conv, random_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
X = torch.randn(2, 3, 8, 8)


def between(middle: nn.Module) -> nn.Module:
    """Something from 12 to 16 channels between two convolutions and a head."""
    return nn.Sequential(conv(3, 12), nn.ReLU(), middle, nn.ReLU(), conv(16, 20), nn.ReLU(), conv(20, 4))


def register(layer: nn.Module, function: nn.Module, name: str = "weight") -> nn.Module:
    parametrize.register_parametrization(layer, name, function)
    return layer


class Positive(nn.Module):
    """A weight that is nowhere zero, whatever its parameter is."""

    def forward(self, weight: Tensor) -> Tensor:
        return functional.softplus(weight)


class Masked(nn.Module):
    """A mask held as a buffer."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand_like(like) > 0.3).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask.to(weight.dtype)


class Symmetric(nn.Module):
    """Every kernel equals its mirror image."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(-1)


class Scaled(nn.Module):
    """A learnt number for every filter."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(filters, 1, 1, 1) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


# torch.nn.utils.parametrize: cut on both sides


@pytest.mark.parametrize("function", [Positive(), Masked(torch.empty(16, 12, 3, 3)), Symmetric(), Scaled(16)],
                         ids=lambda function: type(function).__name__)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_parametrised_weights_are_cut_on_both_sides(function: nn.Module, share: float, tmp_path: Path) -> None:
    cut = Cut(between(register(conv(12, 16), function)), X, macs=share)
    original = "2.parametrizations.weight.original"
    assert cut.size(original, 1) == cut.size("0.weight")
    assert cut.size(original, 0) == cut.size("4.weight", 1)
    assert cut.slim[2].weight.shape == cut.after(original)
    assert cut.after(original)[:2] == (cut.slim[2].out_channels, cut.slim[2].in_channels)
    assert parametrize.is_parametrized(cut.slim[2], "weight")
    cut.loads_back(tmp_path)


def test_two_parametrisations_of_one_weight_and_one_of_its_bias(tmp_path: Path) -> None:
    layer = register(register(register(conv(12, 16), Symmetric()), Scaled(16)), Positive(), "bias")
    cut = Cut(between(layer), X)
    assert cut.size("2.parametrizations.weight.1.scale") == cut.size("2.parametrizations.bias.original")
    cut.loads_back(tmp_path)


@pytest.mark.parametrize("layer", [
    nn.ConvTranspose2d(12, 16, 3, padding=1), conv(12, 16, groups=2), nn.Conv2d(12, 16, 1)], ids=str)
def test_other_convolutions_parametrised(layer: nn.Module) -> None:
    read = int(not isinstance(layer, nn.ConvTranspose2d))
    cut = Cut(between(register(layer, Positive())), X)
    assert cut.size("0.weight") < 12
    assert cut.size("2.parametrizations.weight.original", 1 - read) == cut.size("4.weight", 1)


def test_a_linear_layer_parametrised() -> None:
    model = nn.Sequential(nn.Linear(7, 24), nn.ReLU(), register(nn.Linear(24, 20), Positive()), nn.ReLU(),
                          nn.Linear(20, 3))
    cut = Cut(model, torch.randn(5, 7))
    assert cut.size("2.parametrizations.weight.original", 1) == cut.size("0.weight")
    assert cut.size("2.parametrizations.weight.original", 0) == cut.size("4.weight", 1)


def test_weights_computed_by_hand() -> None:
    class Squashed(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, functional.softplus(self.weight), self.bias, padding=1)

    cut = Cut(between(Squashed(12, 16, 3)), X)
    assert cut.size("2.weight", 1) == cut.size("0.weight")
    assert cut.size("2.weight", 0) == cut.size("4.weight", 1)


# Weight norm: filters go, inputs stay unless the caller allows


def norms(dim: int = 0) -> dict[str, tuple[Callable[[nn.Module], nn.Module], str, str, str]]:
    return {
        "parametrised": (lambda layer: parametrizations.weight_norm(layer, dim=dim),
                         "2.parametrizations.weight.original0", "2.parametrizations.weight.original1",
                         "2.parametrizations.weight.0"),
        "by hooks": (lambda layer: weight_norm(layer, dim=dim), "2.weight_g", "2.weight_v", "2"),
    }


@pytest.mark.parametrize("how", norms())
def test_weight_norm_loses_filters_and_keeps_its_inputs(how: str, tmp_path: Path) -> None:
    wrap, g, v, where = norms()[how]
    cut = Cut(between(wrap(conv(12, 16))), X)
    assert cut.size(g) == cut.size(v) == cut.size("4.weight", 1) == cut.slim[2].out_channels
    assert cut.uncut("0.weight")
    assert cut.slim[2].in_channels == 12
    [group] = [group for group in ts.groups(cut.model, X) if any((m.name, m.dim) == (v, 1) for m in group.members)]
    assert group.frozen == f"channels are mixed by `{where}` (aten._weight_norm_interface)"
    assert cut.slim[2].weight.shape == cut.after(v)
    cut.loads_back(tmp_path)


@pytest.mark.parametrize("how", norms())
def test_weight_norm_over_fewer_inputs_is_an_approximation(how: str) -> None:
    wrap, _, v, where = norms()[how]
    model = random_statistics(between(wrap(conv(12, 16)))).eval()
    slim, plan = ts.prune(model, X, macs=0.4, allow_approximate=True)
    assert len(plan.kept["0.weight"][0]) == len(plan.kept[v][1]) < 12
    assert f"approximate: channels are mixed by `{where}` (aten._weight_norm_interface)" in plan.notes
    assert ts.verify(model, slim, plan, X) < EXACT
    assert check_training(slim, X) == check_training(model, X)


@pytest.mark.parametrize("how", norms())
def test_weight_norm_by_inputs_loses_inputs(how: str) -> None:
    """One norm for each index of dimension 1, as transposed convolutions have it."""
    wrap, g, v, _ = norms(1)[how]
    cut = Cut(between(wrap(conv(12, 16))), X)
    assert cut.size(g, 1) == cut.size(v, 1) == cut.size("0.weight")
    assert cut.uncut("2.bias")


@pytest.mark.parametrize("how", norms())
def test_a_chain_of_weight_norms_stays_and_says_why(how: str) -> None:
    wrap, *_ = norms()[how]
    cut = Cut(nn.Sequential(wrap(conv(3, 12)), nn.ReLU(), wrap(conv(12, 16)), nn.ReLU(), wrap(conv(16, 4))), X)
    assert cut.plan.kept == {}
    reasons = {entry.reason for entry in cut.plan.left_alone}
    assert any("(aten._weight_norm_interface)" in reason for reason in reasons)


# Spectral and orthogonal: every weight counts for every other


WHOLE = {
    "spectral norm, parametrised": (parametrizations.spectral_norm, "2.parametrizations.weight.0", "aten.mv"),
    "spectral norm, by hooks": (spectral_norm, "2", "aten.mv"),
    "orthogonal": (parametrizations.orthogonal, "2.parametrizations.weight.0", "aten.linalg_matrix_exp"),
}


@pytest.mark.parametrize("how", WHOLE)
@pytest.mark.parametrize("training", [False, True])
def test_what_the_whole_matrix_decides_stays(how: str, training: bool, tmp_path: Path) -> None:
    wrap, where, operation = WHOLE[how]
    model = between(wrap(conv(12, 16)))
    model.train(training)
    cut = Cut(model, X, macs=0.8)
    source = "2.weight_orig" if how.endswith("hooks") else "2.parametrizations.weight.original"
    assert cut.uncut("0.weight", source, "2.bias")
    assert cut.size("4.weight") < 20
    reasons = {entry.reason for entry in cut.plan.left_alone}
    assert any(reason.endswith(f"in `{where}` ({operation})") for reason in reasons), reasons
    cut.loads_back(tmp_path)


def test_planning_takes_no_step_of_a_power_iteration() -> None:
    model = between(parametrizations.spectral_norm(conv(12, 16))).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slim, plan = ts.prune(model, X, macs=0.8)
    assert slim.training
    assert ts.verify(model, slim, plan, X) < EXACT
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# torch.nn.utils.prune


def test_masks_of_unstructured_pruning_are_cut_along(tmp_path: Path) -> None:
    model = between(prune.l1_unstructured(conv(12, 16), "weight", 0.4))
    cut = Cut(model, X)
    assert cut.size("2.weight_orig", 1) == cut.size("2.weight_mask", 1) == cut.size("0.weight")
    assert cut.size("2.weight_orig") == cut.size("2.weight_mask") == cut.size("4.weight", 1)
    assert cut.after("2.weight") == cut.after("2.weight_orig")
    assert not cut.slim[2].weight_mask.all()
    cut.loads_back(tmp_path)


# Weight standardisation


class Standardised(nn.Conv2d):
    """As in Qiao et al. 2019, with the gain of Brock et al. 2021."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(spread + 1e-4) * self.gain
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize(("layer", "operation"), [
    (Standardised(12, 16, 3, padding=1), "aten.var_mean"),
    (timm.layers.StdConv2d(12, 16, 3, padding=1), "aten.native_batch_norm"),
    (timm.layers.StdConv2dSame(12, 16, 3), "aten.native_batch_norm"),
    (timm.layers.ScaledStdConv2d(12, 16, 3, padding=1), "aten.native_batch_norm"),
], ids=["by hand", "timm", "timm, same", "timm, scaled"])
def test_standardised_weights_lose_filters_with_their_gains(layer: nn.Module, operation: str, tmp_path: Path) -> None:
    cut = Cut(between(layer), X)
    assert cut.size("2.weight") == cut.size("4.weight", 1)
    if hasattr(layer, "gain"):
        assert cut.size("2.gain") == cut.size("2.weight")
    assert cut.uncut("0.weight")
    assert any(f"`2` ({operation})" in reason for reason in cut.reasons("0") | cut.reasons("2"))
    cut.loads_back(tmp_path)


def test_standardised_over_fewer_inputs_is_an_approximation() -> None:
    model = random_statistics(between(Standardised(12, 16, 3, padding=1))).eval()
    slim, plan = ts.prune(model, X, macs=0.4, allow_approximate=True)
    assert len(plan.kept["2.weight"][1]) == len(plan.kept["0.weight"][0]) < 12
    assert "approximate: channels are mixed by `2` (aten.var_mean)" in plan.notes
    assert ts.verify(model, slim, plan, X) < EXACT


def test_a_wrong_cut_of_a_computed_weight_is_seen() -> None:
    """The proof of computed weights is a proof: channels swapped after the cut are found."""
    model = random_statistics(between(register(conv(12, 16), Positive()))).eval()
    slim, plan = ts.prune(model, X, macs=0.5)
    with torch.no_grad():
        held = slim[2].parametrizations["weight"].original
        held.copy_(held.flip(1))
    assert ts.verify(model, slim, plan, X) > 1e-3
