"""The closed forms, held against worked examples, against what torch builds and counts, and against sums of ones."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchslim import formulas
from torchslim.errors import RequestError
from torchslim.formulas import (
    Cost,
    asymmetric_pair,
    batch_norm,
    convolution,
    depthwise,
    linear,
    output_size,
    pointwise_access,
    pointwise_access_bound,
    same_padding,
    scaled,
    separable,
    separable_ratio,
    transposed_convolution,
    transposed_output_size,
)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
Draw = Callable[..., Any]


# --- worked examples ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("bias", "standard", "grouped", "light"), [(False, 288, 144, 68), (True, 296, 152, 80)])
def test_four_to_eight_channels(bias: bool, standard: int, grouped: int, light: int) -> None:
    out = (3, 3)
    assert convolution(4, 8, 3, out, bias=bias) == Cost(standard, 288 * 9)
    assert convolution(4, 8, 3, out, groups=2, bias=bias) == Cost(grouped, 144 * 9)
    assert separable(4, 8, 3, out, bias=bias) == Cost(light, 68 * 9)
    assert depthwise(4, 3, out) == Cost(36, 36 * 9)
    assert convolution(4, 8, 1, out) == linear(4, 8, positions=9) == Cost(32, 32 * 9)


def test_three_to_two_channels() -> None:
    assert convolution(3, 2, 3, (1, 1)).params == 54
    assert (depthwise(3, 3, (1, 1)).params, convolution(3, 2, 1, (1, 1)).params) == (27, 6)


@pytest.mark.parametrize(("size", "standard", "light"), [
    (640, 30_010_540_032, 3_568_961_792), (256, 4_756_635_648, 565_676_288)])
def test_a_dilated_convolution_whose_padding_ignores_the_dilation(size: int, standard: int, light: int) -> None:
    out = output_size((size, size), 3, padding=1, dilation=2)
    assert out == (size - 2, size - 2)
    assert convolution(64, 128, 3, out) + batch_norm(128) == Cost(73_984, standard)
    assert separable(64, 128, 3, out) + batch_norm(64) + batch_norm(128) == Cost(9_152, light)
    assert output_size(size, 3, padding=same_padding(3, 2), dilation=2) == size


# MobileNetV1 (Howard et al. 2017), table 1: the width that each unit makes, and its map on 224x224.
UNITS = ((64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6, (1024, 7), (1024, 7))


def mobilenet(width: float = 1.0, size: int = 224) -> Cost:
    """The units at full width and resolution, and the two multipliers."""
    made, resolution, costs = 32, size / 224, []
    costs += [convolution(3, scaled(made, width), 3, (size // 2, size // 2)), batch_norm(scaled(made, width))]
    for wide, out in UNITS:
        costs += [separable(made, wide, 3, (out, out), width=width, resolution=resolution),
                  batch_norm(scaled(made, width)), batch_norm(scaled(wide, width))]
        made = wide
    return sum([*costs, linear(scaled(made, width), 1000, bias=True)], Cost())


@pytest.mark.parametrize(("size", "macs"), [
    (224, 568_740_352), (192, 418_121_728), (160, 290_675_200), (128, 186_400_768)])
def test_mobilenet_at_four_resolutions(size: int, macs: int) -> None:
    assert mobilenet(size=size) == Cost(4_231_976, macs)


@pytest.mark.parametrize(("width", "params", "millions"), [
    (1, 4_231_976, 568.7), (0.75, 2_585_560, 325.4), (0.5, 1_331_592, 149.5), (0.25, 470_072, 41.0)])
def test_mobilenet_at_four_widths(width: float, params: int, millions: float) -> None:
    assert mobilenet(width).params == params
    assert round(mobilenet(width).macs / 1e6, 1) == millions


# --- against torch ------------------------------------------------------------------------------------------

def counted(layer: nn.Module, *shape: int) -> tuple[Cost, torch.Size]:
    """What torch builds and counts for one image on the meta device; the counter's FLOPs are 2 to the MAC."""
    with FlopCounterMode(display=False) as counter:
        made = layer(torch.empty(1, *shape, device="meta"))
    return Cost(sum(p.numel() for p in layer.parameters()), counter.get_total_flops() // 2), made.shape


def products(layer: nn.Module, *shape: int) -> int:
    """Multiply-adds of a layer without padding: with ones for weights and inputs, each adds 1 to the sum of outputs."""
    layer = layer.double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(float(name.endswith("weight")))
        return int(layer(torch.ones(1, *shape, dtype=torch.float64)).sum())


@st.composite
def layers(draw: Draw, dims: int | None = None, most: int = 60) -> dict[str, Any]:
    """A convolution on a map that it fits; kernel, stride, padding, dilation and map by dimension."""
    dims = dims or draw(st.integers(1, 3))
    groups = draw(st.integers(1, 6))

    def each(least: int, last: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, last)) for _ in range(dims))

    kernel, dilation = each(1, 5), each(1, 3)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return {"inputs": groups * draw(st.integers(1, most // groups)),
            "outputs": groups * draw(st.integers(1, most // groups)),
            "kernel": kernel, "stride": each(1, 3), "padding": each(0, 2), "dilation": dilation, "groups": groups,
            "bias": draw(st.booleans()), "size": tuple(r + draw(st.integers(0, 20)) for r in reach)}


def window(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("stride", "padding", "dilation")}


def convolution_of(case: dict[str, Any], **changed: Any) -> nn.Module:
    case = {**case, **changed}
    options = {"groups": case["groups"], "bias": case["bias"], "device": case.get("device", "meta"), **window(case)}
    return CONVOLUTIONS[len(case["size"])](case["inputs"], case["outputs"], case["kernel"], **options)


@given(layers())
def test_convolutions(case: dict[str, Any]) -> None:
    cost, shape = counted(convolution_of(case), case["inputs"], *case["size"])
    out = output_size(case["size"], case["kernel"], **window(case))
    assert shape == (1, case["outputs"], *out)
    assert convolution(case["inputs"], case["outputs"], case["kernel"], out, groups=case["groups"],
                       bias=case["bias"]) == cost


@given(layers(), st.integers(1, 4))
def test_depthwise_convolutions(case: dict[str, Any], multiplier: int) -> None:
    channels = case["inputs"]
    layer = convolution_of(case, groups=channels, outputs=channels * multiplier)
    cost, shape = counted(layer, channels, *case["size"])
    assert depthwise(channels, case["kernel"], shape[2:], multiplier=multiplier, bias=case["bias"]) == cost


@given(layers(), st.integers(1, 3), st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.25]))
def test_separable_convolutions(case: dict[str, Any], multiplier: int, width: float) -> None:
    m, n = (max(1, int(case[name] * width)) for name in ("inputs", "outputs"))
    first = convolution_of(case, inputs=m, groups=m, outputs=m * multiplier)
    second = CONVOLUTIONS[len(case["size"])](m * multiplier, n, 1, bias=case["bias"], device="meta")
    cost, shape = counted(nn.Sequential(first, second), m, *case["size"])
    assert separable(case["inputs"], case["outputs"], case["kernel"], shape[2:], multiplier=multiplier, width=width,
                     bias=case["bias"]) == cost


@given(layers(dims=2), st.integers(1, 8))
def test_asymmetric_pairs(case: dict[str, Any], share: int) -> None:
    k, middle, nothing = case["kernel"][0], case["groups"] * share, {"stride": 1, "padding": 0, "dilation": 1}
    case["size"] = tuple(max(size, 3 * k) for size in case["size"])
    along = {name: (number, case[name][1]) for name, number in nothing.items()}
    down = {name: (case[name][0], number) for name, number in nothing.items()}
    layer = nn.Sequential(convolution_of(case, outputs=middle, kernel=(1, k), **along),
                          convolution_of(case, inputs=middle, kernel=(k, 1), **down))
    cost, shape = counted(layer, case["inputs"], *case["size"])
    assert shape[2:] == output_size(case["size"], k, **window(case))
    assert asymmetric_pair(case["inputs"], case["outputs"], k, shape[2:], middle=middle, rows=case["size"][0],
                           groups=case["groups"], bias=case["bias"]) == cost


def test_an_asymmetric_pair_that_keeps_its_map() -> None:
    layer = nn.Sequential(nn.Conv2d(6, 8, (1, 7), padding=(0, 3)), nn.Conv2d(8, 8, (7, 1), padding=(3, 0))).to("meta")
    cost, shape = counted(layer, 6, 17, 19)
    assert asymmetric_pair(6, 8, 7, shape[2:], bias=True) == cost


@given(layers(), st.integers(0, 2))
def test_transposed_convolutions(case: dict[str, Any], extra: int) -> None:
    size = tuple(max(5, side) for side in case["size"])  # padding by 2 leaves something of it
    extra = min(extra, *(max(pair) - 1 for pair in zip(case["stride"], case["dilation"], strict=True)))
    layer = TRANSPOSED[len(size)](
        case["inputs"], case["outputs"], case["kernel"], groups=case["groups"], bias=case["bias"], device="meta",
        output_padding=extra, **window(case))
    cost, shape = counted(layer, case["inputs"], *size)
    assert shape[2:] == transposed_output_size(size, case["kernel"], **window(case), output_padding=extra)
    assert transposed_convolution(case["inputs"], case["outputs"], case["kernel"], size, groups=case["groups"],
                                  bias=case["bias"]) == cost


@settings(max_examples=50)
@given(layers(most=12))
def test_sums_of_ones(case: dict[str, Any]) -> None:
    """A second witness, which knows no formula at all."""
    case["padding"] = (0,) * len(case["size"])
    arguments = case["inputs"], case["outputs"], case["kernel"]
    out = output_size(case["size"], case["kernel"], **window(case))
    assert convolution(*arguments, out, groups=case["groups"]).macs == products(
        convolution_of(case, device="cpu"), case["inputs"], *case["size"])
    small = tuple(min(side, 6) for side in case["size"])
    layer = TRANSPOSED[len(small)](*arguments, groups=case["groups"], **window(case))
    assert transposed_convolution(*arguments, small, groups=case["groups"]).macs == products(
        layer, case["inputs"], *small)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 50), st.booleans())
