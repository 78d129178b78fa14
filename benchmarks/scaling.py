"""What a second process gains: the same training by one process and by two, of one thread each.

Items a second in steps, the same global batch, the second epoch of two, of the faster of two rounds in turns; start-up
is left out. Two processes on two cores at most double it.

    python benchmarks/scaling.py [NAME ...] [--table docs/distributed.md]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import torch
from torch.utils.data import TensorDataset

import torchslim as ts
from pages import into

NETWORKS = {"torchvision:resnet18": (64, 32, 128), "torchvision:mobilenet_v2": (96, 32, 128)}
"""By name: the side of a picture, the global batch, the pictures of an epoch."""
ROUNDS = 2


def train(name: str, rank: int, world: int, port: int, told: Any) -> None:
    """Train in one process of several; the first tells items a second."""
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    side, batch, items = NETWORKS[name]
    model = ts.create_model(name, num_classes=10)
    data = TensorDataset(torch.randn(items, 3, side, side), torch.arange(items) % 10)
    times: list[float] = []
    ts.train.fit(model, data, epochs=2, batch_size=batch, progress=lambda _: times.append(time.perf_counter()))
    steps = items // batch
    if rank == 0:  # the end of the first epoch, and the last step of the second
        told.put(items / (times[2 * steps] - times[steps]))


def rate(name: str, world: int) -> float:
    """Items a second of so many processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = context.Queue()
    processes = [context.Process(target=train, args=(name, rank, world, port, told)) for rank in range(world)]
    for process in processes:
        process.start()
    found: float = told.get(timeout=600)
    for process in processes:
        process.join()
    return found


def main() -> None:
    """Measure and print; write the table where asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    rows = ["| network | side, batch | one process, items/s | two | ratio |", "|---|---:|---:|---:|---:|"]
    for name in options.names:
        found = [[rate(name, world) for world in (1, 2)] for _ in range(ROUNDS)]
        one, two = (max(each) for each in zip(*found, strict=True))
        rows.append(f"| {name} | {NETWORKS[name][0]}, {NETWORKS[name][1]} | {one:.1f} | {two:.1f} | {two / one:.2f} |")
        print(rows[-1], flush=True)
    if options.table is not None:
        text = " ".join(" ".join((__doc__ or "").split("\n\n")[1].split()).split())
        into(options.table, "\n".join([
            "## What a second process gains", "", text, "",
            f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, gloo; load when it began: "
            f"{os.getloadavg()[0]:.1f}. Written by `python benchmarks/scaling.py --table docs/distributed.md`.",
            "", *rows]))


if __name__ == "__main__":
    main()
