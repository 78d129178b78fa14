"""The values of masks: class indices from palette, grey or coloured files, and which classes there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchslim.errors import RequestError
from torchslim.train.datasets.augmentation import NOT_COUNTED
from torchslim.train.datasets.class_table import ClassTable
from torchslim.train.datasets.pictures import GREY_STEPS, read_with
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.text import first_names, printable

LOOKED_AT = 2000
"""Masks that are read whole before training, some milliseconds each."""
_MOST_UNNAMED = 100  # more are likely to be soft edges

Values = NDArray[Any]


@dataclass(frozen=True)
class MaskReader:
    """Reads masks.

    Attributes:
        classes: how many there are.
        binary: whether 255 is class 1.
        colours: of the classes, as red, green and blue; empty where masks hold indices.
    """

    classes: int
    binary: bool = False
    colours: tuple[tuple[int, int, int], ...] = ()

    def __call__(self, path: Path, content: bytes | None = None) -> Image.Image:
        """Class indices as a picture of mode `L`.

        Raises:
            RequestError: the file is none, or holds a value or a colour that is no class.
        """
        values = read_values(path, self.colours, content)
        if self.binary:
            values = np.where(values == NOT_COUNTED, np.uint8(1), values)
        wrong = values[(values >= self.classes) & (values != NOT_COUNTED)]
        if wrong.size:
            raise RequestError(unknown_class(printable(path), int(wrong[0]), self.classes))
        return Image.fromarray(values)


def read_values(path: Path, colours: tuple[tuple[int, int, int], ...] = (), content: bytes | None = None) -> Values:
    """The values of a mask, uint8 of shape (height, width).

    Raises:
        RequestError: it can't be read, or holds colours that are not in the table, or values above 255.
    """
    values, lossy = read_with(path, _stored, content)
    where = printable(path)
    if lossy:
        raise RequestError(f"{where}: a JPEG, which changes values; save masks as PNG")
    if values.ndim == 3:
        if colours:
            return _indices(where, values, colours)
        if (values != values[..., :1]).any():
            count = len(np.unique(values.reshape(-1, 3), axis=0))
            raise RequestError(f"{where}: a mask of {count} colours, wanted class indices; put classes.txt beside the "
                               "folders, with a line `name red green blue` for each class")
        values = values[..., 0]
    if values.max(initial=0) > NOT_COUNTED:
        raise RequestError(f"{where}: a mask with the value {values.max()}, wanted class indices up to 254; renumber "
                           "the classes")
    return values.astype(np.uint8)


def _stored(picture: Image.Image) -> tuple[Values, bool]:
    """The values as the file has them (PIL spreads grey of 2 and 4 bits to 255), and whether they were compressed."""
    tile: Any = getattr(picture, "tile", ())
    step = GREY_STEPS.get(str(tile[0][3]), 1) if tile else 1
    if picture.mode in ("LA", "PA"):
        picture = picture.convert("RGB") if picture.mode == "PA" else picture.getchannel("L")
    elif picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")
    return np.asarray(picture) // step, picture.format == "JPEG"


def _indices(where: str, values: Values, colours: tuple[tuple[int, int, int], ...]) -> Values:
    places = np.array([65536, 256, 1])
    table = {int(np.dot(colour, places)): index for index, colour in enumerate(colours)}
    codes, inverse = np.unique(values.astype(np.int64) @ places, return_inverse=True)
    unknown = [code for code in codes.tolist() if code not in table]
    if unknown:
        red, green, blue = unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255
        raise RequestError(f"{where}: the colour {red} {green} {blue} is of no class; add it to classes.txt as "
                           f"`name {red} {green} {blue}`, or repaint it")
    return np.array([table[code] for code in codes.tolist()], np.uint8)[inverse].reshape(values.shape[:2])


def mask_classes(request: DataRequest, masks: Iterable[tuple[str, Values]],
                 table: ClassTable | None = None) -> tuple[tuple[str, ...], bool]:
    """The classes' names, and whether 255 is class 1, by the values of masks with their names for messages.

    Raises:
        RequestError: fewer than two classes, gaps between them, one that the table does not have.
    """
    holders: dict[int, str] = {}
    for where, found in masks:
        for value in np.flatnonzero(np.bincount(found.ravel(), minlength=256)).tolist():
            holders.setdefault(value, where)
    binary = sorted(holders) == [0, NOT_COUNTED] and not (table and (table.colours or len(table.names) != 2))
    indices = [0, 1] if binary else sorted(set(holders) - {NOT_COUNTED})
    if table is None and indices != list(range(min(len(indices), _MOST_UNNAMED))):
        raise request.error(f"masks hold {len(indices)} values ({first_names([str(value) for value in indices], 8)}), "
                            f"wanted up to {_MOST_UNNAMED} classes 0, 1, 2, ... without gaps; renumber them, or name "
                            "all classes in classes.txt beside images and masks, one a line")
    names = table.names if table else tuple(map(str, indices))
    if len(names) < 2:
        raise request.error(f"{len(names)} class found, at least 2 wanted, the background among them")
    if indices and indices[-1] >= len(names):
        raise request.error(unknown_class(holders[indices[-1]], indices[-1], len(names)))
    return names, binary


def unknown_class(where: str, value: int, classes: int) -> str:
    """What is said of a value that is no class."""
    return (f"{where}: class {value} found, wanted 0 to {classes - 1}, or {NOT_COUNTED} for what is not counted; name "
            "all classes in classes.txt, one a line")
