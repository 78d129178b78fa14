"""Tables of accuracies over seeds: numbers by hand, who is behind, which bars are missed."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import accuracy
import standings
from standings import Results, behind, page, told


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page names the versions of packages that need not be here."""
    monkeypatch.setattr(standings.metadata, "version", lambda name: "1.2.3")


def row(arm: str, seed: int, *cells: tuple[float, float], network: str = "resnet18") -> dict[str, Any]:
    return {"network": network, "seed": seed, "arm": arm, "base": 0.99, "cells": [
        {"share": share, "macs": share - 0.01, "cut": cut, "tuned": tuned}
        for share, (cut, tuned) in zip((0.5, 0.1), cells, strict=True)]}


def results(*rows: dict[str, Any]) -> Results:
    return Results(rows, ("resnet18", "vgg11"), ("peer", "other peer", "ours", "late"), ("peer", "other peer"),
                   (0.5, 0.1), (0, 1))


def test_means_spreads_and_the_least_are_those_of_the_seeds() -> None:
    assert told({0: 98.0, 1: 96.0, 2: 97.0}) == "97.0 ± 1.0 (96.0)"
    assert told({4: 98.0}) == "98.0 ± 0.0 (98.0)"


def test_the_page_has_a_row_for_each_arm_and_says_where_seeds_are_missing() -> None:
    text = page("About.", results(row("peer", 0, (0.1, 0.9), (0.1, 0.8)), row("peer", 1, (0.2, 0.9), (0.1, 0.6)),
                                  row("ours", 1, (0.95, 0.98), (0.9, 0.97))))
    lines = text.splitlines()
    assert "**resnet18**, before: 99.0 ± 0.0 (99.0); seeds: 2" in lines
    assert "| | 49.0% of MACs: cut | tuned | 9.0% of MACs: cut | tuned |" in lines
    assert "| peer | 15.0 ± 7.1 (10.0) | 90.0 ± 0.0 (90.0) | 10.0 ± 0.0 (10.0) | 70.0 ± 14.1 (60.0) |" in lines
    assert "| ours (1 of the seeds) | 95.0 ± 0.0 (95.0) | 98.0 ± 0.0 (98.0) | 90.0 ± 0.0 (90.0) | 97.0 ± 0.0 (97.0) |" \
        in lines
    assert "vgg11" not in text
    assert "of 16 trials, each a network, a seed and a way to cut, 3 have been run" in text


def test_who_is_behind_is_told_by_each_peer_on_the_seeds_of_both() -> None:
    level = [row("peer", seed, (0.1, 0.90 + seed / 100), (0.1, 0.5)) for seed in (0, 1)]
    better = [row("other peer", seed, (0.1, 0.97), (0.1, 0.5)) for seed in (0, 1)]
    own = [row("ours", seed, (0.9, 0.905), (0.9, 0.9)) for seed in (0, 1)]
    assert behind(results(*level, *own)).endswith("of the two: no cell.")
    assert behind(results(*level, *better, *own)).endswith(
        "of the two: resnet18 at 0.5, fine-tuned, ours: 90.5 beside 97.0 of other peer.")
    assert behind(results(*level, *better, row("late", 5, (0.0, 0.0), (0.0, 0.0)))).endswith("no cell.")


def test_bars_are_cleared_by_every_seed_or_missed() -> None:
    rows = [row("ours", 0, (0.975, 0.98), (0.9, 0.965)), row("ours", 1, (0.971, 0.98), (0.9, 0.975)),
            row("late", 0, (0.975, 0.98), (0.9, 0.965)), row("late", 1, (0.965, 0.98), (0.9, 0.955))]
    lines = page("About.", results(row("peer", 0, (0.1, 0.9), (0.1, 0.8)), *rows)).splitlines()
    assert lines[-2:] == ["- ours: loses at most 1.9, cleared; at least 96.5, cleared",
                          "- late: loses at most 2.5, missed; at least 95.5, missed"]


@pytest.mark.parametrize(("name", "convolutions"), [
    ("resnet18", 20), ("resnet56", 1 + 54 + 2), ("mobilenet_v2", 52), ("vgg11", 8)])
def test_the_networks_are_those_that_their_names_say(name: str, convolutions: int) -> None:
    model = accuracy.NETWORKS[name].build()
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert [module.out_features for module in model.modules() if isinstance(module, nn.Linear)] == [10]
