"""docs/costs.md tells the truth: its example prints what it says, and its numbers come out of the formulas."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from helpers import DOCS
from torchslim import formulas
from torchslim.formulas import (
    Cost,
    asymmetric_pair,
    batch_norm,
    convolution,
    output_size,
    separable,
    transposed_convolution,
    transposed_output_size,
)

PAGE = (DOCS / "costs.md").read_text(encoding="utf-8")


def said(*numbers: int) -> bool:
    """Whether the page has all of these numbers, with commas between thousands."""
    return {f"{number:,}" for number in numbers} <= set(re.findall(r"[\d,]*\d", PAGE))


def test_the_example_prints_what_the_page_says() -> None:
    (code,), (printed,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "costs.md", "exec"), {})
    assert out.getvalue() == printed


def test_the_page_names_every_function_and_no_other() -> None:
    tables = PAGE.split("## The laws")[1].split("## Conventions")[0]
    named = set(re.findall(r"`([a-z_]+)(?=[`(])", tables))
    public = {name for name, value in vars(formulas).items()
              if getattr(value, "__module__", "") == formulas.__name__ and not name.startswith("_")}
    assert named == public - {"Cost", "separable_ratio"}
    assert "separable_ratio" in PAGE


def test_four_to_eight_channels() -> None:
    def count(bias: bool) -> list[int]:
        full, halves = (convolution(4, 8, 3, (3, 3), groups=groups, bias=bias) for groups in (1, 2))
        return [full.params, halves.params, separable(4, 8, 3, (3, 3), bias=bias).params]

    assert said(*count(bias=True), *count(bias=False))


@pytest.mark.parametrize("size", [640, 256])
def test_maps_that_were_meant_to_stay(size: int) -> None:
    out = output_size((size, size), 3, padding=1, dilation=2)
    assert said(convolution(64, 128, 3, out).macs, separable(64, 128, 3, out).macs)
    assert f"{out[0]}x{out[1]}" in PAGE


def test_what_counters_add() -> None:
    out, norm = (254, 254), batch_norm(128).params
    macs, made = convolution(64, 128, 3, out).macs, 128 * 254 * 254
    assert said(macs, 2 * macs, macs + 2 * made, macs + 4 * made, macs + norm)


def test_squeezenet_takes_five_megabytes() -> None:
    params = 1_248_424
    assert said(params, Cost(params).size_bytes())


# A U-Net: five encoder stages, pools of 3/2/1, transposed convolutions, maps padded to the skips; made lighter in five
# steps. Kept here whole, since it takes grouped, asymmetric and transposed convolutions and maps of odd sizes.
UNET = [  # parameters, MACs on 3x256x256, parameters of a decoder stage that never runs
    (31_155_586, 35_625_950_464, 110_976), (28_719_900, 34_135_523_908, 110_976), (26_285_660, 30_221_124_164, 82_496),
    (11_635_292, 15_342_322_244, 21_056), (9_035_594, 13_296_976_748, 15_296), (5_919_434, 10_207_360_364, 3_776),
]
Chain = list[tuple[int, int, int, int]]  # inputs, outputs, kernel, groups


def chain(layers: Chain, size: tuple[int, ...], asymmetric: bool = False) -> tuple[Cost, tuple[int, ...]]:
    """Unpadded convolutions with bias, each with batch norm; 3x3 perhaps as 1x3 and 3x1. The cost and the map."""
    total = Cost()
    for inputs, outputs, kernel, groups in layers:
        out = output_size(size, kernel)
        if asymmetric and kernel == 3:
            total += asymmetric_pair(inputs, outputs, 3, out, rows=size[0], groups=groups, bias=True)
            total += batch_norm(outputs)
        else:
            total += convolution(inputs, outputs, kernel, out, groups=groups, bias=True)
        total, size = total + batch_norm(outputs), out
    return total, size


def unet(step: int) -> tuple[int, int, int]:
    groups, asymmetric = 4 if step >= 3 else 1, step >= 4

    def encoder(m: int, n: int) -> Chain:
        return [(m, m, 3, 1), (m, n, 1, 1), (n, n, 3, n if step == 5 else groups)] if step else [
            (m, n, 3, 1), (n, n, 3, 1)]

    def decoder(n: int) -> Chain:
        pair = (n, n, 3, n if step == 5 else groups)
        return [(2 * n, n, 1, groups), pair, pair] if step >= 2 else [(2 * n, n, 3, 1), (n, n, 3, 1)]

    total, size, made, skips = Cost(), (256, 256), 3, []
    for width in (64, 128, 256, 512, 1024):
        size = output_size(size, 3, 2, 1) if skips else size
        cost, size = chain(encoder(made, width), size, asymmetric)
        total, made = total + cost, width
        skips.append(size)
    for width, skip in zip((512, 256, 128, 64), skips[-2::-1], strict=True):
        total += transposed_convolution(2 * width, width, 2, size, bias=True)
        head = [(128, 64, 3, 1), (64, 64, 3, 1)]
        cost, size = chain(decoder(width), skip, asymmetric) if width > 64 else chain(head, skip)
        total += cost
    total += convolution(64, 2, 3, output_size(size, 3), bias=True)
    dead = chain(decoder(64), (9, 9), asymmetric)[0].params
    return total.params + dead, total.macs, dead


@pytest.mark.parametrize("step", range(6))
def test_a_u_net_made_lighter_in_five_steps(step: int) -> None:
    assert unet(step) == UNET[step]


def test_what_is_said_of_the_u_net() -> None:
    (plain, _, dead), (first, _, _), (second, _, _), (third, _, _) = (unet(step) for step in range(4))
    assert said(plain, dead, first, second, third)
    assert f"{first / plain:.1%}" in PAGE
    assert f"{plain / third:.2f} times" in PAGE


def test_the_u_net_with_every_pair_but_the_heads_separable() -> None:
    def pair(m: int, n: int) -> list[Cost]:
        return [part for inputs in (m, n) for part in (
            separable(inputs, n, 3, (1, 1), bias=True), batch_norm(inputs), batch_norm(n))]

    costs = [convolution(64, 2, 3, (1, 1), bias=True), chain([(128, 64, 3, 1), (64, 64, 3, 1)], (9, 9))[0]]
    for m, n in ((3, 64), (64, 128), (128, 256), (256, 512), (512, 1024)):
        costs += pair(m, n)
    for n in (512, 256, 128, 64):
        costs += [transposed_convolution(2 * n, n, 2, (1, 1), bias=True), *pair(2 * n, n)]
    assert said(sum(costs, Cost()).params)


def encoded(*size: int) -> list[tuple[int, ...]]:
    """The map that each stage of the encoder gives."""
    maps = [output_size(output_size(size, 3), 3)]
    while len(maps) < 5:
        maps.append(output_size(output_size(output_size(maps[-1], 3, 2, 1), 3), 3))
    return maps


def test_which_pictures_give_a_map_of_32() -> None:
    assert [n for n in range(300, 900) if encoded(n)[-1] == (32,)] == list(range(621, 637))
    assert "621 to 636" in PAGE


def test_padding_by_the_height_alone() -> None:
    def fits(*size: int) -> bool:
        """Whether a map that is transposed up is as much too low as it is too narrow, at every stage."""
        *skips, below = encoded(*size)
        for skip in reversed(skips):
            missing = [wanted - found for wanted, found in
                       zip(skip, transposed_output_size(below, 2, 2), strict=True)]
            if missing[0] != missing[1]:
                return False
            below = output_size(output_size(skip, 3), 3)
        return True

    assert fits(256, 256)
    assert not fits(256, 250)
