"""What a rewrite keeps of a trained network, before any further training: fresh, fitted to the weights, to the outputs.

A network of five convolutions with batch norm is trained on scikit-learn's digits for some epochs. Each rule then
rewrites all of its convolutions but the first, in three ways: with fresh weights, from the old weights, and from the
old weights with each new layer fitted to the old one's outputs on 256 unlabelled pictures. Accuracy is on the held-out
pictures; the error is how far the rewritten layers' outputs are there from the old ones' in the network before: root of
the mean squared difference over the old outputs' deviation, the median of the layers.

    python benchmarks/lighten.py [--epochs 8] [--table docs/benchmarks.md]          needs torchslim's demo extras
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import torchslim as ts
from pages import into
from torchslim.rewriting import Lightened, lightened
from torchslim.rewriting.recovery import recorded
from torchslim.train import evaluate, fit, load_data

RULES = ("separable", "grouped:2", "grouped:4:shuffle", "asymmetric", "asymmetric:32", "depthwise", "lowrank:0.5",
         "lowrank:0.25", "ghost", "fire:16")
WIDTHS = (32, 64, 64, 64, 64)
SIDE, BATCH, BATCHES = 16, 64, 4


def network() -> nn.Module:
    """Convolutions with norms, two of which halve the map."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2 if place in (1, 3) else 1, padding=1, bias=False),
                   nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


def main() -> None:
    """Train, rewrite, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--table", type=Path, metavar="FILE", help="write a section, such as into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data("digits", size=SIDE)
    model = network()
    fit(model, data, epochs=options.epochs)
    accuracy = evaluate(model, data)
    held_out = [torch.stack([data.test[i][0] for i in range(len(data.test))])]  # type: ignore[arg-type]
    pictures = torch.stack([data.train[i][0] for i in range(BATCH * BATCHES)])
    x = held_out[0][:1]
    print(f"before: {accuracy:.1%}, {ts.profile(model, x).macs:,} MACs")
    rows = []
    for rule in RULES:
        row: list[Any] = [rule]
        for way in ({"fresh": True}, {}, {"data": pictures.split(BATCH)}):
            light = lightened(model, rule, x, **way)
            assert light.macs is not None
            row += [light.macs[1] / light.macs[0], evaluate(light.model, data), error(model, light, held_out)]
        rows.append(row)
        print(f"{rule:20}", *(f"{number:8.3f}" for number in row[1:]), flush=True)
    if options.table is not None:
        into(options.table, page(accuracy, rows))


def error(model: nn.Module, light: Lightened, batches: list[Tensor]) -> float:
    """The median relative error of the rewritten layers, in the networks that they are in."""
    found = []
    for row in light.layers:
        ((_, old),), ((_, new),) = (recorded(network, network.get_submodule(row.layer), batches)
                                    for network in (model, light.model))
        found.append(float((new - old).square().mean().sqrt() / old.std()))
    return statistics.median(found)


def page(accuracy: float, rows: list[list[Any]]) -> str:
    """The section of the page."""
    about = " ".join((__doc__ or "").split("\n\n")[1].split())
    lines = [f"| `{rule}` | {share:.0%} | {fresh:.1%} | {fitted:.1%} | {trained:.1%} | {a:.2f} | {b:.2f} | {c:.2f} |"
             for rule, share, fresh, a, _, fitted, b, _, trained, c in rows]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "scikit-learn"))
    return "\n".join([
        "## What a rewrite keeps", "", about, "",
        f"{packages}, Python {platform.python_version()}; written by `python benchmarks/lighten.py --table "
        f"docs/benchmarks.md`. Before: {accuracy:.1%}.", "",
        "| rule | MACs | accuracy: fresh | fitted | on outputs | error: fresh | fitted | on outputs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|", *lines])


if __name__ == "__main__":
    main()
