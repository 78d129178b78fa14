"""Folders of pictures and masks: layouts, values of every kind of mask, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchslim.errors import RequestError
from torchslim.train import load_data
from train.datasets.made_files import MASK, write_masks


def values_of(root: Path, **options: Any) -> list[list[int]]:
    """The first mask to test on, as many pixels as it has itself: each is 2x2 at 8."""
    data = load_data(f"masks:{root}", size=8, **options)
    picture, mask = data.test[0]
    assert (data.task, data.shape, picture.shape, mask.shape) == ("segmentation", (3, 8, 8), (3, 8, 8), (8, 8))
    return mask[::2, ::2].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", [
    {"images": "images", "masks": "masks"}, {"images": "train/images", "masks": "train/masks"},
    {"images": "images/training", "masks": "annotations/training"}])
def test_layouts(layout: dict[str, str], tmp_path: Path) -> None:
    write_masks(tmp_path, "abc", **layout)
    if "train" in layout["images"]:
        write_masks(tmp_path, "d", **{key: name.replace("training", "val").replace("train", "val")
                               for key, name in layout.items()})
    data = load_data(f"masks:{tmp_path}", size=8)
    assert (len(data.train), len(data.test)) == ((3, 1) if "train" in layout["images"] else (2, 1))
    assert (data.classes, data.task) == (("0", "1", "2"), "segmentation")
    assert data.train[0][1].shape == (8, 8)
    assert data.test[0][1][::2, ::2].tolist() == MASK.tolist()


def test_kinds_of_masks(tmp_path: Path) -> None:
    grey = write_masks(tmp_path / "grey", "ab")
    assert values_of(write_masks(tmp_path / "p", mode="P")) == values_of(grey) == MASK.tolist()
    three = np.stack([MASK] * 3, -1)
    assert values_of(write_masks(tmp_path / "rgb", values=three)) == MASK.tolist()
    binary = np.where(MASK > 1, 255, 0).astype(np.uint8)
    assert values_of(write_masks(tmp_path / "binary", values=binary)) == [[0, 0, 1, 1]] * 4
    assert values_of(write_masks(tmp_path / "one_bit", values=binary > 0)) == [[0, 0, 1, 1]] * 4
    assert values_of(write_masks(tmp_path / "tiff", values=MASK, suffix="_mask.tif")) == MASK.tolist()
    two = np.where(MASK == 2, 0, MASK)
    assert values_of(write_masks(tmp_path / "two", values=two)) == two.tolist(), "with a 1 in it, 255 is not counted"


def test_classes_from_files(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "names")
    (root / "classes.txt").write_text("road\nblue car\n\nsky\nnever seen\n")
    assert load_data(f"masks:{root}", size=8).classes == ("road", "blue car", "sky", "never seen")
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text(json.dumps({"1": "b", "0": "a", "2": "c"}))
    assert load_data(f"masks:{root}", size=8).classes == ("a", "b", "c")
    colours = np.array([[[0, 0, 0], [128, 0, 0], [0, 0, 9], [0, 0, 9]]] * 4, np.uint8)
    root = write_masks(tmp_path / "colours", values=colours)
    (root / "classes.txt").write_text("void 0 0 0\nred car 128 0 0\nsea 0 0 9\n")
    assert load_data(f"masks:{root}").classes == ("void", "red car", "sea")
    assert values_of(root) == [[0, 1, 2, 2]] * 4
    (root / "classes.txt").write_text("void 0 0 0\nred car 128 0 0\n")
    refused(root, r"masks/[ab]\.png: the colour 0 0 9 is of no class; add it to classes.txt as `name 0 0 9`")


def refused(root: Path, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_data(f"masks:{root}", size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "words"), [
    (np.array([[0, 3]] * 4, np.uint8).repeat(2, 1), r"masks hold 2 values \(0, 3\), wanted up to 100 classes 0, 1"),
    (np.zeros((4, 4), np.uint8), "1 class found, at least 2 wanted"),
    (np.zeros((4, 5), np.uint8), "[ab].png is 5x4 pixels, its picture .*[ab].jpg is 4x4 upright; wanted a mask"),
    (np.array([[[1, 2, 3], [0, 0, 0]] * 2] * 4, np.uint8), "a mask of 2 colours, wanted class indices; put classes"),
    (np.full((4, 4), 700, np.uint16), "a mask with the value 700, wanted class indices up to 254"),
])
def test_masks_that_are_refused(values: Any, words: str, tmp_path: Path) -> None:
    refused(write_masks(tmp_path, values=values), words)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is no folder; give one that holds images and masks")
    refused(tmp_path, "has no folder images; wanted images/ and masks/")
    root = write_masks(tmp_path / "x")
    (root / "masks" / "a.png").rename(root / "masks" / "c.png")
    refused(root, r"1 pictures without a mask of the same name: \S*images/a\.jpg; add a mask")
    (root / "images" / "a.jpg").unlink()
    refused(root, r"1 masks without a picture of the same name: \S*c\.png")
    (root / "masks" / "c.png").write_bytes(b"")
    write_masks(root, "c", suffix=".bmp")
    refused(root, r"c\.(png|bmp) and \S*c\.(png|bmp) have the same name")
    (root / "masks" / "c.bmp").unlink()
    refused(root, r"c\.png: not a picture that can be read \(an empty file\)")
    refused(write_masks(tmp_path / "jpeg", suffix=".jpg"), "a JPEG, which changes values; save masks as PNG")
    root = write_masks(tmp_path / "few")
    (root / "classes.txt").write_text("a\nb\n")
    refused(root, r"masks/[ab]\.png: class 2 found, wanted 0 to 1, or 255 for what is not counted")
    (root / "classes.txt").write_text("a\na\nb\n")
    refused(root, r"classes\.txt: the name a is there twice")
    (root / "classes.txt").write_bytes(b"\xff\xfe")
    refused(root, r"classes\.txt: not text in UTF-8")
    (root / "classes.txt").unlink()
    for content, words in (("{", "not JSON"), ('{"a": 1}', "wanted a list of names"), ("3", "wanted a list of names")):
        (root / "classes.json").write_text(content)
        refused(root, rf"classes\.json: {words}")


def test_masks_lie_as_the_upright_picture(tmp_path: Path) -> None:
    """A picture that EXIF turns has a mask as one sees it."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in "ab":
        write_masks(tmp_path, name, values=np.zeros((6, 4), np.uint8) + np.array([0, 1, 1, 1], np.uint8))
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{name}.jpg", exif=turned)
    assert load_data(f"masks:{tmp_path}", size=8).test[0][1].shape == (8, 8)
    write_masks(tmp_path, "a", values=np.zeros((4, 6), np.uint8))
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.jpg", exif=turned)
    refused(tmp_path, r"a\.png is 6x4 pixels, .* is 4x6 upright \(its EXIF turns it; turn its pixels, or the mask\)")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_masks(tmp_path, "ab")
    (tmp_path / "masks" / "readme.md").touch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_data(f"masks:{tmp_path}", size=8)
    assert [str(warning.message).partition(": ")[2] for warning in caught] == [
        "1 not read, as their names do not end like a picture's: masks/readme.md"]
