"""Which files of a folder are pictures, and which parts are to train or to test on.

Files are found as by torchvision's `ImageFolder`, in folders inside class folders and behind links too. Nothing is left
out in silence but hidden files and those that systems put into every folder.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torchslim.errors import RequestError, TorchslimWarning
from torchslim.utils.text import first_names, printable

SUFFIXES = (".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
            ".tif", ".tiff", ".webp")
# Names of parts, as torchvision, Ultralytics and Hugging Face write them; held-out pictures are the first kind found.
_TRAIN = ("train", "training")
_VALIDATION, _TEST = ("val", "valid", "validation", "dev"), ("test", "testing", "eval", "evaluation")
_PARTS = frozenset({*_TRAIN, *_VALIDATION, *_TEST})
_OF_SYSTEMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass
class Skipped:
    """Files that are not read, relative to the root, by the reason."""

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """Note a file."""
        self.files.setdefault(reason, []).append(printable(path.relative_to(self.root)))

    def warn(self, spec: str) -> None:
        """One warning for each reason, with the number and the first few."""
        for reason, names in self.files.items():
            warn_once(f"{spec}: {len(names)} not read, {reason}: {first_names(sorted(names))}", self.root)


@cache
def warn_once(message: str, _root: Path) -> None:
    """A warning of some data; a run reads it in every phase, and other code forgets what Python has shown."""
    warnings.warn(message, TorchslimWarning, stacklevel=6)


def find_parts(spec: str, root: Path, skipped: Skipped) -> tuple[Path, Path | None]:
    """The folder to train on and the one to test on, by their names; without parts, the root and None.

    A folder named `train` that holds no folder, with no other part beside it, is a class.

    Raises:
        RequestError: parts of the same kind, none to train on, a folder that can't be read.
    """
    inside = folders(root)
    by_name = {path.name: path for path in inside}
    train, held_out = (by_name.get(name) if name is not None else None for name in name_parts(spec, by_name))
    if train is None or (held_out is None and not folders(train)):
        if inside and all(path.name.lower() in _PARTS for path in inside):
            raise RequestError(f"{spec}: {printable(root)} holds {first_names([path.name for path in inside])}, and "
                               "nothing to train on; name that folder train")
        return root, None
    note_loose(root, skipped)
    for path in inside:
        if path.name.lower() not in _PARTS:
            skipped.add("as they stand beside train", path)
    return train, held_out


def name_parts(spec: str, names: Iterable[str]) -> tuple[str | None, str | None]:
    """Which of the names are of a part to train on and of one to test on.

    Raises:
        RequestError: two names of the same part.
    """
    names = list(names)
    train, validation, test = (_name_part(spec, names, kind) for kind in (_TRAIN, _VALIDATION, _TEST))
    return train, validation or test


def _name_part(spec: str, names: list[str], kind: tuple[str, ...]) -> str | None:
    found = [name for name in names if name.lower() in kind]
    if len(found) > 1:
        raise RequestError(f"{spec}: {' and '.join(found)} are the same part of the data; keep one of them, or merge "
                           "them")
    return found[0] if found else None


def note_loose(root: Path, skipped: Skipped) -> int:
    """Count pictures that are in no folder inside the root, and note them as skipped."""
    loose = [path for path in map(Path, entries(root)) if is_picture(path) and not path.is_dir()]
    for path in loose:
        skipped.add("as they are in no class's folder", path)
    return len(loose)


def files_in(folder: Path, around: Path, skipped: Skipped) -> list[Path]:
    """All files in a folder and in folders inside it, sorted; links to the folders around are skipped."""
    return sorted(walk(folder, frozenset(map(_identity, (around, *around.resolve().parents))), skipped))


def is_picture(path: Path) -> bool:
    """Whether a name ends like a picture's."""
    return path.suffix.lower() in SUFFIXES


def folders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, links to some among them."""
    return sorted(Path(entry) for entry in entries(root) if _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # a link to itself: False, and no OSError


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, but for hidden files and those of systems."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found
                    if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS]
    except OSError as error:
        raise RequestError(f"{printable(folder)}: a folder that can't be read ({error.strerror}); allow it, or take it "
                           "away") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def walk(folder: Path, above: frozenset[tuple[int, int]], skipped: Skipped) -> Iterator[Path]:
    """All files in a folder and in folders inside it, behind links too; and links to nothing."""
    identity = _identity(folder)
    if identity in above:
        skipped.add("as they are links to folders around them", folder)
        return
    for entry in entries(folder):
        if _is_folder(entry):
            yield from walk(Path(entry), above | {identity}, skipped)
        elif entry.is_symlink() or entry.is_file():
            yield Path(entry)
        else:
            skipped.add("as they are pipes or devices", Path(entry))
