"""Tables of accuracies over seeds, and what follows from them: who is behind whom, and which bars are missed."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

WHEN = {"cut": "right after the cut", "tuned": "fine-tuned"}
BARS = "resnet18"
"""The network that bars are set for."""
ONE_SHOT, TUNED = 2.0, 96.0
"""Points that may be lost right after the largest budget's cut, and what every seed should reach after the smallest
budget's and fine-tuning."""
Seeds = Mapping[int, float]


@dataclass(frozen=True)
class Results:
    """Accuracies of networks cut in several ways (arms) to several shares of their multiply-adds.

    Attributes:
        rows: one for each network, seed and arm.
        networks, arms, peers, budgets, seeds: all there are, in the order in which they are shown; peers are arms of
            another library.
    """

    rows: Sequence[Mapping[str, Any]]
    networks: Sequence[str]
    arms: Sequence[str]
    peers: Sequence[str]
    budgets: Sequence[float]
    seeds: Sequence[int]

    def of(self, network: str, arm: str, share: float, when: str) -> dict[int, float]:
        """Per cent by seed."""
        return {row["seed"]: 100 * cell[when] for row in self.rows for cell in row["cells"]
                if (row["network"], row["arm"], cell["share"]) == (network, arm, share)}

    def before(self, network: str) -> dict[int, float]:
        """Of the networks as they were trained."""
        return {row["seed"]: 100 * row["base"] for row in self.rows if row["network"] == network}

    def kept(self, network: str, share: float) -> float:
        """The multiply-adds that a budget leaves."""
        return next(cell["macs"] for row in self.rows if row["network"] == network for cell in row["cells"]
                    if cell["share"] == share)


def page(about: str, results: Results) -> str:
    """A section of the page."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in (
        "torch", "torchvision", "scikit-learn", "torch-pruning"))
    lines = ["## What cuts cost in accuracy", "", about, "",
             f"{packages}, Python {platform.python_version()}; written by `python benchmarks/accuracy.py --table "
             "docs/benchmarks.md`. Means and standard deviations over the seeds, in per cent; the least in brackets. "
             f"{unfinished(results)}"]
    for network in results.networks:
        bases = results.before(network)
        if bases:
            lines += ["", f"**{network}**, before: {told(bases)}; seeds: {len(bases)}", "", *table(network, results)]
    return "\n".join([*lines, "", behind(results), "", *bars(results)])


def unfinished(results: Results) -> str:
    """What has not been run, if anything."""
    wanted = len(results.networks) * len(results.arms) * len(results.seeds)
    done = len({(row["network"], row["seed"], row["arm"]) for row in results.rows})
    return "" if done >= wanted else (
        f"**Unfinished**: of {wanted} trials, each a network, a seed and a way to cut, {done} have been run; the same "
        "command runs the others.")


def table(network: str, results: Results) -> Iterator[str]:
    """A row for each arm, two columns for each budget."""
    heads = " | ".join(f"{results.kept(network, share):.1%} of MACs: cut | tuned" for share in results.budgets)
    yield f"| | {heads} |"
    yield "|---|" + "--:|" * 2 * len(results.budgets)
    for arm in results.arms:
        cells = [results.of(network, arm, share, when) for share in results.budgets for when in WHEN]
        if all(cells):
            fewer = f" ({len(cells[0])} of the seeds)" if len(cells[0]) < len(results.before(network)) else ""
            yield f"| {arm}{fewer} | {' | '.join(map(told, cells))} |"


def told(values: Seeds) -> str:
    """Mean, standard deviation and the least."""
    return f"{mean(values):.1f} ± {spread(values):.1f} ({min(values.values()):.1f})"


def mean(values: Seeds) -> float:
    """Over seeds."""
    return statistics.mean(values.values())


def spread(values: Seeds) -> float:
    """The standard deviation over seeds; 0 of a single one."""
    return statistics.stdev(values.values()) if len(values) > 1 else 0.0


def behind(results: Results) -> str:
    """The cells in which an arm is below one of the peer's by more than the spread, on at least two seeds."""
    found = []
    for network in results.networks:
        for arm in (arm for arm in results.arms if arm not in results.peers):
            for share in results.budgets:
                for when, words in WHEN.items():
                    own = results.of(network, arm, share, when)
                    for peer in results.peers:
                        other = results.of(network, peer, share, when)
                        one, two = ({seed: of[seed] for seed in own.keys() & other.keys()} for of in (own, other))
                        if len(one) > 1 and mean(two) - mean(one) > max(spread(one), spread(two)):
                            found.append(f"{network} at {share}, {words}, {arm}: {mean(one):.1f} beside "
                                         f"{mean(two):.1f} of {peer}")
    return ("Below one of the peer's ways, on the seeds of both, by more than the larger standard deviation of the "
            f"two: {'; '.join(found) if found else 'no cell'}.")


def bars(results: Results) -> Iterator[str]:
    """Of the network with bars: which of our arms clear them."""
    first, last, before = results.budgets[0], results.budgets[-1], results.before(BARS)
    if not before:
        return
    yield (f"Bars for {BARS}: right after the cut to {first} at most {ONE_SHOT:g} points below the base for every "
           f"seed, and after fine-tuning above {TUNED:g} for every seed at {last}.")
    yield ""
    for arm in (arm for arm in results.arms if arm not in results.peers):
        cut, tuned = results.of(BARS, arm, first, "cut"), results.of(BARS, arm, last, "tuned")
        if cut and tuned:
            lost = max(before[seed] - value for seed, value in cut.items())
            least = min(tuned.values())
            yield (f"- {arm}: loses at most {lost:.1f}, {'cleared' if lost <= ONE_SHOT else 'missed'}; at least "
                   f"{least:.1f}, {'cleared' if least > TUNED else 'missed'}")
