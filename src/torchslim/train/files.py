"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torchslim.errors import CheckpointError
from torchslim.wording import first_line


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under another name in the same folder, and rename it when it is on the disk.

    The other name starts with a point and ends with `.tmp`; a process that is killed may leave it behind, and
    the next one overwrites it.

    Raises:
        CheckpointError: the file can't be written (a full disk, no permission).
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        write(draft)
        with draft.open("r+b") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: could not be written: {first_line(error)}; nothing was left behind; "
                              "free space or choose another place") from error
    with suppress(OSError, AttributeError):  # so that the name survives a power cut too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all.

    Raises:
        CheckpointError: the file can't be written.
    """
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
