"""Whether budgets are met: thirty networks, five budgets, each resource alone and in pairs.

A cut is close if it is not above its budget, and at most 1% of the original below it (of several budgets, below one of
them). Else the plan, with `strict=False`, has to say which constraint stops it and what the nearest feasible budget is;
a cell of the table then has that budget and the constraint, and if it is above the one asked for, `plan` has to refuse
that and name the nearest. Anything else is a failure. What is left is counted anew in the slim networks
of two of the five budgets: multiply-adds by torch's FlopCounterMode, parameters and channels in the layers, memory by
counting the slim network anew (the tests count the storages of a run).

    python benchmarks/budgets.py [NAME ...] [--table docs/benchmarks.md]                    needs torchslim's extra timm

Results are kept line by line in benchmarks/results/budgets.jsonl; without names, a second run goes on where the first
was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torchslim as ts
from pages import into
from torchslim.errors import BudgetError
from torchslim.surgery.plans import Plan

RESULTS = Path(__file__).resolve().parent / "results" / "budgets.jsonl"
SHARES = (0.8, 0.6, 0.4, 0.2, 0.1)
RESOURCES = (("macs",), ("params",), ("channels",), ("memory",), ("macs", "params"), ("macs", "memory"))
COUNTED = (0.6, 0.2)
"""Budgets at which what is left is counted in the slim network."""
CLOSE = 0.01
NETWORKS = {
    "torchvision:alexnet": 96, "torchvision:vgg16_bn": 64, "torchvision:resnet18": 64, "torchvision:resnet50": 64,
    "torchvision:resnext50_32x4d": 64, "torchvision:googlenet": 96, "torchvision:inception_v3": 299,
    "torchvision:densenet121": 64, "torchvision:squeezenet1_1": 64, "torchvision:mobilenet_v2": 64,
    "torchvision:mobilenet_v3_large": 64, "torchvision:mnasnet1_0": 64, "torchvision:shufflenet_v2_x1_0": 64,
    "torchvision:efficientnet_b0": 64, "torchvision:regnet_y_400mf": 64, "torchvision:convnext_tiny": 64,
    "torchvision:fcn_resnet50": 64, "torchvision:lraspp_mobilenet_v3_large": 64,
    "torchvision:ssdlite320_mobilenet_v3_large": 160, "timm:res2net50_26w_4s": 64, "timm:hrnet_w18_small": 64,
    "timm:dla34": 64, "timm:ghostnet_100": 64, "timm:cspresnet50": 64, "timm:skresnet18": 64, "timm:mixnet_s": 64,
    "timm:repvgg_a0": 64, "torchslim:mobilenet_v1": 64, "torchslim:shufflenet_v1": 64, "torchslim:unet": 125,
}
"""The side of each one's picture: small, since shares hardly depend on it."""
APPROXIMATE = ("torchvision:convnext_tiny",)
"""Networks that only layer norms keep from being cut."""
FEASIBLE = re.compile(r"^(\w+): .*nearest feasible budget (?:is|above is) ([\d,]+), a share of (\d\.\d{4})")
CONSTRAINTS = {"protected channels": "protected", "minimum width": "minimum", "rounding": "rounding", "rows of": "rows",
               "single channel": "one channel"}


def main() -> None:
    """Plan what has no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="such as torchvision:resnet18; these are run again")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write a section, such as into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The default weight initialization of inception_v3")
    rows = read(options.results)
    for name in options.networks or [name for name in NETWORKS if name not in rows]:
        rows[name] = row = measure(name)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name:45}", *(f"{cell['resources']} {cell['share']}: {cell['outcome']}" for cell in row["cells"]
                              if cell["outcome"] != "close"), sep="\n    ", flush=True)
    if options.table is not None:
        into(options.table, page([rows[name] for name in NETWORKS if name in rows]))
    print(summary(rows.values()))
    sys.exit(any(failed(cell) for row in rows.values() for cell in row["cells"]))


def measure(name: str, shares: Sequence[float] = SHARES) -> dict[str, Any]:
    """One network's row: the outcome of each budget."""
    torch.manual_seed(0)
    model, side = ts.create_model(name).eval(), NETWORKS[name]
    inputs: Any = [torch.rand(3, side, side)] if "ssd" in name else torch.randn(1, 3, side, side)
    cells = []
    for resources in RESOURCES:
        for share in shares:
            plan = ts.plan(model, inputs, **dict.fromkeys(resources, share), allow_approximate=name in APPROXIMATE,
                           strict=False)
            found = outcome(plan)
            if found.startswith("above"):
                found = misnamed(model, inputs, plan, dict.fromkeys(resources, share), name in APPROXIMATE) or found
            if share in COUNTED:
                found = miscounted(model, plan, inputs) or found
            cells.append({"resources": "+".join(resources), "share": share, "outcome": found})
    return {"network": name, "cells": cells}


