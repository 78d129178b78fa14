"""A run of `slim` by two processes in three turns: one is killed, all get Ctrl-C, it ends; then `train` and others."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 - what all turns use, once
import torchvision  # noqa: F401

import torchslim.pipeline.checks
import torchslim.report  # noqa: F401
from torchslim import cli

COMMANDS = {
    "killed": "slim {net}:plain --data {net}:few {slim} --out {folder}/run",
    "interrupted": "slim {net}:plain --data {net}:few {slim} --out {folder}/run",
    "finished": "slim {net}:plain --data {net}:few {slim} --out {folder}/run",
    "impossible": "slim {net}:plain --data {net}:few {slim} --out {folder}/never --macs 1",
    "train": "train {net}:plain --data {net}:few --epochs 1 --batch-size 30 --out {folder}/trained.safetensors",
    "profile": "profile {net}:plain",
}
SLIM = ("--macs 0.5 --threads 1 --batch-size 30 --round-to 1 --importance l2 --no-export "
        "--baseline-epochs 3 --finetune-epochs 1")
FEW = """
def few():
    pictures, classes = torch.rand(150, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(150) % 3
    pictures[torch.arange(150), classes] += 0.5
    data = [torch.utils.data.TensorDataset(pictures[part], classes[part]) for part in (slice(100), slice(100, 150))]
    for part in data:
        part.classes = ["red", "green", "blue"]
    return tuple(data)
"""
"""Pictures of which one channel is brighter."""


def main(rank: int, world: int, folder: Path) -> None:
    turn = list(COMMANDS)[int(os.environ["TURN"]) - 1]
    (folder / f"{turn}.{rank}.pid").write_text(str(os.getpid()))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{turn}.{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    if turn == "killed" and rank == 1:
        in_second_epoch(lambda: os.kill(os.getpid(), signal.SIGKILL))
    if turn == "interrupted" and rank == 0:  # the other waits for this one then
        in_second_epoch(lambda: [os.kill(int((folder / f"{turn}.{each}.pid").read_text()), signal.SIGINT)
                                 for each in (1, 0)])
    sys.argv = ["torchslim", *COMMANDS[turn].format(net=folder / "networks.py", slim=SLIM, folder=folder).split()]
    status = cli.main()
    sys.stdout.flush()
    (folder / f"{turn}.{rank}.status").write_text(str(status))


def in_second_epoch(act: Callable[[], object]) -> None:
    """Act before the scores of the second epoch that this process sees are taken."""
    from torchslim.train.trainer import Trainer

    scored, calls = Trainer._metrics, []

    def metrics(self: Trainer, *args: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) == 2:
            act()
        return scored(self, *args)

    Trainer._metrics = metrics  # type: ignore[method-assign]
