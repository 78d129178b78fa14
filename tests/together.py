"""Runs a script in several processes, as torchrun does, but imports torch once: `together.py SCRIPT FOLDER 1 2 4`.

The script's `main(rank, world, folder)` runs in one process, then in two, then in four, of one thread each on the CPU.
The environment variable TURN counts these turns from 1.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import traceback
from pathlib import Path


def run(script: str, folder: Path, worlds: list[int]) -> int:
    """The number of processes that failed."""
    import accelerate  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    import torchslim.train  # noqa: F401

    torch.set_num_threads(1)
    work = runpy.run_path(script)["main"]  # what it imports is imported once
    failed = 0
    for turn, world in enumerate(worlds, start=1):
        os.environ["TURN"] = str(turn)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                if world > 1:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                                      LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                try:
                    work(rank, world, folder)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return failed


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), list(map(int, sys.argv[3:]))))
