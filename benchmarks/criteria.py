"""Which criterion keeps a network's accuracy: at once, and after two epochs of training.

Two small networks, a plain chain of five convolutions and a residual network of six blocks, both with batch norm, are
trained on scikit-learn's digits (8 by 8 pixels) for twelve epochs, the residual one a second time with its scales
pressed toward zero by an L1 penalty (network slimming). Each is cut by each criterion to shares of its multiply-adds,
proven, and scored on 360 held-out pictures as it is; cut to a tenth, it is trained for two epochs more and then scored.
Criteria that look at data see 256 of the pictures that were trained on. Accuracies are means over three seeds.

    python benchmarks/criteria.py [--again | --so-far] [--only obs ...] [--table docs/pruning.md]
                                                   some fifteen minutes of one core; needs torchslim's extra demo

Measurements are kept in benchmarks/results/criteria.jsonl, and a run goes on where it was stopped; a new row costs its
own measurements alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from itertools import pairwise, product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchslim as ts
from pages import into
from residual import Block
from torchslim.importance import registry
from torchslim.train import Data, evaluate, fit, labelled, load_data

# Rows of the first table; a new criterion's name here, or --only NAME, is all that it takes.
CRITERIA = ("random", "l1", "l2", "l2:filters", "l2:all", "bn_scale", "fpgm", "lamp", "activation:mean_abs",
            "activation", "activation:variance", "activation:apoz", "obs", "taylor", "hessian")
# Rows of the second one, and its columns.
NORMALISED = ("l1", "l2", "bn_scale", "fpgm", "lamp", "activation:variance", "taylor", "hessian")
NORMALISATIONS = ("none", "mean", "max", "kind")
# Rows of the fourth one: with the layers refitted on the same pictures.
COMPENSATED = ("l2", "bn_scale", "activation", "activation:variance", "obs", "taylor")
# Rows of the third one, and its columns.
SCOPED = ("l2", "bn_scale", "activation", "taylor", "hessian")
SCOPES: dict[str, dict[str, Any]] = {"global": {}, "global, min_kept=0.2": {"min_kept": 0.2},
                                     "uniform": {"scope": "uniform"}}
SHARES, MIDDLE, LEAST, REFITTED = (0.9, 0.7, 0.5), 0.7, 0.1, (0.5, 0.25)
"""Multiply-adds kept: at once, where normalisations are compared, where training follows, where layers are refitted."""
SEEDS = (0, 1, 2)
EPOCHS, TUNING, TOLD = 12, 2, 256
PRESSURE = 1.5e-2
STAR = " A star marks means of fewer seeds."
RESULTS = Path(__file__).parent / "results" / "criteria.jsonl"

Key = tuple[str, int, str, float, int]
"""Network, seed, criterion (a scope may follow: "l2 @ uniform"), share of multiply-adds, epochs after the cut."""


def plain() -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = (3, 24, 32, 48, 64, 64)
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2 if place in (2, 4) else 1, 1, bias=False), nn.BatchNorm2d(outputs),
                   nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def residual() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                         Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2),
                         Block(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETWORKS = {"plain": (plain, 0.0), "residual": (residual, 0.0), "residual, pressed": (residual, PRESSURE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--so-far", action="store_true", help="measure nothing, show what was measured before")
    which.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument("--only", nargs="*", default=CRITERIA, help="criteria of the first table")
    parser.add_argument("--table", type=Path, help="a page to write the tables into")
    options = parser.parse_args()
    if options.again:
        RESULTS.unlink(missing_ok=True)
    found = known()
    data = load_data("digits", size=8)
    for seed, network in product(SEEDS, NETWORKS):
        every = (*first(network, seed, options.only), *second(network, seed), *third(network, seed),
                 *fourth(network, seed))
        wanted = [key for key in every if key not in found]
        if wanted and not options.so_far:
            found |= measured(network, seed, wanted, data)
    page = section(found, list(dict.fromkeys([*CRITERIA, *options.only])))
    if options.table:
        into(options.table, page)
    print(page)


def first(network: str, seed: int, criteria: Sequence[str]) -> list[Key]:
    """What the first table says of a trained network."""
    return [(network, seed, "", 1.0, 0),
            *((network, seed, criterion, share, 0) for criterion in criteria for share in SHARES),
            *((network, seed, criterion, LEAST, TUNING) for criterion in criteria)]


def second(network: str, seed: int) -> list[Key]:
    """What the second table says of it."""
    return [(network, seed, f"{criterion}:{how}", MIDDLE, 0) for criterion in NORMALISED for how in NORMALISATIONS]


def third(network: str, seed: int) -> list[Key]:
    """What the third table says of it."""
    return [(network, seed, scoped(criterion, scope), share, epochs) for criterion in SCOPED for scope in SCOPES
            for share, epochs in ((SHARES[-1], 0), (LEAST, TUNING))]


def fourth(network: str, seed: int) -> list[Key]:
    """What the fourth table says of it, beside the first."""
    return [(network, seed, f"{criterion} + compensate", share, 0) for criterion in COMPENSATED
            for share in REFITTED]


def scoped(criterion: str, scope: str) -> str:
    return f"{criterion} @ {scope}" if SCOPES[scope] else criterion


def known() -> dict[Key, float]:
    """What earlier runs have measured."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {tuple(key): accuracy for *key, accuracy in map(json.loads, lines)}  # type: ignore[misc]


