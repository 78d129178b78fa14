"""Pictures of every kind of file in every kind of data: what is read, and what is refused with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchslim.errors import RequestError
from torchslim.train import load_data
from train.datasets.made_files import COCO, write_coco, write_csv, write_masks, write_yolo

Made = tuple[str, Path]


def masks(root: Path) -> Made:
    return f"masks:{write_masks(root, 'ab')}", root / "images" / "a.jpg"


def coco(root: Path) -> Made:
    return write_coco(root, COCO), root / "images" / "a.png"


def yolo(root: Path) -> Made:
    return write_yolo(root, "0 0.5 0.5 0.5 0.5"), root / "images" / "val" / "a.png"


def csv(root: Path) -> Made:
    rows = (f"{number}.png,{number % 2}" for number in range(4))
    return write_csv(root, "file,label", *rows), root / "pictures" / "1.png"


KINDS = [masks, coco, yolo, csv]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_ones_are_found_at_once(kind: Callable[[Path], Made], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    spec, path = kind(tmp_path)
    whole = path.read_bytes()
    for content, words in ((b"", "an empty file"), (b"text", "of no kind that Pillow can read"),
                           (whole[:-30], "OSError"), (None, "no file")):
        path.unlink() if content is None else path.write_bytes(content)
        if content is None and kind in (masks, yolo):
            continue  # without the picture it is a mask too many, or one picture less
        with pytest.raises(RequestError, match=rf"{path.name}: not a picture that can be read \({words}"):
            load_data(spec, size=16)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(RequestError, match=r"can't be read: .*DecompressionBombError"):
        load_data(spec, size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_grey_and_animated_ones_are_read(kind: Callable[[Path], Made], tmp_path: Path) -> None:
    spec, path = kind(tmp_path)
    size = Image.open(path).size
    deep = Image.fromarray(np.full(size[::-1], 200 << 8, np.uint16))
    frames = [Image.new("P", size, number) for number in range(2)]
    for picture, options in ((deep, {"format": "PNG"}), (Image.new("LA", size, (200, 255)), {"format": "PNG"}),
                             (Image.new("CMYK", size), {"format": "TIFF"}),
                             (frames[0], {"format": "GIF", "save_all": True, "append_images": frames[1:]})):
        picture.save(path, **options)
        for channels in (1, 3):
            data = load_data(spec, size=16, channels=channels, held_out=0.5)
            shapes = {part[index][0].shape for part in (data.train, data.test) for index in range(len(part))}  # type: ignore[arg-type]
            assert shapes == {(channels, 16, 16)} == {data.shape}
    with pytest.raises(RequestError, match=r"no pictures of 4 channels, 1 \(grey\) or 3"):
        load_data(spec, channels=4)
