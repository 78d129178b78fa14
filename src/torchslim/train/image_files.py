"""Image files: a folder per class, or a torchvision dataset that is on disk already."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchslim.errors import RequestError
from torchslim.train.dataset import classes_of, stratified
from torchslim.utils.data import Data, Item
from torchslim.utils.text import describe_error

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SMALL = 96  # images up to this size are padded and cropped; of larger ones a random crop is resized
_CHECK_AT_ONCE = 50_000  # headers of up to so many images are checked first: a few seconds
# A mirrored digit or letter has another label, or none.
_NO_FLIP = frozenset({"MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "GTSRB", "Omniglot"})

Transform = Callable[[Any], Tensor]


# --- image files --------------------------------------------------------------------------------------------

def _transforms(size: int, flip: bool = True) -> tuple[Transform, Transform]:
    """Standard transforms of PIL images, with augmentation for training and without for testing."""
    from torchvision.transforms import v2

    mirror = [v2.RandomHorizontalFlip()] if flip else []
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
              v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if size <= _SMALL:
        fit = [v2.Resize((size, size))]
        return (v2.Compose([*fit, v2.RandomCrop(size, padding=size // 8), *mirror, *finish]),
                v2.Compose([*fit, *finish]))
    return (v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0)), *mirror, *finish]),
            v2.Compose([v2.Resize(round(size / 0.875)), v2.CenterCrop(size), *finish]))


class _ImageFiles(Dataset[Item]):
    """Image files."""

    def __init__(self, files: list[tuple[Path, int]], transform: Transform) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        from PIL import Image

        path, target = self.files[index]
        try:
            with Image.open(path) as picture:
                rgb = picture.convert("RGB")
        except Exception as error:  # PIL raises many types for a bad file
            raise _corrupt(path, error) from error
        return self.transform(rgb), target


def folder(spec: str, root: Path, size: int, seed: int, held_out: float) -> Data:
    """A folder per class; or `train/` and `val/` or `test/`, each with a folder per class."""
    if not root.is_dir():
        raise RequestError(f"{spec}: {root} is no folder; give a folder that holds one folder per class")
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / name for name in ("val", "valid", "test") if (root / name).is_dir()), None)
    classes, files = _scan(spec, train_root)
    if train_root is not root and test_root is not None:
        test_classes, test_files = _scan(spec, test_root)
        if test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise RequestError(f"{spec}: {train_root} and {test_root} hold different classes "
                               f"({_first_names(odd)} in one only); give both the same folders")
    else:
        train, test = stratified([target for _, target in files], held_out, seed)
        files, test_files = [files[i] for i in train], [files[i] for i in test]
        if not test_files:
            raise RequestError(f"{spec}: one picture in each class, so none can be held out; add pictures")
    _check_headers([*files, *test_files])
    augment, plain = _transforms(size)
    return Data(spec, _ImageFiles(files, augment), _ImageFiles(test_files, plain), classes, (3, size, size),
                IMAGENET_MEAN, IMAGENET_STD)


def _scan(spec: str, root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The classes of a folder and its images, sorted, for the same order on every machine."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        content = f"one folder ({folders[0].name})" if folders else "no folder"
        raise RequestError(f"{spec}: {root} holds {content}, at least 2 classes wanted; "
                           "make a folder per class")
    files: list[tuple[Path, int]] = []
    for target, class_folder in enumerate(folders):
        inside = sorted(path for path in class_folder.rglob("*")
                        if path.suffix.lower() in _SUFFIXES and path.is_file())
        if not inside:
            raise RequestError(f"{spec}: no pictures in {class_folder} ({', '.join(sorted(_SUFFIXES))} are read); "
                               "add some or take the folder away")
        files += [(path, target) for path in inside]
    return tuple(path.name for path in folders), files


def _check_headers(files: list[tuple[Path, int]]) -> None:
    """Find files that are not images before training; truncated files fail only when read."""
    from PIL import Image

    if len(files) > _CHECK_AT_ONCE:
        return
    for path, _ in files:
        try:
            with Image.open(path):
                pass
        except Exception as error:
            raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> RequestError:
    return RequestError(f"{path}: not a picture that can be read ({describe_error(error)}); "
                        "replace it or take it away")


# --- torchvision's datasets ---------------------------------------------------------------------------------

class _ImageDataset(Dataset[Item]):
    """A dataset of PIL images, transformed."""

    def __init__(self, base: Any, transform: Transform) -> None:
        self.base, self.transform = base, transform

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Item:
        picture, target = self.base[index]
        return self.transform(picture.convert("RGB")), int(target)


def torchvision(spec: str, rest: str, size: int | None) -> Data:
    """`NAME@ROOT`: a torchvision dataset with its own split."""
    from torchvision import datasets

    name, at, root = rest.partition("@")
    if not at or not root:
        raise RequestError(f"{spec}: no root folder; give torchvision:NAME@ROOT, "
                           "such as torchvision:CIFAR10@data")
    known = [n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))]
    if name not in known:
        close = get_close_matches(name.lower(), [n.lower() for n in known], n=1)
        hint = next((f"did you mean {n}?" for n in known if n.lower() in close),
                    "names are written as torchvision does")
        raise RequestError(f"{spec}: torchvision has no dataset {name!r}; {hint}")
    kind = getattr(datasets, name)
    train = _open(spec, kind, root, ("train",))
    test = _open(spec, kind, root, ("test", "val", "valid"))
    size = size or _image_size(spec, train)
    augment, plain = _transforms(size, flip=name not in _NO_FLIP)
    return Data(spec, _ImageDataset(train, augment), _ImageDataset(test, plain), classes_of(spec, train),
                (3, size, size), IMAGENET_MEAN, IMAGENET_STD)


def _open(spec: str, kind: Any, root: str, splits: tuple[str, ...]) -> Any:
    """One split of a dataset on disk; torchvision's classes take `train=` or `split=`."""
    parameters = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        choices: list[dict[str, Any]] = [{"train": splits == ("train",)}]
    elif "split" in parameters:
        choices = [{"split": split} for split in splits]
    else:
        raise RequestError(f"{spec}: {kind.__name__} has no parts to train and to test on; "
                           "write a function that returns two datasets and give file.py:function")
    for choice in choices:
        try:
            part = kind(root, **choice, **options)
        except ValueError as error:  # no such part
            failure: Exception = error
        except Exception as error:
            raise RequestError(f"{spec}: cannot be read from {root} ({describe_error(error)}); put the "
                               "dataset there first: torchslim downloads nothing") from error
        else:
            return part
    raise RequestError(f"{spec}: has no part {' or '.join(splits)} ({describe_error(failure)}); "
                       "write a function that returns two datasets and give file.py:function") from failure


def _image_size(spec: str, dataset: Any) -> int:
    """The size of small images if all are equal; else 224."""
    pictures = [dataset[i][0] for i in range(min(4, len(dataset)))]
    if not pictures or not all(hasattr(picture, "convert") for picture in pictures):
        raise RequestError(f"{spec}: holds no pictures to classify; "
                           "write a function that returns two datasets and give file.py:function")
    sizes = {max(picture.size) for picture in pictures}
    return sizes.pop() if len(sizes) == 1 and max(sizes) <= _SMALL else 224


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
