"""Small data sets on disk, one of each layout that is read, and their DATA names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# 40x20 pixels at 80 are twice as large, with 20 rows of grey above.
COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20},
               {"id": 3, "file_name": "in/b.png", "width": 40, "height": 20}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 10]},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [30.5, 10, 9.9, 10.2], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 4, "bbox": [0, 0, 40, 20], "iscrowd": 1}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
}


def write_coco(root: Path, content: Any, name: str = "boxes.json") -> str:
    for picture in ("a.png", "in/b.png"):
        path = root / "images" / picture
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (0, 0, 200)).save(path)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return f"coco:{root}/images@{root}/{name}"


def write_csv(root: Path, *lines: str) -> str:
    for number in range(4):
        path = root / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (root / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    return f"csv:{root}/table.csv@{root}/pictures"


MASK = np.array([[0, 1, 2, 255]] * 4, np.uint8)


def write_masks(root: Path, names: str = "ab", values: Any = MASK, mode: str = "", images: str = "images",
         masks: str = "masks", suffix: str = ".png") -> Path:
    """Pictures of 4x4 pixels and a mask of these values each."""
    for name in names:
        for folder in (images, masks):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (200, 0, 0)).save(root / images / f"{name}.jpg")
        mask = Image.fromarray(np.asarray(values))
        if mode == "P":
            mask.putpalette([200, 0, 0, 0, 200, 0] * 128)
        mask.save(root / masks / f"{name}{suffix}")
    return root


YOLO_NAMES = "names: [cat, dog]\n"


def write_yolo(root: Path, rows: str, yaml: str = "", parts: tuple[str, ...] = ("train", "val")) -> str:
    """A picture of 40x20 pixels with rows in each part, and one without."""
    for part in parts:
        for name in ("a", "b"):
            path = root / "images" / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20)).save(path)
        label = root / "labels" / part / "a.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(rows)
    (root / "data.yaml").write_text(yaml or f"train: images/train\nval: images/val\n{YOLO_NAMES}")
    return f"yolo:{root}/data.yaml"
