"""What is kept of each epoch beside the weights: a line of JSON in a file, and Accelerate's trackers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from io import RawIOBase
from pathlib import Path
from typing import Any

from torchslim.errors import CheckpointError, RequestError
from torchslim.train.progress import Progress
from torchslim.utils.files import check_writable
from torchslim.utils.text import describe_error, did_you_mean

Record = dict[str, Any]
_LONGEST_LINE = 2**16  # bytes
PROJECT, FOLDER = "torchslim", "runs"
"""The name under which trackers keep a training, and the folder of those that write files."""


@dataclass(frozen=True)
class Reporting:
    """Who is told of a training.

    Attributes:
        progress: called after every step; True ends the training with the epoch.
        log: called with the record of each epoch; None for no one.
        accelerator: Accelerate's, with the trackers.
    """

    progress: Callable[[Progress], object] | None
    log: Callable[[Record], object] | None
    accelerator: Any

    def step(self, at: Progress) -> bool:
        """Tell the progress; whether the training is to end."""
        if self.progress is None or not self.accelerator.is_main_process:
            return False
        return self.progress(at) is True

    def epoch(self, record: Record) -> None:
        """Tell of a finished epoch: its number, loss, metrics, learning rate and seconds."""
        record = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in record.items()}
        if self.log is not None and self.accelerator.is_main_process:
            self.log(record)
        if self.accelerator.trackers:
            self.accelerator.log({name: value for name, value in record.items() if value is not None},
                                 step=record["epoch"])

    @contextmanager
    def tracking(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Open the trackers; close them afterwards."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers(PROJECT, {
                name: value if isinstance(value, int | float | str) else str(value) for name, value in config.items()})
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()


def log_writer(log: str | Path | Callable[[Record], object] | None) -> Callable[[Record], object] | None:
    """What takes the records of epochs: a file gets a line for each, appended.

    Raises:
        RequestError: the file could not be there.
    """
    if log is None or callable(log):
        return log
    path = check_writable(Path(log), "log.jsonl")
    return lambda record: append_line(path, record)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file, whole or not at all; an unfinished record at its end, as of a power cut, goes.

    Raises:
        CheckpointError: it can't be written.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            tail = _last_line(file, end)
            if tail.startswith(b"{") and not _is_json(tail):
                end -= len(tail)
                file.truncate(end)
            elif tail:
                line = b"\n" + line
            if file.write(line) != len(line):  # the disk is full
                file.truncate(end)
                raise OSError(ENOSPC, os.strerror(ENOSPC))
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written: {describe_error(error)}; free space or choose another "
                              "place") from error


def _last_line(file: RawIOBase, end: int) -> bytes:
    """What stands behind the last end of a line."""
    start = max(0, end - _LONGEST_LINE)
    file.seek(start)
    return (file.read(end - start) or b"").rpartition(b"\n")[2]


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def check_tracker(tracker: Any) -> Any:
    """One of Accelerate's trackers by its name, or one of the caller's own; None for none.

    Raises:
        RequestError: an unknown name, or one whose package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

    if tracker is None or isinstance(tracker, GeneralTracker):
        return tracker
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    if tracker not in known:
        close = did_you_mean(str(tracker), known, f"wanted {', '.join(known)}")
        raise RequestError(f"fit: tracker={tracker!r} found, no tracker of that name; {close}")
    if tracker not in [str(name) for name in get_available_trackers()]:
        raise RequestError(f"fit: tracker={tracker!r} needs a package that is not installed: pip install {tracker}")
    return tracker
