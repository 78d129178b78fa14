"""Every kind of picture file against arrays: what is read, how exactly, and what is refused before or at its turn."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from torchslim.errors import RequestError
from torchslim.train.datasets.pictures import check_picture, read_picture

Values = NDArray[Any]
HEIGHT, WIDTH = 6, 9


def noise(*channels: int, top: int = 256) -> Values:
    return np.random.default_rng(len(channels) + top).integers(0, top, (HEIGHT, WIDTH, *channels)).astype(
        np.uint8 if top <= 256 else np.uint16)


def ramp(channels: int) -> Values:
    """A smooth picture, which JPEG hardly changes."""
    y, x = np.mgrid[:24, :32]
    return np.stack([40 + 5 * x, 200 - 6 * y, 60 + 2 * x + 2 * y, 30 + y][:channels], -1).astype(np.uint8)


GREY, ALPHA, RGB = noise(), noise(2), noise(3)
GREY_16, RGB_16, RGBA_16 = noise(top=65536), noise(3, top=65536), noise(4, top=65536)
BITS, NIBBLES, RGBA = noise(top=2), noise(top=16), noise(4)
FLOATS = (GREY / 255).astype(np.float32)
COLOURS = noise(3).reshape(-1, 3)[:16]


# --- files made by hand -----------------------------------------------------------------------------------------------

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: Values, colour: int, depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    rows = values.reshape(len(values), -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        packed = np.packbits((rows[..., None] >> np.arange(depth)[::-1] & 1).reshape(len(rows), -1).astype(np.uint8), 1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    data = zlib.compress(np.insert(packed, 0, 0, 1).tobytes())
    return SIGNATURE + b"".join(chunk(*c) for c in [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")])


def tiff(values: Values, photometric: int, *, order: str = "<", bits: int = 0, kind: int = 1, extra: int = -1,
         planes: int = 1) -> bytes:
    """One strip, not compressed; 12 bits are packed, other values as they are."""
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        rows = (values[..., None] >> np.arange(12)[::-1] & 1).reshape(len(values), -1)
        data = np.packbits(rows.astype(np.uint8), axis=1).tobytes()
    bits = bits or 8 * values.itemsize
    tags = {256: [values.shape[1]], 257: [len(values)], 258: [bits] * channels, 259: [1], 262: [photometric], 273: [8],
            277: [channels], 278: [len(values)], 279: [len(data)], 284: [planes], 339: [kind] * channels}
    if extra >= 0:
        tags[338] = [extra]
    after = 8 + len(data) + len(data) % 2
    table, more = struct.pack(order + "H", len(tags)), b""
    for tag, entries in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(entries)}H", *entries)
        if len(packed) > 4:
            where = after + 2 + 12 * len(tags) + 4 + len(more)
            more, packed = more + packed, struct.pack(order + "I", where)
        table += struct.pack(order + "HHI", tag, 3, len(entries)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, after)
    return head + data + b"\0" * (len(data) % 2) + table + b"\0" * 4 + more


def saved(kind: str, values: Values, mode: str | None = None, **options: Any) -> bytes:
    """By PIL; `mode` reads the same bytes as another mode."""
    picture = Image.fromarray(values)
    if mode is not None:
        picture = Image.frombytes(mode, picture.size, values.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ycck(values: Values) -> bytes:
    """The same bytes of CMYK, named YCCK in Adobe's marker."""
    data = saved("JPEG", values, "CMYK", quality=100, subsampling=0)
    where = data.index(b"Adobe") + 11
    assert data[where] == 0
    return data[:where] + b"\2" + data[where + 1:]


def frames(kind: str, *pictures: Values, **options: Any) -> bytes:
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, pictures)
    first.save(buffer, kind, save_all=True, append_images=others, **options)
    return buffer.getvalue()


# --- what they should be ----------------------------------------------------------------------------------------------

