"""What has been measured so far, in a file that is whole after every entry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from torchslim.errors import CheckpointError, RequestError
from torchslim.planning.sensitivity.metrics import update
from torchslim.utils.files import write_text
from torchslim.utils.json_values import read_json
from torchslim.utils.modules import tensors_of
from torchslim.utils.text import describe_error

FORMAT = 1
KIND = "torchslim.sensitivity"


@dataclass(frozen=True)
class _Entry:
    kept: int
    macs: float
    value: float


@dataclass(frozen=True)
class _Contents:
    """What the file holds, beside its format."""

    kind: Literal["torchslim.sensitivity"]
    identity: Mapping[str, Any]
    measured: Mapping[str, _Entry]


class ScanCheckpoint:
    """Entries by name, kept in a file where there is one.

    Args:
        path: the file (see `torchslim.utils.files.check_writable`); None to keep them in memory only.
        identity: what a measurement depends on, as JSON values: entries of another one are not taken up.

    Raises:
        RequestError: the file is of another model, other data or other settings.
        CheckpointError: the file is something else, or damaged.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(dict(identity)))
        self.entries: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.entries = self._read(path)

    def put(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add an entry; it is on the disk when this returns."""
        self.entries[name] = dict(entry)
        if self.path is not None:
            write_text(self.path, json.dumps({"kind": KIND, "format": FORMAT, "identity": self.identity,
                                              "measured": self.entries}, indent=1))

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        remedy = "delete it to start anew, or choose another file"
        try:
            contents = read_json(_Contents, path.read_bytes(), str(path), remedy, FORMAT)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({describe_error(error)}); {remedy}") from error
        there = contents.identity
        odd = [name for name in sorted({*there, *self.identity}) if there.get(name) != self.identity.get(name)]
        if odd:
            said = ", ".join(f"another {name}" if name in ("model", "data", "ranking") else
                             f"{name}={there.get(name)!r} (now {self.identity.get(name)!r})" for name in odd)
            raise RequestError(f"{path}: holds measurements of {said}; measure as before, choose another file, or "
                               "delete it to start anew")
        return {name: asdict(entry) for name, entry in contents.measured.items()}


def fingerprint(model: nn.Module) -> str:
    """A checksum of a model's class and of all its tensors."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in sorted(tensors_of(model).items()):
        digest.update(name.encode())
        update(digest, tensor)
    return digest.hexdigest()
