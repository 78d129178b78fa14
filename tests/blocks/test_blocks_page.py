"""docs/blocks.md tells the truth: its example prints what it says, and its table is counted anew."""

from __future__ import annotations

import contextlib
import io
import re

import torch

from helpers import DOCS, count, counted_macs
from torchslim import blocks

PAGE = (DOCS / "blocks.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \|.*\| ([\dx]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)


def test_the_example_prints_what_the_page_says() -> None:
    (code,), (printed,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "blocks.md", "exec"), {})
    assert out.getvalue() == printed


def test_the_table_is_right() -> None:
    x = torch.empty(1, 64, 56, 56, device="meta")
    for code, gives, params, macs in ROWS:
        block = eval(code, dict(vars(blocks))).to("meta").eval()
        counted = "x".join(map(str, block(x).shape[1:])), f"{count(block):,}", f"{counted_macs(block, x):,}"
        assert counted == (gives, params, macs), code


def test_the_table_has_every_block() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS)
    modules = {name for name in blocks.__all__ if name[0].isupper()}
    assert {code.split("(")[0] for code, *_ in ROWS} == modules - {"ChannelSplit", "LinearBottleneck"}
    assert all(f"`{name}" in PAGE for name in blocks.__all__)
