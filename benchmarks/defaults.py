"""Is what `slim` does by default the best of what was measured? Networks on digits, cut, compensated and fine-tuned.

Networks of torchvision are trained on scikit-learn's digits at 32 pixels, a fifth held out, once for each network and
seed, and cut to a half, a quarter and a tenth of their multiply-adds, in multiples of 8 channels. Criteria on data see
256 training pictures without augmentation, `taylor` with their classes; so does the compensation, without. Each cut is
fine-tuned for the same 2 epochs as `slim` does it (a tenth of the baseline's rate, labels smoothed by 0.1), where it
distils with a share of the loss from the uncut network. The path that this replaced, `bn_scale`, presses the scales
for 4 epochs more, at twice the baseline's rate, before it cuts: 6 epochs after the baseline, not 2.

    python benchmarks/defaults.py [--networks NAME ...] [--seeds N ...] [--arms NAME ...] [--cells N]
    python benchmarks/defaults.py --report        writes docs/defaults.md from what there is

One core, less than a minute a cell. Each cell is a line of benchmarks/results/defaults.jsonl: a second run goes on
where the first was stopped. Baselines and pressed networks are kept in runs/defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torchvision
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.functional import cross_entropy

import torchslim as ts
from torchslim.errors import ProofError, TorchslimError
from torchslim.pipeline.compensation import training_pictures
from torchslim.pipeline.norm_statistics import with_recent_statistics
from torchslim.pipeline.phases import FINETUNE_RATE, SPARSIFY_RATE, sparsity_weight
from torchslim.proof.verification import TOLERANCE
from torchslim.surgery.plans import Plan
from torchslim.train import evaluate, fit, load_data
from torchslim.train.hyperparameters import mean_learning_rate
from torchslim.utils.data import Data
from torchslim.utils.files import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS, KEPT = HERE / "results" / "defaults.jsonl", HERE.parent / "runs" / "defaults"
PAGE = HERE.parent / "docs" / "defaults.md"
SIZE, RATE, SMOOTHING, BATCH = 32, 0.05, 0.1, 64
BASELINE_EPOCHS, SPARSIFY_EPOCHS, FINETUNE_EPOCHS = 8, 4, 2
BUDGETS, SEEDS = (0.5, 0.25, 0.1), (0, 1, 2, 3, 4)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    name: lambda name=name: torchvision.models.get_model(name, num_classes=10)  # type: ignore[misc]
    for name in ("resnet18", "mobilenet_v2", "mobilenet_v3_small")}


@dataclass(frozen=True)
class Arm:
    """A way from the baseline to a slim network: the criterion, and what follows."""

    importance: str
    compensated: bool = False
    distilled: float = 0.0
    pressed: bool = False


DISTILLED = 0.5
"""The default share of distillation in the loss."""
DEFAULT = f"obs + compensate + distil {DISTILLED}"
ARMS = {
    DEFAULT: Arm("obs", True, DISTILLED),
    f"l2 + distil {DISTILLED}": Arm("l2", False, DISTILLED),
    "l2": Arm("l2"),
    f"taylor + distil {DISTILLED}": Arm("taylor", False, DISTILLED),
    f"obs + distil {DISTILLED}": Arm("obs", False, DISTILLED),
    "obs + compensate": Arm("obs", True),
    "bn_scale, pressed for 4 epochs more": Arm("bn_scale", pressed=True),
    **{f"obs + compensate + distil {share}": Arm("obs", True, share) for share in (0.25, 0.75, 0.9)},
}

Cell = dict[str, Any]


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    if options.report:
        PAGE.write_text(page(read()), encoding="utf-8")
        return
    left = options.cells
    try:
        for seed, network, share, arm in product(options.seeds, options.networks, BUDGETS, options.arms):
            key = (network, seed, share, arm)
            if left and key not in {_key(row) for row in read()}:
                row = measured(*key)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
                left -= 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")


# --- a cell ---------------------------------------------------------------------------------------------------

def measured(network: str, seed: int, share: float, name: str) -> Cell:
    """One cut of a network: accuracies before, right after the cut (compensated, if it is), and fine-tuned."""
    arm, data = ARMS[name], load_data("digits", size=SIZE)
    row: Cell = {"network": network, "seed": seed, "share": share, "arm": name}
    baseline = trained(network, seed, data)
    row["baseline"] = evaluate(baseline, data)
    started = time.process_time()
    try:
        slim = cut(pressed(network, seed, data) if arm.pressed else baseline, arm, (network, seed, share), data)
    except TorchslimError as error:
        return {**row, "fails": str(error).partition(";")[0], "seconds": round(time.process_time() - started, 1)}
    row["cut"] = evaluate(slim, data)
    fit(slim, data.train, epochs=FINETUNE_EPOCHS, lr=FINETUNE_RATE * RATE, label_smoothing=SMOOTHING,
        batch_size=BATCH, seed=seed + 400, **({"teacher": baseline, "alpha": arm.distilled} if arm.distilled else {}))
    slim, _ = with_recent_statistics(slim, data, seed)
    return {**row, "tuned": evaluate(slim, data), "seconds": round(time.process_time() - started, 1)}


def cut(model: nn.Module, arm: Arm, key: tuple[str, int, float], data: Data) -> nn.Module:
    """Plan, apply, prove, and compensate where the arm says so."""
    seen = training_pictures(data, key[1])
    pictures: list[Any] = [pictures for pictures, _ in seen]
    plan = planned(model, arm.importance, key, seen)
    slim = ts.apply(model, plan)
    if not ts.verify(model, slim, plan, pictures[0][:1]) <= TOLERANCE:
        raise ProofError(f"{key}: the cut is not exact")
    return ts.compensate(model, slim, plan, pictures) if arm.compensated else slim


PLANS: dict[tuple[Any, ...], Plan] = {}
"""Those of this run: arms differ in what follows the same plan."""


def planned(model: nn.Module, importance: str, key: tuple[str, int, float], seen: list[Any]) -> Plan:
    """The plan of a cell, made once."""
    if (importance, *key) not in PLANS:
        pictures = [pictures for pictures, _ in seen]
        given: dict[str, Any] = {"data": seen, "loss": cross_entropy} if importance == "taylor" else {"data": pictures}
        PLANS[importance, *key] = ts.plan(model, pictures[0][:1], macs=key[2], importance=importance, round_to=8,
                                          seed=key[1], **given)
    return PLANS[importance, *key]


def trained(network: str, seed: int, data: Data) -> nn.Module:
    """The baseline."""
    torch.manual_seed(seed)
    return _kept(f"{network}-{seed}", NETWORKS[network](), lambda model: fit(
        model, data.train, epochs=BASELINE_EPOCHS, lr=RATE, label_smoothing=SMOOTHING, batch_size=BATCH,
        seed=seed), data)


def pressed(network: str, seed: int, data: Data) -> nn.Module:
    """The baseline, its scales pressed toward zero as `slim` does it."""
    steps = -(-len(data.train) // BATCH) * SPARSIFY_EPOCHS  # type: ignore[arg-type]
    rate = SPARSIFY_RATE * RATE
    return _kept(f"{network}-{seed}-pressed", trained(network, seed, data), lambda model: fit(
        model, data.train, epochs=SPARSIFY_EPOCHS, lr=rate, label_smoothing=SMOOTHING, batch_size=BATCH,
        seed=seed + 300, sparsity=sparsity_weight(model, rate * mean_learning_rate(()), steps)), data)


def _kept(name: str, model: nn.Module, training: Callable[[nn.Module], object], data: Data) -> nn.Module:
    """The model trained, from a file if it was trained before."""
    path = KEPT / f"{name}.safetensors"
    if path.exists():
        load_model(model, path)
    else:
        training(model)
        model, _ = with_recent_statistics(model, data, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda draft: save_model(model, str(draft)))
    return model.eval()


def read() -> list[Cell]:
    """The cells so far."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def _key(row: Cell) -> tuple[str, int, float, str]:
    return row["network"], row["seed"], row["share"], row["arm"]


