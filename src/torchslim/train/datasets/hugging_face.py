"""`hf:NAME`: a data set of Hugging Face's `datasets`: saved by it, a folder or a file of parquet, or one in its cache.

Options follow a question mark: `config=`, the parts `train=` and `test=`, the columns `image=` and `target=`, and
`boxes=xyxy` where they are not x, y, width, height. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from PIL import Image

from torchslim.errors import MissingExtra, RequestError
from torchslim.train.datasets.boxes import Box, clip, target_of
from torchslim.train.datasets.broken import picture_look, usable
from torchslim.train.datasets.files import name_parts
from torchslim.train.datasets.hub_columns import Column, object_rows, target_column
from torchslim.train.datasets.items import Sample, make_data
from torchslim.train.datasets.mask_values import LOOKED_AT, MaskReader, mask_classes, read_values
from torchslim.train.datasets.pictures import UnreadablePicture, as_channels, read_with
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data
from torchslim.utils.text import describe_error, did_you_mean, format_shape, printable

_OPTIONS = ("config", "train", "test", "image", "target", "boxes")
_BOXES = ("xywh", "xyxy")


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: nothing by that name on this machine, an unknown option, part or column, columns of no task.
        MissingExtra: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "hf", "data of Hugging Face") from error
    name, options = _options(request)
    parts = _choose(request, _open(request, datasets, name, options.get("config")), options)
    image = _image_column(request, parts[0].features, options.get("image"))
    column = target_column(request, parts[0].features, image, options.get("target"))
    for part in parts:
        if any(part.features.get(key) != parts[0].features[key] for key in (image, column.name)):
            raise request.error(f"the parts have different columns {image!r} and {column.name!r}; give both the same")
    raw = [_undecoded(datasets, part, [image, column.name]) for part in parts]
    places: list[list[_Place]] = [[(part, index) for index in range(len(part))] for part in raw]
    reader = _Reader(request.spec, request.colours, image, column, options.get("boxes") == "xyxy")
    classes: tuple[str, ...] = ()
    samples: list[list[Sample]] = [[(place, None) for place in part] for part in places]
    if column.task == "regression":
        classes, samples = _values(request, column, raw, places)
    elif column.task != "segmentation":
        classes, samples = _labelled(request, column, raw, places)
    train, test = usable(request, column.task, samples[0], samples[1] if len(samples) > 1 else None,
                         picture_look(request, reader.files), classes=classes,
                         labels=list if column.task == "detection" else None)
    if column.task == "segmentation":
        every = [place for place, _ in (*train, *test)]
        classes, binary = mask_classes(request, map(reader.mask_values, every[::-(-len(every) // LOOKED_AT)]))
        reader = _Reader(request.spec, request.colours, image, column, mask=MaskReader(len(classes), binary))
    return make_data(request, column.task, classes, train, test, reader)


_Place = tuple[Any, int]
"""A part and the number of a row."""


def _labelled(request: DataRequest, column: Column, parts: list[Any],
              places: list[list[_Place]]) -> tuple[tuple[str, ...], list[list[Sample]]]:
    names, index = column.labels(request, parts)
    samples: list[list[Sample]] = []
    for part, rows in zip(parts, places, strict=True):
        found = [[index[value] for value in row] for row in column.values(part)]
        targets: list[Any] = [row[0] for row in found] if column.task == "classification" else found
        if column.task == "multilabel":
            targets = [torch.zeros(len(names)).index_fill_(0, torch.tensor(row, dtype=torch.int64), 1.0)
                       for row in found]
        samples.append(list(zip(rows, targets, strict=True)))
    return names, samples


def _values(request: DataRequest, column: Column, parts: list[Any],
            places: list[list[_Place]]) -> tuple[tuple[str, ...], list[list[Sample]]]:
    samples: list[list[Sample]] = [[(place, row) for place, row in zip(rows, column.values(part), strict=True)]
               for part, rows in zip(parts, places, strict=True)]
    width = len(samples[0][0][1]) if samples[0] else 0
    for part in samples:
        for index, (place, row) in enumerate(part):
            if len(row) != width or any(value is None or value != value for value in row):
                raise request.error(f"row {place[1]} has {row} in the column {column.name!r}, wanted {width} numbers")
            part[index] = (place, torch.tensor([float(value) for value in row]))
    return (column.name,) if width == 1 else tuple(f"{column.name} {index}" for index in range(width)), samples


# --- what is opened -------------------------------------------------------------------------------------------------

def _options(request: DataRequest) -> tuple[str, dict[str, str]]:
    name, _, query = request.rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in options.items():
        if key not in _OPTIONS:
            raise request.error(f"no option {key!r}; {did_you_mean(key, _OPTIONS)}")
        if not value:
            raise request.error(f"nothing in the option {key}; give {key}=NAME")
    if options.get("boxes", "xywh") not in _BOXES:
        raise request.error(f"boxes={options['boxes']} found, wanted {' or '.join(_BOXES)}")
    return name, options


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Nothing is fetched from the hub meanwhile."""
    from huggingface_hub import constants

    settings: tuple[Any, ...] = (datasets.config, constants)
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    for setting in settings:
        setting.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value


