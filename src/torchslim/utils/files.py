"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torchslim.errors import CheckpointError, RequestError
from torchslim.utils.text import describe_error


def write_atomically(path: Path, write: Callable[[Path], object], failures: tuple[type[Exception], ...] = ()) -> None:
    """Let `write` make a file under another name in the same folder, and rename it when it is on the disk.

    The other name starts with a point and ends with `.tmp`; only a process that is killed leaves it behind, and the
    next one overwrites it.

    Args:
        path: the final name.
        write: writes the file that it is given.
        failures: errors of `write`, beside `OSError`, that mean that the file can't be written.

    Raises:
        CheckpointError: the file can't be written (a full disk, no permission).
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        write(draft)
        flush_to_disk(draft)
        draft.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
        draft.replace(path)
    except Exception as error:
        if not isinstance(error, (OSError, *failures)):
            raise
        raise CheckpointError(f"{path}: could not be written: {describe_error(error)}; nothing was left behind; "
                              "free space or choose another place") from error
    finally:  # Ctrl-C too leaves nothing
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    with suppress(OSError, AttributeError):  # so that the name survives a power cut too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk, so that it survives a power cut."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all; what UTF-8 cannot hold (a lone surrogate) becomes a question mark.

    Raises:
        CheckpointError: the file can't be written.
    """
    write_atomically(path, lambda draft: draft.write_bytes(text.encode("utf-8", errors="replace")))


def check_writable(path: Path, like: str) -> Path:
    """The path, if a file could be there: asked before the work that it is to keep; `like` is an example of a name.

    Raises:
        RequestError: it is a folder or no name of a file, or its folder does not exist.
    """
    try:
        problem = "is a folder" if path.is_dir() else "" if path.parent.is_dir() else \
            "lies in what is no folder" if path.parent.exists() else "lies in a folder that does not exist"
    except OSError as error:  # a name that is too long
        problem = f"is no name of a file ({describe_error(error)})"
    if problem:
        raise RequestError(f"{path}: {problem}; give a file such as {like} in a folder that exists")
    return path


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
