"""`ladder`: six U-Nets, each lighter than the one before, and what that gains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.cli.common import Json, print_json, say, wrapped
from torchslim.cli.tables import Column, show
from torchslim.units import count, percent, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchslim.ladder import Rung

BAR = 24
"""Characters of the longest bar."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(ladder)


def ladder(
    side: Annotated[int, typer.Option("--size", metavar="PIXELS", help="Height and width of the picture.")] = 256,
    rounds: Annotated[int, typer.Option(min=0, help="Turns of each network on the clock; 0 measures nothing.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, show_default=False, help="CPU threads.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", show_default=False,
                                              help="Draw the falling bars into a file, .svg or .png.")] = None,
    as_json: Json = False,
) -> None:
    """Climb from a plain U-Net to a light one, rung by rung.

    Parameters, multiply-adds, measured latency and peak memory of each rung.
    """
    from torchslim.ladder import climb, slower

    if plot is not None:
        from torchslim import plotting

        plotting.check(plot)
    rungs = climb(side, rounds=rounds, threads=threads)
    if plot is not None:
        _draw(plot, rungs)
        say(f"drawn: {plot}")
    if as_json:
        print_json([asdict(rung) for rung in rungs])
        return
    show(rungs, _columns(rungs))
    for rung in slower(rungs):
        print(wrapped(f"rung {rung} has fewer parameters than rung {rung - 1}, and takes no less time"))


def _columns(rungs: Sequence[Rung]) -> list[Column]:
    first = rungs[0]
    timed = [Column("ms", "ms", lambda rung: rung.ms, lambda ms: f"{ms:.0f}")] if first.ms is not None else []
    return [
        Column("rung", "rung", lambda rung: str(rung.rung)),
        Column("bar", "parameters", lambda rung: "█" * max(1, round(BAR * rung.params / first.params)), rank=2),
        Column("params", "", lambda rung: rung.params, "{:,}".format),
        Column("share", "of plain", lambda rung: rung.params / first.params, percent, 1),
        Column("macs", "MACs", lambda rung: rung.macs, lambda number: count(number, " ")),
        *timed,
        Column("peak", "peak memory", lambda rung: rung.peak_memory, lambda n: size(n).replace("\xa0", " "), 3),
        Column("change", "what changes", lambda rung: rung.change, rank=4),
    ]


def _draw(path: Path, rungs: Sequence[Rung]) -> None:
    from torchslim.plotting import Panel, bars

    panels = [Panel("parameters", tuple(float(rung.params) for rung in rungs),
                    tuple(f"{count(rung.params, ' ')} ({percent(rung.params / rungs[0].params)})" for rung in rungs)),
              Panel("MACs", tuple(float(rung.macs) for rung in rungs), tuple(count(rung.macs, " ") for rung in rungs)),
              Panel("peak memory", tuple(float(rung.peak_memory) for rung in rungs),
                    tuple(size(rung.peak_memory) for rung in rungs))]
    times = [rung.ms for rung in rungs if rung.ms is not None]
    if times:
        panels.insert(2, Panel("time, ms", tuple(times), tuple(f"{ms:.0f}" for ms in times), measured=True))
    bars(path, "A U-Net made light", [f"{rung.rung}: {rung.change}" for rung in rungs], panels)