def measured(network: str, seed: int, wanted: Sequence[Key], data: Data) -> dict[Key, float]:
    """Train, and measure; each measurement is written as soon as it is there."""
    model, found = trained(network, seed, data), {}
    told = labelled(data, TOLD, seed)
    for key, accuracy in accuracies(model, wanted, told, data):
        found[key] = accuracy
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps([*key, accuracy]) + "\n")
        print(*key, f"{accuracy:.4f}", flush=True)
    return found


def trained(network: str, seed: int, data: Data) -> nn.Module:
    build, pressure = NETWORKS[network]
    torch.manual_seed(seed)
    model = build()
    fit(model, data, epochs=EPOCHS, lr=0.05, sparsity=pressure, seed=seed)
    return model.eval()


def named(name: str) -> ts.importance.Criterion:
    """A criterion by its name and options, each behind a colon."""
    base, *options = name.split(":")
    kind = registry.CRITERIA[base]
    return kind(**{field: option for field, known in kind.all_choices().items()
                   for option in options if option in known})


def accuracies(model: nn.Module, wanted: Sequence[Key], told: list[tuple[Tensor, Tensor]],
               data: Data) -> Iterator[tuple[Key, float]]:
    inputs = told[0][0][:1]
    for key in wanted:
        _, seed, how, share, epochs = key
        how, plus, _ = how.partition(" + ")
        name, _, scope = how.partition(" @ ")
        criterion = named(name) if name else None
        slim = model
        if criterion:
            slim, plan = ts.prune(model, inputs, macs=share, importance=criterion, data=told, loss=cross_entropy,
                                  seed=seed, **SCOPES[scope or "global"])
        if plus:
            slim = ts.compensate(model, slim, plan, [pictures for pictures, _ in told])
        if epochs:
            fit(slim, data, epochs=epochs, lr=0.01, seed=seed)
        yield key, evaluate(slim, data)


def section(found: Mapping[Key, float], rows: Sequence[str]) -> str:
    """A section of the page."""
    def mean(networks: Iterable[str], criterion: str, share: float, epochs: int = 0) -> str:
        keys = [(network, seed, criterion, share, epochs) for network in networks for seed in SEEDS]
        there = [found[key] for key in keys if key in found]
        return f"{100 * statistics.fmean(there):.1f}{'' if len(there) == len(keys) else ' *'}" if there else "-"

    def cells(row: str) -> Iterator[str]:
        for network in NETWORKS:
            yield from (mean([network], row, share) for share in SHARES)
            yield mean([network], row, LEAST, TUNING)

    heads = [f"{network}: {head}" for network in NETWORKS
             for head in (*(f"{share:.0%}" for share in SHARES), f"{LEAST:.0%}, trained")]
    before = "; ".join(f"{network} {mean([network], '', 1.0)}" for network in NETWORKS)
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "scikit-learn"))
    text = "\n".join([
        "## Measured", "", " ".join((__doc__ or "").split("\n\n")[1].split()), "",
        f"{packages}, Python {platform.python_version()}; written by `python benchmarks/criteria.py --table "
        f"docs/pruning.md`. Accuracy in percent; before the cut: {before}.{STAR}", "",
        *table(heads, {row: list(cells(row)) for row in rows}), "",
        f"Normalisation between layers: accuracy at {MIDDLE:.0%} of the multiply-adds, mean of all three networks.", "",
        *table(NORMALISATIONS, {row: [mean(NETWORKS, f"{row}:{how}", MIDDLE) for how in NORMALISATIONS]
                                for row in NORMALISED}), "",
        f"Scope: accuracy at {SHARES[-1]:.0%} as it is, at {LEAST:.0%} after training; mean of all three networks.", "",
        *table([f"{scope}: {head}" for scope in SCOPES for head in (f"{SHARES[-1]:.0%}", f"{LEAST:.0%}, trained")],
               {row: [mean(NETWORKS, scoped(row, scope), share, epochs) for scope in SCOPES
                      for share, epochs in ((SHARES[-1], 0), (LEAST, TUNING))] for row in SCOPED}), "",
        f"With `compensate` on the same {TOLD} pictures, and no training: mean of all three networks.", "",
        *table([f"{SHARES[-1]:.0%} as it is", *(f"{share:.0%}, refitted" for share in REFITTED)],
               {row: [mean(NETWORKS, row, SHARES[-1]), *(mean(NETWORKS, f"{row} + compensate", share)
                                                         for share in REFITTED)] for row in COMPENSATED})])
    return text if " * |" in text else text.replace(STAR, "")


def table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"| criterion | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}",
            *(f"| `{row}` | {' | '.join(cells)} |" for row, cells in rows.items())]


if __name__ == "__main__":
    main()
