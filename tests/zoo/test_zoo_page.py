"""docs/zoo.md tells the truth: its example prints what it says, and its tables are counted anew."""

from __future__ import annotations

import contextlib
import io
import re

from helpers import DOCS
from torchslim import zoo
from torchslim.zoo.unet import RUNGS
from zoo.figures import FIGURES, OTHER_SIZES, UNET_DEAD

PAGE = (DOCS / "zoo.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \|.*\| (\d+)x(\d+)x(\d+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)


def test_the_example_prints_what_the_page_says() -> None:
    (code,), (printed,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "zoo.md", "exec"), {})
    assert out.getvalue() == printed


def test_the_tables_have_the_figures_that_are_counted() -> None:
    """`test_zoo_counts` builds each network and counts."""
    assert len([line for line in PAGE.splitlines() if line.startswith("| `")]) == len(ROWS)
    assert {spec: (channels, height, width, params, macs) for spec, channels, height, width, params, macs in ROWS} == {
        spec: ("3", str(size), str(size), f"{params:,}", f"{macs:,}") for spec, (size, params, macs) in FIGURES.items()}
    assert {row[0].partition("?")[0] for row in ROWS} == set(zoo.NETWORKS)


def test_what_the_text_says_of_other_sizes_and_of_rungs() -> None:
    assert all(f"{macs:,}" in PAGE for *_, macs in OTHER_SIZES.values())
    said = re.findall(r"^\| ([\w-]+) \|.*\| ([\d.]+)% \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert [rung for rung, *_ in said] == [*map(str, RUNGS)]
    for name, share, dead in said:
        assert f"{100 * FIGURES[f'unet?rung={name}'][1] / FIGURES['unet?rung=0'][1]:.1f}" == share
        assert f"{UNET_DEAD[name]:,}" == dead
