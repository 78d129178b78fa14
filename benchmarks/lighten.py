"""What a rewrite keeps of a trained network, before any further training: fresh, fitted to the weights, to the outputs.

A network of five convolutions with batch norm is trained on scikit-learn's digits for some epochs. Each rule then
rewrites all of its convolutions but the first, in three ways: with fresh weights, from the old weights, and from the
old weights with each new layer fitted to the old one's outputs on 256 unlabelled pictures, a quarter of which is kept
back to choose the ridge and what is kept of the fits. Accuracy is on the held-out
pictures; the error is how far the rewritten layers' outputs are there from the old ones' in the network before: root of
the mean squared difference over the old outputs' deviation, the median of the layers.

EfficientNet-Lite0 with ImageNet's weights, on photographs: the last stage and the head are rewritten, layers that can
lose little, since the network was made to have nothing to spare. Crops of 14 photographs are what the layers are fitted
on, crops of three others choose the ridge and what is kept of the fits, and crops of three more are what they are
tested on: how often the first guess is that of the network before, and the error as above.

    python benchmarks/lighten.py [--epochs 8] [--part digits|photographs] [--table docs/benchmarks.md]
                                                                needs torchslim's extras demo and photographs
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

import photographs
import torchslim as ts
from pages import into
from torchslim.rewriting import LightenResult, lighten_with_report
from torchslim.rewriting.output_fitting import record_layer
from torchslim.train import evaluate, fit, load_data

RULES = ("separable", "grouped:2", "grouped:4:shuffle", "asymmetric", "asymmetric:32", "depthwise", "lowrank:0.5",
         "lowrank:0.25", "ghost", "fire:16")
WIDTHS = (32, 64, 64, 64, 64)
SIDE, BATCH, BATCHES = 16, 64, 4
PHOTOGRAPH_RULES = ("lowrank:0.8", "lowrank:0.7", "lowrank:0.5", "grouped:2", "ghost")
PHOTOGRAPH_LAYERS = ("blocks.6.*", "conv_head")
KEPT_BACK = photographs.CALIBRATION[::6]
"""Photographs of which the last batch to fit on is made, the one that is kept back from the fit."""
BATCHES_SEEN, TESTED, CROPS = 4, 150, 14
"""Batches of crops that layers are fitted on, crops that they are tested on, and how many make a batch."""


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
    parser.add_argument("--part", choices=("digits", "photographs"), help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, part in (("digits", lambda: on_digits(options.epochs)), ("photographs", on_photographs)):
        if options.part in (None, name):
            section = part()
            if options.table is not None:
                into(options.table, section)


def on_digits(epochs: int) -> str:
    """Train, rewrite, measure; the section of the page."""
    torch.manual_seed(0)
    data = load_data("digits", size=SIDE)
    model = network()
    fit(model, data, epochs=epochs)
    accuracy = evaluate(model, data)
    held_out = [torch.stack([data.test[i][0] for i in range(len(data.test))])]  # type: ignore[arg-type]
    pictures = torch.stack([data.train[i][0] for i in range(BATCH * BATCHES)])
    x = held_out[0][:1]
    print(f"before: {accuracy:.1%}, {ts.profile(model, x).macs:,} MACs")
    rows = []
    for rule in RULES:
        row: list[Any] = [rule]
        for way in ({"fresh": True}, {}, {"data": pictures.split(BATCH)}):
            light = lighten_with_report(model, rule, x, **way)
            assert light.macs is not None
            row += [light.macs[1] / light.macs[0], evaluate(light.model, data), error(model, light, held_out)]
        rows.append(row)
        print(f"{rule:20}", *(f"{number:8.3f}" for number in row[1:]), flush=True)
    return page(accuracy, rows)


def on_photographs() -> str:
    """Rewrite EfficientNet-Lite0, measure; the section of the page."""
    model = photographs.pretrained().to(memory_format=torch.channels_last)
    seen, tested = calibration(), photographs.batches(photographs.TEST, TESTED, 2, CROPS)
    rows = []
    for rule in PHOTOGRAPH_RULES:
        row: list[Any] = [rule]
        for way in ({"fresh": True}, {}, {"data": seen}):
            light = lighten_with_report(model, rule, tested[0][:1], only=PHOTOGRAPH_LAYERS, **way)
            assert light.macs is not None
            row += [light.macs[1] / light.macs[0], *agreement(model, light, tested)]
        rows.append(row)
        print(f"{rule:20}", *(f"{number:8.3f}" for number in row[1:]), flush=True)
    return page(None, rows)


def calibration() -> list[Tensor]:
    """Batches to fit on; the last one, which is kept back, is of other photographs than the rest."""
    fitted = [name for name in photographs.CALIBRATION if name not in KEPT_BACK]
    return [*photographs.batches(fitted, BATCHES_SEEN * CROPS, 1, CROPS),
            *photographs.batches(KEPT_BACK, CROPS, 1, CROPS)]


def agreement(model: nn.Module, light: LightenResult, batches: list[Tensor]) -> tuple[float, float]:
    """How often the first guess is the same, and the median relative error of the rewritten layers."""
    guesses, given = [], []
    for network in (model, light.model):
        outputs: dict[str, list[Tensor]] = {row.layer: [] for row in light.layers}
        handles = [network.get_submodule(name).register_forward_hook(lambda _, x, y, kept=kept: kept.append(y.clone()))
                   for name, kept in outputs.items()]
        with torch.no_grad():
            guesses.append(torch.cat([network(batch).argmax(1) for batch in batches]))
        for handle in handles:
            handle.remove()
        given.append({name: torch.cat(kept) for name, kept in outputs.items()})
    errors = [float((given[1][name] - old).square().mean().sqrt() / old.std()) for name, old in given[0].items()]
    return float((guesses[0] == guesses[1]).float().mean()), statistics.median(errors)


def error(model: nn.Module, light: LightenResult, batches: list[Tensor]) -> float:
    """The median relative error of the rewritten layers, in the networks that they are in."""
    found = []
    for row in light.layers:
        ((_, old),), ((_, new),) = (record_layer(network, network.get_submodule(row.layer), batches)
                                    for network in (model, light.model))
        found.append(float((new - old).square().mean().sqrt() / old.std()))
    return statistics.median(found)


def page(accuracy: float | None, rows: list[list[Any]]) -> str:
    """A section of the page: of digits with the accuracy before, else of photographs."""
    digits = accuracy is not None
    about = (__doc__ or "").split("\n\n")[1 if digits else 2]
    lines = [f"| `{rule}` | {share:.0%} | {fresh:.1%} | {fitted:.1%} | {trained:.1%} | {a:.2f} | {b:.2f} | {c:.2f} |"
             for rule, share, fresh, a, _, fitted, b, _, trained, c in rows]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "scikit-learn" if digits else "timm"))
    before = f" Before: {accuracy:.1%}." if digits else (
        f" {BATCHES_SEEN * CROPS} crops to fit on, {CROPS} kept back, {TESTED} to test on.")
    return "\n".join([
        "## What a rewrite keeps" + ("" if digits else " on photographs"), "", " ".join(about.split()), "",
        f"{packages}, Python {platform.python_version()}; written by `python benchmarks/lighten.py --table "
        f"docs/benchmarks.md`.{before}", "",
        f"| rule | MACs | {'accuracy' if digits else 'agreement'}: fresh | fitted | on outputs | error: fresh | fitted "
        "| on outputs |", "|---|--:|--:|--:|--:|--:|--:|--:|", *lines])


if __name__ == "__main__":
    main()
