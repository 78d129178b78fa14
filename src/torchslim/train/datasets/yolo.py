"""`yolo:FILE.yaml`: the layout of Ultralytics: a YAML file, pictures in `images/`, rows of text in `labels/`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from torchslim.train.datasets.boxes import NO_AREA, Box, LeftOut, clip, target_of
from torchslim.train.datasets.broken import picture_look, usable
from torchslim.train.datasets.files import Skipped, files_in, is_picture
from torchslim.train.datasets.items import make_data
from torchslim.train.datasets.pictures import read_picture
from torchslim.train.datasets.request import DataRequest
from torchslim.train.datasets.text_files import read_text, read_yaml
from torchslim.utils.data import Data
from torchslim.utils.text import printable

_TOLERANCE = 0.01  # by which a coordinate may leave the picture, as in Ultralytics


@dataclass(frozen=True)
class _Description:
    """What the YAML file says.

    Attributes:
        names: of the classes.
        points: key points of each box; None without.
        numbers: of each key point: 2 or 3.
        pairs: the point that each becomes in a mirrored picture.
    """

    names: tuple[str, ...]
    points: int | None
    numbers: int
    pairs: tuple[int, ...] | None


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: no such file or folder, no description as Ultralytics', rows of other numbers, an unknown class,
            a box outside its picture, pictures that can't be read.
        MissingExtra: PyYAML is not installed.
    """
    path = Path(request.rest).expanduser()
    content = read_yaml(request, path)
    if not isinstance(content, dict):
        raise request.error(f"{printable(path)}: holds {type(content).__name__}, wanted train, val and names as "
                            "Ultralytics has them")
    described = _describe(request, path, content)
    task = request.check_task(*(("detection",) if described.points is None else ("keypoints", "detection")))
    held_out = next((key for key in ("val", "test") if content.get(key)), None)
    left_out, parts = LeftOut(), []
    for key in ("train", *([held_out] if held_out else [])):
        pictures = _pictures(request, path, content, key)
        parts.append([(picture, _boxes(request, picture, described, left_out)) for picture in pictures])
    left_out.warn(request.spec, path)
    train, test = usable(request, task, parts[0], parts[1] if held_out else None,
                         picture_look(request), classes=described.names,
                         labels=lambda boxes: [box.label - 1 for box in boxes])
    reader = _Reader(request.colours, described.points if task == "keypoints" else None)
    return make_data(request, task, described.names, train, test, reader, pairs=described.pairs)


# --- the description ------------------------------------------------------------------------------------------------

def _describe(request: DataRequest, path: Path, content: dict[Any, Any]) -> _Description:
    where, names = printable(path), content.get("names")
    if names is None and isinstance(content.get("nc"), int):
        names = [str(index) for index in range(content["nc"])]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise request.error(f"{where}: names is {names!r}, wanted a list of classes, or a dict of them by 0, 1, 2, ...")
    if content.get("nc", len(names)) != len(names):
        raise request.error(f"{where}: nc is {content['nc']}, and there are {len(names)} names; make them agree")
    shape, flips = content.get("kpt_shape"), content.get("flip_idx")
    if shape is None:
        return _Description(tuple(map(str, names)), None, 0, None)
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(number, int) for number in shape)
            and shape[0] > 0 and shape[1] in (2, 3)):
        raise request.error(f"{where}: kpt_shape is {shape!r}, wanted [points, 2] or [points, 3]")
    if flips is not None and (not isinstance(flips, list) or sorted(map(str, flips)) != sorted(
            map(str, range(shape[0])))):
        raise request.error(f"{where}: flip_idx is {flips!r}, wanted each of 0 to {shape[0] - 1} once")
    return _Description(tuple(map(str, names)), shape[0], shape[1], tuple(flips) if flips else None)


def _pictures(request: DataRequest, path: Path, content: dict[Any, Any], part: str) -> list[Path]:
    """The pictures of a part: of a folder, a list in a file, or several of them."""
    given = content.get(part)
    places: list[Any] = given if isinstance(given, list) else [given]
    if not places or not all(isinstance(place, str) and place for place in places):
        raise request.error(f"{printable(path)}: {part} is {given!r}, wanted a folder of pictures, a file with a list "
                            "of them, or several")
    pictures: list[Path] = []
    for place in places:
        found = _locate(request, path, content.get("path"), place)
        if found.is_dir():
            pictures += [file for file in files_in(found, found.parent, Skipped(found)) if is_picture(file)]
        else:
            lines = [line.strip() for line in read_text(request, found).splitlines() if line.strip()]
            pictures += [found.parent / line for line in lines]
    if not pictures:
        raise request.error(f"no pictures in {part} of {printable(path)} ({', '.join(places)}); add some")
    return pictures


