"""What accuracies say: held against sums by hand and against plain sampling."""

from __future__ import annotations

import random
from math import comb
from typing import Any

import pytest

from torchslim.pipeline.outcome import HeldOut, binomial_tail, judge

DIGITS = HeldOut(360, 0.1)


def test_the_binomial_tail_is_the_sum_of_its_terms() -> None:
    for least, trials, share in ((0, 5, 0.3), (3, 5, 0.3), (5, 5, 0.3), (60, 100, 0.5), (6, 5, 0.3)):
        by_hand = sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(least, trials + 1))
        assert binomial_tail(least, trials, share) == pytest.approx(by_hand)
    assert binomial_tail(1, 9, 0.0) == 0
    assert binomial_tail(9, 9, 1.0) == 1
    assert 0.49 < binomial_tail(25_000, 50_000, 0.5) < 0.51


def test_guessing_passes_for_knowledge_in_one_of_a_hundred_cases() -> None:
    chance = random.Random(0)
    guessed = [sum(chance.random() < 0.1 for _ in range(360)) / 360 for _ in range(1000)]
    assert 0.001 < sum(not DIGITS.is_chance(accuracy) for accuracy in guessed) / 1000 < 0.02


def test_two_trials_of_one_network_seldom_differ() -> None:
    chance = random.Random(0)

    def trial() -> float:
        return sum(chance.random() < 0.8 for _ in range(360)) / 360

    assert 0.001 < sum(DIGITS.is_lower(trial(), trial()) for _ in range(1000)) / 1000 < 0.02


def test_few_pictures_tell_little() -> None:
    assert not HeldOut(4, 0.5).are_enough
    assert not HeldOut(4, 0.5).is_chance(0.75)
    assert HeldOut(4, 0.5).is_chance(0.5)
    assert HeldOut(8, 0.5).are_enough
    assert HeldOut(8, 0.5).is_chance(0.75)


@pytest.mark.parametrize(("before", "after", "words", "useless"), [
    (0.95, 0.94, "", False), (0.95, 0.96, "", False), (0.95, 0.83, "well below the baseline's", False),
    (0.95, 0.40, "collapsed: 95.0% before, 40.0% after, 65% of the lead", True),
    (0.528, 0.167, "collapsed", True), (0.95, 0.11, "the slim network is at chance level", True),
    (0.11, 0.12, "the baseline is too", True), (0.11, 0.9, "the baseline is at chance level", False),
])
def test_what_is_said_of_a_run(before: float, after: float, words: str, useless: bool) -> None:
    results: dict[str, Any] = {
        "baseline": {"metrics": {"accuracy": before}, "held_out": {"pictures": 360, "constant": 0.1}},
        "save": {"metrics": {"accuracy": after}}}
    problem, is_useless = judge(results)
    assert words in problem
    assert bool(problem) == bool(words)
    assert is_useless is useless


def test_a_small_set_excuses_a_small_loss() -> None:
    assert not HeldOut(20, 0.5).has_collapsed(0.9, 0.65)
    assert HeldOut(200, 0.5).has_collapsed(0.9, 0.65)
    assert not HeldOut(200, 0.5).has_collapsed(0.5, 0.1)  # from chance level nothing falls


@pytest.mark.parametrize(("before", "after", "words", "useless"), [
    (0.6, 0.58, "", False), (0.6, 0.5, "mIoU is well below the baseline's: 60.0% before, 50.0% after", False),
    (0.6, 0.3, "mIoU collapsed", True), (0.6, 0.2, "at chance level: mIoU 20.0% on 8 held-out", True),
    (0.1, 0.3, "the baseline is at chance level", False)])
def test_what_is_said_of_other_tasks(before: float, after: float, words: str, useless: bool) -> None:
    results: dict[str, Any] = {
        "baseline": {"metrics": {"mIoU": before, "accuracy": 0.9},
                     "held_out": {"pictures": 8, "constant": 0.2, "metric": "mIoU"}},
        "save": {"metrics": {"mIoU": after, "accuracy": 0.9}}}
    problem, is_useless = judge(results)
    assert words in problem
    assert bool(problem) == bool(words)
    assert is_useless is useless
