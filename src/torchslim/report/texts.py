"""Texts of the page, from the record: the headline, the cards, the verification."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

from torchslim.report import charts
from torchslim.report.record import LayerChange, Record, Sample, Timing, TrainingCurve
from torchslim.surgery.plans import LeftAlone
from torchslim.utils import formatting as units

EXACT = 1e-8  # a larger difference in float64 is not rounding: the cut was an approximation
PICTURES, PICTURE_BYTES = 24, 36_000  # limits that keep the page small
MOST_ROWS = 100  # of the table of epochs
MOST_BARS = 100  # of a bar chart; the table has every layer


@dataclass(frozen=True)
class HeadlinePart:
    """A part of the headline: the number, and the words around it."""

    prefix: str
    number: str
    suffix: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.prefix, self.number, self.suffix) if part)


@dataclass(frozen=True)
class MetricCard:
    """One metric before and after; `verdict` is "good", "bad" or "same", and `chart` is decorative."""

    label: str
    value: str
    change: str
    verdict: str
    previous_value: str
    note: str
    chart: Markup


@dataclass(frozen=True)
class ReasonGroup:
    """Channels left uncut, and the reason."""

    text: str
    entries: tuple[LeftAlone, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return sum(entry.channels for entry in self.entries)


def headline(record: Record) -> list[HeadlinePart]:
    """The result in one sentence, in parts."""
    before, after = record.before, record.after
    parts = []
    shared = [name for name in before.latency if name in after.latency]
    if shared:
        # The first backend, not the fastest; its name is shown only if there are others.
        where = f" ({shared[0]})" if len(shared) > 1 else ""
        speedup = _speedup(before.latency[shared[0]], after.latency[shared[0]])
        word = "faster" if speedup > 1 else "slower"
        parts.append(HeadlinePart("", units.format_ratio(max(speedup, 1 / speedup)), word + where) if speedup
                     else HeadlinePart("", "no faster", "within the noise of timing" + where))
    if before.macs != after.macs and before.macs > 0:
        share = units.format_share(abs(1 - after.macs / before.macs))
        parts.append(HeadlinePart("", share, "fewer MACs" if after.macs < before.macs else "more MACs"))
    if before.score is not None and after.score is not None:
        metric = record.metric
        change = f"{units.format_metric(metric, before.score)} → {units.format_metric(metric, after.score)}"
        parts.append(HeadlinePart(metric, change))
    error = units.format_scientific(record.proof_error, 0)
    if not math.isfinite(record.proof_error):
        parts.append(HeadlinePart("the cut", "not proven"))
    elif record.proof_error > EXACT:
        parts.append(HeadlinePart("the cut approximate to", error))
    else:
        parts.append(HeadlinePart("proven equal to", error if record.proof_error else "the last bit"))
    return parts


def _speedup(before: Timing, after: Timing) -> float:
    """Speedup; 0 where a median lies within the other's 10th to 90th percentile, or it is undefined."""
    old, new = before.median_ms, after.median_ms
    if not (old > 0 and new > 0 and math.isfinite(old / new)):
        return 0.0
    overlap = before.p10_ms <= new <= before.p90_ms or after.p10_ms <= old <= after.p90_ms
    return 0.0 if overlap else old / new


def cards(record: Record) -> list[MetricCard]:
    """The metrics, before and after."""
    before, after = record.before, record.after
    names = dict.fromkeys([*before.latency, *after.latency])
    exact = f"{after.params:,} of {before.params:,}"
    return [
        _cost_card("Parameters", before.params, after.params, units.format_count, exact),
        _cost_card("MACs", before.macs, after.macs, units.format_count, "one forward pass"),
        _cost_card("File size", before.file_bytes, after.file_bytes, units.format_bytes, "weights as saved"),
        *(_latency_card(name, before.latency.get(name), after.latency.get(name)) for name in names),
        *(_metric_card(name, before.metrics.get(name), after.metrics.get(name))
          for name in {**before.metrics, **after.metrics} or ("accuracy",)),
    ]


def _cost_card(label: str, before: int, after: int, say: Callable[[float], str], note: str) -> MetricCard:
    verdict = "same" if before == after else "good" if after < before else "bad"
    return MetricCard(label, say(after), units.format_change(before, after), verdict, say(before), note,
                charts.before_after_bars(before, after))


def _latency_card(name: str, before: Timing | None, after: Timing | None) -> MetricCard:
    label = f"Latency, {name}"
    old, new = (units.milliseconds(time.median_ms) if time else units.NONE for time in (before, after))
    if before is None or after is None:
        return MetricCard(label, new, "", "same", old, "measured on one side only", Markup(""))
    speedup = _speedup(before, after)
    verdict = "good" if speedup > 1 else "bad" if speedup else "same"
    word = "faster" if speedup > 1 else "slower"
    change = f"{units.format_ratio(max(speedup, 1 / speedup))} {word}" if speedup else "within noise"
    note = f"80% of runs: {units.format_number(after.p10_ms)} to {units.milliseconds(after.p90_ms)}"
    return MetricCard(label, new, change, verdict, old, note, charts.timing_bars(before, after))


