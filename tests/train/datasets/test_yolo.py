"""Ultralytics' layout: rows by hand, every way to name the parts, and what is refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from torchslim.errors import MissingExtra, RequestError
from torchslim.train import load_data
from torchslim.train.datasets.yolo import label_path
from train.datasets.made_files import YOLO_NAMES, write_yolo


def test_rows_by_hand(tmp_path: Path) -> None:
    """At 80 pixels 40x20 are twice as large, with 20 rows of grey above; a polygon becomes its box."""
    spec = write_yolo(tmp_path, "1 0.5 0.5 0.5 0.5\n\n0 0 0.5 0.25 0.25 0.5 1.005\n")
    data = load_data(spec, size=80)
    assert (data.task, data.classes, len(data.train), len(data.test)) == ("detection", ("cat", "dog"), 2, 2)
    (_, target), (_, empty) = data.test[0], data.test[1]
    assert target["labels"].tolist() == [2, 1]
    torch.testing.assert_close(target["boxes"], torch.tensor([[20.0, 30, 60, 50], [0, 30, 40, 60]]))
    assert empty["boxes"].shape == (0, 4)


@pytest.mark.parametrize("numbers", [2, 3])
def test_key_points_by_hand(numbers: int, tmp_path: Path) -> None:
    seen = " 2" if numbers == 3 else ""
    none = " 0" if numbers == 3 else ""
    rows = f"0 0.5 0.5 0.5 0.5 0.25 0.5{seen} 0 0{none}\n"
    yaml = f"train: images/train\nval: images/val\nnames: {{0: cat}}\nkpt_shape: [2, {numbers}]\nflip_idx: [1, 0]\n"
    data = load_data(write_yolo(tmp_path, rows, yaml), size=80)
    assert (data.task, data.test[0][1]["keypoints"].tolist()) == ("keypoints", [[[20, 40, 2], [0, 0, 0]]])
    assert data.test[1][1]["keypoints"].shape == (0, 2, 3)
    assert data.train.transform.pairs == [1, 0]  # type: ignore[attr-defined]
    assert "keypoints" not in load_data(f"yolo:{tmp_path}/data.yaml", size=80, task="detection").test[0][1]


@pytest.mark.parametrize(("yaml", "train", "test"), [
    ("path: .\ntrain: images/train\n", 1, 1),
    ("path: ROOT\ntrain: [images/train, images/val]\ntest: images/val\n", 4, 2),
    ("train: ../images/train\nval: ../images/val\n", 2, 2),
    ("train: list.txt\nval: images/val\n", 1, 2),
])
def test_parts(yaml: str, train: int, test: int, tmp_path: Path) -> None:
    spec = write_yolo(tmp_path, "0 0.5 0.5 1 1", yaml.replace("ROOT", str(tmp_path)) + YOLO_NAMES)
    (tmp_path / "list.txt").write_text("./images/train/a.png\n")
    data = load_data(spec, size=16)
    assert (len(data.train), len(data.test)) == (train, test)
    assert label_path(Path("/images/x/images/y/1.jpeg")) == Path("/images/x/labels/y/1.txt")


def test_boxes_without_an_area_are_counted(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_data(write_yolo(tmp_path, "0 0.5 0.5 0 0.5\n"), size=16)
    (message,) = [str(warning.message) for warning in caught]
    assert "2 boxes not read, as they have no area in the picture: " in message
    assert message.endswith("labels/val/a.txt, line 1")


@pytest.mark.parametrize(("rows", "yaml", "words"), [
    ("2 0.5 0.5 0.5 0.5", "", r"labels/train/a\.txt, line 1: class 2, wanted 0 to 1, as names has them"),
    ("0.5 0.5 0.5 0.5 0.5", "", r"class 0\.5, wanted 0 to 1"),
    ("0 0.5 0.5 1 1\n0 20 10 5 5", "", "line 2: 20 10 5 5 is not within 0 to 1; wanted shares"),
    ("0 nan 0.5 1 1", "", "nan 0.5 1 1 is not within 0 to 1"),
    ("0 0.5 0.5 0.5", "", "4 numbers, wanted 5, or 7 and more of a polygon"),
    ("cat 0.5 0.5 0.5 0.5", "", "'cat 0.5 0.5 0.5 0.5' is not all numbers"),
    ("0 0.5 0.5 0.5 0.5 0.1 0.1", f"train: images/train\nkpt_shape: [3, 2]\n{YOLO_NAMES}",
     "7 numbers, wanted 11 by kpt_sh"),
    ("", "a: [", r"data\.yaml, line 1: not YAML"),
    ("", "3", "holds int, wanted train, val and names"),
    ("", f"val: images/val\n{YOLO_NAMES}", "train is None, wanted a folder of pictures"),
    ("", "train: images/train\nnames: 3\n", "names is 3, wanted a list of classes"),
    ("", "train: images/train\nnames: {1: a, 2: b}\n", "names is {1: 'a', 2: 'b'}, wanted a list"),
    ("", f"train: images/train\nnc: 3\n{YOLO_NAMES}", "nc is 3, and there are 2 names"),
    ("", f"train: images/trian\n{YOLO_NAMES}", r"there is no \S*images/trian; mend path or the parts"),
    ("", f"train: labels/train\n{YOLO_NAMES}", "no pictures in train of"),
    ("", f"train: images/train\nkpt_shape: 3\n{YOLO_NAMES}", r"kpt_shape is 3, wanted \[points, 2\]"),
    ("", f"train: images/train\nkpt_shape: [2, 3]\nflip_idx: [0, 0]\n{YOLO_NAMES}",
     "flip_idx is .0, 0., wanted each of 0 to 1"),
])
def test_what_is_refused(rows: str, yaml: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_data(write_yolo(tmp_path, rows, yaml), size=16)
    assert "\n" not in str(caught.value)


def test_without_the_reader_of_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"torchslim\[yolo\]"):
        load_data(write_yolo(tmp_path, ""))
