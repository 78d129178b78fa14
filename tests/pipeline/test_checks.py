"""Requests that can't end well are refused before the folder is made; nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from helpers import Call
from torchslim.errors import RequestError
from torchslim.pipeline.checks import check_data
from torchslim.pipeline.runner import run_slim
from torchslim.pipeline.settings import Settings
from torchslim.train.tasks import task_for
from torchslim.utils.data import Data

Ask = Callable[..., Settings]

MODELS = """
from torch import nn

def net(channels, last):
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), *last)

def infrared(num_classes=10):
    return net(4, [nn.Linear(8, num_classes)])

def frozen(num_classes=10):
    return net(3, [nn.Linear(8, num_classes)]).requires_grad_(False)

def unlike(num_classes=10):
    return net(3, [nn.BatchNorm1d(8), nn.Linear(8, num_classes)])"""


@pytest.mark.parametrize(("changes", "words"), [
    ({"model": "{models}:infrared"}, "it takes pictures of 4 channels, digits has pictures of 3; give a model or data"),
    ({"model": "{models}:frozen"}, "a training step on 2 pictures of digits fails"),
    ({"model": "{models}:unlike", "batch_size": 1}, "on 1 pictures of digits fails.*a larger --batch-size"),
    ({"model": "{models}:tiny"}, "tiny"), ({"model": "torchvision:alexnet"}, "try another --size"),
    ({"model": "{network}:tiny?num_classes=7"}, "has 10 classes; give a model of as many"),
    ({"model": "{network}:plain"}, "no batch norm with a scale"), ({"data": "digit"}, "names no data"),
    ({"model": "{network}:plain", "sparsify_epochs": 0, "importance": "bn_scale"}, "no batch norm scales"),
    ({"exclude": ("x.*",)}, "no layer that makes channels matches"), ({"scope": "{{"}, "wanted global, uniform, or"),
    ({"macs": 1e-6}, "macs"), ({"importance": "bn"}, "unknown criterion"), ({"backend": "abacus"}, "none of that name"),
])
def test_a_refused_request_leaves_nothing(ask: Ask, network: Path, tmp_path: Path, changes: dict[str, Any],
                                          words: str) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    names = {"models": tmp_path / "models.py", "network": network}
    changes = {key: value.format(**names) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(RequestError, match=words):
        run_slim(ask(tmp_path / "a" / "run", **changes), lambda event: pytest.fail(f"began {event.phase.name}"))
    assert not (tmp_path / "a").exists()


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


GOOD = (torch.zeros(3, 8, 8), 1)


@pytest.mark.parametrize(("items", "words"), [
    ([], "is empty"), ([GOOD, OSError("cut short")], "item 1 can't be read: OSError: cut short"),
    ([GOOD, GOOD[0]], "item 1 is tensor 3x8x8 float32, wanted a pair"), ([(GOOD[0][:, :4], 0)], "picture of 3x4x8"),
    ([(GOOD[0].byte(), 0)], "has tensor 3x8x8 uint8, wanted finite"), ([(GOOD[0] / 0, 0)], "not finite"),
    ([(GOOD[0], 2)], "of class 2, wanted 0 to 1"), ([(GOOD[0], -1)], "of class -1"), ([(GOOD[0], "cat")], "'cat'"),
])
def test_data_that_cannot_be_used(items: list[Any], words: str) -> None:
    good = Data("mine", Items([GOOD]), Items([GOOD]), ("a", "b"), (3, 8, 8))
    check_data(good, task_for(good))
    for part in ("train", "test"):
        with pytest.raises(RequestError, match=f"mine: the dataset to {part} on.*{words}"):
            check_data(replace(good, **{part: Items(items)}), task_for(good))
    with pytest.raises(RequestError, match="items are of 20, wanted pictures"):
        check_data(replace(good, shape=(20,)), task_for(good))
    listed = Items([GOOD] * 3)
    listed.targets = [1, 2, 1]  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="class 2 found"):
        check_data(replace(good, test=listed), task_for(good))
    listed.targets = ["cat", "dog", "cat"]  # type: ignore[attr-defined]
    check_data(replace(good, test=listed), task_for(good))  # names; the items have numbers


def test_a_folder_of_someone_elses_is_refused_with_status_2(ask: Ask, tmp_path: Path, call: Call) -> None:
    (tmp_path / "work").mkdir()
    for name in ("report.html", "work/notes.txt"):
        (tmp_path / name).write_text("mine")
    for more in ([], ["--restart"]):
        status, out, err = call("slim", "torchvision:resnet18", "--data", "digits", "--macs", "0.4", "--out", tmp_path,
                                *more)
        assert (status, out) == (2, "")
        assert err == (f"error: {tmp_path}: holds report.html and no run, wanted a folder that is empty or new; choose "
                       f"another folder with --out, such as {tmp_path / 'run'}\n")
    assert [(tmp_path / name).read_text() for name in ("report.html", "work/notes.txt")] == ["mine", "mine"]
