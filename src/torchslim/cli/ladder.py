"""`ladder`: U-Nets from plain to light, and what each rung gains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.cli.options import MAX_THREADS, Json
from torchslim.cli.output import print_json, say, wrapped
from torchslim.cli.tables import Column, bytes_cell, count_cell, print_fitted
from torchslim.utils.formatting import format_bytes, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchslim.pipeline.unet_ladder import Rung

BAR = 16
"""Characters of the longest bar."""


def ladder(
    side: Annotated[int, typer.Option(
        "--size", min=125, max=2**13, metavar="PIXELS", help="Height and width of the picture.")] = 256,
    rounds: Annotated[int, typer.Option(min=0, help="Turns of each network on the clock; 0 measures nothing.")] = 3,
    threads: Annotated[int | None, typer.Option(
        min=1, max=MAX_THREADS, show_default=False, help="CPU threads.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", show_default=False,
                                              help="Draw the falling bars into a file, .svg or .png.")] = None,
    as_json: Json = False,
) -> None:
    """Climb from a plain U-Net to a light one, rung by rung.

    Parameters, multiply-adds, measured latency and peak memory of each rung: rungs
    0 to 5 as teaching material has them, then separable pairs, the head, a narrower
    network and cut channels. Where fewer parameters take no less time, it says so.
    """
    from torchslim.pipeline.unet_ladder import measure_ladder, mismatched_rungs

    if plot is not None:
        from torchslim.cli.bar_charts import check_chart_path

        check_chart_path(plot)
    rungs = measure_ladder(side, rounds=rounds, threads=threads)
    if plot is not None:
        _draw(plot, rungs)
        say(f"drawn: {plot}")
    if as_json:
        print_json([asdict(rung) for rung in rungs])
        return
    print_fitted(rungs, _columns(rungs))
    for rung, ways in mismatched_rungs(rungs).items():
        print(wrapped(f"rung {rung}: {ways}"))


def _columns(rungs: Sequence[Rung]) -> list[Column]:
    first = rungs[0]
    longest = max((rung.ms for rung in rungs if rung.ms is not None), default=0.0)
    timed = [] if not longest else [
        Column("clock", "time", lambda rung: _bar(rung.ms / longest), rank=2),
        Column("ms", "ms", lambda rung: rung.ms, lambda ms: f"{ms:.0f}")]
    return [
        Column("rung", "rung", lambda rung: str(rung.rung)),
        Column("bar", "parameters", lambda rung: _bar(rung.params / first.params), rank=2),
        Column("params", "", lambda rung: rung.params, "{:,}".format),
        Column("share", "of plain", lambda rung: rung.params / first.params, percent, 1),
        Column("macs", "MACs", lambda rung: rung.macs, count_cell),
        *timed,
        Column("peak", "peak memory", lambda rung: rung.peak_memory, bytes_cell, 3),
        Column("change", "what changes", lambda rung: rung.change, rank=4),
    ]


def _bar(share: float) -> str:
    return "\N{FULL BLOCK}" * max(1, round(BAR * share))


def _draw(path: Path, rungs: Sequence[Rung]) -> None:
    from torchslim.cli.bar_charts import Panel, draw_bars
    from torchslim.pipeline.unet_ladder import mismatched_rungs

    panels = [Panel("parameters", tuple(float(rung.params) for rung in rungs),
                    tuple(f"{count_cell(rung.params)} ({percent(rung.params / rungs[0].params)})" for rung in rungs)),
              Panel("MACs", tuple(float(rung.macs) for rung in rungs), tuple(count_cell(rung.macs) for rung in rungs)),
              Panel("peak memory", tuple(float(rung.peak_memory) for rung in rungs),
                    tuple(format_bytes(rung.peak_memory) for rung in rungs))]
    times = [rung.ms for rung in rungs if rung.ms is not None]
    if times:
        slower = mismatched_rungs(rungs)
        panels.insert(2, Panel("time, ms; ! against the parameters", tuple(times),
                               tuple(f"{ms:.0f}{' !' if index in slower else ''}" for index, ms in enumerate(times)),
                               measured=True))
    draw_bars(path, "A U-Net made light", [f"{rung.rung}: {rung.change}" for rung in rungs], panels)