def test_linear_layers_and_batch_norms(inputs: int, outputs: int, positions: int, bias: bool) -> None:
    cost, _ = counted(nn.Linear(inputs, outputs, bias=bias, device="meta"), positions, inputs)
    assert linear(inputs, outputs, positions=positions, bias=bias) == cost
    assert batch_norm(inputs) == counted(nn.BatchNorm2d(inputs, device="meta"), inputs, 4, 4)[0]


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 40))
def test_same_padding_keeps_the_map(kernel: int, dilation: int, size: int) -> None:
    if dilation * (kernel - 1) % 2:
        with pytest.raises(RequestError, match=f"take a kernel of {kernel + 1}$"):
            same_padding(kernel, dilation)
    else:
        padding = same_padding(kernel, dilation)
        layer = nn.Conv1d(1, 1, kernel, padding=padding, dilation=dilation, device="meta")
        assert counted(layer, 1, size)[1] == (1, 1, size)
        assert same_padding((kernel, 1), dilation) == (padding, 0)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_memory_of_a_pointwise_convolution(m: int, n: int, groups: int, out: tuple[int, int]) -> None:
    m, n = m * groups, n * groups
    layer = nn.Conv2d(m, n, 1, groups=groups, bias=False, device="meta")
    x = torch.empty(1, m, *out, device="meta")
    access = pointwise_access(m, n, out, groups=groups)
    assert access == x.numel() + layer(x).numel() + layer.weight.numel()
    macs = convolution(m, n, 1, out, groups=groups).macs
    bound = pointwise_access_bound(macs, out, groups=groups)
    assert access >= bound * (1 - 1e-12)
    assert (access == pytest.approx(bound, rel=1e-12)) == (m == n)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 11), st.integers(1, 11))
