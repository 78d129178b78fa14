"""Hugging Face's `datasets` on disk: the task by the columns, targets by hand, and that nothing is fetched."""

from __future__ import annotations

import io
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchslim.errors import MissingExtra, RequestError
from torchslim.train import load_data

datasets = pytest.importorskip("datasets")

PICTURE = Image.new("RGB", (40, 20), (200, 0, 0))
COUNT = 4


def stored(picture: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def save(root: Path, features: dict[str, Any], *, parts: bool = False, **columns: list[Any]) -> str:
    """Four rows, saved to disk."""
    made = datasets.Dataset.from_dict({"image": [stored(PICTURE)] * COUNT, **columns}, features=datasets.Features(
        {"image": datasets.Image(), **features}))
    if parts:
        made = datasets.DatasetDict({"train": made, "validation": made.select([1, 2])})
    made.save_to_disk(str(root / "saved"))
    return f"hf:{root}/saved"


def of(spec: str, **options: Any) -> list[Any]:
    """The targets of the four rows at 80 pixels."""
    data = load_data(spec, size=80, held_out=0.5, **options)
    found = {part.samples[index][0][1]: part[index][1] for part in (data.test,) for index in range(len(part))}  # type: ignore[attr-defined,arg-type]
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 80, 80)
    return [data.task, data.classes, found]


def test_classes_and_parts(tmp_path: Path) -> None:
    spec = save(tmp_path, {"label": datasets.ClassLabel(names=["cat", "dog"])}, parts=True, label=[0, 1, 0, 1])
    data = load_data(spec, size=16)
    assert (data.task, data.classes, len(data.train), len(data.test)) == ("classification", ("cat", "dog"), 4, 2)
    assert (data.test.targets, data.test[0][1]) == ([1, 0], 1)  # type: ignore[attr-defined]
    assert len(load_data(f"{spec}?train=validation&test=train", size=16).train) == 2


def test_labels_and_values(tmp_path: Path) -> None:
    several = datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"]))
    task, classes, found = of(save(tmp_path / "m", {"tags": several}, tags=[[0, 2], [], [1], [2]]))
    assert (task, classes) == ("multilabel", ("a", "b", "c"))
    wanted = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert all(target.tolist() == wanted[row] for row, target in found.items())
    task, classes, found = of(save(tmp_path / "r", {"age": datasets.Value("float32")}, age=[0.5, 1.5, 2.5, 3.5]))
    assert (task, classes) == ("regression", ("age",))
    assert all(target.tolist() == [0.5 + row] for row, target in found.items())
    spec = save(tmp_path / "i", {"count": datasets.Value("int64")}, count=[7, 9, 7, 9])
    assert of(spec)[:2] == ["classification", ("7", "9")]
    assert of(spec, task="regression")[:2] == ["regression", ("count",)]


def test_masks(tmp_path: Path) -> None:
    mask = stored(Image.fromarray(np.repeat(np.array([[0], [1], [2], [255]], np.uint8), 5, 0).repeat(40, 1)))
    task, classes, found = of(save(tmp_path, {"annotation": datasets.Image()}, annotation=[mask] * COUNT))
    assert (task, classes) == ("segmentation", ("0", "1", "2"))
    for target in found.values():
        assert target[20::10, 0].tolist()[:4] == [0, 1, 2, 255]


@pytest.mark.parametrize("as_list", [False, True])
def test_boxes(as_list: bool, tmp_path: Path) -> None:
    fields = {"bbox": datasets.Sequence(datasets.Value("float32"), length=4),
              "category": datasets.ClassLabel(names=["cat", "dog"])}
    rows = [[([10.0, 5.0, 20.0, 10.0], 1), ([0.0, 0.0, 0.0, 5.0], 0)], [], [], []]
    if as_list:
        feature: Any = [fields]
        column: list[Any] = [[{"bbox": box, "category": kind} for box, kind in row] for row in rows]
    else:
        feature = datasets.Sequence(fields)
        column = [{"bbox": [box for box, _ in row], "category": [kind for _, kind in row]} for row in rows]
    spec = save(tmp_path, {"objects": feature, "width": datasets.Value("int64")}, objects=column, width=[40] * COUNT)
    targets = {}
    for seed in range(8):
        task, classes, found = of(spec, seed=seed)
        targets |= found
    assert (task, classes) == ("detection", ("cat", "dog"))
    assert (targets[0]["boxes"].tolist(), targets[0]["labels"].tolist()) == ([[20, 30, 60, 50]], [2])
    assert targets[1]["boxes"].shape == (0, 4)


def test_a_folder_of_parquet_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    made = datasets.Dataset.from_dict({"image": [stored(PICTURE)] * 4, "label": [0, 1, 0, 1]}, features=features)
    (tmp_path / "data").mkdir()
    made.to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    for spec in (f"hf:{tmp_path}/data", f"hf:{tmp_path}/data/train-0.parquet"):
        data = load_data(spec, size=16)
        assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 2, 2)
    load_as_if_from_the_hub(tmp_path / "cache")
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(RequestError, match=r"^hf:nobody/nothing: can't be opened .*: torchslim downloads nothing$"):
        load_data("hf:nobody/nothing")
    assert before == datasets.config.HF_HUB_OFFLINE


def load_as_if_from_the_hub(cache: Path) -> None:
    """What was read from the folder `data`, where `datasets` would have put `nobody/cached`."""
    folder = cache / "nobody___cached" / "default" / "0.0.0" / "a0"
    shutil.copytree(next((cache / "data").glob("*/*/*/dataset_info.json")).parent, folder)
    for path in folder.glob("data-*"):
        path.rename(folder / path.name.replace("data-", "cached-"))
    info = folder / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "dataset_name": "cached"}))
    assert load_data("hf:nobody/cached", size=16).classes == ("cat", "dog")


@pytest.mark.parametrize(("query", "words"), [
    ("?confg=x", "no option 'confg'; did you mean config"),
    ("?config=", "nothing in the option config"),
    ("?boxes=cxcywh", "boxes=cxcywh found, wanted xywh or xyxy"),
    ("?train=trian", "has no parts; leave train= and test= out"),
    ("?target=lable", "no column 'lable'; did you mean label"),
    ("?image=label", "no column of pictures 'label'"),
    ("", "the column 'label' holds -1, wanted 0 to 1; take such rows away"),
    ("?target=image", "no column 'image'"),
])
def test_what_is_refused(query: str, words: str, tmp_path: Path) -> None:
    spec = save(tmp_path, {"label": datasets.ClassLabel(names=["cat", "dog"])}, label=[0, 1, -1, 1])
    with pytest.raises(RequestError, match=words) as caught:
        load_data(spec + query, size=16)
    assert "\n" not in str(caught.value)


def test_several_columns(tmp_path: Path) -> None:
    spec = save(tmp_path, {"x": datasets.Value("float32"), "y": datasets.Value("float32")}, x=[1.0] * 4, y=[2.0] * 4)
    with pytest.raises(RequestError, match=r"x and y may be predicted; choose a column with \?target=NAME"):
        load_data(spec)
    assert of(f"{spec}?target=y")[:2] == ["regression", ("y",)]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"torchslim\[hf\]"):
        load_data("hf:x")
