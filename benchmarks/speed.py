"""What planning and cutting cost, in forward passes: torchslim beside Torch-Pruning, in one run.

Process time, one thread, batch 1 at 224 pixels (Inception: 299), each figure the least of several interleaved
repetitions. torchslim: trace, couple, plan and apply, for half of the multiply-adds. Torch-Pruning: dependency graph,
importance and the cut, at a ratio of 0.3, which leaves about half of them. Memory is the peak of the process above what
it held before, in shares of the network's own: parameters, buffers and the peak of a plain forward pass. Networks
are torchvision's; each runs in a process of its own.

    python benchmarks/speed.py [NAME ...] [--table FILE]       needs torch-pruning beside torchslim's dev extras
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pages import into

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "regnet_y_400mf", "efficientnet_b0",
            "inception_v3", "densenet121", "densenet201", "shufflenet_v2_x1_0", "resnext50_32x4d", "googlenet",
            "squeezenet1_1", "mnasnet1_0", "vgg16_bn")
SIDE = {"inception_v3": 299}
REPETITIONS = 7
PEER_LIMIT = 40
"""Seconds after which the peer is not asked again: one run of it may take minutes."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="torchvision names; default: all of the benchmark")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write them as a page, such as docs/benchmarks.md")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    print(f"{'network':22}{'forward':>10}{'torchslim':>11}{'Torch-Pruning':>15}{'memory':>9}")
    for name in options.networks or NETWORKS:
        with context.Pool(1) as pool:
            row = pool.apply(measure, (name,))
        rows.append(row)
        peer = f"{row['peer']:.1f}" if row["peer"] is not None else "failed"
        print(f"{name:22}{row['forward'] * 1e3:8.1f}ms{row['ours']:10.1f}x{peer:>14}x{row['memory']:8.2f}x", flush=True)
    print(_summary(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.table is not None:
        into(options.table, _page(rows))


def _summary(rows: list[dict[str, Any]]) -> str:
    ours = [row["ours"] for row in rows]
    peers = [row["peer"] for row in rows if row["peer"] is not None]
    theirs = f"{statistics.median(peers):.1f} and {max(peers):.1f}" if peers else "none"
    return (f"Median and largest: torchslim {statistics.median(ours):.1f} and {max(ours):.1f}, Torch-Pruning {theirs}. "
            f"torchslim's memory: at most {max(row['memory'] for row in rows):.2f}.")


def _page(rows: list[dict[str, Any]]) -> str:
    """The rows as a page of documentation, with what they were measured on."""
    import torch
    import torchvision

    lines = ["## What planning costs", "", " ".join((__doc__ or "").split("\n\n")[1].split()), "",
             f"torch {torch.__version__}, torchvision {torchvision.__version__}, Torch-Pruning "
             f"{metadata.version('torch-pruning')}, Python {platform.python_version()}; "
             "written by `python benchmarks/speed.py --table docs/benchmarks.md`.", "",
             "| network | forward pass, ms | torchslim, passes | Torch-Pruning, passes | torchslim's memory |",
             "|---|--:|--:|--:|--:|"]
    for row in rows:
        peer = f"{row['peer']:.1f}" if row["peer"] is not None else "fails"
        lines.append(f"| {row['network']} | {row['forward'] * 1e3:.0f} | {row['ours']:.1f} | {peer} | "
                     f"{row['memory']:.2f} |")
    return "\n".join([*lines, "", _summary(rows), ""])


def measure(name: str) -> dict[str, Any]:
    """One network's row: seconds of a forward pass, and the costs in forward passes."""
    import torch

    import torchslim

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchslim.create_model(f"torchvision:{name}").eval()
    inputs = torch.randn(1, 3, SIDE.get(name, 224), SIDE.get(name, 224))

    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    def ours() -> None:
        torchslim.apply(model, torchslim.plan(model, inputs, macs=0.5))

    def peer() -> None:
        _torch_pruning(copied, inputs)

    warm = torchslim.create_model("alexnet")  # what is imported and set up once is no cost of the network's
    torchslim.apply(warm, torchslim.plan(warm, torch.randn(1, 3, 64, 64), macs=0.5))
    del warm
    memory = _memory(model, forward, ours)
    seconds: dict[str, list[float]] = {"forward": [], "ours": [], "peer": []}
    for repetition in range(REPETITIONS):
        copied = copy.deepcopy(model)  # the peer cuts in place
        jobs: dict[str, Callable[[], None]] = {"forward": forward, "ours": ours}
        if not repetition or (seconds["peer"] and repetition * min(seconds["peer"]) < PEER_LIMIT):
            jobs["peer"] = peer
        for job, function in jobs.items():
            try:
                seconds[job].append(_process_time(function))
            except Exception as error:
                if job != "peer":
                    raise
                print(f"{name}: the peer fails: {type(error).__name__}: {str(error)[:80]}", file=sys.stderr)
    least = {job: min(found) if found else None for job, found in seconds.items()}
    base = least["forward"]
    assert base is not None
    assert least["ours"] is not None
    return {"network": name, "forward": base, "ours": least["ours"] / base,
            "peer": least["peer"] / base if least["peer"] is not None else None, "memory": memory}


def _torch_pruning(model: Any, inputs: Any) -> None:
    """The peer's shortest way from a network to half of its multiply-adds, its classifier spared."""
    import torch
    import torch_pruning

    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)][-1]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    torch_pruning.pruner.MetaPruner(model, inputs, importance, pruning_ratio=0.3, ignored_layers=[last]).step()


def _process_time(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _memory(model: Any, forward: Callable[[], None], ours: Callable[[], None]) -> float:
    """Peak of planning and cutting with the network itself, over the network's own."""
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    forward()
    activations = _peak_above(forward)
    return float((held + _peak_above(ours)) / (held + activations))


def _peak_above(function: Callable[[], None]) -> int:
    """Bytes by which the process's resident memory grows at the most while the function runs."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    function()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
