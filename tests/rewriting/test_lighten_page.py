"""docs/lighten.md tells the truth: its example prints what it says, its table and its ladder are those of the code."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from helpers import DOCS
from torchslim.rewriting.replacements import parse_rule, rule_names

PAGE = (DOCS / "lighten.md").read_text(encoding="utf-8")


def test_the_examples_run_and_print_what_the_page_says(tmp_path: Path) -> None:
    codes, (printed,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text"))
    known: dict[str, Any] = {}
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()) as out:
        for code in codes:
            exec(compile(code, "lighten.md", "exec"), known)
    assert out.getvalue() == printed
    with torch.no_grad():
        assert known["slim"](known["inputs"]).shape == (1, 10)


def test_the_table_has_every_rule() -> None:
    table = PAGE.split("## The rules")[1].split("A rule is exact")[0]
    rules = re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:3] == "| `"))
    assert {rule.split(":")[0] for rule in rules} == set(rule_names())
    for rule in rules:
        parse_rule(rule)


def test_the_ladder_is_the_one_that_is_counted() -> None:
    counted = (Path(__file__).parent / "test_networks.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\(.*\))` \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for step, params in rows:
        assert f"([{step}], {params.replace(',', '_')}," in counted
