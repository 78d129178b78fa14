"""`coco:IMAGES@FILE.json`: pictures in a folder, and boxes or key points in a file as COCO's.

Two files after the @, with a comma between, are to train on and to test on; before it may be two folders, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from torchslim.errors import RequestError
from torchslim.train.datasets.boxes import NO_AREA, Box, LeftOut, Target, clip, target_of
from torchslim.train.datasets.broken import picture_look, picture_sizes, usable
from torchslim.train.datasets.items import Sample, make_data
from torchslim.train.datasets.pictures import Size, read_picture
from torchslim.train.datasets.request import DataRequest
from torchslim.train.datasets.text_files import read_json
from torchslim.utils.data import Data, describe
from torchslim.utils.text import first_names, format_shape, printable

_Size = tuple[float, float]


@dataclass(frozen=True)
class _Categories:
    """The classes of a file.

    Attributes:
        names: in the order of their ids.
        labels: an id's place in that order, from 1.
        points: the names of key points, of the category that has most.
    """

    names: tuple[str, ...]
    labels: dict[int, int]
    points: tuple[str, ...]


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: no such file or folder, no annotations as COCO's, an unknown picture or category, a box outside
            its picture, files with different categories, pictures that can't be read or are of another size.
    """
    sources = _sources(request)
    read = [_Annotations(request, path, read_json(request, path)) for _, path in sources]
    categories = read[0].categories
    for other in read[1:]:
        if other.categories != categories:
            raise request.error(f"{read[0].where} and {other.where} have different categories; give both the same ids "
                                "and names")
    with_points = bool(categories.points) and any(part.has_points for part in read)
    task = request.check_task(*(("keypoints", "detection") if with_points else ("detection",)))
    points = len(categories.points) if task == "keypoints" else None
    parts = [annotations.samples(folder, points) for annotations, (folder, _) in zip(read, sources, strict=True)]
    look = picture_look(request, check_sizes=lambda sample, sizes: _check_size(request, sample, sizes[0]))
    train, test = usable(request, task, parts[0], parts[1] if len(parts) > 1 else None, look,
                         classes=categories.names, labels=lambda target: (target[1]["labels"] - 1).tolist())
    pairs = mirrored_names(categories.points) if points else None
    return make_data(request, task, categories.names, train, test, _Reader(request.colours), pairs=pairs)


