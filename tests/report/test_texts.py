"""Numbers and claims: units are right, and no sentence says more than the measurement."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from torchslim.report import texts
from torchslim.report.record import Timing
from torchslim.utils import formatting as units
from torchslim.utils.svg import ticks

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (999, "999"), (999.6, "1.00 k"), (1_000, "1.00 k"), (12_345, "12.3 k"), (999_499, "999 k"),
    (999_500, "1.00 M"), (1_814_073_344, "1.81 G"), (4.1e12, "4.10 T"), (math.nan, "n/a")])
def test_counts_have_si_prefixes(value, text):
    assert units.format_count(value).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 B"), (1000, "1000 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (46_838_016, "44.7 MiB"),
    (3 * 2**30, "3.00 GiB")])
def test_sizes_are_powers_of_1024(value, text):
    assert units.format_bytes(value).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(("value", "text"), [
    (8.934, "8.93"), (9.996, "10.0"), (99.96, "100"), (0.9996, "1.00"), (0.0421, "0.0421"), (0.4, "0.4"),
    (4.2e-5, "4.2e-5"), (0, "0")])
def test_three_digits_count(value, text):
    assert units.format_number(value) == text


@pytest.mark.parametrize(("before", "after", "text"), [
    (100, 39.2, MINUS + "61%"), (100, 100, "same"), (100, 105, "+5.0%"), (100_000, 1, MINUS + "99.9%"),
    (100, 0, MINUS + "100%"),
    (100_000, 99_999, MINUS + "<0.1%"), (0, 0, "same"), (0, 5, "n/a"), (10, 35, "+250%")])
def test_changes_never_round_to_all_or_nothing(before, after, text):
    assert units.format_change(before, after) == text


@pytest.mark.parametrize(("value", "text"), [(1.41, "1.4"), (1.04, "1.04"), (2.0, "2.0"), (11.6, "12")])
def test_ratios(value, text):
    assert units.format_ratio(value) == text + TIMES


@pytest.mark.parametrize(("value", "text"), [
    (3.1e-15, "3.1e-15"), (2.4e-7, "2.4e-7"), (0.0, "0"), (math.inf, "n/a")])
def test_errors_have_short_exponents(value, text):
    assert units.format_error(value) == text


@pytest.mark.parametrize(("low", "high"), [
    (0, 1), (0, 0.986), (0.4, 0.99), (-3, 7), (0, 1e9), (1e-12, 3e-12), (5, 5)])
def test_ticks_span_the_values_in_few_even_steps(low, high):
    found = ticks(low, high)
    steps = [b - a for a, b in pairwise(found)]
    assert found[0] <= low + 1e-9 * abs(high)
    assert found[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(found) <= 7
    assert steps == pytest.approx([steps[0]] * len(steps))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_ticks_bear_what_is_no_number(value):
    assert ticks(0.0, value) == [0.0, 1.0]


def sentence(record):
    return ", ".join(map(str, texts.headline(record)))


def test_one_backend_needs_no_name(record):
    record = replace(record, before=replace(record.before, latency={"eager": Timing(10, 9, 11)}),
                     after=replace(record.after, latency={"eager": Timing(5, 4, 6)}))
    assert sentence(record).startswith(f"2.0{TIMES} faster, ")


def test_noise_is_no_gain(record):
    record = replace(record, before=replace(record.before, latency={"eager": Timing(10, 7, 12)}),
                     after=replace(record.after, latency={"eager": Timing(8, 7.5, 8.5)}))
    assert sentence(record).startswith("no faster within the noise of timing, ")
    [card] = [card for card in texts.cards(record) if card.label == "Latency, eager"]
    assert (card.change, card.verdict) == ("within noise", "same")


def test_a_loss_is_called_a_loss(record):
    text = sentence(replace(record, before=record.after, after=record.before))
    assert text == f"1.4{TIMES} slower (eager), 150% more MACs, accuracy 98.3% → 98.6%, proven equal to 3e-15"


def test_what_was_not_measured_is_not_claimed(record):
    bare = replace(record, before=replace(record.before, latency={}, metrics={}))
    assert sentence(bare) == "60% fewer MACs, proven equal to 3e-15"
    labels = {card.label: card for card in texts.cards(bare)}
    assert labels["Accuracy"].note == "measured on one side only"
    assert labels["Latency, eager"].change == ""


def test_an_approximate_cut_is_not_called_proven(record):
    record = replace(record, proof_error=2e-3)
    assert sentence(record).endswith(", the cut approximate to 2e-3")
    assert "approximation" in texts.proof_text(record)


def test_a_proof_that_is_no_number_proves_nothing(record):
    record = replace(record, proof_error=math.nan)
    assert sentence(record).endswith(", the cut not proven")
    assert "nothing is proven" in texts.proof_text(record)


def test_the_proof_is_two_sentences(record):
    for error in (0.0, 3.1e-15, 2e-3):
        assert texts.proof_text(replace(record, proof_error=error)).count(". ") == 1


def test_many_epochs_are_thinned_with_the_last_kept(record):
    curve = replace(record.curves[0], loss=tuple(range(1000)), score=())
    rows = texts.epoch_rows((curve,), "accuracy")
    assert len(rows) <= texts.MOST_ROWS + 1
    assert rows[-1] == ("train", 1000, "999", "n/a")


@pytest.mark.parametrize(("created", "text"), [
    ("2025-11-21T22:24:00+00:00", "2025-11-21 22:24 UTC"), ("2025-11-21T22:24:00", "2025-11-21 22:24"),
    ("2025-11-21T22:24:00+02:00", "2025-11-21 22:24 +0200"), ("once", "once")])
def test_times_are_told_for_people(created, text):
    assert texts.format_time(created) == text
