"""docs/gradual.md tells the truth: its example runs, and what it saves is what it trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import torchslim as ts
from helpers import DOCS

PAGE = (DOCS / "gradual.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, object] = {}
    exec(compile(code, "gradual.md", "exec"), space)
    printed = [int(line.split()[0].replace(",", "")) for line in capsys.readouterr().out.splitlines()]
    assert printed == sorted(printed, reverse=True)
    assert len(set(printed)) == 3
    again, found = ts.load("slim.safetensors"), space["found"]
    assert isinstance(found, ts.train.GradualResult)
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
