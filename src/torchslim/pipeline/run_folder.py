"""The run's folder: settings, finished phases, its own files, and a lock so that one process uses it at a time.

Files get their final name when complete, so a process may be killed at any time. A file is the run's own if the state
says so, which is noted before it is written; no other is written, replaced or deleted. No torch here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchslim.errors import CheckpointError, RequestError
from torchslim.pipeline.settings import Settings, option_name, option_text
from torchslim.utils.json_values import read_json
from torchslim.utils.text import describe_error

FORMAT = 3

# Final files of a run; `work` is the folder of its intermediate files, its state and its lock.
WORK, STATE, LOCK, LOG = "work", "state.json", "lock", "log.jsonl"
FINAL = ("baseline.safetensors", "plan.json", "slim.safetensors", "baseline.onnx", "slim.onnx", "record.json",
         "report.html", LOG)
MODELS = tuple(f"{name}.safetensors" for name in ("sparse", "cut", "compensated", "finetuned"))
CHECKPOINTS = tuple(f"{name}.checkpoint" for name in ("baseline", "sparsify", "finetune"))

_OTHER = "choose another folder with --out"


@dataclass(frozen=True)
class _State:
    """Contents of `state.json` beside its format."""

    settings: dict[str, Any]
    threads: int
    processes: int
    found: dict[str, dict[str, Any]]
    files: list[str]


class RunFolder:
    """A run's folder and the results of its phases.

    Attributes:
        path: the folder.
        found: for each finished phase its results, as JSON values.
        threads: CPU threads that the run began with; None before it began.
        processes: the number of processes that it began with; None before it began.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        self.threads: int | None = None
        self.processes: int | None = None
        self._files: set[str] = set()
        self._identity: dict[str, Any] | None = None

    def file(self, name: str) -> Path:
        """A file's path: final ones in the folder itself, others in `work`."""
        return self.path / name if name in FINAL else self.path / WORK / name

    def open(self, settings: Settings, restart: bool = False) -> None:
        """Read the state, and check that the folder is a run's, empty or not there; nothing is changed.

        Args:
            settings: of the run.
            restart: whether a run with other settings, or with a state that can't be read, will be deleted.

        Raises:
            RequestError: it holds a run with other settings or what is no run, or is no folder.
            CheckpointError: its state can't be read.
        """
        self._identity = json.loads(json.dumps(settings.identity()))
        self.found, self.threads, self.processes, self._files = {}, None, None, set()
        try:
            self._check_folder()
            state = self._read()
            if state is None:
                self._check_empty()
                return
        except OSError as error:
            raise self._unusable(describe_error(error)) from error
        except CheckpointError:
            # The lock is left by every run, so that a state of this name and no lock are someone else's.
            if not self.file(LOCK).is_file():
                raise RequestError(f"{self.file(STATE)}: is no state of a run; {_OTHER}") from None
            if not restart:
                raise
            self._files = {*FINAL, *MODELS, *CHECKPOINTS}
            return
        self._files = set(state.files)
        # A run with no finished phase and no checkpoint may be overwritten (its model was misspelt, say).
        if restart or not (state.found or any(self.file(name).exists() for name in CHECKPOINTS)):
            return
        self._check_settings(settings, state)
        self._identity, self.found = state.settings, state.found
        self.threads, self.processes = state.threads, state.processes

    def _check_settings(self, settings: Settings, state: _State) -> None:
        there, wanted = state.settings, self._identity or {}
        odd = [f"{option_name(name)} {option_text(name, there.get(name))} (now {option_text(name, wanted.get(name))})"
               for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
        if settings.threads not in (None, state.threads):
            odd.append(f"--threads {state.threads} (now {settings.threads})")
        if odd:
            raise RequestError(f"{self.path}: holds a run with {', '.join(odd)}; {_OTHER}, or throw that run away "
                               "with --restart")

    def _check_folder(self) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            self.path.stat()  # raises for what is no name
        above = self._nearest()
        if not above.is_dir():
            what = "is a link to what is no folder" if above.is_symlink() else "is a file"
            raise RequestError(f"{self.path}: {what}; {_OTHER}" if above == self.path else
                               f"{self.path}: can't be used, {above} {what}; {_OTHER}")

    def _nearest(self) -> Path:
        """The folder, or if it does not exist the nearest above it that does; a link counts wherever it leads."""
        return next(path for path in (self.path, *self.path.absolute().parents) if os.path.lexists(path))

    def _check_empty(self) -> None:
        """Refuse a folder that has no state and holds more than a run leaves that was killed before it began."""
        work, ours = self.path / WORK, (LOCK, f".{STATE}.tmp")
        has_work = work.is_dir() and not work.is_symlink()
        found = [path for path in (self.path.iterdir() if self.path.exists() else ()) if path != work or not has_work]
        found += [path for path in (work.iterdir() if has_work else ()) if path.name not in ours]
        if found:
            raise RequestError(f"{self.path}: holds {min(found).relative_to(self.path)} and no run, wanted a folder "
                               f"that is empty or new; {_OTHER}, such as {self.path / 'run'}")

    def check_writable(self, names: Iterable[str]) -> None:
        """Check that the run can write these files; nothing is changed.

        Raises:
            RequestError: no permission, or a file of someone else's has one of the names.
        """
        for folder in (self._nearest(), self.path / WORK):
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
                raise self._unusable(f"no permission to write in {folder}")
        for name in sorted(set(names) - self._files):
            if os.path.lexists(self.file(name)):
                raise RequestError(f"{self.file(name)}: is no file of the run in {self.path}, which would write one of "
                                   f"that name; move it, or {_OTHER}")

    def _unusable(self, reason: str) -> RequestError:
        return RequestError(f"{self.path}: can't be used ({reason}); {_OTHER}")

    def check_processes(self, processes: int) -> None:
        """Check that the run began with so many processes: with others, sums end with other bits.

        Raises:
            RequestError: it did not.
        """
        if self.processes not in (None, processes):
            raise RequestError(f"{self.path}: holds a run by {self.processes} processes (now {processes}); go on with "
                               f"as many, {_OTHER}, or throw that run away with --restart")

    def begin(self, threads: int, processes: int = 1) -> None:
        """Record the start of the run, its threads and processes; delete a killed process's incomplete files."""
        for name in {*self._files, STATE}:
            final = self.file(name)
            for left in [*final.parent.glob(f".{name}*.tmp"), *final.parent.glob(f".{name}-*")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        self.threads, self.processes = threads, processes
        self._write()

    def claim(self, names: Iterable[str]) -> None:
        """Record files that the run is about to write as its own.

        Raises:
            RequestError: there is one of someone else's.
        """
        names = set(names)
        self.check_writable(names)
        if not names <= self._files:
            self._files |= names
            self._write()

    def finish(self, phase: str, results: Mapping[str, Any]) -> None:
        """Record a finished phase and its results."""
        self.found[phase] = dict(results)
        self._write()

    def clear(self) -> None:
        """Delete the run's files, and nothing else in the folder; `begin` replaces the state."""
        self._delete(self._files)
        self.found, self.threads, self.processes = {}, None, None

    def delete_intermediate(self) -> None:
        """Delete intermediate files."""
        self._delete(self._files - set(FINAL))
        self._write()

    def is_tidy(self) -> bool:
        """Whether no intermediate files are left."""
        return self._files <= set(FINAL)

    def _delete(self, names: set[str]) -> None:
        for name in names:
            self.file(name).unlink(missing_ok=True)
        self._files = self._files - names

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes; create it if missing.

        The system releases the lock when its process ends in any way.

        Raises:
            RequestError: another process has the lock, or the folder can't be made; then no part of it is left.
        """
        work = self.path / WORK
        missing = [path for path in (work, *work.parents) if not path.exists()]
        try:
            work.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            for made in missing:
                with suppress(OSError):
                    made.rmdir()
            raise self._unusable(str(error.strerror)) from error
        try:
            if not _lock(descriptor):
                holder = os.read(descriptor, 20).decode(errors="replace").strip() or "?"
                raise RequestError(f"{self.path}: process {holder} works here; wait for it, or {_OTHER}")
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, str(os.getpid()).encode())
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> _State | None:
        path = self.file(STATE)
        try:
            return read_json(_State, path.read_bytes(), str(path), "begin anew with --restart", FORMAT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror}); begin anew with --restart") from error

    def _write(self) -> None:
        from torchslim.utils.files import write_text

        state = {"format": FORMAT, "settings": self._identity, "threads": self.threads,
                 "processes": self.processes, "found": self.found, "files": sorted(self._files)}
        write_text(self.file(STATE), json.dumps(state, indent=1, allow_nan=False))


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
