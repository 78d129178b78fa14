"""COCO's files: boxes and key points by hand, what is left out, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torchslim.errors import RequestError
from torchslim.train import load_data
from torchslim.train.datasets.coco import mirrored_names
from train.datasets.made_files import COCO, write_coco


def changed(change: Callable[[Any], Any]) -> Any:
    content = copy.deepcopy(COCO)
    change(content)
    return content


def both(spec: str, **options: Any) -> list[Any]:
    """Targets of the picture with boxes and of the one without, as they are tested on."""
    seeds = [load_data(spec, size=80, held_out=0.5, seed=seed, **options) for seed in range(8)]
    found = {data.test.samples[0][0].name: data.test[0][1] for data in seeds}  # type: ignore[attr-defined]
    return [found["a.png"], found["b.png"]]


def test_boxes_by_hand(tmp_path: Path) -> None:
    spec = write_coco(tmp_path, COCO)
    data = load_data(spec, size=80)
    assert (data.task, data.classes, data.shape, data.mean) == ("detection", ("cat", "dog"), (3, 80, 80), (0, 0, 0))
    target, empty = both(spec)
    assert target["labels"].tolist() == [2, 1]
    torch.testing.assert_close(target["boxes"], torch.tensor([[20.0, 30, 60, 50], [61, 40, 80, 60]]))
    assert (empty["boxes"].shape, empty["labels"].shape) == ((0, 4), (0,))


def test_two_files_and_folders(tmp_path: Path) -> None:
    spec = write_coco(tmp_path, COCO)
    empty = changed(lambda content: content["images"].pop(0) and content["annotations"].clear())
    write_coco(tmp_path, empty, "val.json")
    for at in (f"{spec},{tmp_path}/val.json", f"coco:{tmp_path}/images,{tmp_path}/images@{tmp_path}/boxes.json,"
               f"{tmp_path}/val.json"):
        data = load_data(at, size=80)
        assert (len(data.train), len(data.test)) == (2, 1)
    renamed = changed(lambda content: content["categories"].append({"id": 1, "name": "owl"}))
    write_coco(tmp_path, renamed, "other.json")
    refused(f"{spec},{tmp_path}/other.json", "have different categories; give both the same ids and names")


def test_key_points_by_hand(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["categories"][0]["keypoints"] = ["nose", "left_ear", "right_ear"]
        content["annotations"][0] |= {"keypoints": [10, 5, 2, 12, 6, 1, 33, 4, 0], "num_keypoints": 2}

    spec = write_coco(tmp_path, changed(change))
    assert load_data(spec, size=80).task == "keypoints"
    target, empty = both(spec)
    assert target["keypoints"].tolist() == [[[20, 30, 2], [24, 32, 1], [0, 0, 0]], [[0, 0, 0]] * 3]
    assert empty["keypoints"].shape == (0, 3, 3)
    assert "keypoints" not in both(spec, task="detection")[0]
    assert mirrored_names(["nose", "left_ear", "right_ear"]) == (0, 2, 1)
    assert mirrored_names(["nose", "left_ear"]) is None
    assert mirrored_names(["a", "b"]) is None


def test_boxes_without_an_area_are_counted(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["annotations"][0]["bbox"] = [10, 5, 0, 10]
        content["annotations"][1]["bbox"] = [10, 5, 3, -2]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(both(write_coco(tmp_path, changed(change)))[0]["boxes"]) == 0
    assert [str(warning.message).partition(": ")[2] for warning in caught] == [
        "2 boxes not read, as they have no area in the picture: annotation 1, annotation 2"]


def refused(spec: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_data(spec, size=16)
    assert "\n" not in str(caught.value)


def at(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value
    return change


@pytest.mark.parametrize(("content", "words"), [
    ("{", r"boxes\.json: not JSON"),
    ([1], "a list, wanted images, annotations and categories"),
    ({"images": [], "annotations": []}, "no list 'categories'"),
    (changed(at("images", value=[])), "0 images with 0 ids"),
    (changed(at("categories", value=[])), "0 categories with 0 ids"),
    (changed(at("categories", 0, "id", value=4)), "2 categories with 1 ids"),
    (changed(at("categories", 0, value={"id": 9})), "category 9 has name NoneType None, wanted str"),
    (changed(at("annotations", value=[3])), "other things than objects in 'annotations'"),
    (changed(at("images", 0, "file_name", value=3)), "image 7 has file_name int 3, wanted str"),
    (changed(at("images", 0, "file_name", value="c.png")), r"c\.png: not a picture that can be read \(no file\)"),
    (changed(at("annotations", 0, "image_id", value=5)), "annotation 1 is of image 5, which is not in the list"),
    (changed(at("annotations", 0, "category_id", value=5)), "annotation 1 is of category 5, wanted one of 4, 9"),
    (changed(at("annotations", 0, "bbox", value=[1, 2, 3])), r"annotation 1 has bbox \[1, 2, 3\], wanted four numbers"),
    (changed(at("annotations", 0, "bbox", value=[35, 5, 39, 15])),
     r"annotation 1: a box from \(35, 5\) to \(74, 20\) is not in its picture of 40x20"),
    (changed(at("annotations", 0, "bbox", value=[float("nan"), 5, 39, 15])), "a box from .nan, 5"),
    (changed(at("images", 0, "width", value=20)), "a.png is 40x20 pixels upright, the annotations are of 20x20"),
])
def test_annotations_that_are_refused(content: Any, words: str, tmp_path: Path) -> None:
    if words.startswith("a.png is"):
        content["annotations"] = []
    refused(write_coco(tmp_path, content), words)


def test_specifications_that_are_refused(tmp_path: Path) -> None:
    spec = write_coco(tmp_path, COCO)
    refused(f"coco:{tmp_path}/images", "no file of annotations; give coco:IMAGES@FILE.json")
    refused(f"{spec},x.json,y.json", "1 folders and 3 files, wanted one file, or one to train on and one to test on")
    refused(f"coco:{tmp_path}/nowhere@{tmp_path}/boxes.json", "nowhere is no folder; give the one that holds")
    refused(f"coco:{tmp_path}/images@{tmp_path}/none.json", r"there is no file \S*none\.json")
