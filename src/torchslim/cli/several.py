"""Commands that torchrun started as several processes: which of them may be, and who prints."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from torchslim.errors import RequestError
from torchslim.utils.launcher import is_first_on_machine, requested_processes, requested_rank

TOGETHER = ("slim", "demo", "train")


def check_command(arguments: Sequence[str]) -> None:
    """Refuse commands that each process would run by itself.

    Raises:
        RequestError: it is one.
    """
    command = next((word for word in arguments if not word.startswith("-")), None)
    if requested_processes() > 1 and command is not None and command not in TOGETHER:
        raise RequestError(f"{command}: started as {requested_processes()} processes, it runs in one; leave torchrun "
                           f"out, which is for {', '.join(TOGETHER)}")


def quiet_processes() -> None:
    """Of several processes, let only the first print and warn; errors are printed by `print_once`."""
    if requested_processes() == 1:
        return
    # Of the library of communication, for those who write training loops; read when torch is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if requested_rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        warnings.simplefilter("ignore")


def print_once(line: str) -> None:
    """Print how the command ended on stderr, if no other process has done so."""
    if requested_processes() == 1 or _is_first_to_tell():
        print(line, file=sys.stderr)


def _is_first_to_tell() -> bool:
    if "torchslim.train.processes" in sys.modules:
        processes = sys.modules["torchslim.train.processes"].current_processes()
        if processes.world > 1:
            return bool(processes.is_first_to_tell())
    return is_first_on_machine()  # they have not met yet