def outcome(plan: Plan) -> str:
    """`close`, or the nearest feasible budget with the constraint, or a failure."""
    above = [budget for budget in plan.budgets if budget.met > budget.asked]
    if not above and any(budget.asked - budget.met <= CLOSE * budget.before for budget in plan.budgets):
        return "close"
    said = [found for note in plan.notes if (found := FEASIBLE.match(note))]
    constraint = next((name for words, name in CONSTRAINTS.items() for found in said if words in found.string), None)
    if not said or constraint is None or {budget.resource for budget in above} - {found[1] for found in said}:
        return f"FAILED: {', '.join(f'{budget.resource} {budget.share:.3f}' for budget in plan.budgets)} without a word"
    return f"{'above' if above else 'below'} {max(float(found[3]) for found in said):.3f}, {constraint}"


def misnamed(model: nn.Module, inputs: Any, plan: Plan, asked: dict[str, float], approximate: bool) -> str:
    """A failure if the budgets are not refused with what the plan keeps as the nearest ones, else nothing."""
    try:
        ts.plan(model, inputs, **asked, allow_approximate=approximate)
    except BudgetError as error:
        wrong = [budget.resource for budget in plan.budgets if budget.met > error.counts[budget.resource]]
        return f"FAILED: the error names others for {', '.join(wrong)}" if wrong else ""
    return "FAILED: out of reach, and not refused"


def miscounted(model: nn.Module, plan: Plan, inputs: Any) -> str:
    """A failure if the slim network does not cost what the plan says, else nothing."""
    slim, makers = ts.apply(model, plan), [name for name, layer in model.named_modules()
                                           if makes(layer) and not name.startswith("dead.")]  # no run reaches those
    wrong = [f"{budget.resource} {budget.before:,} to {budget.met:,}" for budget in plan.budgets
             if (budget.before, budget.met) != tuple(counted(network, inputs, budget.resource, makers)
                                                     for network in (model, slim))]
    return f"FAILED: counted otherwise than {'; '.join(wrong)}" if wrong else ""


def counted(model: nn.Module, inputs: Any, resource: str, makers: Sequence[str]) -> int:
    """What a network costs, not by the plan; `makers` are the layers that make channels."""
    if resource == "params":
        return sum(parameter.numel() for parameter in model.parameters())
    if resource == "channels":
        layers: list[Any] = [model.get_submodule(name) for name in makers]
        return sum(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers)
    if resource == "memory":
        return ts.profile(model, inputs).peak_memory
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return int(counter.get_total_flops()) // 2


def makes(layer: nn.Module) -> bool:
    """Whether a layer makes channels; those of depthwise convolutions are the ones that they read."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not 1 < layer.groups == layer.in_channels)


def failed(cell: dict[str, Any]) -> bool:
    """Whether a cell is neither close nor explained."""
    return str(cell["outcome"]).startswith("FAILED")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each network."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    return {row["network"]: row for row in map(json.loads, lines)}


def summary(rows: Any) -> str:
    """How many cells there are of each kind."""
    cells = [cell["outcome"].partition(" ")[0] for row in rows for cell in row["cells"]]
    kinds = {"close": "close", "below": "further below, with the reason", "above": "out of reach, with the reason",
             "FAILED:": "failures"}
    return f"{len(cells)} cuts: " + ", ".join(f"{cells.count(kind)} {told}" for kind, told in kinds.items()) + "."


def page(rows: Sequence[dict[str, Any]]) -> str:
    """A section of the page."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm"))
    columns = ["+".join(resources) for resources in RESOURCES]
    lines = []
    for row in rows:
        told = []
        for column in columns:
            own = [cell for cell in row["cells"] if cell["resources"] == column and cell["outcome"] != "close"]
            told.append("<br>".join(f"{cell['share']}: {cell['outcome']}" for cell in own))
        lines.append(f"| {row['network'].partition(':')[2]} | {' | '.join(told)} |")
    about = " ".join((__doc__ or "").split("\n\n")[1].split())
    return "\n".join([
        "## Whether budgets are met", "", about, "",
        f"Budgets are {', '.join(map(str, SHARES))} of the original; an empty cell: all five are met closely. "
        "\"0.1: above 0.179, protected\" means that at 0.1 the cut stays above its budget, that 0.179 is the nearest "
        "that can be reached, and that channels that must stay are the reason; \"minimum\" is the least width of "
        "groups. \"Below\": the budget is met, further off than 1%, and a step less leads to that share, the step of "
        "one channel, of rows that lose equally many, or of rounding. ConvNeXt is cut with `allow_approximate=True`.",
        "",
        f"{packages}, Python {platform.python_version()}; written by `python benchmarks/budgets.py --table "
        "docs/benchmarks.md`.", "",
        f"| network | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}", *lines, "", summary(rows)])


if __name__ == "__main__":
    main()