def test_the_share_of_a_separable_convolution(m: int, n: int, kh: int, kw: int) -> None:
    light, standard = separable(m, n, (kh, kw), (7, 5)), convolution(m, n, (kh, kw), (7, 5))
    for share in (light.params / standard.params, light.macs / standard.macs):
        assert share == pytest.approx(separable_ratio(n, (kh, kw)), rel=1e-12)
    assert separable_ratio(n, kh) == separable_ratio(n, (kh, kh))


# --- values, rounding, errors -------------------------------------------------------------------------------

def test_costs_add_and_print() -> None:
    cost = Cost(1_000, 2_000_000) + Cost(234)
    assert cost == Cost(1_234, 2_000_000) == sum([Cost(1_000, 2_000_000), Cost(234)], Cost())
    assert (cost.flops, cost.size_bytes(), cost.size_bytes(2)) == (4_000_000, 4_936, 2_468)
    assert str(cost) == "1,234 parameters, 2,000,000 MACs"
    with pytest.raises(TypeError):
        _ = cost + 1


def test_multipliers_round_down_to_at_least_one() -> None:
    assert [scaled(100, 0.29), scaled(7, 192 / 224), scaled(13, 0.5), scaled(3, 0.1)] == [29, 6, 6, 1]
    assert separable(32, 64, 3, (112, 112), width=0.5, resolution=0.5) == separable(16, 32, 3, (56, 56))


