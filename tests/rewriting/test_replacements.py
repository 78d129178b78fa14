"""Every rule: exact where the old weights have its form, nearest elsewhere, and the parameters that the laws say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchslim import formulas
from torchslim.errors import RequestError
from torchslim.rewriting import decomposition
from torchslim.rewriting.building import build_replacement
from torchslim.rewriting.lighten import error_on_noise
from torchslim.rewriting.replacements import Replacement, parse_rule, rule_names
from torchslim.utils.copying import copy_model
from torchslim.utils.layer_spec import filters_first, spec_of, torch_layout

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "padded": {"padding": 1}, "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "same": {"padding": "same"}, "reflected": {"padding": 1, "padding_mode": "reflect"}, "bare": {"bias": False},
    "uneven": {"stride": (2, 1), "padding": (0, 2)}}
KINDS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


def replaced(layer: nn.Module, rule: str) -> nn.Module:
    spec = spec_of(layer)
    assert spec is not None
    rewrite = parse_rule(rule).replacement(spec)
    assert isinstance(rewrite, Replacement), rewrite
    return build_replacement(rewrite, layer, fresh=False)


def set_weight(layer: Any, weight: Tensor) -> nn.Module:
    """From the plain form (N, M / g, k, ...)."""
    with torch.no_grad():
        layer.weight.copy_(torch_layout(weight, spec_of(layer)))
    return layer


def of_form(layer: Any, rule: str) -> nn.Module:
    """The layer with random weights of the form that a rule makes."""
    spec = spec_of(layer)
    outputs, inputs, kernel = spec.outputs, spec.fan_in, spec.kernel
    ones = [1] * len(kernel)
    dense = torch.randn(outputs, inputs, *kernel, dtype=torch.float64)
    if rule == "separable":
        factors = torch.randn(outputs, inputs, *ones, dtype=torch.float64)
        return set_weight(layer, factors * torch.randn(1, inputs, *kernel))
    if rule == "depthwise":
        return set_weight(layer, dense * torch.eye(inputs).reshape(inputs, inputs, *ones))
    if rule.startswith("grouped"):
        own, other = torch.arange(outputs), torch.arange(inputs)
        blocks = own % 2 if "shuffle" in rule else own // (outputs // 2)
        return set_weight(layer, dense * (blocks[:, None] == other // (inputs // 2)).reshape(outputs, inputs, *ones))
    if rule == "ghost":
        return set_weight(layer, torch.cat([dense[:outputs // 2], dense[:outputs // 2]
                                            * torch.randn(outputs // 2, 1, *ones).double()]))
    if rule == "fire:3":
        few = torch.randn(outputs, 3, *kernel, dtype=torch.float64)
        taps = few[:outputs // 2].flatten(2)
        taps[:, :, [place for place in range(taps.shape[2]) if place != taps.shape[2] // 2]] = 0
        return set_weight(layer, torch.einsum("nr...,rm->nm...", few, torch.randn(3, inputs).double()))
    return set_weight(layer, dense)


def compare(layer: Any, new: nn.Module) -> float:
    dims = len(layer.kernel_size)
    x = torch.randn(2, layer.in_channels, *[9, 8, 7][:dims], dtype=torch.float64)
    with torch.no_grad():
        wanted, found = layer(x), new(x)
    assert wanted.shape == found.shape
    return float((wanted - found).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("rule", ["separable", "grouped:2", "grouped:2:shuffle", "depthwise", "lowrank:1.0", "ghost",
                                  "fire:3", "pointwise-after", "pointwise-before"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_the_rules_form_is_rewritten_exactly(kind: Any, rule: str) -> None:
    dims = spec_of(kind(1, 1, 1)).dims  # type: ignore[union-attr]
    transposed = "Transpose" in kind.__name__
    if transposed and rule in ("ghost", "fire:3"):
        return
    for name, given_options in OPTIONS.items():
        options = {"kernel_size": (3, 5, 3)[:dims], **given_options}
        if transposed and name in ("same", "reflected"):
            continue
        if rule == "fire:3":
            if name not in ("padded", "same", "strided", "reflected"):
                continue
            options["kernel_size"] = (3,) * dims
        if name == "uneven":
            if dims != 2:
                continue
        elif transposed and name == "strided":
            options["output_padding"] = 1
        layer = of_form(kind(6, 6, dtype=torch.float64, **options), rule)
        assert compare(layer, replaced(layer, rule)) < 1e-10, name


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_the_asymmetric_pair_is_exact_at_full_rank(kind: Any, groups: int) -> None:
    for options in OPTIONS.values():
        if kind is nn.ConvTranspose2d and {"padding_mode", "same"} & {*options, options.get("padding")}:
            continue
        layer = kind(4, 6, (3, 5), groups=groups, dtype=torch.float64, **options)
        assert compare(layer, replaced(layer, f"asymmetric:{6 * 3}")) < 1e-10
        assert compare(layer, replaced(layer, f"asymmetric:{4 * 5}")) < 1e-10


def test_a_linear_layer_and_a_pointwise_one_have_two_factors() -> None:
    for layer, x in ((nn.Linear(7, 5).double(), torch.randn(3, 7).double()),
                     (nn.Conv2d(7, 5, 1, stride=2, padding=1).double(), torch.randn(1, 7, 6, 6).double())):
        new = replaced(layer, "lowrank:1.0")
        torch.testing.assert_close(new(x), layer(x), rtol=0, atol=1e-10)
        assert new[0].weight.shape[0] == 5  # type: ignore[index, union-attr]
        assert replaced(layer, "lowrank:2")[0].weight.shape[0] == 2  # type: ignore[index, union-attr]


def test_wider_than_the_input_a_low_rank_layer_is_still_exact_through_its_input_or_output() -> None:
    basis = torch.randn(4, 8, dtype=torch.float64)  # 4 of 8 dimensions of the inputs matter
    layer = set_weight(nn.Conv2d(8, 4, 3, dtype=torch.float64),
                       torch.einsum("nrhw,rm->nmhw", torch.randn(4, 4, 3, 3, dtype=torch.float64), basis))
    assert compare(layer, replaced(layer, "pointwise-before")) < 1e-10
    layer = set_weight(nn.Conv2d(4, 8, 3, dtype=torch.float64),
                       torch.einsum("nr,rmhw->nmhw", basis.T, torch.randn(4, 4, 3, 3, dtype=torch.float64)))
    assert compare(layer, replaced(layer, "pointwise-after")) < 1e-10


# --- nearest --------------------------------------------------------------------------------------------------

def als(matrix: Tensor, rank: int, rounds: int = 300) -> float:
    """The least error of a product of this rank that alternating least squares finds from three starts."""
    best = float("inf")
    for _ in range(3):
        right = torch.randn(rank, matrix.shape[1], dtype=torch.float64)
        for _ in range(rounds):
            left = torch.linalg.lstsq(right.T, matrix.T).solution.T
            right = torch.linalg.lstsq(left, matrix).solution
        best = min(best, float((matrix - left @ right).norm()))
    return best


def error(weight: Tensor, *parts: Tensor) -> float:
    return float((weight - torch.einsum("nr...,rm...->nm...", parts[1], parts[0])).norm())


def test_no_separable_pair_is_nearer() -> None:
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    depthwise, pointwise = decomposition.separable(weight)
    found = (weight - pointwise * depthwise.transpose(0, 1)).flatten(2)
    for channel in range(3):
        assert float(found[:, channel].norm()) == pytest.approx(als(weight[:, channel].flatten(1), 1), rel=1e-9)


@pytest.mark.parametrize("middle", [1, 3, 7])
def test_no_asymmetric_pair_is_nearer(middle: int) -> None:
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    found = error(weight, *decomposition.asymmetric(weight, middle))
    assert found == pytest.approx(als(weight.permute(0, 2, 1, 3).reshape(15, 12), middle), rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_no_product_is_nearer(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    left, right = decomposition.low_rank_factors(matrix, 2)
    assert float((matrix - left @ right).norm()) == pytest.approx(als(matrix, 2), rel=1e-6)
    left, right = decomposition.low_rank_factors(matrix, 8)
    assert left.shape[1] == 8  # beyond its own rank: zeros
    torch.testing.assert_close(left @ right, matrix, rtol=0, atol=1e-10)


def test_no_squeeze_is_nearer() -> None:
    weight = torch.randn(5, 6, 3, 3, dtype=torch.float64)
    squeeze, core = decomposition.squeeze_factors(weight, 2)
    assert error(weight, squeeze, core) == pytest.approx(als(weight.transpose(0, 1).reshape(6, 45), 2), rel=1e-6)


def test_random_search_does_not_beat_tucker() -> None:
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    reduce, core, expand = (part.flatten(2) for part in decomposition.tucker2(weight, 3, 2))
    found = float((weight.flatten(2) - torch.einsum("na,abk,bm->nmk", expand[..., 0], core, reduce[..., 0])).norm())
    for _ in range(500):
        left = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64))[0]
        right = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64))[0]
        projected = torch.einsum("na,ca,cmk,mb,db->ndk", left, left, weight.flatten(2), right, right)
        assert found < float((weight.flatten(2) - projected).norm())


def test_a_weight_of_zeros_stays_so() -> None:
    layer = set_weight(nn.Conv2d(4, 4, 3), torch.zeros(4, 4, 3, 3))
    for rule in ("separable", "asymmetric", "lowrank:0.5", "ghost", "fire:2", "pointwise-after", "grouped:2"):
        x = torch.randn(1, 4, 5, 5)
        if rule == "fire:2":
            layer = set_weight(nn.Conv2d(4, 4, 3, padding=1), torch.zeros(4, 4, 3, 3))
        torch.testing.assert_close(replaced(layer, rule)(x), layer(x))


# --- costs ----------------------------------------------------------------------------------------------------

def weights(layer: nn.Module) -> int:
    return sum(p.numel() for name, p in layer.named_parameters() if name.endswith("weight"))


def test_parameters_are_those_of_the_laws() -> None:
    old, out = nn.Conv2d(32, 48, 3, padding=1), (10, 10)
    law = {"separable": formulas.separable(32, 48, 3, out), "grouped:4": formulas.convolution(32, 48, 3, out, groups=4),
           "asymmetric:16": formulas.asymmetric_pair(32, 48, 3, out, middle=16),
           "lowrank:8": formulas.convolution(32, 8, 1, out) + formulas.convolution(8, 8, 3, out)
           + formulas.convolution(8, 48, 1, out),
           "ghost": formulas.convolution(32, 24, 3, out) + formulas.depthwise(24, 3, out),
           "fire:6": formulas.convolution(32, 6, 1, out) + formulas.convolution(6, 24, 1, out)
           + formulas.convolution(6, 24, 3, out),
           "pointwise-after": formulas.convolution(32, 32, 3, out) + formulas.convolution(32, 48, 1, out)}
    for rule, cost in law.items():
        assert weights(replaced(old, rule)) == cost.params, rule
    assert weights(replaced(nn.Conv2d(48, 48, 3), "depthwise")) == formulas.depthwise(48, 3, out).params
    assert weights(replaced(nn.Conv2d(64, 32, 3), "pointwise-before")) == 64 * 32 + 9 * 32 * 32


# --- words, numbers, refusals -----------------------------------------------------------------------------------

@pytest.mark.parametrize(("rule", "wanted"), [
    ("sparable", "did you mean separable"), ("grouped", "grouped:4[:shuffle]"), ("grouped:0", "grouped:4"),
    ("grouped:0.5", "grouped:4"), ("separable:3", "wanted separable[:norm]"),
    ("asymmetric:x", "asymmetric[:16][:norm]"),
    ("lowrank", "lowrank:0.25"), ("lowrank:1.5", "lowrank:0.25"), ("lowrank:nan", "lowrank:0.25"),
    ("lowrank:0.5:0.5", "lowrank:0.25"), ("fire:-2", "fire[:16]"), ("depthwise:norm", "wanted depthwise"),
    ("", "rule ''"), ("width:0.5", "take torchslim.prune(model, inputs, scope={'*': 0.5})")])
def test_a_wrong_rule_is_refused_in_one_line(rule: str, wanted: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_rule(rule)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layer", "rule", "why"), [
    (nn.Conv2d(8, 8, 1), "separable", "kernel is 1"), (nn.Conv2d(8, 8, 3, groups=2), "separable", "has groups"),
    (nn.Linear(8, 8), "separable", "linear"), (nn.Conv2d(8, 6, 3), "grouped:4", "8 and 6 channels"),
    (nn.Linear(8, 8), "grouped:2", "linear"), (nn.Conv1d(8, 8, 3), "asymmetric", "two dimensions"),
    (nn.Conv2d(8, 8, 3, groups=8), "asymmetric", "depthwise"),
    (nn.Conv2d(8, 8, 3, groups=8), "depthwise", "light already"),
    (nn.Conv2d(8, 4, 3), "depthwise", "as many"), (nn.Conv2d(8, 7, 3), "ghost", "odd"),
    (nn.Conv2d(8, 8, 3), "fire", "middle"), (nn.Conv2d(8, 8, 4, padding="same"), "fire", "middle"),
    (nn.ConvTranspose2d(8, 8, 3, padding=1), "fire", "transposed"),
    (nn.Conv2d(8, 32, 3), "asymmetric", "weights instead"),
    (nn.Conv2d(8, 8, 3, groups=4), "lowrank:0.5", "groups"), (nn.Conv2d(8, 8, 3), "grouped:1", "one group"),
    (nn.Conv2d(8, 8, 3, groups=2), "asymmetric:3", "3 channels")])
def test_a_layer_that_does_not_fit_has_a_reason(layer: nn.Module, rule: str, why: str) -> None:
    found = parse_rule(rule).lighter_replacement(spec_of(layer))  # type: ignore[arg-type]
    assert isinstance(found, str)
    assert why in found


def test_with_norms_every_part_has_the_layers_bias() -> None:
    for bias in (True, False):
        new = replaced(nn.Conv2d(8, 8, 3, bias=bias, dtype=torch.float64), "asymmetric:norm")
        assert [type(part) for part in new] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]  # type: ignore[arg-type]
        assert {part.bias is not None for part in new if isinstance(part, nn.Conv2d)} == {bias}  # type: ignore[attr-defined]
        assert new[1].weight.dtype == torch.float64  # type: ignore[index, union-attr]


# --- any specification ------------------------------------------------------------------------------------------

@st.composite
def layers(draw: Any) -> nn.Module:
    dims, transposed = draw(st.sampled_from([1, 2, 3])), draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 4]))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    options: dict[str, Any] = {"stride": sizes(1, 2), "padding": sizes(0, 2), "dilation": sizes(1, 2)}
    kind = {(3, False): nn.Conv3d, (3, True): nn.ConvTranspose3d, (2, False): nn.Conv2d, (2, True): nn.ConvTranspose2d,
            (1, False): nn.Conv1d, (1, True): nn.ConvTranspose1d}[dims, transposed]
    if not transposed and draw(st.booleans()):
        options.update(stride=1, padding=draw(st.sampled_from(["same", "valid"])))
    elif transposed:
        options["output_padding"] = tuple(max(s, d) - 1 for s, d in zip(options["stride"], options["dilation"],
                                                                       strict=True))
    if not transposed:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    wide = st.sampled_from([4, 8, 12])
    return kind(draw(wide), draw(wide), sizes(1, 4), groups=groups, bias=draw(st.booleans()), **options)


@settings(max_examples=120)
@given(layers(), st.sampled_from([*(f"{name}{number}" for name, number in zip(
    rule_names(), ("", ":2", ":5", "", ":0.5", "", ":3", "", ""), strict=True)), "grouped:4:shuffle", "lowrank:1.0"]))
def test_any_layer_keeps_the_shape_of_its_outputs(layer: Any, rule: str) -> None:
    spec = spec_of(layer)
    assert spec is not None
    assert torch.equal(torch_layout(filters_first(layer.weight, spec.groups, spec.transposed), spec), layer.weight)
    rewrite = parse_rule(rule).replacement(spec)
    if isinstance(rewrite, str):
        return
    new = build_replacement(rewrite, layer, fresh=False)
    x = torch.randn(1, spec.inputs, *[12] * spec.dims)
    assert new(x).shape == layer(x).shape
    if rule == "lowrank:1.0":
        layer = layer.double()
        assert error_on_noise(layer, build_replacement(rewrite, layer, fresh=False)) < 1e-10


@pytest.mark.parametrize("layer", [
    nn.Conv1d(16, 16, 3, stride=2), nn.Conv1d(4, 4, 5, stride=3), nn.Conv2d(8, 12, 3), nn.Conv3d(8, 8, 3, stride=2),
    nn.ConvTranspose1d(16, 16, 2, stride=2), nn.Linear(24, 6), nn.Conv1d(2, 300, 3)], ids=str)
def test_the_error_on_noise_is_that_of_the_weights(layer: Any) -> None:
    """On white noise each output has the variance of the squared norm of its weights."""
    layer = layer.double()
    nn.init.zeros_(layer.bias)
    new = copy_model(layer)
    with torch.no_grad():
        new.weight += torch.randn_like(layer.weight) * layer.weight.std() * 0.4  # type: ignore[operator]
        wanted = (new.weight - layer.weight).norm() / layer.weight.norm()  # type: ignore[operator]
    assert error_on_noise(layer, new) == pytest.approx(float(wanted), rel=0.05)


SPECTRA: dict[str, Any] = {
    "flat": lambda place: 1 + 0 * place, "slow": lambda place: 1 / (1 + place), "steep": lambda place: 0.98**place,
    "few": lambda place: (place < 40).double() * (1 + place), "noise": lambda place: torch.rand(len(place)).double(),
    "outliers": lambda place: 1 + 1000 * (place < 3).double()}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rank", [20, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_products_are_as_near_as_singular_values_say(
        name: str, rank: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "LARGE_ROWS", 100)
    torch.manual_seed(0)
    sides = (torch.linalg.qr(torch.randn(size, 200, dtype=torch.float64))[0] for size in (200, 330))
    left, right = sides
    matrix = ((left * SPECTRA[name](torch.arange(200, dtype=torch.float64))) @ right.T).to(dtype)
    sizes = torch.linalg.svdvals(matrix.double())
    best, whole = float(sizes[rank:].norm()), float(sizes.norm())
    for one in (matrix, matrix.T):
        a, b = decomposition.low_rank_factors(one, rank)
        assert float((a.double() @ b.double() - one.double()).norm()) <= best * (1 + 1e-6) + (
            1e-12 if dtype is torch.float64 else 1e-7) * whole
