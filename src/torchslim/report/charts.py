"""The charts: inline SVG without scripts, libraries or network.

Colours come from the style sheet's classes: `before`, `after`, `removed`, and `phase-0` to `phase-3`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from torchslim.report.record import LayerChange, ScoreHistogram, Timing, TrainingCurve
from torchslim.utils.formatting import NOT_SHARES, format_error
from torchslim.utils.svg import coordinate, figure, join, percent_of, shorten, subsample, tag, ticks, y_axis

MOST_POINTS = 100  # of one line; limits the page's size
LONGEST_NAME = 24  # characters of a layer's name; the table has it in full
PHASES = 4  # colours distinct for colour-blind readers; further phases are dashed
MANY_ROWS = 40  # above this rows are closer together
FLOAT64, FLOAT32 = 2.0**-52, 2.0**-23
HEIGHT = 190.0  # of a plot, without its axes


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: a name, two lengths, and what to print beside them."""

    name: str
    before: float
    after: float
    text: str


def bar_chart(name: str, title: str, text: str, rows: Sequence[Bar]) -> Markup:
    """Horizontal bars, one row per layer: "after" drawn over "before"."""
    step, thick = (24, 14) if len(rows) <= MANY_ROWS else (17, 11)
    largest = max((max(row.before, row.after) for row in rows), default=0)
    # The style sheet sets both margins by these lengths in characters, with the same em.
    at_left = max((min(len(row.name), LONGEST_NAME) for row in rows), default=0)
    at_right = max((len(row.text) for row in rows), default=0)

    def label(row: Bar) -> Markup:
        short = shorten(row.name, LONGEST_NAME)
        return escape(short) if short == row.name else tag("title", row.name) + escape(short)

    def drawn(kind: str, lengths: Sequence[tuple[int, float]]) -> Markup:
        return tag("g", join(tag("rect", y=at * step, width=percent_of(value, largest), height=thick)
                             for at, value in lengths), cls=kind)

    def column(cls: str, texts: Sequence[str], **attributes: str) -> Markup:
        return tag("svg", join(tag("text", text, y=at * step + thick - 2) for at, text in enumerate(texts)),
                   cls=cls, **attributes)

    # Where a layer has grown, the old bar is drawn last, or the new one would hide it.
    old = list(enumerate(row.before for row in rows))
    new = list(enumerate(row.after for row in rows))
    under = [(at, value) for at, value in old if value >= rows[at].after]
    names = column("names", [label(row) for row in rows], x=f"-{at_left * 0.61 + 1:.2f}em")
    values = column("values", [row.text for row in rows], x=f"{at_right * 0.56 + 1.2:.2f}em")
    body = (names + tag("svg", values, x="100%") + drawn("before", under) + drawn("after", new)
            + drawn("before", [pair for pair in old if pair not in under]))
    return figure(name, title, text, max(1, len(rows) * step), body, cls="chart bars",
                  style=f"--left:{at_left};--right:{at_right}")


def width_profile(name: str, layers: Sequence[LayerChange]) -> Markup:
    """The network's widths: one vertical bar per layer, first to last, as high as its channels."""
    largest = max((max(layer.channels_before, layer.channels_after) for layer in layers), default=0)

    def shape(kind: str, widths: Sequence[int]) -> Markup:
        highs = [100 * width / (largest or 1) for width in widths]
        path = "".join(f"M{10 * at + 1} {coordinate(50 - high / 2)}h8v{coordinate(high)}h-8z"
                       for at, high in enumerate(highs))
        return tag("path", cls=kind, d=path)

    text = f"Channels of {len(layers)} layers, first to last; the widest has {largest}."
    body = (shape("before", [layer.channels_before for layer in layers])
            + shape("after", [layer.channels_after for layer in layers]))
    return figure(name, "The shape of the network before and after", text, 110, body,
                  viewBox=f"0 0 {10 * max(1, len(layers))} 100", preserveAspectRatio="none")


def before_after_bars(before: float, after: float, whole: float = 0.0) -> Markup:
    """Two thin bars for a card, decorative: the card's text has the values."""
    largest = whole or max(before, after)
    drawn = [tag("rect", cls=kind, y=y, width=percent_of(value, largest), height=5)
             for kind, y, value in (("before", 0, before), ("after", 8, after))]
    return tag("svg", join(drawn), cls="pair", width="100%", height=14, aria_hidden="true")


