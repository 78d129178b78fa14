"""One picture file of any kind as 8-bit RGB or grey, and what is wrong with one that can't be read.

Transparent parts show white, EXIF's orientation is applied, of several frames the first is read, 16-bit values lose
their low byte, floats are 0 to 1; colour profiles are not applied, as torchvision, timm and Ultralytics do not.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from torchslim.errors import RequestError
from torchslim.utils.text import describe_error, printable

_ORIENTATION = 0x0112
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
_SWAPPING = (5, 6, 7, 8)  # of these, width and height change places
# Tags of TIFF, and values of some.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
GREY_STEPS = {"L;2": 85, "L;4": 17}
"""From one grey to the next where PIL spreads those of a PNG of 2 or 4 bits to 255."""
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # of whole files; some programs append to them
_ROUNDS_TO_WHITE = 1 + 0.5 / 255
T = TypeVar("T")
Size = tuple[int, int]


class UnreadablePicture(RequestError):
    """A picture that can't be read; `where` it is, and the `reason`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: not a picture that can be read ({reason}); replace it or take it away")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[Any, ...]:  # processes that load pictures send it
        return type(self), (self.where, self.reason)


def read_picture(path: Path, channels: int = 3) -> Image.Image:
    """The picture as `RGB` (`channels=3`) or `L` (`channels=1`) of PIL.

    Raises:
        UnreadablePicture: it can't be read.
    """
    return read_with(path, lambda picture: as_channels(picture, channels))


def read_with(path: Path, convert: Callable[[Image.Image], T], content: bytes | None = None) -> T:
    """What `convert` makes of a picture as PIL opens it; of `content` instead of a file's, if that is given.

    Raises:
        UnreadablePicture: it can't be read.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as picture:
            return convert(picture)
    except Exception as error:  # PIL raises many types for a bad file
        raise UnreadablePicture(printable(path), _reason(path, error, content)) from error


def as_channels(picture: Image.Image, channels: int) -> Image.Image:
    """A picture of any mode of PIL as `RGB` or `L`, upright.

    Raises:
        RequestError: whole numbers of 32 bits, or floats outside 0 to 1: what is white is not known.
    """
    _check_mode(picture)
    _scale_transparent_colour(picture)
    picture.load()
    turn = _TURNS.get(_orientation(picture))
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        colours = picture.convert("RGBA")
        picture = Image.new("RGB", picture.size, "white")
        picture.paste(colours, mask=colours)
    elif picture.mode != "RGB":
        picture = picture.convert("RGB")
    if channels == 1:
        picture = picture.convert("L")
    return picture if turn is None else picture.transpose(turn)


def check_picture(path: Path, content: bytes | None = None) -> Size:
    """Width and height of a picture, upright; broken ones and those cut short show by their beginnings and ends.

    Args:
        path: a file, or what stands for it in messages.
        content: of the picture, instead of a file's.

    Raises:
        UnreadablePicture: it can't be read.
    """
    return read_with(path, lambda picture: _check(picture, path, content), content)


def _check(picture: Image.Image, path: Path, content: bytes | None) -> Size:
    _check_mode(picture)
    end = _ENDS.get(str(picture.format))
    if end is not None and _last_bytes(path, content, len(end)) != end:
        picture.load()
    turn = _orientation(picture)
    if picture.format == "TIFF" and turn != 1:  # PIL turns it when it is loaded
        picture.load()
        turn = 1
    return picture.size[::-1] if turn in _SWAPPING else picture.size


def _last_bytes(path: Path, content: bytes | None, count: int) -> bytes:
    if content is not None:
        return content[-count:]
    with path.open("rb") as file:
        file.seek(-count, 2)
        return file.read()


def _check_mode(picture: Image.Image) -> None:
    """Refuse TIFFs of which PIL makes something else; 16-bit PNG and PGM have its mode I too, in some versions."""
    tags = getattr(picture, "tag_v2", {})
    if (picture.format == "TIFF" and picture.mode == "I") or _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise RequestError("32-bit or signed whole numbers, of which white is not known; wanted 8 or 16 bits, or "
                           "floats from 0 to 1")
    deep = max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8
    if deep and tags.get(_PLANES) == _SEPARATE and len(picture.getbands()) > 1:  # PIL takes their bytes for values
        raise RequestError("16-bit colours in separate planes, wanted one after the other (PlanarConfiguration 1)")


def _scale_transparent_colour(picture: Image.Image) -> None:
    """PIL makes pixels of a PNG 8 bits deep when it loads them, and leaves the colour that is transparent as it was."""
    colour = picture.info.get("transparency")
    if picture.format != "PNG" or colour is None or not getattr(picture, "tile", ()):
        return
    stored_as = str(picture.tile[0][3])  # type: ignore[attr-defined]
    if stored_as in GREY_STEPS:
        picture.info["transparency"] = colour * GREY_STEPS[stored_as]
    elif stored_as == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in colour)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; PIL has turned a TIFF itself by now, and has taken the tag away."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that can't be read says nothing about the picture
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit or float grey as 8-bit grey."""
    values: Any = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 1 - _ROUNDS_TO_WHITE and high <= _ROUNDS_TO_WHITE):  # NaN, too
            raise RequestError(f"floats from {low:g} to {high:g}, wanted 0 to 1; divide by what is white")
        grey = np.rint(values * 255).clip(0, 255).astype(np.uint8)
    else:
        grey = (values >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = picture.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


# --- words ----------------------------------------------------------------------------------------------------------

def _reason(path: Path, error: Exception, content: bytes | None) -> str:
    """Why a file, or what stands for it, can't be read."""
    if content is None and path.is_symlink() and not path.exists():
        return f"a link to {printable(path.readlink())}, which is not there"
    if content is None and not path.is_file():
        return "no file"
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, Image.DecompressionBombError):
        return f"{describe_error(error)}; to read it nevertheless, raise PIL.Image.MAX_IMAGE_PIXELS"
    if not isinstance(error, UnidentifiedImageError):
        return describe_error(error)
    if content is None:
        with path.open("rb") as file:
            content = file.read(40)
    begin = content[:40]
    if not begin:
        return "an empty file"
    if begin.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; git lfs pull fetches the picture"
    if begin[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF that Pillow can't read; wanted 1, 3 or 4 channels of 8 or 16 bits, or 1 of 32-bit floats"
    return f"of no kind that Pillow can read; it begins with {begin[:16]!r}"
