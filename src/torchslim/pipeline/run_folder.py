"""The run's folder: what was asked, which phases are done, and that one process works in it at a time.

Whatever is under its final name is whole, so a process may be killed at any moment. No torch here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchslim.errors import CheckpointError, RequestError
from torchslim.pipeline.settings import Settings, option_name, option_text
from torchslim.utils.json_values import read_json

FORMAT = 1

# What a run leaves behind; `work` is the folder of what it needs on the way.
WORK = "work"
FINAL = ("baseline.safetensors", "plan.json", "slim.safetensors", "baseline.onnx", "slim.onnx", "record.json",
         "report.html")


@dataclass(frozen=True)
class _State:
    """What `state.json` holds, beside its format."""

    settings: dict[str, Any]
    threads: int
    found: dict[str, dict[str, Any]]


class RunFolder:
    """A run's folder, with what its phases have found so far.

    Attributes:
        path: the folder.
        found: for each finished phase, what it found, as JSON values.
        threads: CPU threads that the run began with; None before it began.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        self.threads: int | None = None
        self._identity: dict[str, Any] | None = None

    def file(self, name: str) -> Path:
        """Where a file lies: a final one in the folder itself, another in `work`."""
        return self.path / name if name in FINAL else self.path / WORK / name

    def open(self, settings: Settings) -> None:
        """Read what is there, and check that it is of this run.

        Raises:
            RequestError: the folder holds a run with other settings, or is no folder.
            CheckpointError: its state can't be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"{self.path}: is a file; choose another folder with --out")
        state = self._read()
        wanted = json.loads(json.dumps(settings.identity()))
        # A run with no finished phase and no checkpoint may be overwritten (its model was misspelt, say).
        if state is None or not (state.found or any((self.path / WORK).glob("*.checkpoint"))):
            self._identity, self.threads = wanted, None
            return
        there = dict(state.settings)
        odd = [f"{option_name(name)} {option_text(name, there.get(name))} (now {option_text(name, wanted.get(name))})"
               for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
        if settings.threads not in (None, state.threads):
            odd.append(f"--threads {state.threads} (now {settings.threads})")
        if odd:
            raise RequestError(f"{self.path}: holds a run with {', '.join(odd)}; choose another folder with --out, "
                               "or throw that run away with --restart")
        self._identity, self.threads, self.found = there, state.threads, state.found

    def begin(self, threads: int) -> None:
        """Note that the run began, with so many threads; sweep out what a killed process left half written."""
        for folder in (self.path, self.path / WORK):
            for left in [*folder.glob(".*.tmp"), *folder.glob(".*.onnx-*")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        self.threads = threads
        self._write()

    def finish(self, phase: str, results: Mapping[str, Any]) -> None:
        """Note that a phase is done and what it found."""
        self.found[phase] = dict(results)
        self._write()

    def clear(self) -> None:
        """Throw the run away: its own files, and nothing else in the folder."""
        for name in FINAL:
            (self.path / name).unlink(missing_ok=True)
        self._delete_work_files({"lock"})
        self.found, self.threads = {}, None

    def delete_intermediate(self) -> None:
        """Delete what was needed on the way only."""
        self._delete_work_files({"lock", "state.json"})

    def is_tidy(self) -> bool:
        """Whether nothing is left of what was needed on the way."""
        return not any((self.path / WORK).glob("*.safetensors"))

    def _delete_work_files(self, but: set[str]) -> None:
        for left in (self.path / WORK).glob("*"):
            if left.name not in but and left.is_file():
                left.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, which is made if need be.

        The system drops the lock when its process ends in any way, so a stale one can't be.

        Raises:
            RequestError: another process works in the folder, or it can't be made.
        """
        try:
            (self.path / WORK).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / WORK / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RequestError(f"{self.path}: can't be used ({error.strerror}); choose another folder with "
                               "--out") from error
        try:
            if not _lock(descriptor):
                holder = os.read(descriptor, 20).decode(errors="replace").strip() or "?"
                raise RequestError(f"{self.path}: process {holder} works here; wait for it, or choose another "
                                   "folder with --out")
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, str(os.getpid()).encode())
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> _State | None:
        path = self.file("state.json")
        try:
            return read_json(_State, path.read_bytes(), str(path), "begin anew with --restart", FORMAT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror}); begin anew with --restart") from error

    def _write(self) -> None:
        from torchslim.utils.files import write_text

        state = {"format": FORMAT, "settings": self._identity, "threads": self.threads, "found": self.found}
        write_text(self.file("state.json"), json.dumps(state, indent=1, allow_nan=False))


def _lock(descriptor: int) -> bool:
    """Lock an open file unless another process has it; never waits."""
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
