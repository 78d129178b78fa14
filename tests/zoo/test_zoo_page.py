"""docs/zoo.md tells the truth: its example prints what it says, and its tables are counted anew."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import torch
from figures import FIGURES, OTHER_SIZES

from helpers import DOCS, count, counted_macs
from torchslim import zoo
from torchslim.store.loading import build
from torchslim.zoo.unet import RUNGS

PAGE = (DOCS / "zoo.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \|.*\| (\d+)x(\d+)x(\d+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)


def test_the_example_prints_what_the_page_says() -> None:
    (code,), (printed,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "zoo.md", "exec"), {})
    assert out.getvalue() == printed


@pytest.mark.parametrize(("spec", "channels", "height", "width", "params", "macs"), ROWS, ids=[row[0] for row in ROWS])
def test_the_table_is_right(spec: str, channels: str, height: str, width: str, params: str, macs: str) -> None:
    with torch.device("meta"):
        network = build(f"torchslim:{spec}")
    assert f"{count(network):,}" == params
    assert f"{counted_macs(network, torch.empty(1, int(channels), int(height), int(width))):,}" == macs


def test_the_tables_have_every_network_and_row() -> None:
    assert len([line for line in PAGE.splitlines() if line.startswith("| `")]) == len(ROWS)
    assert {row[0] for row in ROWS} == set(FIGURES)
    assert {row[0].partition("?")[0] for row in ROWS} == set(zoo.NETWORKS)


def test_what_the_text_says_of_other_sizes_and_of_rungs() -> None:
    assert all(f"{macs:,}" in PAGE for *_, macs in OTHER_SIZES.values())
    said = re.findall(r"^\| ([\w-]+) \|.*\| ([\d.]+)% \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert [rung for rung, *_ in said] == [*map(str, RUNGS)]
    for name, share, dead in said:
        rung = int(name) if name.isdigit() else name
        with torch.device("meta"):
            full, lean = zoo.unet(rung=rung), zoo.unet(rung=rung, dead=False)
        assert f"{100 * count(full) / FIGURES['unet?rung=0'][1]:.1f}" == share
        assert f"{count(full) - count(lean):,}" == dead