# --- the page -------------------------------------------------------------------------------------------------

def page(rows: Sequence[Cell]) -> str:
    """All tables, and whether the default is among the best."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "scikit-learn"))
    there = [network for network in NETWORKS if any(row["network"] == network for row in rows)]
    longest = max((row["seconds"] for row in rows), default=0.0)
    lines = [
        "# What `slim` does by default, measured", "", " ".join((__doc__ or "").split("\n\n")[1].split()), "",
        f"{packages}, Python {platform.python_version()}; written by `python benchmarks/defaults.py --report`. "
        f"{len(rows)} cells of {len(NETWORKS) * len(SEEDS) * len(BUDGETS) * len(ARMS)}, the longest {longest:.0f} s of "
        "one core. Accuracy on the held-out pictures in per cent, mean ± standard deviation over the seeds, "
        "fine-tuned; in brackets right after the cut. A number of seeds is named where some are missing.", ""]
    for network in there:
        lines += [*_table(network, rows), ""]
    lines += ["## Is the default the best?", "",
              "Within the spread: its mean is below the best mean by no more than the larger standard deviation of the "
              "two, over the same seeds.", "", "| network | MACs | the default | the best | |", "|---|--:|--:|---|---|"]
    lines += [_verdict(network, share, rows) for network in there for share in BUDGETS]
    return "\n".join(lines).rstrip() + "\n"


def _table(network: str, rows: Sequence[Cell]) -> list[str]:
    before = {row["seed"]: 100 * row["baseline"] for row in rows if row["network"] == network}
    return [f"## {network}", "", f"Before: {_spread(list(before.values()))}", "",
            f"| | {' | '.join(f'{share:.0%} of the MACs' for share in BUDGETS)} |", f"|---|{'--:|' * len(BUDGETS)}",
            *(f"| {arm} | {' | '.join(_shown(rows, network, share, arm) for share in BUDGETS)} |" for arm in ARMS)]


def _of(rows: Sequence[Cell], network: str, share: float, arm: str) -> dict[int, Cell]:
    """Cells by seed."""
    return {row["seed"]: row for row in rows if (row["network"], row["share"], row["arm"]) == (network, share, arm)}


def _tuned(rows: Sequence[Cell], network: str, share: float, arm: str) -> dict[int, float]:
    """Per cent by seed, fine-tuned."""
    return {seed: 100 * cell["tuned"] for seed, cell in _of(rows, network, share, arm).items() if "tuned" in cell}


def _shown(rows: Sequence[Cell], network: str, share: float, arm: str) -> str:
    cells = list(_of(rows, network, share, arm).values())
    done = [cell for cell in cells if "tuned" in cell]
    if not done:
        return "fails" if cells else "-"
    text = f"{_spread([100 * cell['tuned'] for cell in done])} ({statistics.fmean(100 * c['cut'] for c in done):.1f})"
    return text if len(done) == len(SEEDS) else f"{text}, seeds: {len(done)}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def _verdict(network: str, share: float, rows: Sequence[Cell]) -> str:
    default, others = _tuned(rows, network, share, DEFAULT), dict[str, list[float]]()
    for arm in ARMS:
        tuned = _tuned(rows, network, share, arm)
        if default and default.keys() <= tuned.keys():
            others[arm] = [tuned[seed] for seed in default]
    if not others:
        return f"| {network} | {share:.0%} | - | - | not measured yet |"
    best = max(others, key=lambda arm: statistics.fmean(others[arm]))
    mine, theirs = list(default.values()), others[best]
    allowed = max(statistics.stdev(values) if len(values) > 1 else 0.0 for values in (mine, theirs))
    within = statistics.fmean(theirs) - statistics.fmean(mine) <= allowed
    said = "the best" if best == DEFAULT else "within the spread" if within else "below"
    missing = sum(1 for arm in ARMS if arm not in others and not any(
        "fails" in cell for cell in _of(rows, network, share, arm).values()))
    if missing:
        said += f" so far; {missing} of {len(ARMS)} choices are still to be measured"
    return f"| {network} | {share:.0%} | {_spread(mine)} | {best}: {_spread(theirs)} | {said} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--cells", type=int, default=-1, metavar="N", help="stop after so many")
    parser.add_argument("--report", action="store_true", help="write docs/defaults.md, and measure nothing")
    return parser


if __name__ == "__main__":
    main()
