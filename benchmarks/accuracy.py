"""What cuts cost in accuracy, on real labels: torchslim beside Torch-Pruning, at the same multiply-adds.

Each network is trained on scikit-learn's digits from five seeds, the same fifth of the pictures held out, and cut to
half, a quarter and a tenth of its multiply-adds in several ways. Accuracy on the held-out pictures is measured right
after the cut, and after the same two epochs of fine-tuning for all: the same pictures in the same order, the same
learning rate. Torch-Pruning runs with its default settings, its classifier spared; its ratio is searched for until the
multiply-adds are just below the budget, and what this leaves is torchslim's budget. torchslim keeps the same share of
every group (`scope="uniform"`), as the peer does, or, where the table says "global", compares channels over the whole
network, and where it says "a fifth kept", leaves each group that (`min_kept=0.2`). `compensate` sees 256 unlabelled
pictures of the training set; criteria that ask for labels get those of the same pictures. There is no sparsity
training.

    python benchmarks/accuracy.py [--networks NAME ...] [--seeds N ...] [--arms NAME ...] [--table docs/benchmarks.md]

needs torch-pruning beside torchslim's extras. What is done is kept line by line in benchmarks/results/accuracy.jsonl: a
second run goes on where the first was stopped, and several may run side by side on different networks or seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torchvision
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchslim as ts
from pages import into
from residual import Block
from standings import Results, page
from torchslim.train import evaluate, fit, load_data
from torchslim.train.dataset import labelled
from torchslim.utils.data import Data
from torchslim.utils.files import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "accuracy.jsonl"
BASES = HERE.parent / "runs" / "accuracy"
BUDGETS = (0.5, 0.25, 0.1)
SEEDS = (0, 1, 2, 3, 4)
TUNING = {"epochs": 2, "lr": 0.02}
SEEN, BATCH = 256, 64
"""Pictures of the training set that `compensate` and the criteria on data see, and how many make a batch."""


# --- the networks -------------------------------------------------------------------------------------------

def resnet56() -> nn.Module:
    """Three stages of nine blocks, 16, 32 and 64 channels, as for CIFAR."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for place in range(9):
            layers.append(Block(inputs, outputs, 2 if place == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vgg11() -> nn.Module:
    """VGG-11 with batch norms, half as wide as for ImageNet, and one linear layer behind it, as for CIFAR."""
    rows: list[int | str] = [32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"]
    features = torchvision.models.vgg.make_layers(rows, batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


@dataclass(frozen=True)
class Network:
    """A network, the side of its pictures, and for how long it is trained."""

    build: Callable[[], nn.Module]
    side: int
    epochs: int


NETWORKS = {
    "resnet18": Network(lambda: torchvision.models.resnet18(num_classes=10), 32, 8),
    "resnet56": Network(resnet56, 16, 8),
    "mobilenet_v2": Network(lambda: torchvision.models.mobilenet_v2(num_classes=10), 32, 10),
    "vgg11": Network(vgg11, 32, 6),
}


def base(name: str, seed: int, data: Data) -> nn.Module:
    """A trained network; what is trained once is kept in a file."""
    torch.manual_seed(seed)
    model, path = NETWORKS[name].build(), BASES / f"{name}-{seed}.safetensors"
    if path.exists():
        load_model(model, path)
    else:
        fit(model, data.train, epochs=NETWORKS[name].epochs, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda draft: save_model(model, str(draft)))
    return model.eval()


# --- the ways to cut ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Task:
    """A trained network to cut.

    Attributes:
        model: the network.
        x: an input.
        seen: batches of pictures of the training set with their classes.
        ratio: what share of the channels of each layer the peer removes.
        macs: the multiply-adds that this leaves: the budget.
    """

    model: nn.Module
    x: Tensor
    seen: list[tuple[Tensor, Tensor]]
    ratio: float
    macs: int


Cut = Callable[[Task], nn.Module]


def ours(importance: str, compensated: bool = True, scope: str = "uniform", min_kept: float = 0.0) -> Cut:
    """Plan, apply and, where asked, compensate; labels are for those criteria only that ask for a loss."""
    def cut(task: Task) -> nn.Module:
        pictures = [pictures for pictures, _ in task.seen]
        evidence: dict[str, Any] = {"data": pictures}
        if importance in ("taylor", "hessian"):
            evidence = {"data": task.seen, "loss": nn.functional.cross_entropy}
        plan = ts.plan(task.model, task.x, macs=task.macs, importance=importance, scope=scope, min_kept=min_kept,
                       **evidence)
        slim = ts.apply(task.model, plan)
        return ts.compensate(task.model, slim, plan, pictures) if compensated else slim
    return cut


def peer(pruner: str, importance: str) -> Cut:
    """Torch-Pruning, with its default settings."""
    return lambda task: pruned(task.model, task.x, task.ratio, pruner, importance)


def pruned(model: nn.Module, x: Tensor, ratio: float, pruner: str, importance: str) -> nn.Module:
    """A copy that Torch-Pruning has cut; its classifier is spared."""
    import torch_pruning

    slim = copy.deepcopy(model)
    head = [module for module in slim.modules() if isinstance(module, nn.Linear)][-1]
    scores = getattr(torch_pruning.importance, importance)()
    getattr(torch_pruning.pruner, pruner)(slim, x, scores, pruning_ratio=ratio, ignored_layers=[head]).step()
    return slim


@cache
def target(name: str, share: float) -> tuple[float, int]:
    """The least ratio at which the peer's multiply-adds are not above a share of the network's, and these."""
    model, x = NETWORKS[name].build(), torch.zeros(1, 3, NETWORKS[name].side, NETWORKS[name].side)
    most, low, high, left = macs(model, x) * share, 0.0, 1.0, 0
    while high - low > 1e-3:
        middle = (low + high) / 2
        found = macs(pruned(model, x, middle, "MetaPruner", "GroupMagnitudeImportance"), x)
        if found <= most:
            high, left = middle, found
        else:
            low = middle
    return high, left


ARMS: dict[str, Cut] = {
    "Torch-Pruning, bn_scale": peer("BNScalePruner", "BNScaleImportance"),
    "Torch-Pruning, magnitude": peer("MetaPruner", "GroupMagnitudeImportance"),
    "bn_scale": ours("bn_scale", compensated=False),
    "bn_scale + compensate": ours("bn_scale"),
    "l2 + compensate": ours("l2"),
    "taylor + compensate": ours("taylor"),
    "hessian + compensate": ours("hessian"),
    "obs + compensate": ours("obs"),
    "l2, global + compensate": ours("l2", scope="global"),
    "obs, global + compensate": ours("obs", scope="global"),
    "bn_scale, global + compensate": ours("bn_scale", scope="global"),
    "bn_scale, global, a fifth kept + compensate": ours("bn_scale", scope="global", min_kept=0.2),
}
PEERS = tuple(name for name in ARMS if name.startswith("Torch-Pruning"))


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds, as torch's own counter has them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return int(counter.get_total_flops()) // 2


# --- the runs -----------------------------------------------------------------------------------------------

Row = dict[str, Any]


def main() -> None:
    """Run what has no result yet, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        if not options.table_only:
            for seed in options.seeds:
                for name in options.networks:
                    run(name, seed, options.arms, options.results)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
    if options.table is not None:
        about = " ".join((__doc__ or "").split("\n\n")[1].split())
        results = Results(read(options.results), tuple(NETWORKS), tuple(ARMS), PEERS, BUDGETS, SEEDS)
        into(options.table, page(about, results))


def run(name: str, seed: int, arms: Sequence[str], results: Path) -> None:
    """All that is missing of one network and seed, a line of the file for each way to cut it."""
    done = {(row["network"], row["seed"], row["arm"]) for row in read(results)}
    missing = [arm for arm in arms if (name, seed, arm) not in done]
    if not missing:
        return
    data = load_data("digits", size=NETWORKS[name].side)
    model = base(name, seed, data)
    before = evaluate(model, data)
    seen = labelled(data, SEEN, seed, BATCH)
    x = seen[0][0][:1]
    print(f"{name}, seed {seed}: {before:.4f}, {macs(model, x):,} multiply-adds", flush=True)
    for arm in missing:
        cells = [cell(arm, Task(model, x, seen, *target(name, share)), share, data, seed) for share in BUDGETS]
        row = {"network": name, "seed": seed, "arm": arm, "base": before, "cells": cells}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{one['macs']:.3f}: {one['cut']:.4f} {one['tuned']:.4f}" for one in cells)
        print(f"{name} {seed} {arm:26} {shown}", flush=True)


def cell(arm: str, task: Task, share: float, data: Data, seed: int) -> Row:
    """One cut: the share of multiply-adds that is left, the accuracy after the cut and after fine-tuning."""
    slim = ARMS[arm](task)
    kept, after = macs(slim, task.x) / macs(task.model, task.x), evaluate(slim, data)
    fit(slim, data.train, seed=seed + 100, **TUNING)
    return {"share": share, "macs": kept, "cut": after, "tuned": evaluate(slim, data)}


def read(path: Path) -> list[Row]:
    """The rows so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME",
                        help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME",
                        help=f"of {'; '.join(ARMS)}")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=f"of results ({RESULTS})")
    parser.add_argument("--table-only", action="store_true", help="write the table from the results, and run nothing")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write a section, such as into docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    main()