def timing_bars(before: Timing, after: Timing) -> Markup:
    """Two timings from zero: a bar to the median, a whisker from the 10th to the 90th percentile."""
    largest = max(before.p90_ms, after.p90_ms, before.median_ms, after.median_ms)
    drawn = [tag("rect", cls=kind, y=y, width=percent_of(time.median_ms, largest), height=5)
             + tag("line", cls="whisker", x1=percent_of(time.p10_ms, largest), x2=percent_of(time.p90_ms, largest),
                   y1=y + 2.5, y2=y + 2.5)
             for kind, y, time in (("before", 0, before), ("after", 8, after))]
    return tag("svg", join(drawn), cls="pair", width="100%", height=14, aria_hidden="true")


def _plot(name: str, title: str, text: str, height: float, body: str) -> Markup:
    """A chart with space for the y axis on the left; `height` is that of the x axis."""
    return figure(name, title, text, height + 24, body, cls="chart plot")


def _lines(name: str, title: str, lengths: Sequence[int], phases: Sequence[Sequence[float]],
           grid: Sequence[float], label: Callable[[float], str]) -> Markup:
    """One line per phase, one value per epoch, phases in sequence along x."""
    top, epochs = 8.0, sum(lengths)
    high = max([grid[-1], *(value for phase in phases for value in phase if math.isfinite(value))])

    def y_of(value: float) -> float:
        return top + HEIGHT * (1 - (value - grid[0]) / ((high - grid[0]) or 1))

    bands, drawn, done = [], [], 0
    for at, (length, phase) in enumerate(zip(lengths, phases, strict=True)):
        if at % 2:
            bands.append(tag("rect", cls="band", x=percent_of(done, epochs), y=top, height=HEIGHT,
                             width=percent_of(length, epochs)))
        # A value that is not finite leaves a gap in the line.
        spots = [f"{coordinate(100 * (done + epoch + 0.5) / epochs)} {coordinate(y_of(value))}"
                 if math.isfinite(value) else "" for epoch, value in subsample(phase, MOST_POINTS)]
        path = "".join(("L" if before else "M") + spot
                       for before, spot in zip(["", *spots], spots, strict=False) if spot)
        colour = f"phase-{at % PHASES}"
        if path:
            drawn.append(tag("path", cls=f"line {colour}{' dashed' if at >= PHASES else ''}", d=path))
        if length <= MANY_ROWS:
            # A zero-length stroke with round caps is a dot that stays round when the plot is stretched.
            dots = "".join(f"M{spot}h0" for spot in spots if spot)
            drawn.append(tag("path", cls=f"dots {colour}", d=dots))
        done += length
    steps = sorted({max(1, round(value)) for value in ticks(1, max(2, epochs), 6) if value <= epochs})
    numbers = join(tag("text", str(value), cls="tick", x=percent_of(value - 0.5, epochs), y=top + HEIGHT + 18,
                       text_anchor="middle") for value in steps)
    stretched = tag("svg", join(drawn), viewBox=f"0 0 100 {coordinate(top + HEIGHT + 8)}",
                    preserveAspectRatio="none", width="100%", height=top + HEIGHT + 8)
    text = f"{len(phases)} phases, {epochs} epochs in all; the table has the values."
    body = join(bands) + y_axis(grid, label, y_of) + stretched + numbers
    return _plot(name, title, text, top + HEIGHT, body)


def _lengths(curves: Sequence[TrainingCurve]) -> list[int]:
    return [max(len(curve.loss), len(curve.score)) for curve in curves]


def loss_chart(name: str, curves: Sequence[TrainingCurve]) -> Markup:
    """Training loss by phase, the axis from 0."""
    values = [value for curve in curves for value in curve.loss if math.isfinite(value)]
    grid = ticks(min(0.0, min(values, default=0.0)), max(values, default=1.0))
    return _lines(name, "Training loss by epoch", _lengths(curves), [curve.loss for curve in curves], grid,
                  lambda value: f"{value:g}")