def _locate(request: DataRequest, path: Path, root: Any, place: str) -> Path:
    """A part, from the folder `path` or from that of the YAML file."""
    beside = path.parent
    roots = [beside / Path(str(root)).expanduser(), Path(str(root)).expanduser()] if root else [beside]
    names = [place, *([place[3:]] if place.startswith("../") else [])]  # as Roboflow writes them
    tried = [base / name for name in names for base in roots]
    found = next((candidate for candidate in tried if candidate.exists()), None)
    if found is None:
        raise request.error(f"there is no {printable(tried[0])}; mend path or the parts in {printable(path)}")
    return found


# --- labels ---------------------------------------------------------------------------------------------------------

def label_path(picture: Path) -> Path:
    """Where a picture's rows are: the last folder `images` is `labels`, the name ends in `.txt`."""
    head, found, tail = str(picture).rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}" if found else str(picture)
    return Path(moved).with_suffix(".txt")


def _boxes(request: DataRequest, picture: Path, described: _Description, left_out: LeftOut) -> list[Box]:
    """The boxes of a picture, in shares of its width and height; none without a file."""
    path = label_path(picture)
    if not path.exists():
        return []
    boxes = []
    lines = [line for line in enumerate(read_text(request, path).splitlines(), 1) if line[1].strip()]
    for number, line in lines:
        name = f"{printable(path)}, line {number}"
        box = clip(request.spec, _box(request, name, line.split(), described), (1.0, 1.0))
        if box is None:
            left_out.add(NO_AREA, name)
        else:
            boxes.append(box)
    return boxes


def _box(request: DataRequest, name: str, words: Sequence[str], described: _Description) -> Box:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise request.error(f"{name}: {' '.join(words[:6])!r} is not all numbers; wanted class, x, y, width, "
                            "height") from None
    index, rest = values[0], values[1:]
    if not index.is_integer() or not 0 <= index < len(described.names):
        raise request.error(f"{name}: class {words[0]}, wanted 0 to {len(described.names) - 1}, as names has them")
    low, high = -_TOLERANCE, 1 + _TOLERANCE
    if not all(low <= value <= high for value in _coordinates(rest, described)):
        raise request.error(f"{name}: {' '.join(words[1:5])} is not within 0 to 1; wanted shares of the picture's "
                            "width and height")
    label, points = int(index) + 1, described.points
    if points is not None and len(rest) == 4 + points * described.numbers:
        keys = [rest[start:start + described.numbers] for start in range(4, len(rest), described.numbers)]
        seen = [[*key, 2.0 * (key != [0.0, 0.0])] if described.numbers == 2 else key for key in keys]
        return Box(_corners(rest), label, name, seen)
    if len(rest) == 4:
        return Box(_corners(rest), label, name)
    if points is None and len(rest) >= 6 and len(rest) % 2 == 0:  # a polygon
        across, down = rest[0::2], rest[1::2]
        return Box((min(across), min(down), max(across), max(down)), label, name)
    wanted = ("5, or 7 and more of a polygon" if points is None else f"{5 + points * described.numbers} by kpt_shape")
    raise request.error(f"{name}: {len(words)} numbers, wanted {wanted}")


def _coordinates(rest: Sequence[float], described: _Description) -> Iterable[float]:
    """All numbers but the visibility of key points."""
    if described.points is None or described.numbers == 2:
        return rest
    return [*rest[:4], *(value for index, value in enumerate(rest[4:]) if index % 3 < 2)]


def _corners(rest: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = rest[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@dataclass(frozen=True)
class _Reader:
    channels: int
    points: int | None

    def __call__(self, path: Path, boxes: list[Box]) -> tuple[Image.Image, Any]:
        picture = read_picture(path, self.channels)
        return picture, target_of(boxes, self.points, picture.size)
