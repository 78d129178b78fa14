"""`torchslim train`: what it saves is read again and scores what was printed; interrupted, the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import torchslim
from helpers import Call
from torchslim.errors import TorchslimWarning
from torchslim.train import load_data, metrics

NETWORK = """
from torch import nn
def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    return tmp_path


def weights(path: str) -> dict[str, torch.Tensor]:
    return torchslim.load(path, trust_source=True).state_dict()


def test_it_trains_saves_and_prints_the_metrics(call: Call, folder: Path) -> None:
    command = ["train", "net.py:net", "--data", "digits", "--size", "8", "--epochs", "2", "--batch-size", "128",
               "--ema", "0.9", "--mixup", "0.2", "--accumulate", "2", "--class-weights", "balanced", "--json"]
    status, out, err = call(*command, "--out", "t.safetensors", "--log", "log.jsonl", "--checkpoint", "c")
    assert status == 0, err
    found = json.loads(out)
    assert found["metrics"] == pytest.approx(metrics(torchslim.load("t.safetensors", trust_source=True),
                                                     load_data("digits", size=8)))
    assert found["score"] == [json.loads(line)["accuracy"] for line in Path("log.jsonl").read_text().splitlines()]
    assert [line.partition(":")[0] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    status, again, err = call(*command, "--out", "u.safetensors", "--checkpoint", "c")  # it was finished
    assert (status, err) == (0, "")
    assert json.loads(again)["score"] == found["score"]
    torch.testing.assert_close(weights("u.safetensors"), weights("t.safetensors"), rtol=0, atol=0)
    torch.save(weights("t.safetensors"), "start.pth")
    status, out, _ = call("train", "net.py:net", "--data", "digits", "--size", "8", "--epochs", "1", "--weights",
                          "start.pth", "--freeze", "0.*", "--freeze", "1.*", "--out", "v.safetensors")
    assert status == 0
    assert out.splitlines()[-1] == "Model: v.safetensors"
    changed = {name for name, value in weights("v.safetensors").items()
               if not torch.equal(value, weights("t.safetensors")[name])}
    assert changed == {"5.weight", "5.bias"}


def test_broken_pictures_are_left_out_and_data_that_changed_is_refused(call: Call, folder: Path) -> None:
    for number in range(20):
        path = Path("pictures", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (12 * number, 0, 0)).save(path)
    path.write_bytes(b"")
    command = ("train", "net.py:net", "--data", "folder:pictures", "--size", "8", "--skip-broken", "10%",
               "--batch-size", "8", "--checkpoint", "c")
    with pytest.warns(TorchslimWarning, match=r"1 of 20 pictures \(5%\) left out, as .*b/19\.png \(an empty file\)"):
        assert call(*command, "--epochs", "1", "--out", "t.safetensors")[0] == 0
    next(path for path in Path("pictures", "a").iterdir() if path not in held_out()).write_bytes(b"")
    with pytest.warns(TorchslimWarning, match=r"2 of 20 pictures \(10%\) left out"):
        status, _, err = call(*command, "--epochs", "1", "--out", "u.safetensors")
    assert status == 1
    assert "made by a training with items=" in err


def held_out() -> set[Path]:
    data = load_data("folder:pictures", size=8, skip_broken=0.5)
    return {path for path, _ in data.test.samples}  # type: ignore[attr-defined]


def test_a_head_of_another_size_is_new(call: Call, folder: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(8, 99)).state_dict(), "start.pth")
    command = ("train", "net.py:net", "--data", "digits", "--size", "8", "--epochs", "1", "--weights", "start.pth",
               "--out", "t.safetensors")
    status, _, err = call(*command)
    assert status == 2
    assert "2 of another shape: 5.weight (99x8 in the file, 10x8 in the model)" in err
    with pytest.warns(torchslim.errors.TorchslimWarning, match=r"the head stays random, .*: 5\.weight, 5\.bias"):
        assert call(*command, "--new-head")[0] == 0
