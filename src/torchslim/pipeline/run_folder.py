"""The run's folder: settings, finished phases, and a lock so that one process uses it at a time.

Files get their final name when complete, so a process may be killed at any time. No torch here.
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

# Final files of a run; `work` is the folder of its intermediate files.
WORK = "work"
FINAL = ("baseline.safetensors", "plan.json", "slim.safetensors", "baseline.onnx", "slim.onnx", "record.json",
         "report.html")


@dataclass(frozen=True)
class _State:
    """Contents of `state.json` beside its format."""

    settings: dict[str, Any]
    threads: int
    found: dict[str, dict[str, Any]]


class RunFolder:
    """A run's folder and the results of its phases.

    Attributes:
        path: the folder.
        found: for each finished phase its results, as JSON values.
        threads: CPU threads that the run began with; None before it began.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        self.threads: int | None = None
        self._identity: dict[str, Any] | None = None

    def file(self, name: str) -> Path:
        """A file's path: final ones in the folder itself, others in `work`."""
        return self.path / name if name in FINAL else self.path / WORK / name

    def open(self, settings: Settings) -> None:
        """Read the state, and check that it has these settings.

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
        """Record the start of the run and its threads; delete a killed process's incomplete files."""
        for folder in (self.path, self.path / WORK):
            for left in [*folder.glob(".*.tmp"), *folder.glob(".*.onnx-*")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        self.threads = threads
        self._write()

    def finish(self, phase: str, results: Mapping[str, Any]) -> None:
        """Record a finished phase and its results."""
        self.found[phase] = dict(results)
        self._write()

    def clear(self) -> None:
        """Delete the run's files, and nothing else in the folder."""
        for name in FINAL:
            (self.path / name).unlink(missing_ok=True)
        self._delete_work_files({"lock"})
        self.found, self.threads = {}, None

    def delete_intermediate(self) -> None:
        """Delete intermediate files."""
        self._delete_work_files({"lock", "state.json"})

    def is_tidy(self) -> bool:
        """Whether no intermediate models are left."""
        return not any((self.path / WORK).glob("*.safetensors"))

    def _delete_work_files(self, but: set[str]) -> None:
        for left in (self.path / WORK).glob("*"):
            if left.name not in but and left.is_file():
                left.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes; create it if missing.

        The system releases the lock when its process ends in any way.

        Raises:
            RequestError: another process has the lock, or the folder can't be made.
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
    """Lock an open file; False, without waiting, if it is locked."""
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
