"""Bar charts as SVG or PNG, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torchslim.errors import MissingExtra, RequestError
from torchslim.utils.files import write_atomically

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#4a5568"
FORMATS = (".svg", ".png")


@dataclass(frozen=True)
class Panel:
    """One column of bars.

    Attributes:
        title: above it.
        values: one a row; bars start at 0.
        texts: what is written beside each bar.
        measured: True for times, which are drawn in another colour than counts.
    """

    title: str
    values: tuple[float, ...]
    texts: tuple[str, ...]
    measured: bool = False


def check_chart_path(path: Path) -> None:
    """Check, before any work is done, that a chart can be drawn to this file.

    Raises:
        RequestError: the file's ending is neither .svg nor .png, it is a folder, or its folder is missing.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"{path}: {path.suffix or 'no ending'} is no format of charts; wanted .svg or .png")
    if path.is_dir():
        raise RequestError(f"{path}: is a folder; wanted the name of a file")
    if not path.parent.is_dir():
        raise RequestError(f"{path}: the folder {path.parent} does not exist; make it first")
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "plot", "drawing charts")


def draw_bars(path: Path, title: str, names: Sequence[str], panels: Sequence[Panel]) -> None:
    """Draw rows of horizontal bars, one column for each panel, into a file whose ending says the format.

    Raises:
        RequestError: see `check_chart_path`.
        MissingExtra: matplotlib is not installed.
    """
    check_chart_path(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and equal charts are equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "torchslim", "font.size": 9}):
        longest = max((len(name) for name in names), default=0)
        figure = Figure(figsize=(1.2 + 0.07 * longest + 2.6 * len(panels), 1.1 + 0.26 * max(len(names), 1)),
                        layout="constrained")
        figure.suptitle(title, fontsize=11, color=GREY, x=0.01, ha="left")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            rows = range(len(names))
            axis.barh(rows, panel.values, height=0.7, color=ORANGE if panel.measured else BLUE)
            widest = max(panel.values, default=0) or 1
            axis.set_xlim(0, 1.35 * widest)
            for row, value, text in zip(rows, panel.values, panel.texts, strict=True):
                axis.text(value + 0.02 * widest, row, text, va="center", color=GREY)
            axis.set_title(panel.title, loc="left", fontsize=10)
            axis.set_xticks([])
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.tick_params(left=False)
        axes[0].set_yticks(range(len(names)), labels=names)
        axes[0].invert_yaxis()
        kind = path.suffix.lower().lstrip(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        write_atomically(path, lambda part: figure.savefig(part, format=kind, dpi=150, metadata=metadata))