def _open(request: DataRequest, datasets: Any, name: str, config: str | None) -> Any:
    path = Path(name).expanduser()
    try:
        with _offline(datasets):
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                return datasets.load_from_disk(str(path))
            if path.is_file() and path.suffix == ".parquet":
                return datasets.load_dataset("parquet", data_files=str(path), split="train")
            return datasets.load_dataset(str(path) if path.exists() else name, config)
    except Exception as error:  # of the libraries and of what they read
        raise request.error(f"can't be opened ({describe_error(error)}); give a folder of save_to_disk or of parquet, "
                            "or download it first: torchslim downloads nothing") from error


def _choose(request: DataRequest, opened: Any, options: Mapping[str, str]) -> list[Any]:
    """The part to train on and, if there is one, the part to test on."""
    if not isinstance(opened, Mapping):
        if "train" in options or "test" in options:
            raise request.error("has no parts; leave train= and test= out")
        return [opened]
    names = list(opened)
    for key in ("train", "test"):
        if key in options and options[key] not in names:
            raise request.error(f"no part {options[key]!r}; {did_you_mean(options[key], names)}")
    train, test = name_parts(request.spec, names)
    train, test = options.get("train", train), options.get("test", test)
    if train is None or train == test:
        raise request.error(f"the parts are {', '.join(names)}; choose with ?train=NAME&test=NAME")
    return [opened[name] for name in (train, test) if name is not None]


def _image_column(request: DataRequest, features: Mapping[str, Any], asked: str | None) -> str:
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if asked is not None:
        if asked not in images:
            raise request.error(f"no column of pictures {asked!r}; {did_you_mean(asked, images, 'there is none')}")
        return asked
    if not images:
        raise request.error(f"columns {', '.join(features)}, none of which holds pictures; cast one to datasets.Image")
    return next((name for name in ("image", "img", "pixel_values") if name in images), images[0])


def _undecoded(datasets: Any, part: Any, columns: list[str]) -> Any:
    """Two columns, with files as they are: this library reads pictures of any depth."""
    part = part.select_columns(columns)
    for name in columns:
        if type(part.features[name]).__name__ == "Image":
            part = part.cast_column(name, datasets.Image(decode=False))
    return part


def _content(spec: str, place: _Place, column: str) -> bytes:
    """The bytes of a picture, in the table or in a file that it names."""
    part, index = place
    stored = part[index][column]
    if stored is None:
        return b""
    try:
        return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
    except OSError as error:
        raise UnreadablePicture(f"{spec}, row {index}", f"{printable(stored['path'])}: {error.strerror}") from error


@dataclass(frozen=True)
class _Reader:
    spec: str
    channels: int
    image: str
    column: Column
    corners: bool = False
    mask: MaskReader | None = None

    def where(self, place: _Place) -> str:
        """A row, for messages."""
        return f"{self.spec}, row {place[1]}"

    def files(self, sample: Sample) -> Iterator[tuple[Path, bytes]]:
        """The picture of a sample, and its mask if there is one."""
        where = Path(self.where(sample[0]))
        yield where, _content(self.spec, sample[0], self.image)
        if self.column.task == "segmentation":
            yield where, _content(self.spec, sample[0], self.column.name)

    def mask_values(self, place: _Place) -> tuple[str, Any]:
        """A row and the values of its mask."""
        where = self.where(place)
        return where, read_values(Path(where), (), _content(self.spec, place, self.column.name))

    def __call__(self, place: _Place, target: Any) -> tuple[Image.Image, Any]:
        where = self.where(place)
        picture = read_with(Path(where), lambda opened: as_channels(opened, self.channels),
                            _content(self.spec, place, self.image))
        if self.mask is not None:
            mask = self.mask(Path(where), _content(self.spec, place, self.column.name))
            if mask.size != picture.size:
                raise RequestError(f"{where}: a mask of {format_shape(mask.size)} pixels, its picture is of "
                                   f"{format_shape(picture.size)}; wanted the same size")
            return picture, mask
        if self.column.task == "detection":
            part, index = place
            return picture, self._boxes(where, object_rows(part[index][self.column.name]), target, picture.size)
        return picture, target

    def _boxes(self, where: str, rows: list[Mapping[str, Any]], labels: list[int], size: tuple[int, int]) -> Any:
        boxes = []
        for row, label in zip(rows, labels, strict=True):
            left, upper, right, lower = row["bbox"]
            if not self.corners:
                right, lower = left + right, upper + lower
            boxes.append(clip(self.spec, Box((left, upper, right, lower), label + 1, where), size))
        return target_of([box for box in boxes if box is not None], None)
