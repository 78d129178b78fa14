"""`masks:PATH`: pictures in `images/`, and in `masks/` a file of the same name with the class of every pixel.

Masks are palette or grey files of class indices; 255 is not counted. Colours need a table of classes (`classes.txt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from torchslim.errors import RequestError
from torchslim.train.datasets.broken import picture_look, usable
from torchslim.train.datasets.class_table import read_class_table
from torchslim.train.datasets.files import Skipped, files_in, find_parts, folders, is_picture
from torchslim.train.datasets.items import Sample, make_data
from torchslim.train.datasets.mask_values import LOOKED_AT, MaskReader, mask_classes, read_values
from torchslim.train.datasets.pictures import Size, read_picture
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data
from torchslim.utils.text import first_names, format_shape, printable

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "annotations", "annotation", "labels", "labelmasks")
_ENDING = "_mask"  # some programs write a mask's name so


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: a folder, picture or mask is missing, a file is none or of another size, a value is of no class.
    """
    request.check_task("segmentation")
    root = Path(request.rest).expanduser()
    if not root.is_dir():
        raise request.error(f"{root} is no folder; give one that holds images and masks")
    look = picture_look(request, lambda sample: [(path, None) for path in sample],
                        lambda sample, sizes: _check_sizes(request, sample, sizes))
    train, test = usable(request, "segmentation", *_find(request, root), look)
    samples = [*train, *test]
    table = read_class_table(request, root)
    colours = table.colours if table else ()
    looked_at = [mask for _, mask in samples[::-(-len(samples) // LOOKED_AT)]]
    names, binary = mask_classes(request, ((printable(path), read_values(path, colours)) for path in looked_at), table)
    return make_data(request, "segmentation", names, train, test,
                     _Reader(request.colours, MaskReader(len(names), binary, colours)))


# --- files ----------------------------------------------------------------------------------------------------------

def _find(request: DataRequest, root: Path) -> tuple[list[Sample], list[Sample] | None]:
    """Pairs of a picture and its mask, in one of three layouts."""
    skipped = Skipped(root)
    images, masks = _inside(root, _IMAGES), _inside(root, _MASKS)
    if images and masks:
        train, test = find_parts(request.spec, images, skipped)
        pairs = [(part, masks / part.relative_to(images)) for part in (train, test) if part is not None]
    else:
        train, test = find_parts(request.spec, root, skipped)
        pairs = []
        for part in (train, test):
            if part is not None:
                images, masks = _inside(part, _IMAGES), _inside(part, _MASKS)
                if images is None or masks is None:
                    raise request.error(f"{printable(part)} has no folder {'masks' if images else 'images'}; wanted "
                                        "images/ and masks/, or train/ and val/ with both each")
                pairs.append((images, masks))
    parts = [_pairs(request, images, masks, skipped) for images, masks in pairs]
    skipped.warn(request.spec)
    return parts[0], parts[1] if len(parts) > 1 else None


def _inside(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((path for path in folders(root) if path.name.lower() in names), None)


def _pairs(request: DataRequest, images: Path, masks: Path, skipped: Skipped) -> list[Sample]:
    if not masks.is_dir():
        raise request.error(f"{printable(masks)} is no folder; wanted one with the masks of {printable(images)}")
    pictures = _by_stem(request, images, skipped)
    found = _by_stem(request, masks, skipped)
    found |= {stem.removesuffix(_ENDING): path for stem, path in found.items()
              if stem not in pictures and stem.removesuffix(_ENDING) in pictures}
    used = {found[stem] for stem in pictures if stem in found}
    if request.skip_broken:  # a file that is not there is one that can't be read
        found |= {stem: masks / path.relative_to(images) for stem, path in pictures.items() if stem not in found}
        pictures |= {stem: images / path.relative_to(masks) for stem, path in found.items()
                     if stem not in pictures and path not in used}
        pictures, used = dict(sorted(pictures.items(), key=lambda item: item[1])), set(found.values())
    lacking = [printable(path) for stem, path in pictures.items() if stem not in found]
    left = [printable(path) for path in dict.fromkeys(found.values()) if path not in used]
    for names, has, lacks in ((lacking, "pictures", "a mask"), (left, "masks", "a picture")):
        if names:
            raise request.error(f"{len(names)} {has} without {lacks} of the same name: {first_names(names, 3)}; add "
                                f"{lacks}, or take them away")
    if not pictures:
        raise request.error(f"no pictures in {printable(images)}; add some")
    return [(path, found[stem]) for stem, path in pictures.items()]


def _by_stem(request: DataRequest, folder: Path, skipped: Skipped) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_in(folder, skipped.root, skipped):
        if not is_picture(path):
            skipped.add("as their names do not end like a picture's", path)
            continue
        other = found.setdefault(str(path.relative_to(folder).with_suffix("")), path)
        if other != path:
            raise request.error(f"{printable(other)} and {printable(path)} have the same name; take one away")
    return found


def _check_sizes(request: DataRequest, sample: Sample, sizes: list[Size]) -> None:
    (path, mask), (size, other) = sample, sizes
    if size != other:
        raise request.error(_misfit(path, size, mask, other))


def _misfit(path: Path, size: tuple[int, int], mask: Path, other: tuple[int, int]) -> str:
    turned = " (its EXIF turns it; turn its pixels, or the mask)" if size == other[::-1] else ""
    return (f"{printable(mask)} is {format_shape(other)} pixels, its picture {printable(path)} is "
            f"{format_shape(size)} upright{turned}; wanted a mask of the same size")


@dataclass(frozen=True)
class _Reader:
    channels: int
    read_mask: MaskReader

    def __call__(self, path: Path, mask_path: Path) -> tuple[Image.Image, Image.Image]:
        picture, mask = read_picture(path, self.channels), self.read_mask(mask_path)
        if picture.size != mask.size:
            raise RequestError(_misfit(path, picture.size, mask_path, mask.size))
        return picture, mask
