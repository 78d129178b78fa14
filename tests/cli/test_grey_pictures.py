"""Networks of one channel get grey pictures from commands, whatever the pictures have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import Call
from torchslim.report.record import Record
from torchslim.store.loading import picture_channels

NETWORK = """
from torch import nn

def grey(num_classes):
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(16, num_classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and pictures of two kinds of brightness, in colour and of 16 bits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(NETWORK)
    for number in range(12):
        values = np.full((12, 12), 15_000 + 30_000 * (number % 2), np.uint16)
        path = tmp_path / "pictures" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(values) if number % 3 else Image.fromarray(values // 256).convert("RGB")
        picture.save(path)
    return tmp_path


def test_channels_of_pictures(here: Path) -> None:
    assert picture_channels("networks.py:grey?num_classes=2") == 1
    assert picture_channels("torchslim:squeezenet_cifar?in_channels=1") == 1
    assert picture_channels("torchslim:squeezenet_cifar") == 3


def test_slim(here: Path, call: Call) -> None:
    status, _, err = call("slim", "networks.py:grey", "--data", "folder:pictures", "--size", "12", "--macs", "0.6",
                          "--epochs", "2", "--batch-size", "4", "--no-export", "--out", "run")
    assert status == 0, err
    record = Record.from_json((here / "run" / "record.json").read_text())
    assert record.settings["size"] == [1, 12, 12]
    assert record.samples


def test_prune(here: Path, call: Call) -> None:
    wanted = ("--data", "folder:pictures", "--importance", "taylor", "--macs", "0.6", "--out", "slim.safetensors")
    assert call("prune", "networks.py:grey?num_classes=2", "--input", "1x1x16x16", *wanted)[0] == 0
    assert call("prune", "networks.py:grey?num_classes=2", *wanted)[0] == 0
    status, _, err = call("prune", "torchslim:squeezenet_cifar?in_channels=5&num_classes=2", *wanted)
    assert (status, "folder:pictures: has no pictures of 5 channels" in err) == (2, True)
