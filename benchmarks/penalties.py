"""What a penalty costs in a step of training, as a share of the step.

Process time, one thread: forward, backward and step of SGD at batch 16, in turn without a penalty, with the L1 penalty
on scales of batch norms and with the group lasso; each figure is the least of several steps.

The penalties' own time does not depend on pictures, so that their share falls with the size and the number of these.

    python benchmarks/penalties.py [NAME ...]       torchvision's names
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import torchslim
from torchslim.train import GroupLasso, Slimming

NETWORKS = ("resnet18", "mobilenet_v2")
BATCH, SIDES, STEPS = 16, (224, 64), 5


def step(model: nn.Module, side: int, optimizer: torch.optim.Optimizer, penalty: Slimming | GroupLasso | None) -> float:
    """Seconds of one step."""
    x, y = torch.randn(BATCH, 3, side, side), torch.randint(0, 10, (BATCH,))
    start = time.process_time()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    (loss if penalty is None else loss + penalty()).backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    """Measure and print a line a network and size."""
    for name in sys.argv[1:] or NETWORKS:
        model = torchslim.create_model(f"torchvision:{name}", num_classes=10)
        groups = torchslim.groups(model, torch.randn(1, 3, 64, 64))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        ways = {"without": None, "l1 on scales": Slimming(model, groups), "group lasso": GroupLasso(model, groups)}
        for side in SIDES:
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(STEPS):
                for way, penalty in ways.items():
                    times[way].append(step(model, side, optimizer, penalty))
            plain = min(times["without"])
            print(f"{name} at {side} pixels: step {plain * 1e3:.0f} ms; " + ", ".join(
                f"{way} {min(seconds) / plain - 1:+.1%}" for way, seconds in times.items() if way != "without"))


if __name__ == "__main__":
    main()
