"""`torchslim lighten`."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import torchslim
from torchslim import cli
from torchslim.rewriting import lightened

ARGUMENTS = ("lighten", "timm:test_resnet?num_classes=10", "--input", "1x3x32x32", "--rules")


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["torchslim", *arguments])
    return (cli.main(), *capsys.readouterr())


def test_it_prints_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(monkeypatch, capsys, *ARGUMENTS, "separable,grouped:2", "--min-channels", "16")
    assert (status, err) == (0, "")
    model = torchslim.create_model("timm:test_resnet", num_classes=10)
    found = lightened(model, ["separable", "grouped:2"], torch.rand(1, 3, 32, 32), min_channels=16)
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[2:2 + len(found.layers)]] == [[r.layer, r.rule] for r in found.layers]
    assert f"{found.params[0]:,} -> {found.params[1]:,}" in out
    assert all(remark in lines for remark in found.remarks())


def test_json_has_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(monkeypatch, capsys, *ARGUMENTS, "separable", "--kernels", "3", "--ends", "--fresh", "--json",
                          "--exclude", "layer1*", "--min-share", "0.01", "--only", "layer*", "--only", "conv1.0")
    assert status == 0
    data = json.loads(out)
    assert {row["layer"].partition(".")[0] for row in data["layers"]} == {"conv1", "layer2", "layer3", "layer4"}
    assert all(row["error"] is None and row["macs"][1] < row["macs"][0] for row in data["layers"])
    assert data["params"][1] < data["params"][0]


def test_a_wrong_rule_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(monkeypatch, capsys, *ARGUMENTS, "sep")
    assert (status, out) == (2, "")
    assert err.startswith("error: lighten: unknown rule 'sep'")
    assert err.count("\n") == 1
