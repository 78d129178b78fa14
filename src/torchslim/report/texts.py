"""The record in words: the headline, the cards, the proof. No claim here goes further than the numbers do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

from torchslim.report import charts
from torchslim.report.record import Curve, LayerChange, Record, Sample, Timing
from torchslim.surgery.plans import LeftAlone
from torchslim.utils import formatting as units

EXACT = 1e-8  # above this a difference in float64 is no rounding any more: the cut was an approximation
PICTURES, PICTURE_BYTES = 24, 36_000  # the page stays one small file however many samples it is given
MOST_ROWS = 100  # of the table of epochs
MOST_BARS = 100  # of a bar chart; the table has every layer


@dataclass(frozen=True)
class Phrase:
    """A part of the headline: the number that counts, and the words around it."""

    lead: str
    number: str
    rest: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.lead, self.number, self.rest) if part)


@dataclass(frozen=True)
class Card:
    """One measure before and after; `verdict` is "good", "bad" or "same", and `chart` is decoration."""

    label: str
    value: str
    change: str
    verdict: str
    was: str
    note: str
    chart: Markup


@dataclass(frozen=True)
class Reason:
    """Why some channels were left alone, and which."""

    text: str
    entries: tuple[LeftAlone, ...]

    @property
    def channels(self) -> int:
        """How many channels these are."""
        return sum(entry.channels for entry in self.entries)


def headline(record: Record) -> list[Phrase]:
    """The result in one sentence, in parts."""
    before, after = record.before, record.after
    parts = []
    shared = [name for name in before.latency if name in after.latency]
    if shared:
        # The first backend, not the one that gained most; its name is needed only where there are others.
        where = f" ({shared[0]})" if len(shared) > 1 else ""
        gain = _gain(before.latency[shared[0]], after.latency[shared[0]])
        word = "faster" if gain > 1 else "slower"
        parts.append(Phrase("", units.format_ratio(max(gain, 1 / gain)), word + where) if gain
                     else Phrase("", "no faster", "within the noise of timing" + where))
    if before.macs != after.macs and before.macs > 0:
        share = units.format_share(abs(1 - after.macs / before.macs))
        parts.append(Phrase("", share, "fewer MACs" if after.macs < before.macs else "more MACs"))
    if before.accuracy is not None and after.accuracy is not None:
        change = f"{units.percent(before.accuracy)} → {units.percent(after.accuracy)}"
        parts.append(Phrase("accuracy", change))
    found = units.format_scientific(record.proof_error, 0)
    if not math.isfinite(record.proof_error):
        parts.append(Phrase("the cut", "not proven"))
    elif record.proof_error > EXACT:
        parts.append(Phrase("the cut approximate to", found))
    else:
        parts.append(Phrase("proven equal to", found if record.proof_error else "the last bit"))
    return parts


def _gain(before: Timing, after: Timing) -> float:
    """How many times faster; 0 where the medians lie within each other's spread, or cannot be compared."""
    old, new = before.median_ms, after.median_ms
    if not (old > 0 and new > 0 and math.isfinite(old / new)):
        return 0.0
    overlap = before.p10_ms <= new <= before.p90_ms or after.p10_ms <= old <= after.p90_ms
    return 0.0 if overlap else old / new


def cards(record: Record) -> list[Card]:
    """The measures, before and after."""
    before, after = record.before, record.after
    names = dict.fromkeys([*before.latency, *after.latency])
    exact = f"{after.params:,} of {before.params:,}"
    return [
        _cost("Parameters", before.params, after.params, units.format_count, exact),
        _cost("MACs", before.macs, after.macs, units.format_count, "one forward pass"),
        _cost("File size", before.file_bytes, after.file_bytes, units.format_bytes, "weights as saved"),
        *(_latency(name, before.latency.get(name), after.latency.get(name)) for name in names),
        _accuracy(before.accuracy, after.accuracy),
    ]


def _cost(label: str, before: int, after: int, say: Callable[[float], str], note: str) -> Card:
    verdict = "same" if before == after else "good" if after < before else "bad"
    return Card(label, say(after), units.format_change(before, after), verdict, say(before), note,
                charts.pair(before, after))


def _latency(name: str, before: Timing | None, after: Timing | None) -> Card:
    label = f"Latency, {name}"
    old, new = (units.milliseconds(time.median_ms) if time else units.NONE for time in (before, after))
    if before is None or after is None:
        return Card(label, new, "", "same", old, "measured on one side only", Markup(""))
    gain = _gain(before, after)
    verdict = "good" if gain > 1 else "bad" if gain else "same"
    word = "faster" if gain > 1 else "slower"
    change = f"{units.format_ratio(max(gain, 1 / gain))} {word}" if gain else "within noise"
    note = f"80% of runs: {units.format_number(after.p10_ms)} to {units.milliseconds(after.p90_ms)}"
    return Card(label, new, change, verdict, old, note, charts.spread(before, after))


