"""The examples run as they stand, and the documents quote them word by word."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from torchslim.rules.labels import LabelSpace

EXAMPLE = ROOT / "examples" / "custom_operation.py"
PAGE = (ROOT / "docs" / "custom-operations.md").read_text(encoding="utf-8")


def test_an_operation_of_ones_own_is_taught_and_its_cut_proven() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.splitlines()
    assert "    follows 0.bias [dim 0], 1.steps, .scale [dim 0]" in lines
    assert "    reads   1.weight [dim 0]" in lines
    assert "operations without a rule: none" in lines
    before, after, planned = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+\d", lines[-3]))
    assert after == planned <= before / 2
    assert float(lines[-1].removeprefix("differs from the silenced original by ")) < 1e-12


def test_the_document_quotes_the_example() -> None:
    code = EXAMPLE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert block in code


def test_the_document_names_methods_that_are_there_with_their_arguments() -> None:
    table = PAGE.split("## The methods")[1].split("##")[0]
    named = re.findall(r"`(\w+)\(([^)]*)\)`", table)
    assert len(named) == 12
    for name, arguments in named:
        function = getattr(LabelSpace, name)
        count = len(arguments.split(", "))
        assert function.__code__.co_argcount - 1 - len(function.__defaults__ or ()) <= count, name
        assert function.__doc__, name


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"],
                         ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^- \[([\w-]+\.md)\]\(\1\)", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*listed, "README.md"]) == sorted(path.name for path in folder.glob("*.md"))
