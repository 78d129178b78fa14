"""`folder:PATH`: a folder of pictures for each class, or parts such as `train/` and `val/` with one per class each."""

from __future__ import annotations

import os
from pathlib import Path

from torchslim.errors import RequestError
from torchslim.train.datasets.broken import picture_look, usable
from torchslim.train.datasets.files import SUFFIXES, Skipped, files_in, find_parts, folders, is_picture, note_loose
from torchslim.train.datasets.items import FileReader, make_data
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.data import Data
from torchslim.utils.text import first_names, printable

Samples = list[tuple[Path, int]]


def load(request: DataRequest) -> Data:
    """The data of a request.

    Raises:
        RequestError: no such folder, what `find_pictures` refuses, pictures that can't be read.
    """
    request.check_task("classification")
    reader, root = FileReader(request.colours), Path(request.rest).expanduser()
    if not os.path.isdir(root):
        raise request.error(f"{root} is no folder; give a folder that holds one folder per class")
    classes, train, test = find_pictures(request.spec, root)
    return make_data(request, "classification", classes,
                     *usable(request, "classification", train, test, picture_look(request), classes=classes), reader)


def find_pictures(spec: str, root: Path) -> tuple[tuple[str, ...], Samples, Samples | None]:
    """The classes of a folder, the pictures to train on, and those to test on if it has parts.

    Raises:
        RequestError: fewer than two classes, a class without pictures, parts with different classes or of the same
            kind, a folder that can't be read.
    """
    skipped = Skipped(root)
    train_root, test_root = find_parts(spec, root, skipped)
    classes, files = _scan(spec, train_root, skipped)
    held_out = None
    if test_root is not None:
        test_classes, held_out = _scan(spec, test_root, skipped)
        if test_classes != classes:
            sides = ((train_root, set(classes) - set(test_classes)), (test_root, set(test_classes) - set(classes)))
            odd = "; ".join(f"{first_names(sorted(names))} in {part.name} only" for part, names in sides if names)
            raise RequestError(f"{spec}: {printable(train_root)} and {printable(test_root)} hold different classes "
                               f"({odd}); give both the same folders")
    skipped.warn(spec)
    return classes, files, held_out


def _scan(spec: str, root: Path, skipped: Skipped) -> tuple[tuple[str, ...], Samples]:
    """The classes of a folder and its pictures, sorted, for the same order on every machine."""
    class_folders = folders(root)
    loose = note_loose(root, skipped)
    if len(class_folders) < 2:
        content = f"one folder ({printable(class_folders[0].name)})" if class_folders else "no folder"
        raise RequestError(f"{spec}: {printable(root)} holds {content}{f' and {loose} pictures' if loose else ''}, at "
                           "least 2 classes wanted; make a folder per class")
    files: Samples = []
    for target, class_folder in enumerate(class_folders):
        inside = files_in(class_folder, root, skipped)
        pictures = [path for path in inside if is_picture(path)]
        others = [path for path in inside if not is_picture(path)]
        if not pictures:
            held = f" but {len(others)} other files, such as {printable(others[0].name)}" if others else ""
            raise RequestError(f"{spec}: no pictures in {printable(class_folder)}{held} ({', '.join(SUFFIXES)} are "
                               "read); add some or take the folder away")
        for path in others:
            skipped.add("as their names do not end like a picture's", path)
        files += [(path, target) for path in pictures]
    return tuple(printable(path.name) for path in class_folders), files