def _sources(request: DataRequest) -> list[tuple[Path, Path]]:
    """Folders and files, one pair a part."""
    images, at, files = request.rest.rpartition("@")
    if not at or not images or not files:
        raise request.error("no file of annotations; give coco:IMAGES@FILE.json, or coco:IMAGES@TRAIN.json,VAL.json")
    paths = [Path(name).expanduser() for name in files.split(",")]
    whole = Path(images).expanduser()
    roots = [whole] if whole.is_dir() else [Path(name).expanduser() for name in images.split(",")]
    if len(paths) > 2 or len(roots) not in (1, len(paths)):
        raise request.error(f"{len(roots)} folders and {len(paths)} files, wanted one file, or one to train on and one "
                            "to test on, and one folder or as many")
    for root in roots:
        if not root.is_dir():
            raise request.error(f"{root} is no folder; give the one that holds the pictures")
    return [(root, path) for root, path in zip(roots * (len(paths) // len(roots)), paths, strict=True)]


def mirrored_names(names: Sequence[str]) -> tuple[int, ...] | None:
    """The point that each one becomes in a mirrored picture: `left_eye` is `right_eye` then.

    None where names do not tell: none has a side, or one's other side is missing.
    """
    swapped = [name.replace("left", "\0").replace("right", "left").replace("\0", "right") for name in names]
    if list(names) == swapped or any(name not in names for name in swapped):
        return None
    return tuple(names.index(name) for name in swapped)


class _Annotations:
    """A file of annotations, checked."""

    def __init__(self, request: DataRequest, path: Path, content: Any) -> None:
        self.request, self.path, self.where = request, path, printable(path)
        if not isinstance(content, dict):
            raise request.error(f"{self.where}: a {type(content).__name__}, wanted images, annotations and categories "
                                "as COCO has them")
        lists = [content.get(key) for key in ("images", "annotations", "categories")]
        for key, found in zip(("images", "annotations", "categories"), lists, strict=True):
            if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
                raise request.error(f"{self.where}: {'no list' if found is None else 'other things than objects in'} "
                                    f"{key!r}, wanted images, annotations and categories as COCO has them")
        self.images: list[Any] = lists[0] or []
        self.annotations: list[Any] = lists[1] or []
        self.categories = self._categories(lists[2] or [])
        self.has_points = any(entry.get("keypoints") for entry in self.annotations if not entry.get("iscrowd"))

    def _field(self, entry: Mapping[str, Any], what: str, key: str, kind: Any) -> Any:
        value = entry.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.request.error(f"{self.where}: {what} has {key} {describe(value)}, wanted "
                                     f"{getattr(kind, '__name__', kind)}")
        return value

    def _categories(self, entries: list[Any]) -> _Categories:
        by_id = {self._field(entry, f"category {index}", "id", int): entry for index, entry in enumerate(entries)}
        if not by_id or len(by_id) != len(entries):
            raise self.request.error(f"{self.where}: {len(entries)} categories with {len(by_id)} ids, wanted at least "
                                     "one, each with an id of its own")
        ordered = sorted(by_id)
        points = max((tuple(map(str, by_id[key].get("keypoints") or ())) for key in ordered), key=len)
        return _Categories(tuple(self._field(by_id[key], f"category {key}", "name", str) for key in ordered),
                           {key: place for place, key in enumerate(ordered, 1)}, points)

    def samples(self, folder: Path, points: int | None) -> list[Sample]:
        """Pictures with their sizes and targets, those without boxes, too."""
        images = {self._field(entry, f"image {index}", "id", int | str): entry
                  for index, entry in enumerate(self.images)}
        if len(images) != len(self.images) or not images:
            raise self.request.error(f"{self.where}: {len(self.images)} images with {len(images)} ids, wanted at least "
                                     "one, each with an id of its own")
        paths = {key: folder / self._field(entry, f"image {key}", "file_name", str) for key, entry in images.items()}
        known = all(isinstance(entry.get(side), int) for entry in images.values() for side in ("width", "height"))
        found = [(entry["width"], entry["height"]) for entry in images.values()] if known else \
            picture_sizes(list(paths.values()))
        sizes: dict[Any, _Size] = {key: size for key, size in zip(images, found, strict=True) if size is not None}
        boxes: dict[Any, list[Box]] = {key: [] for key in images}
        left_out = LeftOut()
        for index, entry in enumerate(self.annotations):
            if entry.get("iscrowd"):
                continue
            name = f"{self.where}: annotation {entry.get('id', index)}"
            key = entry.get("image_id")
            if key not in images:
                raise self.request.error(f"{name} is of image {key!r}, which is not in the list; add it or take the "
                                         "annotation away")
            box = self._box(entry, name, points)
            size = sizes.get(key, (float("inf"), float("inf")))
            clipped = clip(self.request.spec, box, size)
            if clipped is None:
                left_out.add(NO_AREA, f"annotation {entry.get('id', index)}")
            else:
                boxes[key].append(clipped)
        left_out.warn(self.request.spec, self.path)
        return [(path, (sizes.get(key), target_of(boxes[key], points))) for key, path in paths.items()]

    def _box(self, entry: Mapping[str, Any], name: str, points: int | None) -> Box:
        label = self.categories.labels.get(entry.get("category_id"))  # type: ignore[arg-type]
        if label is None:
            ids = first_names([str(key) for key in self.categories.labels])
            raise self.request.error(f"{name} is of category {entry.get('category_id')!r}, wanted one of {ids}")
        bbox = _numbers(entry.get("bbox"))
        if bbox is None or len(bbox) != 4:
            raise self.request.error(f"{name} has bbox {entry.get('bbox')!r}, wanted four numbers: x, y, width, height "
                                     "in pixels")
        flat = _numbers(entry.get("keypoints") or []) if points else []
        if flat is None or len(flat) % 3 or len(flat) > 3 * (points or 0):
            raise self.request.error(f"{name} has keypoints of {describe(entry.get('keypoints'))}, wanted x, y and "
                                     f"visibility of {points} points, as its category names them")
        left, upper, width, height = bbox
        return Box((left, upper, left + width, upper + height), label, name,
                   [flat[start:start + 3] for start in range(0, len(flat), 3)])


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    return [float(value) for value in values]


def _check_size(request: DataRequest, sample: Sample, size: Size) -> None:
    path, (annotated, _) = sample
    if annotated is not None and annotated != size:
        raise request.error(_misfit(path, size, annotated))


def _misfit(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> str:
    turned = " (its EXIF turns it; turn its pixels, or the boxes)" if size == wanted[::-1] else ""
    return (f"{printable(path)} is {format_shape(size)} pixels upright, the annotations are of "
            f"{format_shape(wanted)}{turned}; give the pictures that they were made for")


@dataclass(frozen=True)
class _Reader:
    channels: int

    def __call__(self, path: Path, annotated: tuple[tuple[int, int] | None, Target]) -> tuple[Image.Image, Target]:
        picture, (size, target) = read_picture(path, self.channels), annotated
        if size is not None and size != picture.size:
            raise RequestError(_misfit(path, picture.size, size))
        return picture, target