def _metric_card(name: str, before: float | None, after: float | None) -> MetricCard:
    label = name[:1].upper() + name[1:]
    old, new = (units.format_metric(name, value) for value in (before, after))
    if before is None and after is None:
        return MetricCard(label, "not measured", "", "same", "", "no labelled data to score on", Markup(""))
    if before is None or after is None:
        return MetricCard(label, new, "", "same", old, "measured on one side only", Markup(""))
    change = units.format_metric_change(name, before, after)
    better = after > before if name != "MAE" else after < before  # of errors, less is better
    verdict = "same" if change in ("same", units.NONE) else "good" if better else "bad"
    bars = charts.before_after_bars(before, after, whole=max(1.0, before, after)) if min(before, after) >= 0 else ""
    return MetricCard(label, new, change, verdict, old, "held-out data", Markup(bars))


def proof_text(record: Record) -> str:
    """The proof as text."""
    method = ("Removing a channel must equal silencing it: in a float64 copy of the original network, every "
              "weight that reads a removed channel was set to zero, and the cut network ran beside it on the "
              "same inputs.")
    comparison = ("The largest relative difference between their outputs, and between those of every layer on the way, "
             f"is {units.format_error(record.proof_error)}")
    if not math.isfinite(record.proof_error):
        return f"{method} The difference between their outputs is not a number, so nothing is proven."
    if record.proof_error == 0:
        return f"{method} Their outputs are equal to the last bit: the cut is exactly what the plan names."
    if record.proof_error > EXACT:
        return (f"{method} {comparison}: more than rounding, so the cut is an approximation, and part of what "
                "changed in accuracy may be due to it.")
    return (f"{method} {comparison}: rounding and no more, so the cut took out what the plan names and nothing "
            "else.")


def measured_errors(record: Record) -> list[tuple[str, float]]:
    """Errors for `error_scale`."""
    errors = [("cut against silenced", record.proof_error)]
    return errors if record.onnx_error is None else [*errors, ("ONNX against PyTorch", record.onnx_error)]


def channel_bars(layers: Sequence[LayerChange]) -> list[charts.Bar]:
    """Channels by layer."""
    return _largest([charts.Bar(layer.name, layer.channels_before, layer.channels_after,
                                _before_after(str(layer.channels_before), str(layer.channels_after)))
                     for layer in layers])


def mac_bars(layers: Sequence[LayerChange]) -> list[charts.Bar]:
    """MACs by layer."""
    return _largest([charts.Bar(layer.name, layer.macs_before, layer.macs_after,
                                _before_after(units.format_count(layer.macs_before, ""),
                                              units.format_count(layer.macs_after, "")))
                     for layer in layers])


def _largest(rows: Sequence[charts.Bar]) -> list[charts.Bar]:
    """The `MOST_BARS` largest rows, in their order, without empty ones."""
    order = sorted(range(len(rows)), key=lambda at: -max(rows[at].before, rows[at].after))
    return [rows[at] for at in sorted(order[:MOST_BARS]) if max(rows[at].before, rows[at].after) > 0]


def _before_after(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def group_by_reason(entries: Sequence[LeftAlone]) -> list[ReasonGroup]:
    """Uncut channels by reason, in the order of the reasons' first entries."""
    by_reason: dict[str, list[LeftAlone]] = {}
    for entry in entries:
        by_reason.setdefault(entry.reason, []).append(entry)
    return [ReasonGroup(text, tuple(group)) for text, group in by_reason.items()]


def phase_summaries(curves: Sequence[TrainingCurve], metric: str) -> list[tuple[str, str]]:
    """Each training phase with its epochs and its final score."""
    summaries = []
    for curve in curves:
        epochs = max(len(curve.loss), len(curve.score))
        text = f"{epochs} epoch{'' if epochs == 1 else 's'}"
        if curve.score:
            text += f", ends at {units.format_metric(metric, curve.score[-1])}"
        summaries.append((curve.phase, text))
    return summaries


def epoch_rows(curves: Sequence[TrainingCurve], metric: str) -> list[tuple[str, int, str, str]]:
    """The table of epochs: phase, epoch, loss, score; evenly subsampled above `MOST_ROWS`."""
    rows = []
    for curve in curves:
        for epoch in range(max(len(curve.loss), len(curve.score))):
            loss = units.format_number(curve.loss[epoch]) if epoch < len(curve.loss) else units.NONE
            score = units.format_metric(metric, curve.score[epoch]) if epoch < len(curve.score) else units.NONE
            rows.append((curve.phase, epoch + 1, loss, score))
    step = max(1, math.ceil(len(rows) / MOST_ROWS))
    return [row for at, row in enumerate(rows) if at % step == 0 or at == len(rows) - 1]


def shown_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The first samples that fit the page."""
    chosen: list[Sample] = []
    used = 0
    for sample in samples[:PICTURES]:
        used += len(sample.png)
        if used > PICTURE_BYTES:
            break
        chosen.append(sample)
    return chosen


def named_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values for a list; non-text values as JSON."""
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
            for name, value in values.items()]


def format_time(created: str) -> str:
    """A readable time; unchanged if it is not an ISO time."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = "" if when.utcoffset() is None else " UTC" if when.utcoffset() == timedelta(0) else f" {when:%z}"
    return f"{when:%Y-%m-%d %H:%M}{zone}"
