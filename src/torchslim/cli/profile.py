"""`profile`: what a network costs, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.loading import example_inputs, named_inputs
from torchslim.cli.options import Json, Model, Shapes
from torchslim.cli.output import print_json, say, wrapped
from torchslim.cli.tables import Column, bytes_cell, count_cell, print_csv, print_fitted, sorted_rows
from torchslim.errors import RequestError
from torchslim.utils.formatting import percent

if TYPE_CHECKING:
    from torchslim.costs.profiler import Layer, Profile

Csv = Annotated[bool, typer.Option("--csv", help="Print every column as CSV, and nothing else, on stdout.")]
Depth = Annotated[int | None, typer.Option(
    "--depth", min=0, show_default=False,
    help="Modules down to this depth, each with all that is in it; 0 is the network as a whole.")]
Top = Annotated[int | None, typer.Option("--top", min=1, show_default=False, help="Only so many rows.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", show_default=False,
                                           help="Draw bars into a file, .svg or .png.")]
BARS = 30
"""A chart has about so many bars at most, unless `--depth` asks for more."""


def profile(
    model: Model,
    shapes: Shapes = None,
    depth: Depth = None,
    sort: Annotated[str | None, typer.Option(
        "--sort", metavar="COLUMN", show_default=False,
        help="From the largest down: params, macs, flops, activations, access, peak, time ...")] = None,
    top: Top = None,
    timed: Annotated[bool, typer.Option("--time", help="Measure the time of each layer, too.")] = False,
    plot: Plot = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Count what a model costs: parameters, multiply-adds, memory.

    The table is as wide as the terminal; --csv and --json have every column.
    """
    import torchslim
    from torchslim.cli.bar_charts import check_chart_path
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    check_output_form(as_json, as_csv)
    if plot is not None:
        check_chart_path(plot)
    source = resolve(model)
    network, inputs = build(source), example_inputs(source, shapes)
    with named_inputs(source, shapes):
        costs = torchslim.profile(network, inputs)
    times = _times(network, inputs, costs) if timed or plot is not None else {}
    columns = _columns(costs, times if timed else {})
    unsorted = _layers(costs) if depth is None else modules_to_depth(costs, depth)
    rows = sorted_rows(unsorted, columns, sort or ("macs" if top else None), top)
    if plot is not None:
        title = f"{source}: {count_cell(costs.params)} parameters, {count_cell(costs.macs)} MACs"
        _draw(plot, title, _bars(costs, depth) if sort is None and top is None else rows, times)
        say(f"drawn: {plot}")
    if as_json:
        print_json({"model": str(source), **costs.to_dict(), **({"ms": times} if times else {})})
    elif as_csv:
        print_csv(rows, columns)
    else:
        total = replace(costs.modules[0], name="total", kind="")
        has_total = depth is not None and any(not row.name for row in rows)
        print_fitted(rows if has_total else [*rows, total], columns)
        print("\n".join(wrapped(remark) for remark in costs.remarks()))


def check_output_form(as_json: bool, as_csv: bool) -> None:
    """Raise where both forms are asked for.

    Raises:
        RequestError: stdout can have one of them only.
    """
    if as_json and as_csv:
        raise RequestError("--json and --csv both print on stdout; give one of them")


def _times(network: Any, inputs: Any, costs: Profile) -> dict[str, float]:
    """Milliseconds of each module with all that is in it, by name."""
    from torchslim.latency.per_layer import time_modules

    own_ms = {layer.name: layer.ms for layer in time_modules(network, inputs).layers}
    return {module.name: sum(ms for name, ms in own_ms.items() if _inside(name, module.name))
            for module in costs.modules}


def _inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _layers(costs: Profile) -> list[Layer]:
    """The layers that cost something."""
    return [layer for layer in costs.layers if layer.params or layer.macs]


def modules_to_depth(costs: Profile, depth: int) -> list[Layer]:
    """The modules down to a depth that cost something; 0 is the network as a whole."""
    return [module for module in costs.modules
            if _depth(module.name) <= depth and (module.params or module.memory_access or not module.name)]


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _columns(costs: Profile, times: dict[str, float]) -> list[Column]:
    """The costs of a layer or module."""
    ms = [Column("time", "ms", lambda layer: times.get(layer.name, times[""] if layer.name == "total" else 0.0),
                 lambda value: f"{value:.3f}")] if times else []
    return [
        Column("name", "layer", lambda layer: layer.name or "(model)"),
        Column("kind", "kind", lambda layer: layer.kind, rank=2),
        Column("params", "params", lambda layer: layer.params, "{:,}".format),
        Column("trainable", "trainable", lambda layer: layer.trainable, "{:,}".format, 9),
        Column("dead", "dead", lambda layer: layer.dead_params, "{:,}".format, 8 if not costs.dead_params else 4),
        Column("macs", "MACs", lambda layer: layer.macs, "{:,}".format),
        Column("share", "of MACs", lambda layer: layer.macs / costs.macs if costs.macs else 0.0, percent, 1),
        *ms,
        Column("flops", "FLOPs", lambda layer: layer.flops, count_cell, 7),
        Column("activations", "activations", lambda layer: layer.activations, count_cell, 6),
        Column("access", "access", lambda layer: layer.memory_access, count_cell, 5),
        Column("intensity", "FLOPs/byte", lambda layer: layer.intensity, "{:.1f}".format, 8),
        Column("peak", "peak memory", lambda layer: layer.peak_memory, bytes_cell, 5),
        Column("output", "output", lambda layer: "x".join(map(str, layer.out_shape)) or "never run", rank=3),
    ]


def _bars(costs: Profile, depth: int | None) -> list[Layer]:
    """Modules for a chart: of this depth, or as deep as `BARS` allows; each operation is in one of them alone."""
    depths = [depth] if depth is not None else [*range(max(_depth(m.name) for m in costs.modules), 0, -1)]
    rows: list[Layer] = []
    for level in depths:
        rows = [module for module in modules_to_depth(costs, level) if module.name and (
            _depth(module.name) == level
            or not any(other.name.startswith(f"{module.name}.") for other in costs.modules))]
        if len(rows) <= BARS:
            break
    return rows or [costs.modules[0]]


def _draw(path: Path, title: str, rows: Sequence[Layer], times: dict[str, float]) -> None:
    """Where the parameters, the multiply-adds and the time are."""
    from torchslim.cli.bar_charts import Panel, draw_bars

    def panel(title: str, values: Sequence[int]) -> Panel:
        return Panel(title, tuple(map(float, values)), tuple(count_cell(value) for value in values))

    ms = tuple(times.get(row.name, 0.0) for row in rows)
    draw_bars(path, title, [row.name or "(model)" for row in rows], [
        panel("parameters", [row.params for row in rows]), panel("MACs", [row.macs for row in rows]),
        Panel("time, ms", ms, tuple(f"{value:.2f}" for value in ms), measured=True)])