def _accuracy(before: float | None, after: float | None) -> Card:
    if before is None and after is None:
        return Card("Accuracy", "not measured", "", "same", "", "no labelled data to score on", Markup(""))
    if before is None or after is None:
        return Card("Accuracy", units.percent(after), "", "same", units.percent(before),
                    "measured on one side only", Markup(""))
    points = round(100 * (after - before), 1)
    sign = "+" if points > 0 else "\N{MINUS SIGN}"
    change = f"{sign}{abs(points):.1f} points" if points else "same"
    verdict = "good" if points > 0 else "bad" if points else "same"
    return Card("Accuracy", units.percent(after), change, verdict, units.percent(before), "held-out data",
                charts.pair(before, after, whole=1.0))


def proof(record: Record) -> str:
    """The proof in two sentences."""
    method = ("Removing a channel must equal silencing it: in a float64 copy of the original network, every "
              "weight that reads a removed channel was set to zero, and the cut network ran beside it on the "
              "same inputs.")
    found = ("The largest relative difference between their outputs, and between those of every layer on the way, "
             f"is {units.format_error(record.proof_error)}")
    if not math.isfinite(record.proof_error):
        return f"{method} The difference between their outputs is not a number, so nothing is proven."
    if record.proof_error == 0:
        return f"{method} Their outputs are equal to the last bit: the cut is exactly what the plan names."
    if record.proof_error > EXACT:
        return (f"{method} {found}: more than rounding, so the cut is an approximation, and part of what "
                "changed in accuracy may be due to it.")
    return (f"{method} {found}: rounding and no more, so the cut took out what the plan names and nothing "
            "else.")


def errors(record: Record) -> list[tuple[str, float]]:
    """The measured errors, for the rule."""
    found = [("cut against silenced", record.proof_error)]
    return found if record.onnx_error is None else [*found, ("ONNX against PyTorch", record.onnx_error)]


def channel_bars(layers: Sequence[LayerChange]) -> list[charts.Bar]:
    """Channels by layer."""
    return _largest([charts.Bar(layer.name, layer.channels_before, layer.channels_after,
                                _arrow(str(layer.channels_before), str(layer.channels_after)))
                     for layer in layers])


def mac_bars(layers: Sequence[LayerChange]) -> list[charts.Bar]:
    """MACs by layer."""
    return _largest([charts.Bar(layer.name, layer.macs_before, layer.macs_after,
                                _arrow(units.format_count(layer.macs_before, ""),
                                       units.format_count(layer.macs_after, "")))
                     for layer in layers])


def _largest(rows: Sequence[charts.Bar]) -> list[charts.Bar]:
    """The largest rows in their order, as many as a reader can use; rows of nothing are left out."""
    order = sorted(range(len(rows)), key=lambda at: -max(rows[at].before, rows[at].after))
    return [rows[at] for at in sorted(order[:MOST_BARS]) if max(rows[at].before, rows[at].after) > 0]


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def reasons(entries: Sequence[LeftAlone]) -> list[Reason]:
    """What was left alone by reason, in the order in which the reasons first come up."""
    found: dict[str, list[LeftAlone]] = {}
    for entry in entries:
        found.setdefault(entry.reason, []).append(entry)
    return [Reason(text, tuple(group)) for text, group in found.items()]


def phases(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    """Each phase of training, and how long it was and where it ended."""
    told = []
    for curve in curves:
        epochs = max(len(curve.loss), len(curve.accuracy))
        text = f"{epochs} epoch{'' if epochs == 1 else 's'}"
        if curve.accuracy:
            text += f", ends at {units.percent(curve.accuracy[-1])}"
        told.append((curve.phase, text))
    return told


def epochs(curves: Sequence[Curve]) -> list[tuple[str, int, str, str]]:
    """The table of epochs: phase, epoch, loss, accuracy; evenly thinned where there are very many."""
    rows = []
    for curve in curves:
        for epoch in range(max(len(curve.loss), len(curve.accuracy))):
            loss = units.format_number(curve.loss[epoch]) if epoch < len(curve.loss) else units.NONE
            accuracy = units.percent(curve.accuracy[epoch]) if epoch < len(curve.accuracy) else units.NONE
            rows.append((curve.phase, epoch + 1, loss, accuracy))
    step = max(1, math.ceil(len(rows) / MOST_ROWS))
    return [row for at, row in enumerate(rows) if at % step == 0 or at == len(rows) - 1]


def pictures(samples: Sequence[Sample]) -> list[Sample]:
    """The first samples that fit the page."""
    chosen: list[Sample] = []
    used = 0
    for sample in samples[:PICTURES]:
        used += len(sample.png)
        if used > PICTURE_BYTES:
            break
        chosen.append(sample)
    return chosen


def pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values for a list; what is not text stands as JSON."""
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
            for name, value in values.items()]


def moment(created: str) -> str:
    """The time for people; as it was given where it is no ISO time."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = "" if when.utcoffset() is None else " UTC" if when.utcoffset() == timedelta(0) else f" {when:%z}"
    return f"{when:%Y-%m-%d %H:%M}{zone}"
