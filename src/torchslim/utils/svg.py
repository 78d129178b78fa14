"""Small pieces that every chart is made of: escaped tags, coordinates, round ticks.

Lengths along x are percentages and text is in pixels, so that a chart fills a wide window and a telephone
alike with letters of one size. Names and axes stand in the padding of the outer element, which the style
sheet sets: percentages count what is left between. Where lines must stretch, an inner `viewBox` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

Attribute = str | float


def coordinate(value: float) -> str:
    """A coordinate in as few characters as it needs; what is not finite is drawn at zero."""
    return (f"{value:.2f}".rstrip("0").rstrip(".") or "0") if math.isfinite(value) else "0"


def percent_of(value: float, total: float) -> str:
    """`value` as a percentage of `whole`, for a coordinate along x."""
    return coordinate(100 * value / total) + "%" if total else "0%"


def join(parts: Iterable[str]) -> Markup:
    """Pieces of SVG one after another; what is plain text is escaped."""
    return Markup("").join(parts)


def tag(kind: str, body: str = "", /, **attributes: Attribute) -> Markup:
    """One element, closed; `cls` is its class, and an underscore in an attribute's name is a hyphen."""
    written = "".join(
        f' {"class" if name == "cls" else name.replace("_", "-")}="'
        f'{escape(value if isinstance(value, str) else coordinate(value))}"'
        for name, value in attributes.items() if value != "")
    return Markup(f"<{kind}{written}>{escape(body)}</{kind}>" if body else f"<{kind}{written}/>")


def figure(name: str, title: str, text: str, height: float, body: str, cls: str = "chart",
           **attributes: Attribute) -> Markup:
    """A whole chart, which says in `title` and `text` what it shows to whoever cannot see it."""
    head = tag("title", title, id=f"{name}-t") + tag("desc", text, id=f"{name}-d")
    return tag("svg", head + body, id=name, cls=cls, width="100%", height=height, role="img",
               aria_labelledby=f"{name}-t {name}-d", **attributes)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that span `low` to `high`, in at most `most` steps or one more."""
    span = high - low
    if not math.isfinite(span) or span < 1e-300:
        start = low if math.isfinite(low) else 0.0
        return [start, start + 1.0]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(times * power for times in (1, 2, 2.5, 5, 10, 20) if span / (times * power) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [at * step for at in range(first, last + 1)]


def y_axis(values: Sequence[float], label: Callable[[float], str], y_of: Callable[[float], float]) -> Markup:
    """The y axis: grid lines with their values."""
    return join(tag("line", cls="grid", x1=0, x2="100%", y1=y_of(value), y2=y_of(value))
                + tag("text", label(value), cls="tick", x=-8, y=y_of(value) + 4, text_anchor="end")
                for value in values)


def shorten(name: str, most: int) -> str:
    """The end of a long name: that is where layers differ."""
    return name if len(name) <= most else "…" + name[1 - most:]


def subsample(values: Sequence[float], most: int) -> list[tuple[int, float]]:
    """`(position, value)` of evenly spaced values, the last always among them."""
    step = max(1, math.ceil(len(values) / most))
    return [(at, value) for at, value in enumerate(values) if at % step == 0 or at == len(values) - 1]
