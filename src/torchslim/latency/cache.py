"""Measured times of layers and networks, cached on disk by machine and backend.

One JSON file for each environment (processor, threads, backend, versions). An unreadable file is renamed, an unwritable
one skipped, both with a warning: times are then measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

from filelock import FileLock
from platformdirs import user_cache_path

from torchslim.errors import CheckpointError, RequestError, TorchslimWarning
from torchslim.latency.backends import Backend
from torchslim.latency.workloads import Workload
from torchslim.utils.files import write_text
from torchslim.utils.json_values import read_json
from torchslim.utils.text import describe_error

FORMAT = 2
_LOCK_SECONDS = 10.0  # to wait for another process that writes


@dataclass(frozen=True)
class _Stored:
    """The file's contents, beside its format."""

    environment: Mapping[str, str]
    times: Mapping[str, float]


class LatencyCache:
    """The times measured by one backend.

    Args:
        backend: see `Backend`.
        folder: of the cache files; None means the user's cache folder (`default_folder`).

    Attributes:
        entries: numbers by key: nanoseconds of layers and networks, and ratios of cut networks' times to the uncut's.
    """

    def __init__(self, backend: Backend, folder: Path | None = None) -> None:
        self.backend = backend
        text = json.dumps(dict(backend.environment), sort_keys=True)
        name = "".join(c if c.isalnum() else "-" for c in backend.name)
        self.path = (folder or default_folder()) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        self.entries = self._read()

    def layer_times(self, workloads: Iterable[Workload]) -> dict[Workload, float]:
        """Nanoseconds of each workload; those not cached are measured together."""
        distinct = list(dict.fromkeys(workloads))
        missing = [workload for workload in distinct if workload.key not in self.entries]
        if missing:
            source = f"backend {self.backend.name}: time_layers()"
            times = checked_times(self.backend.time_layers(missing), source, len(missing))
            self.add({workload.key: time for workload, time in zip(missing, times, strict=True)})
        return {workload: self.entries[workload.key] for workload in distinct}

    def add(self, entries: Mapping[str, float]) -> None:
        """Add to the entries and merge them into the file, which another process may change."""
        self.entries |= entries
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
                self.entries = {**self._read(), **self.entries}
                write_text(self.path, json.dumps(
                    {"format": FORMAT, "environment": dict(self.backend.environment), "times": self.entries},
                    indent=0, sort_keys=True))
        except (OSError, NotImplementedError, CheckpointError) as error:  # some file systems have no locks
            warnings.warn(f"{self.path}: measured times could not be kept ({describe_error(error)}); they will be "
                          "measured again; set XDG_CACHE_HOME to a folder that can be written", TorchslimWarning,
                          stacklevel=2)

    def _read(self) -> dict[str, float]:
        try:
            stored = read_json(_Stored, self.path.read_bytes(), str(self.path), "it is measured again", FORMAT)
            if stored.environment != dict(self.backend.environment):
                raise ValueError("it was made in another environment")
            if not all(time >= 0 for time in stored.times.values()):
                raise ValueError("it holds numbers that are no times")
            return dict(stored.times)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, CheckpointError) as error:
            broken = self.path.with_suffix(".broken")
            try:
                self.path.replace(broken)
                action = f"it was set aside as {broken.name}"
            except OSError:
                action = "it is left where it is"
            warnings.warn(f"{self.path}: no cache of measured times ({describe_error(error)}); {action}, and what it "
                          "should have held is measured again", TorchslimWarning, stacklevel=2)
            return {}


def checked_times(times: object, source: str, count: int | None = None) -> list[float]:
    """A backend's times, validated.

    Args:
        times: the numbers.
        source: their origin, for the message.
        count: required number of times; None for one or more.

    Raises:
        RequestError: another number of times, or one is not finite and above 0.
    """
    numbers = list(times) if isinstance(times, Iterable) and not isinstance(times, str | bytes) else None
    if numbers is None or len(numbers) != (count or max(1, len(numbers))):
        given = type(times).__name__ if numbers is None else f"{len(numbers)} numbers"
        raise RequestError(f"{source} gave {given}, wanted {count or 'one or more'} numbers of nanoseconds")
    for number in numbers:
        if not isinstance(number, SupportsFloat) or not 0 < float(number) < math.inf:
            raise RequestError(f"{source} gave {number!r} for a time, wanted nanoseconds above 0")
    return [float(number) for number in numbers]


def default_folder() -> Path:
    """The user's cache folder: on Linux `$XDG_CACHE_HOME/torchslim`, else `~/.cache/torchslim`."""
    return user_cache_path("torchslim", appauthor=False)
