"""Losses by group and width as one SVG, which needs no script, no library and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from torchslim.utils.svg import coordinate, join, shorten, tag

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


@dataclass(frozen=True)
class HeatmapRow:
    """One channel group.

    Attributes:
        name: of the group.
        layers: names for the pointer's title.
        channels: how many there are.
        kept: how many stay in each cell.
        macs: the share of the network's multiply-adds left in each cell.
        losses: what each cell loses; its colour.
        texts: what is written in each cell.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    kept: tuple[int, ...]
    macs: tuple[float, ...]
    losses: tuple[float, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Heatmap:
    """A row of cells a group, a column a ratio.

    Attributes:
        title, caption: above the cells.
        ratios: heads of the columns.
        most: the largest loss that there can be, at which a curve reaches its floor; 0 for none.
        rows: from top to bottom.
    """

    title: str
    caption: str
    ratios: tuple[float, ...]
    most: float
    rows: tuple[HeatmapRow, ...]


def draw(heatmap: Heatmap) -> str:
    """A whole SVG file."""
    named = max([len(shorten(row.name, LONGEST)) for row in heatmap.rows] + [len("group")])
    names = EDGE + number_of_pixels(named)
    curves = names + 64  # the number of channels stands between
    cells = curves + CURVE + 14
    width, height = cells + CELL * len(heatmap.ratios) + EDGE, TOP + ROW * len(heatmap.rows) + 34
    head = (tag("title", heatmap.title) + tag("desc", heatmap.caption) + tag("style", Markup(STYLE))
            + tag("text", heatmap.title, cls="title", x=EDGE, y=26)
            + tag("text", heatmap.caption, cls="quiet", x=EDGE, y=46)
            + tag("text", "group", cls="quiet", x=EDGE, y=TOP - 8)
            + tag("text", "channels", cls="quiet number", x=curves - 12, y=TOP - 8)
            + tag("text", "more to fewer", cls="quiet head", x=curves + CURVE / 2, y=TOP - 8)
            + join(tag("text", f"{ratio:.0%}" if ratio >= 0.01 else f"{ratio:g}", cls="quiet head",
                       x=cells + CELL * (at + 0.5), y=TOP - 8) for at, ratio in enumerate(heatmap.ratios)))
    rows = join(_row(row, heatmap.most, TOP + ROW * at, curves, cells) for at, row in enumerate(heatmap.rows))
    foot = tag("text", "Each group by itself, all others whole; nothing was trained in between.", cls="quiet", x=EDGE,
               y=height - 12)
    return str(tag("svg", head + rows + foot, xmlns="http://www.w3.org/2000/svg", role="img",
                   viewBox=f"0 0 {coordinate(width)} {coordinate(height)}", width=width, height=height))


def number_of_pixels(characters: int) -> float:
    """How wide a name is drawn."""
    return characters * LETTER


def _row(group: HeatmapRow, most: float, y: float, curves: float, cells: float) -> Markup:
    middle = y + ROW / 2 + 4
    name = shorten(group.name, LONGEST)
    title = tag("title", ", ".join(group.layers))
    parts = [tag("text", title + name, cls="name", x=EDGE, y=middle),
             tag("text", f"{group.channels:,}", cls="number", x=curves - 12, y=middle), _curve(group, most, curves, y)]
    for at, loss in enumerate(group.losses):
        dark = darkness(loss)
        parts.append(tag("rect", tag("title", f"{group.kept[at]:,} of {group.channels:,} channels, "
                                     f"{group.macs[at]:.1%} of the multiply-adds"),
                         x=cells + CELL * at + 1, y=y + 1, width=CELL - 2, height=ROW - 2, rx=2, fill=_colour(dark)))
        parts.append(tag("text", group.texts[at], cls="cell light" if dark > 0.55 else "cell",
                         x=cells + CELL * (at + 0.5), y=middle, pointer_events="none"))
    return join(parts)


def _curve(group: HeatmapRow, most: float, x: float, y: float) -> Markup:
    """What is left, from all channels down to the fewest: as high as the whole network's at the top."""
    shares = [1.0, *(kept / group.channels for kept in group.kept)]
    spots = [(x + CURVE * (1 - share), y + 4 + (ROW - 8) * min(1.0, max(0.0, loss / most if most else 0.0)))
             for share, loss in zip(shares, [0.0, *group.losses], strict=True)]
    path = "".join(f"{'L' if at else 'M'}{coordinate(a)} {coordinate(b)}" for at, (a, b) in enumerate(spots))
    dots = "".join(f"M{coordinate(a)} {coordinate(b)}h0" for a, b in spots)
    return (tag("rect", cls="frame", x=x, y=y + 1, width=CURVE, height=ROW - 2, rx=2)
            + tag("path", cls="line", d=path) + tag("path", cls="dots", d=dots))


def darkness(loss: float) -> float:
    """How dark a cell is, 0 to 1: small losses are told apart best."""
    return loss / (loss + HALF) if loss > 0 else 0.0


def _colour(dark: float) -> str:
    """From a pale to a dark orange."""
    return "#" + "".join(f"{round(pale + (deep - pale) * dark):02x}"
                         for pale, deep in zip(_PALE, _DEEP, strict=True))


_PALE: Sequence[int] = (0xFE, 0xF5, 0xE7)
_DEEP: Sequence[int] = (0x7B, 0x2D, 0x0A)
