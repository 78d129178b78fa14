"""A scan as one drawing: SVG written by hand, which needs no script, no library and no network."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from torchslim.report.svg import join, number, shorten, tag
from torchslim.sensing.found import GroupSensitivity, Sensitivity, shown

ROW, TOP, EDGE = 22, 78, 16
LONGEST = 36
"""Characters of a layer's name; the title that a pointer shows has it in full."""
LETTER = 6.9  # pixels of a character of the names, at 12 pixels a line
CURVE, CELL = 96, 58
HALF = 0.25
"""The loss at which a cell is half as dark as the darkest."""
STYLE = """
svg{background:#fff;font:12px system-ui,sans-serif;fill:#1a202c}
.name{font-family:ui-monospace,monospace;font-size:11.5px}.quiet{fill:#4a5568}.title{font-size:15px;font-weight:600}
.number{text-anchor:end}.head,.cell{text-anchor:middle}.light{fill:#fff}.frame{fill:#edf2f7}
.line{fill:none;stroke:#2b6cb0;stroke-width:1.6}.dots{fill:none;stroke:#2b6cb0;stroke-width:4;stroke-linecap:round}
"""


def drawn(found: Sensitivity) -> str:
    """The drawing, a whole SVG file."""
    named = max([len(shorten(group.name, LONGEST)) for group in found.groups] + [len("group")])
    names = EDGE + number_of_pixels(named)
    curves = names + 64  # the number of channels stands between
    cells = curves + CURVE + 14
    width, height = cells + CELL * len(found.ratios) + EDGE, TOP + ROW * len(found.groups) + 34
    title = f"{found.measure.capitalize()} with a share of one group's channels"
    whole = (f"As it is: {shown(found, found.base)}. Darker: more is lost. {found.items:,} answers, channels by "
             f"{found.importance}.")
    head = (tag("title", title) + tag("desc", whole) + tag("style", Markup(STYLE))
            + tag("text", title, cls="title", x=EDGE, y=26) + tag("text", whole, cls="quiet", x=EDGE, y=46)
            + tag("text", "group", cls="quiet", x=EDGE, y=TOP - 8)
            + tag("text", "channels", cls="quiet number", x=curves - 12, y=TOP - 8)
            + tag("text", "more to fewer", cls="quiet head", x=curves + CURVE / 2, y=TOP - 8)
            + join(tag("text", f"{ratio:.0%}" if ratio >= 0.01 else f"{ratio:g}", cls="quiet head",
                       x=cells + CELL * (at + 0.5), y=TOP - 8) for at, ratio in enumerate(found.ratios)))
    rows = join(_row(found, group, TOP + ROW * at, curves, cells) for at, group in enumerate(found.groups))
    foot = tag("text", "Each group by itself, all others whole; nothing was trained in between.", cls="quiet", x=EDGE,
               y=height - 12)
    return str(tag("svg", head + rows + foot, xmlns="http://www.w3.org/2000/svg", role="img",
                   viewBox=f"0 0 {number(width)} {number(height)}", width=width, height=height))


def number_of_pixels(characters: int) -> float:
    """How wide a name is drawn."""
    return characters * LETTER


def _row(found: Sensitivity, group: GroupSensitivity, y: float, curves: float, cells: float) -> Markup:
    middle = y + ROW / 2 + 4
    name = shorten(group.name, LONGEST)
    title = tag("title", ", ".join(group.layers))
    parts = [tag("text", title + name, cls="name", x=EDGE, y=middle),
             tag("text", f"{group.channels:,}", cls="number", x=curves - 12, y=middle), _curve(found, group, curves, y)]
    for at, value in enumerate(group.values):
        dark = darkness(found.loss(value))
        parts.append(tag("rect", tag("title", f"{group.kept[at]:,} of {group.channels:,} channels, "
                                     f"{group.macs[at]:.1%} of the multiply-adds"),
                         x=cells + CELL * at + 1, y=y + 1, width=CELL - 2, height=ROW - 2, rx=2, fill=_colour(dark)))
        parts.append(tag("text", shown(found, value), cls="cell light" if dark > 0.55 else "cell",
                         x=cells + CELL * (at + 0.5), y=middle, pointer_events="none"))
    return join(parts)


def _curve(found: Sensitivity, group: GroupSensitivity, x: float, y: float) -> Markup:
    """What is left, from all channels down to the fewest: as high as the whole network's at the top."""
    shares = [1.0, *(kept / group.channels for kept in group.kept)]
    spots = [(x + CURVE * (1 - share), y + 4 + (ROW - 8) * min(1.0, max(0.0, _relative(found, loss))))
             for share, loss in zip(shares, [0.0, *map(found.loss, group.values)], strict=True)]
    path = "".join(f"{'L' if at else 'M'}{number(a)} {number(b)}" for at, (a, b) in enumerate(spots))
    dots = "".join(f"M{number(a)} {number(b)}h0" for a, b in spots)
    return (tag("rect", cls="frame", x=x, y=y + 1, width=CURVE, height=ROW - 2, rx=2)
            + tag("path", cls="line", d=path) + tag("path", cls="dots", d=dots))


def _relative(found: Sensitivity, loss: float) -> float:
    """A loss as a share of all that there is to lose."""
    return loss if found.measure == "error" else loss / found.base if found.base else 0.0


def darkness(loss: float) -> float:
    """How dark a cell is, 0 to 1: small losses are told apart best."""
    return loss / (loss + HALF) if loss > 0 else 0.0


def _colour(dark: float) -> str:
    """From a pale to a dark orange."""
    return "#" + "".join(f"{round(pale + (deep - pale) * dark):02x}"
                         for pale, deep in zip(_PALE, _DEEP, strict=True))


_PALE: Sequence[int] = (0xFE, 0xF5, 0xE7)
_DEEP: Sequence[int] = (0x7B, 0x2D, 0x0A)
