"""What a cut gains on the clock: torchslim beside Torch-Pruning, in one run, in ONNX Runtime.

Batch 1 at 224 pixels, on as many threads as the table says. All networks of a comparison take turns, each of 0.03 s,
behind calls that are not counted; times are medians, speed-ups the median over the rounds of the ratio to the uncut
network within a round. The budgets of time are planned before, each by its own measurements, and stand in the same
turns as the others, so that what is asked is held against a measurement that the plan has not seen. "macs=0.5" is
`plan(macs=0.5, backend="onnxruntime")`, "macs=0.5, blind" and "round_to=8" know nothing of the clock. Torch-Pruning
prunes by magnitude (L2), its classifier spared, to a ratio that leaves at most half of the multiply-adds, found by
halving; "default" is as it comes, "round_to=8" with that option. Weights are random: they do not matter to the clock.
Networks are torchvision's; each runs in a process of its own.

    python benchmarks/latency_budget.py [NAME ...] [--table FILE] [--fresh]    needs torch-pruning and the extra onnx
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from pages import into

NETWORKS = ("resnet50", "mobilenet_v2")
BUDGETS = (0.7, 0.5, 0.3)
ROUNDS, TURN = 60, 0.03


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help=f"torchvision names; default: {' '.join(NETWORKS)}")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each network ({ROUNDS})")
    parser.add_argument("--fresh", action="store_true", help="measure tables anew, whatever the user's cache holds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write them there: docs/benchmarks.md")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.fresh:
            os.environ["XDG_CACHE_HOME"] = folder
        for name in options.networks or NETWORKS:
            with context.Pool(1) as pool:
                found[name] = pool.apply(measure, (name, options.threads, options.rounds))
            print(name)
            for row in found[name]:
                print("  ", *(f"{cell:>14}" for cell in _cells(row)), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.table is not None:
        into(options.table, _page(found, options.threads))


def measure(name: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """One network's rows."""
    import torch

    import torchslim
    from torchslim.latency.backends import prepare_model
    from torchslim.latency.timing import measure as timed
    from torchslim.latency.timing import ratio

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torchslim.create_model(f"torchvision:{name}").eval()
    x = torch.randn(1, 3, 224, 224)

    def cut(**options: Any) -> Any:
        return torchslim.apply(model, torchslim.plan(model, x, **options))

    networks = {"uncut": model, "macs=0.5": cut(macs=0.5, backend="onnxruntime"), "macs=0.5, blind": cut(macs=0.5),
                "round_to=8": cut(macs=0.5, round_to=8), "Torch-Pruning, default": _peer(model, x, None),
                "Torch-Pruning, round_to=8": _peer(model, x, 8)}
    for share in BUDGETS:
        networks[f"latency={share}"] = cut(latency=share, backend="onnxruntime")
    candidates = {label: prepare_model(network, x, "onnxruntime", threads=threads)
                  for label, network in networks.items()}
    times = timed(candidates, x, rounds=rounds, threads=threads, min_seconds=TURN)
    whole = torchslim.profile(model, x).macs
    rows = []
    for label, network in networks.items():
        share = ratio(times["uncut"], times[label])
        macs = torchslim.profile(network, x).macs / whole
        asked = float(label.partition("=")[2]) if label.startswith("latency") else None
        rows.append({"network": label, "macs": macs, "ms": times[label].median_ms, "share": share, "asked": asked})
    return rows


def _peer(model: Any, inputs: Any, round_to: int | None) -> Any:
    """The peer's network of at most half of the multiply-adds: by the ratio that it asks for, to a hundredth."""
    import torch
    import torch_pruning

    import torchslim

    half = torchslim.profile(model, inputs).macs / 2
    low, high = 0, 100
    found = None
    while high - low > 1:
        ratio = (low + high) // 2
        network = copy.deepcopy(model)  # it cuts in place
        last = [m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)][-1]
        torch_pruning.pruner.MetaPruner(network, inputs, torch_pruning.importance.MagnitudeImportance(p=2),
                                        pruning_ratio=ratio / 100, ignored_layers=[last], round_to=round_to).step()
        if torchslim.profile(network, inputs).macs <= half:
            found, high = network, ratio
        else:
            low = ratio
    return found


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    fewer, faster = 1 / row["macs"], 1 / row["share"]
    asked = f"{row['asked']:.0%}" if row["asked"] else ""
    kept = f"{row['share'] / row['asked'] - 1:+.1%}" if row["asked"] else ""
    return (row["network"], f"{fewer:.2f}", f"{row['ms']:.2f}", f"{faster:.2f}", f"{faster / fewer:.2f}", asked,
            f"{row['share']:.1%}", kept)


def _page(found: dict[str, list[dict[str, Any]]], threads: int) -> str:
    """The rows as a section, with what they were measured on."""
    import torch

    from torchslim.latency.timing import processor

    lines = ["## What a cut gains on the clock", "", " ".join((__doc__ or "").split("\n\n")[1].split()), "",
             f"torch {torch.__version__}, ONNX Runtime {metadata.version('onnxruntime')}, Torch-Pruning "
             f"{metadata.version('torch-pruning')}, Python {platform.python_version()}, {processor()}, {threads} "
             "threads; written by `python benchmarks/latency_budget.py --table docs/benchmarks.md --fresh`.", ""]
    for name, rows in found.items():
        lines += [f"| {name} | MACs, fewer by | ms | faster by | faster over fewer | time asked | measured | off by |",
                  "|---|--:|--:|--:|--:|--:|--:|--:|",
                  *(f"| {' | '.join(_cells(row))} |" for row in rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
