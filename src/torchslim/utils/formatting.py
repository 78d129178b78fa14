"""Numbers as people read them: three significant digits, a unit, and never a NaN on the page."""

from __future__ import annotations

import math

NONE = "n/a"
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_IEC = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_NBSP = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


def format_number(value: float) -> str:
    """Three significant digits, without an exponent down to 0.001."""
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude < 0.001:
        return format_scientific(value, 1)
    if magnitude < 0.9995:
        return f"{value:.3g}"
    # Rounding may carry into the next decade: 9.996 is 10.0, not 10.00. Hence limits below the powers of ten.
    return f"{value:.{0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2}f}"


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """A number of things: "1 tensor", "3 tensors", "2 biases"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_count(value: float, gap: str = _NBSP) -> str:
    """A count with an SI prefix: 1,820,000,000 is "1.82 G"."""
    if not math.isfinite(value):
        return NONE
    for unit, prefix in _SI:
        if abs(value) >= 0.9995 * unit:
            return f"{format_number(value / unit)}{gap}{prefix}"
    return str(int(value)) if value == int(value) else format_number(value)


def format_bytes(value: float) -> str:
    """A number of bytes in powers of 1024: 46,838,016 is "44.7 MiB"."""
    if not math.isfinite(value):
        return NONE
    for unit, name in _IEC:
        if value >= 0.9995 * unit:
            return f"{format_number(value / unit)}{_NBSP}{name}"
    return f"{int(value)}{_NBSP}B"


def milliseconds(value: float) -> str:
    """A time: "8.93 ms"."""
    return f"{format_number(value)}{_NBSP}ms"


def percent(share: float | None) -> str:
    """A share with one decimal: 0.986 is "98.6%"."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.1f}%"


NOT_SHARES = frozenset({"R2", "MAE"})
"""The metrics of tasks that are no shares, 0 to 1."""


def format_metric(name: str, value: float | None) -> str:
    """A metric of a task: "98.6%" for shares, such as the accuracy, three digits for others."""
    if value is None or name not in NOT_SHARES:
        return percent(value)
    return format_number(value)


def format_metric_change(name: str, before: float, after: float) -> str:
    """How a metric changed: "+0.3 points" for shares, "−0.012" for others, "same"."""
    difference = round(after - before, 3)
    if not math.isfinite(difference):
        return NONE
    if not difference:
        return "same"
    sign = "+" if difference > 0 else _MINUS
    return f"{sign}{abs(difference):g}" if name in NOT_SHARES else f"{sign}{100 * abs(difference):.1f} points"


def format_change(before: float, after: float) -> str:
    """How much of a cost came or went: "−60.8%"; "same" where nothing did."""
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return "same" if before == after else NONE
    sign = _MINUS if after < before else "+"
    return "same" if before == after else f"{sign}{format_share(abs(after / before - 1))}"


def format_share(share: float) -> str:
    """A positive share in as many digits as it is worth: "61%", "0.4%", but "99.9%" for nearly all."""
    value = 100 * share
    if value < 0.05:
        return "<0.1%"
    if value < 9.95 or 99 < value < 100:
        return f"{min(value, 99.9) if value < 100 else value:.1f}%"
    return f"{value:.0f}%"


def format_ratio(value: float) -> str:
    """A factor: "1.4×"; a second decimal where the first would hide the difference from one."""
    if not math.isfinite(value):
        return NONE
    digits = 0 if value >= 9.95 else 2 if 0.95 <= value < 1.05 else 1
    return f"{value:.{digits}f}\N{MULTIPLICATION SIGN}"


def format_error(value: float) -> str:
    """A relative error: "3.1e-15"."""
    return format_scientific(value, 1)


def format_scientific(value: float, digits: int) -> str:
    """A number with its exponent as people write it: "2.4e-7", not "2.4e-07"."""
    if not math.isfinite(value):
        return NONE
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return "0" if value == 0 else f"{mantissa}e{int(exponent)}"
