"""What was measured, kept on disk: times of layers and of networks, by machine and backend.

One file for each setting (processor, threads, backend, versions), a text of key and number. What can't be read is set
aside under another name, and what can't be written is done without: in both cases with a warning, since all that is
lost is the time of measuring anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsFloat

from torchslim.errors import CheckpointError, RequestError, TorchslimWarning
from torchslim.latency.workloads import Geometry
from torchslim.utils.files import write_text
from torchslim.utils.json_values import read_json
from torchslim.utils.text import describe_error

FORMAT = 1


class Stopwatch(Protocol):
    """What measures, on one machine and in one backend.

    Attributes:
        name: of the backend, for messages.
        setting: all that times depend on beside the layers; equal settings share what was measured.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def setting(self) -> Mapping[str, str]: ...  # noqa: D102

    def layers(self, wanted: Sequence[Geometry]) -> Sequence[float]:
        """The nanoseconds of each layer by itself, in the order given."""
        ...


@dataclass(frozen=True)
class _Stored:
    """What the file holds, beside its format."""

    setting: Mapping[str, str]
    times: Mapping[str, float]


class Timetable:
    """The times that one stopwatch has measured, now or on an earlier day.

    Args:
        stopwatch: what measures.
        folder: where to keep times; None means the user's folder for caches (`folder_of_caches`).

    Attributes:
        known: numbers by key: nanoseconds of layers, and what else was kept.
    """

    def __init__(self, stopwatch: Stopwatch, folder: Path | None = None) -> None:
        self.stopwatch = stopwatch
        text = json.dumps(dict(stopwatch.setting), sort_keys=True)
        name = "".join(c if c.isalnum() else "-" for c in stopwatch.name)
        self.path = (folder or folder_of_caches()) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        self.known = self._read()

    def times(self, wanted: Iterable[Geometry]) -> dict[Geometry, float]:
        """The nanoseconds of each geometry; those that are not known are measured, together."""
        distinct = list(dict.fromkeys(wanted))
        missing = [geometry for geometry in distinct if geometry.key not in self.known]
        if missing:
            source = f"backend {self.stopwatch.name}: layers()"
            found = times_of(self.stopwatch.layers(missing), source, len(missing))
            self.keep({geometry.key: time for geometry, time in zip(missing, found, strict=True)})
        return {geometry: self.known[geometry.key] for geometry in distinct}

    def keep(self, found: Mapping[str, float]) -> None:
        """Add to what is known and to the file, where another process may have added meanwhile."""
        self.known |= found
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.known = {**self._read(), **self.known}
            write_text(self.path, json.dumps({"format": FORMAT, "setting": dict(self.stopwatch.setting),
                                              "times": self.known}, indent=0, sort_keys=True))
        except (OSError, CheckpointError) as error:
            warnings.warn(f"{self.path}: measured times could not be kept ({describe_error(error)}); they will be "
                          "measured again; set XDG_CACHE_HOME to a folder that can be written", TorchslimWarning,
                          stacklevel=2)

    def _read(self) -> dict[str, float]:
        try:
            stored = read_json(_Stored, self.path.read_bytes(), str(self.path), "it is measured again", FORMAT)
            if stored.setting != dict(self.stopwatch.setting):
                raise ValueError("it was made in another setting")
            if not all(time >= 0 for time in stored.times.values()):
                raise ValueError("it holds numbers that are no times")
            return dict(stored.times)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, CheckpointError) as error:
            aside = self.path.with_suffix(".broken")
            try:
                self.path.replace(aside)
                done = f"it was set aside as {aside.name}"
            except OSError:
                done = "it is left where it is"
            warnings.warn(f"{self.path}: no cache of measured times ({describe_error(error)}); {done}, and what it "
                          "should have held is measured again", TorchslimWarning, stacklevel=2)
            return {}


def times_of(found: object, source: str, count: int | None = None) -> list[float]:
    """Times as a clock gave them.

    Args:
        found: the numbers.
        source: what gave them, for the message.
        count: how many there have to be; None for one or more.

    Raises:
        RequestError: they are not as many, or one is no finite number above 0.
    """
    numbers = list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes) else None
    if numbers is None or len(numbers) != (count or max(1, len(numbers))):
        given = type(found).__name__ if numbers is None else f"{len(numbers)} numbers"
        raise RequestError(f"{source} gave {given}, wanted {count or 'one or more'} numbers of nanoseconds")
    for number in numbers:
        if not isinstance(number, SupportsFloat) or not 0 < float(number) < math.inf:
            raise RequestError(f"{source} gave {number!r} for a time, wanted nanoseconds above 0")
    return [float(number) for number in numbers]


def folder_of_caches() -> Path:
    """Where measured times are kept: `$XDG_CACHE_HOME/torchslim`, else `~/.cache/torchslim`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache") / "torchslim"
