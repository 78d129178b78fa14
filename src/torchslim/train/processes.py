"""The processes that train one model together, as torchrun starts them: who is who, and what all of them know.

What may fail in one process is done inside `Processes.agreed`, so that it fails in all and none waits for another.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchslim import errors
from torchslim.errors import CheckpointError, MissingExtra, TorchslimError, TrainingError
from torchslim.utils.launcher import requested_processes
from torchslim.utils.text import describe_error

_REMEDY = "start all of them again: a run, or a training with a checkpoint, goes on"
_KINDS = ("RequestError", "PlanError", "ProofError", "CheckpointError", "ExportError", "TrainingError")
"""Errors that another process raises again by their messages, the more special before `TorchslimError`."""
_LOST = re.compile(r"\bgloo/|\bNCCL\b|Connection (closed|reset) by peer")
"""What the libraries of communication write; `gloo/` is in the path of the source that fails."""


@dataclass(frozen=True)
class Processes:
    """All processes, seen from one of them. In a single process every method is free of cost.

    Attributes:
        rank: the number of this one, from 0; the first alone writes files and prints.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails inside in any process fails in all, with the error of the lowest of them; all wait here.

        Inside, no process may wait for others, unless all of them do.
        """
        if self.world == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if is_lost(error):
                raise
            failure = error
        if not self.sums(float(failure is not None))[0]:
            return
        told = self.gather(None if failure is None else _described(failure))
        rank = next(rank for rank, each in enumerate(told) if each is not None)
        if failure is not None and rank == self.rank:
            raise failure
        kind, text = told[rank]
        if kind:
            raise getattr(errors, kind)(text) from failure
        raise TrainingError(f"process {rank} of {self.world}: {text}") from failure

    @contextmanager
    def connected(self, remedy: str = _REMEDY) -> Iterator[None]:
        """An error in one line where another process has ended or can't be reached.

        Raises:
            TrainingError: for what the library of communication raises inside then.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_lost(error) or isinstance(error, TorchslimError):
                raise
            raise TrainingError(f"process {self.rank} of {self.world}: another process has ended or can't be reached; "
                                f"{remedy}") from error

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all. Any object that can be pickled."""
        if self.world == 1:
            return value
        held = [value if self.is_first else None]
        torch.distributed.broadcast_object_list(held, src=0, group=_control_group())
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in all."""
        if self.world == 1:
            return [value]
        held: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(held, value, group=_control_group())
        return held

    def sums(self, *values: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.world == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(numbers, group=_control_group())
        return [float(number) for number in numbers.tolist()]

    def share(self, model: nn.Module) -> None:
        """Give the first process's parameters and buffers to all."""
        self._share(model.parameters())
        self.share_buffers(model)

    def share_buffers(self, model: nn.Module) -> None:
        """Give the first process's buffers to all, such as running statistics."""
        self._share(model.buffers())

    @torch.no_grad()
    def _share(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors if self.world > 1 else ():
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # bytes: of any type
            torch.distributed.broadcast(flat, src=0, group=_control_group() if flat.device.type == "cpu" else None)
            if not self.is_first:
                tensor.copy_(flat.view(tensor.dtype).reshape(tensor.shape))

    @contextmanager
    def file_of_first(self, path: Path | None) -> Iterator[Path | None]:
        """The first process's file, in all: machines need no folder in common.

        Yields:
            The path; in the other processes, of a copy that is deleted afterwards; None if the first has no such file.
        """
        if self.world == 1:
            yield path if path is not None and path.exists() else None
            return
        content: bytes | None = None
        with self.agreed():
            if self.is_first and path is not None and path.exists():
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise CheckpointError(f"{path}: can't be read ({describe_error(error)})") from error
        content = self.broadcast(content)
        if self.is_first or content is None:
            yield None if content is None else path
            return
        with tempfile.TemporaryDirectory(prefix="torchslim-") as folder:
            copy = Path(folder) / "copy"
            copy.write_bytes(content)
            yield copy

    def is_first_to_tell(self) -> bool:
        """Whether this process should print how the job ended: True in the first process that asks."""
        if self.world == 1:
            return True
        try:
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            return bool(store.add("torchslim/told", 1) == 1)
        except (RuntimeError, ValueError):  # the store ended with the process or the machine that kept it
            return os.environ.get("LOCAL_RANK", "0") == "0"


ALONE = Processes()


def current_processes() -> Processes:
    """Those that were joined before; a single one if none were."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return ALONE


def join_processes() -> Processes:
    """Join the processes that torchrun started with this one, through Accelerate.

    Raises:
        MissingExtra: Accelerate is not installed.
        TrainingError: fewer processes train together than were asked for, or no launcher says where they meet.
    """
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise MissingExtra("accelerate", "train", "training") from error
    requested = requested_processes()
    if requested == 1:
        return current_processes()
    # Where nothing but CPUs is there, Accelerate joins processes only if it is told to use these.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    try:
        together = PartialState(cpu=on_cpu).num_processes
    except ValueError as error:  # a variable of the environment is missing
        raise TrainingError(f"fit: WORLD_SIZE={requested} asks for as many processes, which can't meet "
                            f"({describe_error(error)}); start them with torchrun, or unset WORLD_SIZE") from error
    if requested > together:
        raise TrainingError(f"fit: {requested} processes were asked for, {together} train together; start them with "
                            "torchrun")
    _control_group()  # all make it at the same time
    return current_processes()


def is_lost(error: BaseException) -> bool:
    """Whether an error, or its cause, says that another process has ended or can't be reached."""
    if error.__cause__ is not None and is_lost(error.__cause__):
        return True
    if isinstance(error, TorchslimError) or not isinstance(error, RuntimeError):
        return False  # a message of ours may hold any word, as a path does
    return torch.distributed.is_available() and (
        isinstance(error, torch.distributed.DistError) or _LOST.search(str(error)) is not None)


@cache
def _control_group() -> Any:
    """A group for what is said beside gradients: on the CPU, and with as much time as the first process may work."""
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))


def _described(error: Exception) -> tuple[str, str]:
    """The kind of an error that can be raised again by its message alone, or "", and the message."""
    if not isinstance(error, TorchslimError):
        return "", describe_error(error)
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((name for name in names if name in _KINDS), "TorchslimError"), str(error)