def score_chart(name: str, metric: str, curves: Sequence[TrainingCurve]) -> Markup:
    """The held-out score by phase; the axis does not start at zero, to separate close values."""
    values = [value for curve in curves for value in curve.score if math.isfinite(value)]
    high, least = max(values, default=1.0), 0.0 if metric not in NOT_SHARES else -math.inf
    grid = [value for value in ticks(max(least, min([*values, high - 0.02])), high) if value <= 1 + 1e-9]
    return _lines(name, f"{metric} by epoch", _lengths(curves), [curve.score for curve in curves], grid,
                  lambda value: f"{value:g}" if metric in NOT_SHARES else f"{100 * value:.4g}%")


def score_histogram(name: str, scores: ScoreHistogram) -> Markup:
    """Histogram of scores: removed channels stacked on kept ones, and the threshold."""
    top = 22.0
    bins = list(zip(scores.edges, scores.edges[1:], scores.kept, scores.removed, strict=False))
    left, right = (scores.edges[0], scores.edges[-1]) if bins else (0.0, 1.0)
    span = right - left
    most = max((kept + removed for _, _, kept, removed in bins), default=0)
    grid = [value for value in ticks(0, max(1, most), 4) if value == int(value)]

    def y_of(value: float) -> float:
        return top + HEIGHT * (1 - value / grid[-1])

    drawn = []
    for low, high, kept, removed in bins:
        for kind, start, end in (("after", 0, kept), ("removed", kept, kept + removed)):
            if end > start:
                drawn.append(tag("rect", cls=f"{kind} bin", x=percent_of(low - left, span), y=y_of(end),
                                 width=percent_of(high - low, span), height=y_of(start) - y_of(end)))
    numbers = [tag("text", f"{value:.4g}", cls="tick", x=percent_of(value - left, span), y=top + HEIGHT + 18,
                   text_anchor="middle")
               for value in ticks(left, right) if left <= value <= right + 1e-9 * abs(right)]
    rule = Markup("")
    if scores.threshold is not None and left <= scores.threshold <= right:
        at = percent_of(scores.threshold - left, span)
        side = "start" if scores.threshold - left < 0.6 * span else "end"
        rule = (tag("line", cls="rule", x1=at, x2=at, y1=top - 6, y2=top + HEIGHT)
                + tag("text", f"threshold {scores.threshold:.3g}", cls="mark", x=at, y=12,
                      text_anchor=side))
    body = y_axis(grid, lambda value: f"{value:g}", y_of) + join(drawn) + rule + join(numbers)
    text = f"{sum(scores.kept)} channels kept, {sum(scores.removed)} removed."
    return _plot(name, f"Channels by score: {scores.label}", text, top + HEIGHT, body)


def error_scale(name: str, errors: Sequence[tuple[str, float]]) -> Markup:
    """Measured errors on a logarithmic axis, with the rounding of float64 and of float32."""
    low = -17.0

    def along(value: float) -> float:
        # Zero and values beyond the axis are drawn at its end; the text has the number.
        return 100 * (1 - min(max(math.log10(value) if value > 0 else low, low), 0.0) / low)

    base = 26.0 * len(errors) + 10
    parts = [tag("line", cls="axis", x1=0, x2="100%", y1=base, y2=base)]
    for value, kind, anchor in ((FLOAT64, "float64", "start"), (FLOAT32, "float32", "middle")):
        at = percent_of(along(value), 100)
        parts.append(tag("line", cls="rule", x1=at, x2=at, y1=4, y2=base))
        parts.append(tag("text", f"{kind} rounding", cls="tick", x=at, y=base + 34, text_anchor=anchor))
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    parts += [tag("text", "10" + str(power).translate(raised) if power else "1", cls="tick",
                  x=percent_of(along(10.0**power), 100), y=base + 17, text_anchor="middle" if power else "end")
              for power in (-16, -12, -8, -4, 0)]
    for row, (text, value) in enumerate(item for item in errors if math.isfinite(item[1])):
        spot, y = along(value), 26 * row + 18
        left = spot < 50
        parts.append(tag("circle", cls=f"phase-{row % PHASES}", cx=percent_of(spot, 100), cy=y, r=5))
        parts.append(tag("text", f"{text} {format_error(value)}", cls="mark", x=percent_of(spot, 100), y=y + 4,
                         dx=11 if left else -11, text_anchor="start" if left else "end"))
    return figure(name, "The measured errors on a logarithmic scale",
                  "; ".join(f"{text} {format_error(value)}" for text, value in errors), base + 40, join(parts))
