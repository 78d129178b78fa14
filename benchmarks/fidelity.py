"""What cuts leave of a network trained on ImageNet, without any training and without labels.

EfficientNet-Lite0 with its ImageNet weights is cut to several shares of its multiply-adds by each criterion, and asked
about 150 crops of photographs that nothing was fitted on (a cat, a rocket, a palace): how often its first answer is
still the original's. Then each cut is compensated on 128 crops of seventeen other photographs, and asked again.
Torch-Pruning runs with its default settings beside it, its classifier spared, its ratio searched for until the
multiply-adds are just below the share; in place of a compensation its batch norms are given the statistics of the same
crops. Crops of three photographs are few: the same network on other crops moves by some four points. Other crops to fit
on count for more: with another 128 of the same seventeen photographs `l2` at 0.9 was compensated to 81%, not 67. What
photographs they are of counts most: one row has the cuts of `obs` as they are, compensated on 128 other crops of the
three photographs that are asked about. No fit should be judged so; it shows what pictures like those to come are worth.

    python benchmarks/fidelity.py [--ways NAME ...] [--shares S ...] [--table docs/benchmarks.md]

needs torch-pruning and `pip install 'torchslim[photographs]'`. What is done is kept line by line in
benchmarks/results/fidelity.jsonl; a second run goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchslim as ts
from pages import into
from photographs import CALIBRATION, SIDE, TEST, batches, crops, pretrained

RESULTS = Path(__file__).resolve().parent / "results" / "fidelity.jsonl"
SHARES = (0.9, 0.8, 0.7, 0.5)
SEEN, ASKED = 128, 150
PEER = "Torch-Pruning, "
KIN = ", on other crops of these three"
WAYS = ("obs", "obs" + KIN, "l2", "l1", "bn_scale", "fpgm", "lamp", "activation", "random", PEER + "magnitude",
        PEER + "bn_scale")
X = torch.zeros(1, 3, SIDE, SIDE)

Row = dict[str, Any]


@cache
def original() -> nn.Module:
    """The network, once."""
    return pretrained()


@cache
def seen() -> list[Tensor]:
    """What is fitted on: every other batch of the same photographs, so that what one tells is tried on the next."""
    halves = CALIBRATION[::2], CALIBRATION[1::2]
    parts = [crops(names, SEEN // 2, seed).split(64) for seed, names in enumerate(halves)]
    return [batch for pair in zip(*parts, strict=True) for batch in pair]


@cache
def kin() -> list[Tensor]:
    """As many other crops of the very photographs that are asked about."""
    return batches(TEST, SEEN, 1, 64)


@cache
def asked() -> tuple[list[Tensor], Tensor]:
    """What is asked, and what the original answers."""
    crops = batches(TEST, ASKED, 100, 50)
    return crops, answers(original(), crops)


@torch.no_grad()
def answers(model: nn.Module, crops: Sequence[Tensor]) -> Tensor:
    """The first answer to each crop."""
    return torch.cat([model.eval()(batch).argmax(1) for batch in crops])


def agreement(model: nn.Module) -> float:
    """The share of crops to which the first answer is the original's."""
    crops, wanted = asked()
    return float((answers(model, crops) == wanted).float().mean())


def macs(model: nn.Module) -> int:
    """Multiply-adds, as torch's own counter has them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(X)
    return int(counter.get_total_flops()) // 2


@cache
def planned(importance: str, share: float) -> ts.Plan:
    """A plan, made once for all that is fitted after it."""
    return ts.plan(original(), X, macs=share, importance=importance, data=seen())


def ours(importance: str, share: float) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """A cut, and what puts back what it lost."""
    plan = planned(importance.removesuffix(KIN), share)
    slim = ts.apply(original(), plan)
    fitted_on = kin() if importance.endswith(KIN) else seen()
    return slim, lambda: ts.compensate(original(), slim, plan, fitted_on)


def peers(importance: str, share: float) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """The same of Torch-Pruning."""
    import torch_pruning as tp

    pruner, scores = {"magnitude": (tp.pruner.MetaPruner, tp.importance.GroupMagnitudeImportance),
                      "bn_scale": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance)}[importance]

    def cut(ratio: float) -> nn.Module:
        slim = copy.deepcopy(original())
        pruner(slim, X, scores(), pruning_ratio=ratio, ignored_layers=[slim.get_submodule("classifier")]).step()
        return slim

    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if macs(cut(middle)) <= share * macs(original()) else (middle, high)
    slim = cut(high)
    return slim, lambda: recalibrated(slim)


@torch.no_grad()
def recalibrated(model: nn.Module) -> nn.Module:
    """A copy whose batch norms have the statistics of the crops."""
    new = copy.deepcopy(model).eval()
    for norm in (module for module in new.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.train()
        norm.momentum = 1.0
    new(torch.cat(seen()))
    return new.eval()


def main() -> None:
    """Run what has no result yet, and write the table."""
    options = _parser().parse_args()
    done = {(row["way"], row["share"]) for row in read()}
    try:
        for share in options.shares:
            for way in options.ways:
                if (way, share) not in done:
                    row = cell(way, share)
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{share} {way:26} {row['cut']:.3f} {row['after']:.3f}  {row['seconds']:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
    if options.table is not None:
        into(options.table, page(read()))


def cell(way: str, share: float) -> Row:
    """One cut: the multiply-adds that are left, agreement after the cut and after what puts back what it lost."""
    begun = time.perf_counter()
    slim, put_back = peers(way.removeprefix(PEER), share) if way.startswith(PEER) else ours(way, share)
    after = put_back()
    seconds = time.perf_counter() - begun
    return {"way": way, "share": share, "macs": macs(slim) / macs(original()), "cut": agreement(slim),
            "after": agreement(after), "seconds": seconds}


def read() -> list[Row]:
    """The rows so far."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def page(rows: Sequence[Row]) -> str:
    """A section of the page."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "torch-pruning"))
    cells = {(row["way"], row["share"]): row for row in rows}
    shares = [share for share in SHARES if any(row["share"] == share for row in rows)]
    lines = ["## What cuts leave of a trained network", "", " ".join((__doc__ or "").split("\n\n")[1].split()), "",
             f"{packages}, Python {platform.python_version()}; written by `python benchmarks/fidelity.py --table "
             "docs/benchmarks.md`. Agreement with the original in per cent: after the cut, and after it was "
             "compensated (Torch-Pruning: recalibrated). A dash is what has not been run.", "",
             "| | " + " | ".join(f"{share:.0%} of the MACs" for share in shares) + " |", "|---|" + "--:|" * len(shares)]
    for way in WAYS:
        told = [cells.get((way, share)) for share in shares]
        if any(told):
            lines.append("| " + " | ".join([way, *(f"{100 * row['cut']:.0f}, {100 * row['after']:.0f}" if row else "-"
                                                   for row in told)]) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME",
                        help=f"of {'; '.join(WAYS)}")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, metavar="S")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write a section, such as into docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    main()
