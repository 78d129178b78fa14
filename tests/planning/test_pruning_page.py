"""docs/pruning.md tells the truth: its code runs as it stands, its tables have every criterion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

import torchslim as ts
from helpers import DOCS
from torchslim.importance import CRITERIA
from torchslim.importance.criterion import Normalize

PAGE = (DOCS / "pruning.md").read_text(encoding="utf-8")


def test_the_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"__name__": "pruning"}  # dataclasses ask for the module's name
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "pruning.md", "exec"), known)
    assert ts.load(tmp_path / "slim.safetensors")(known["inputs"]).shape == (1, 10)
    assert known["plan"].budgets[0].asked == ts.profile(known["model"], known["inputs"]).macs // 4


def test_the_tables_have_every_criterion() -> None:
    chosen, measured = (PAGE.partition(heading)[2] for heading in ("## Which criterion", "## Measured"))
    for name in CRITERIA:
        assert re.search(rf"^\|.*`{name}`", chosen.partition("## Measured")[0], re.MULTILINE), name
        assert name == "auto" or re.search(rf"^\| `{name}` \|", measured, re.MULTILINE), name
    assert f"| criterion | {' | '.join(get_args(Normalize))} |" in measured