def high(values: Values) -> Values:
    return (values // 256).astype(np.uint8)


def over_white(colours: Values, alpha: Values) -> Values:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def middle(values: Values) -> int:
    every = np.unique(values)
    return int(every[(len(every) - 1) // 2])


def where_not(mask: Values, values: Values) -> Values:
    return np.where(mask[..., None], 255, values if values.ndim == 3 else values[..., None]).astype(np.uint8)


def from_cmyk(inks: Values) -> Values:
    return np.rint((255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255)


def from_ycc(values: Values) -> Values:
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0)
    cb, cr = cb - 128, cr - 128
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)


def from_lab(values: Values) -> Values:
    """CIE L*a*b* of the white D50 as sRGB, in floats."""
    lightness, a, b = values[..., 0] * (100 / 255), *np.moveaxis(values[..., 1:].view(np.int8).astype(float), -1, 0)
    y = (lightness + 16) / 116
    xyz = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(xyz > 6 / 29, xyz**3, 3 * (6 / 29)**2 * (xyz - 4 / 29)) * [0.9642, 1, 0.8251]
    linear = xyz @ np.array([[3.13406, -0.97877, 0.07195], [-1.61739, 1.91614, -0.22899], [-0.49066, 0.03345, 1.40539]])
    linear = linear.clip(0, 1)
    return np.rint(255 * np.where(linear > 0.0031308, 1.055 * linear**(1 / 2.4) - 0.055, 12.92 * linear))


LAB = np.stack([np.full((4, 4), 150), np.arange(16).reshape(4, 4) * 3, 256 - np.arange(16).reshape(4, 4) * 2], -1) \
    .astype(np.uint8)
INKS, YCCK = ramp(4), np.concatenate([ramp(3) // 4 + 96, ramp(4)[..., 3:]], -1)
T = (b"tRNS",)
Kind = tuple[str, bytes, Values, float]  # a name, the file, red, green and blue, how far they may be off

KINDS: list[Kind] = [
    *((f"png grey {depth}", png(values, 0, depth), values * scale, 0)
      for depth, values, scale in ((1, BITS, 255), (2, NIBBLES % 4, 85), (4, NIBBLES, 17), (8, GREY, 1))),
    *((f"png grey {depth} one transparent", png(values, 0, depth, (*T, struct.pack(">H", middle(values)))),
       where_not(values == middle(values), values * scale), 0)
      for depth, values, scale in ((1, BITS, 255), (2, NIBBLES % 4, 85), (4, NIBBLES, 17), (8, GREY, 1))),
    ("png grey 16", png(GREY_16, 0, 16), high(GREY_16), 0),
    ("png grey 16 one transparent", png(GREY_16, 0, 16, (*T, struct.pack(">H", GREY_16[0, 0]))),
     where_not(GREY_16[0, 0] == GREY_16, high(GREY_16)), 0),
    ("png grey alpha 8", png(ALPHA, 4, 8), over_white(ALPHA[..., :1], ALPHA[..., 1]), 0),
    ("png grey alpha 16", png(RGBA_16[..., 2:], 4, 16), over_white(high(RGBA_16[..., 2:3]), high(RGBA_16[..., 3])), 0),
    ("png rgb 8", png(RGB, 2, 8), RGB, 0),
    ("png rgb 16", png(RGB_16, 2, 16), high(RGB_16), 0),
    ("png rgb 8 one transparent", png(RGB, 2, 8, (*T, struct.pack(">3H", *RGB[2, 2]))),
     where_not((RGB[2, 2] == RGB).all(-1), RGB), 0),
    ("png rgb 16 one transparent", png(RGB_16, 2, 16, (*T, struct.pack(">3H", *RGB_16[2, 2]))),
     where_not((RGB_16[2, 2] == RGB_16).all(-1), high(RGB_16)), 0),
    ("png rgba 8", png(RGBA, 6, 8), over_white(RGBA[..., :3], RGBA[..., 3]), 0),
    ("png rgba 16", png(RGBA_16, 6, 16), over_white(high(RGBA_16[..., :3]), high(RGBA_16[..., 3])), 0),
    *((f"png palette {depth}", png(NIBBLES & 2**depth - 1, 3, depth, (b"PLTE", COLOURS.tobytes())),
       COLOURS[NIBBLES & 2**depth - 1], 0) for depth in (1, 2, 4, 8)),
    ("png palette transparent", png(NIBBLES, 3, 4, (b"PLTE", COLOURS.tobytes()), (*T, GREY[0].tobytes())),
     over_white(COLOURS[NIBBLES], np.append(GREY[0], [255] * 7)[NIBBLES]), 0),
    ("png with a profile", saved("PNG", RGB, icc_profile=ImageCms.ImageCmsProfile(
        ImageCms.createProfile("XYZ")).tobytes()), RGB, 0),
    *((f"tiff grey 16 {order}", tiff(GREY_16, 1, order=order), high(GREY_16), 0) for order in "<>"),
    ("tiff grey 16 white is zero", tiff(GREY_16, 0), high(65535 - GREY_16), 0),
    ("tiff grey 8 white is zero", tiff(GREY, 0), 255 - GREY, 0),
    ("tiff grey 16 deflated", saved("TIFF", GREY_16, compression="tiff_adobe_deflate"), high(GREY_16), 0),
    ("tiff grey 12", tiff(GREY_16[:, :8] // 16, 1, bits=12), high(GREY_16[:, :8]), 0),
    ("tiff bits", saved("TIFF", BITS * 255 > 0), BITS * 255, 0),
    *((f"tiff rgb 16 {order}", tiff(RGB_16, 2, order=order), high(RGB_16), 0) for order in "<>"),
    ("tiff rgba 16", tiff(RGBA_16, 2, extra=2), over_white(high(RGBA_16[..., :3]), high(RGBA_16[..., 3])), 0),
    ("tiff rgba 8", tiff(RGBA, 2, extra=2), over_white(RGBA[..., :3], RGBA[..., 3]), 0),
    ("tiff rgb and another channel", tiff(RGBA, 2, extra=0), RGBA[..., :3], 0),
    *((f"tiff floats {order}", tiff(FLOATS, 1, order=order, kind=3), GREY, 0) for order in "<>"),
    ("tiff floats white is zero", tiff(FLOATS, 0, kind=3), 255 - GREY, 0),
    ("tiff cmyk", saved("TIFF", INKS, "CMYK"), from_cmyk(INKS), 1),
    ("tiff lab", saved("TIFF", LAB, "LAB"), from_lab(LAB), 2),
    ("tiff of two", frames("TIFF", RGB, 255 - RGB), RGB, 0),
    ("jpeg grey", saved("JPEG", ramp(1)[..., 0], quality=95), ramp(1)[..., 0], 4),
    ("jpeg rgb", saved("JPEG", ramp(3), quality=95, subsampling=0), ramp(3), 6),
    ("jpeg cmyk of Adobe", saved("JPEG", INKS, "CMYK", quality=95), from_cmyk(INKS), 8),
    ("jpeg ycck of Adobe", ycck(YCCK),
     from_cmyk(np.concatenate([from_ycc(255 - YCCK[..., :3]), YCCK[..., 3:]], -1)), 6),
    ("jpeg with odd exif", saved("JPEG", ramp(3), quality=95, subsampling=0, exif=b"Exif\0\0MM nothing"), ramp(3), 6),
    ("webp rgb", saved("WEBP", RGB, lossless=True), RGB, 0),
    ("webp rgba", saved("WEBP", RGBA, lossless=True, exact=True), over_white(RGBA[..., :3], RGBA[..., 3]), 0),
    ("webp of two", frames("WEBP", RGB, 255 - RGB, lossless=True), RGB, 0),
    ("gif grey", saved("GIF", GREY), GREY, 0),
    ("gif of two", frames("GIF", GREY, 255 - GREY), GREY, 0),
    ("gif transparent", saved("GIF", GREY, transparency=int(GREY[1, 1])), where_not(GREY[1, 1] == GREY, GREY), 0),
    ("apng", frames("PNG", RGB, 255 - RGB), RGB, 0),
    ("bmp", saved("BMP", RGB), RGB, 0),
    ("pgm 16", saved("PPM", GREY_16), high(GREY_16), 0),
    ("ppm plain text", b"P3 2 1 255 1 2 3 4 5 6", np.array([[[1, 2, 3], [4, 5, 6]]]), 0),
    ("one pixel", png(RGB[:1, :1], 2, 8), RGB[:1, :1], 0),
]
if features.check("avif"):
    KINDS.append(("avif", saved("AVIF", ramp(3), quality=95, subsampling="4:4:4"), ramp(3), 8))


def write(folder: Path, data: bytes, name: str = "picture.jpg") -> Path:
    """A file whose suffix says nothing about its kind."""
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "data", "wanted", "off"), KINDS, ids=[kind[0] for kind in KINDS])
def test_kinds(name: str, data: bytes, wanted: Values, off: float, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    check_picture(path)
    colours = wanted if wanted.ndim == 3 and wanted.shape[2] == 3 else np.dstack([wanted] * 3)
    read = np.asarray(read_picture(path))
    assert (read.dtype, read.shape) == (np.uint8, colours.shape)
    assert abs(read - colours.astype(float)).max() <= off
    grey = np.asarray(read_picture(path, 1))
    assert (grey.dtype, grey.shape) == (np.uint8, colours.shape[:2])
    assert abs(grey - colours @ np.array([0.299, 0.587, 0.114])).max() <= off + 1


# By EXIF: where the first row and the first column of the stored array are.
TURNED: dict[int, Callable[[Values], Values]] = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: x[::-1].swapaxes(0, 1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    path = write(tmp_path, saved(kind, ramp(3), exif=exif, **options))
    read, wanted = np.asarray(read_picture(path)), TURNED[orientation](ramp(3))
    assert read.shape == wanted.shape
    assert abs(read - wanted.astype(float)).max() <= (6 if kind == "JPEG" else 0)


def short(data: bytes) -> bytes:
    return data[:len(data) * 2 // 3]


BOMB = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
BIG = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
FOUND_BEFORE: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "an empty file"),
    ("text", b"<!DOCTYPE html><title>404", "no kind that Pillow can read; it begins with b'<!DOCTYPE"),
    ("git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
    ("a bomb", BOMB + chunk(b"IDAT", b""), "exceeds limit of .*MAX_IMAGE_PIXELS"),
    ("whole numbers of 32 bits", tiff(GREY_16.astype(np.uint32), 1), "white is not known; wanted 8 or 16 bits"),
    ("signed numbers", tiff(GREY_16.astype(np.int16), 1, kind=2), "signed whole numbers"),
    ("signed numbers of 8 bits", tiff(GREY.astype(np.int8), 1, kind=2), "signed whole numbers"),
    ("planes of 16 bits", tiff(RGB_16, 2, planes=2), "16-bit colours in separate planes"),
    ("five channels", tiff(noise(5), 1), "a TIFF that Pillow can't read"),
    *((f"{kind} cut short", short(saved(kind, BIG)), "truncated|decoder|incomplete|image data")
      for kind in ("JPEG", "PNG", "GIF", "WEBP")),
]
FOUND_THEN: list[tuple[str, bytes, str]] = [
    ("tiff cut short", short(saved("TIFF", BIG, strip_size=10**6)), "truncated"),
    ("bmp cut short", short(saved("BMP", BIG)), "truncated"),
    ("floats to 255", tiff(GREY.astype(np.float32), 1, kind=3), "floats from .* to 25.*, wanted 0 to 1; divide"),
    ("not a number", tiff(np.where(GREY > 99, np.nan, 0.5).astype(np.float32), 1, kind=3), "floats from nan to nan"),
]


@pytest.mark.parametrize(("name", "data", "words"), FOUND_BEFORE, ids=[case[0] for case in FOUND_BEFORE])
def test_found_before_training(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    for read in (lambda: check_picture(path), lambda: read_picture(path)):
        with pytest.raises(RequestError, match=rf"picture\.jpg: not a picture that .*\(.*({words})") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "data", "words"), FOUND_THEN, ids=[case[0] for case in FOUND_THEN])
def test_found_at_its_turn(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    check_picture(path)
    with pytest.raises(RequestError, match=rf"picture\.jpg: not a picture that can be read \(.*({words})"):
        read_picture(path)
