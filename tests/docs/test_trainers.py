"""The examples of training, in our loop and in those of others, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

import torchslim
from helpers import DOCS


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("number", "package"), [(0, "torch"), (1, "lightning"), (2, "transformers")])
def test_a_network_is_cut_in_the_trainers_of_others(number: int, package: str, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    found = blocks("other-trainers.md")
    names: dict[str, object] = {}
    for code in dict.fromkeys((found[0], found[number])):
        exec(code, names)
    model, slim = names["model"], names["slim"]
    assert isinstance(model, nn.Module)
    assert isinstance(slim, nn.Module)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    assert torchslim.load("slim.safetensors").state_dict().keys() == slim.state_dict().keys()


def test_the_example_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("training.md")
    exec(code, {})
    assert "accuracy" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"run.checkpoint", "log.jsonl"}
