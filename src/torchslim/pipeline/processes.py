"""A run in several processes: the first leads and writes, the others join it where work is divided.

The first process goes through the phases as if it were alone. Where it trains or scores, it sends the others a job,
with the model as the file that `save` writes, and all do it together. So each plan, cut and refit is made once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from torchslim import errors
from torchslim.errors import RequestError, TorchslimError, TrainingError
from torchslim.store.loading import load
from torchslim.store.saving import save
from torchslim.surgery.plans import Plan
from torchslim.train.processes import ALONE, Processes, is_lost
from torchslim.utils.text import describe_error
from torchslim.zoo.sources import Source

Work = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """What all processes do together.

    Attributes:
        name: of the work, which each process looks up.
        models: the models that it is given, by keyword, as files.
        options: its other keywords.
    """

    name: str
    models: dict[str, bytes]
    options: dict[str, Any]


@dataclass
class Team:
    """The processes of a run, seen from one of them.

    Attributes:
        processes: all of them.
        works: what can be asked of them, by name; called with models and options as keywords.
    """

    processes: Processes = ALONE
    works: dict[str, Work] = field(default_factory=dict)
    _at_work: bool = False

    def do(self, name: str, models: Mapping[str, tuple[nn.Module, Plan | None]] = {}, source: Source | None = None,
           **options: Any) -> Any:
        """Let all processes do a work, and do it, with these models themselves, which a training changes in place.

        Args:
            name: of the work.
            models: by keyword, each with the plan that it was cut by.
            source: of the models.
            options: other keywords, which can be pickled.
        """
        if self.processes.world > 1:
            files = {key: _as_file(model, source, plan) for key, (model, plan) in models.items()}
            self.processes.broadcast(Job(name, files, options))
        self._at_work = True
        result = self.works[name](**{key: model for key, (model, _) in models.items()}, **options)
        self._at_work = False
        return result

    @contextmanager
    def leading(self) -> Iterator[None]:
        """In the first process: the others are let go afterwards, with the error if there was one.

        None is sent where work failed that all did together: they know it.
        """
        try:
            yield
        except Exception as error:
            if not self._at_work and not is_lost(error):
                self.processes.broadcast(_ending(error))
            raise
        self.processes.broadcast(None)

    def follow(self) -> None:
        """In the other processes: do what the first asks, until it lets go.

        Raises:
            TorchslimError: the first process failed, or the work that all did.
        """
        while isinstance(job := self.processes.broadcast(None), Job):
            self.works[job.name](**{key: _from_file(file) for key, file in job.models.items()}, **job.options)
        if job is not None:
            kind, text = job
            raise getattr(errors, kind)(text)


def _as_file(model: nn.Module, source: Source | None, plan: Plan | None) -> bytes:
    with tempfile.TemporaryDirectory(prefix="torchslim-") as folder:
        return save(model, Path(folder) / "model.safetensors", plan=plan, source=source).read_bytes()


def _from_file(content: bytes) -> nn.Module:
    with tempfile.TemporaryDirectory(prefix="torchslim-") as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        return load(path, trust_source=True)  # the caller asked for this model


def _ending(error: Exception) -> tuple[str, str]:
    """An error that ends the other processes with the same exit status."""
    kind = RequestError if isinstance(error, RequestError) else TrainingError
    return kind.__name__, str(error) if isinstance(error, TorchslimError) else describe_error(error)