def test_any_kind_of_whole_number_will_do() -> None:
    cost = convolution(numpy.int8(100), numpy.int8(100), [numpy.int64(3), 3], torch.Size([224, 224]))
    assert cost == convolution(100, 100, 3, (224, 224))
    assert type(cost.macs) is int
    assert type(pointwise_access(numpy.int8(100), 100, (numpy.int8(100), 100))) is int


@pytest.mark.parametrize(("call", "message"), [
    (lambda: convolution(13, 8, 3, (4, 4), groups=4),
     "convolution: 13 channels cannot be split into 4 groups; keep 12 or 16"),
    (lambda: transposed_convolution(8, 3, 3, (4, 4), groups=4),
     "transposed_convolution: 3 channels cannot be split into 4 groups; keep 4"),
    (lambda: convolution(0, 8, 3, (4, 4)), "convolution: inputs: 0 found, a whole number of at least 1 wanted"),
    (lambda: convolution(4, 8.0, 3, (4, 4)), "convolution: outputs: 8.0 found, a whole number of at least 1 wanted"),
    (lambda: convolution(4, True, 3, (4, 4)), "convolution: outputs: True found, a whole number of at least 1 wanted"),
    (lambda: convolution(4, 8, (3, 3, 3), (4, 4)),
     "convolution: kernel: (3, 3, 3) found for a map of 2 dimensions; give one number or 2"),
    (lambda: convolution(4, 8, 3, 32),
     "convolution: map: 32 found, a number for each dimension wanted, such as (32, 32)"),
    (lambda: convolution(4, 8, 3, ()),
     "convolution: map: () found, a number for each dimension wanted, such as (32, 32)"),
    (lambda: convolution(4, 8, "same", (4, 4)),
     "convolution: kernel: 'same' found, a number for each dimension wanted, such as (32, 32)"),
    (lambda: depthwise(8, 3, (4, 4), multiplier=0),
     "depthwise: multiplier: 0 found, a whole number of at least 1 wanted"),
    (lambda: separable(8, 8, 3, (4, 4), width=0),
     "scaled: a multiplier of 0 found, a positive number wanted, such as 0.5"),
    (lambda: scaled(8, float("nan")), "scaled: a multiplier of nan found, a positive number wanted, such as 0.5"),
    (lambda: scaled(8, "half"), "scaled: a multiplier of 'half' found, a positive number wanted, such as 0.5"),
    (lambda: asymmetric_pair(4, 8, 3, (4, 4, 4)),
     "asymmetric_pair: a map of 3 dimensions found, 2 wanted; give (height, width)"),
    (lambda: asymmetric_pair(4, 8, 3, (4, 4), middle=0),
     "asymmetric_pair: middle: 0 found, a whole number of at least 1 wanted"),
    (lambda: output_size(4, 7),
     "output_size: a kernel that reaches over 7 does not fit a map of 4 with padding 0; pad by 2"),
    (lambda: output_size((4, 4), 3, padding=-1),
     "output_size: padding: -1 found, a whole number of at least 0 wanted"),
    (lambda: transposed_output_size(3, 2, padding=2),
     "transposed_output_size: padding 2 leaves nothing of a map of 4; take at most 1"),
    (lambda: transposed_output_size(4, 2, 2, output_padding=2),
     "transposed_output_size: output_padding 2 found, less than the stride 2 or the dilation 1 wanted; take 1"),
    (lambda: same_padding(4), "same_padding: a kernel of 4 with dilation 1 wants 1.5 on each side; take a kernel of 5"),
    (lambda: Cost(1).size_bytes(0), "size_bytes: element: 0 found, a whole number of at least 1 wanted"),
])
def test_errors_say_what_was_found_and_wanted(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    assert str(caught.value) == message


def test_the_examples_in_the_module_are_true() -> None:
    assert doctest.testmod(formulas) == (0, 3)
