"""`profile` and `compare`: what networks cost, layer by layer and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import Json, Model, Shapes, example, print_json, say, wrapped
from torchslim.cli.tables import Column, arranged, print_csv, show
from torchslim.errors import RequestError
from torchslim.utils.formatting import format_bytes, format_count, milliseconds, percent

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
"""About how many bars a chart has at most, unless `--depth` asks for more."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(profile)
    app.command()(compare)


def profile(
    model: Model, shapes: Shapes = None, depth: Depth = None,
    sort: Annotated[str | None, typer.Option(
        "--sort", metavar="COLUMN", show_default=False,
        help="From the largest down: params, macs, flops, activations, access, peak, time ...")] = None,
    top: Top = None,
    timed: Annotated[bool, typer.Option("--time", help="Measure the time of each layer, too.")] = False,
    plot: Plot = None, as_json: Json = False, as_csv: Csv = False,
) -> None:
    """Count what a model costs: parameters, multiply-adds, memory.

    The table is as wide as the terminal; --csv and --json have every column.
    """
    import torchslim
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    _one_form(as_json, as_csv)
    if plot is not None:
        from torchslim.cli import bar_charts as plotting

        plotting.check(plot)
    source = resolve(model)
    network, inputs = build(source), example(source, shapes)
    found = torchslim.profile(network, inputs)
    times = _times(network, inputs, found) if timed or plot is not None else {}
    columns = _columns(found, times if timed else {})
    rows = arranged(_rows(found, depth), columns, sort or ("macs" if top else None), top)
    if plot is not None:
        _draw(plot, f"{source}: {format_count(found.params, ' ')} parameters, {format_count(found.macs, ' ')} MACs",
              _few(found, depth) if sort is None and top is None else rows, times)
        say(f"drawn: {plot}")
    if as_json:
        print_json({"model": str(source), **found.to_dict(), **({"ms": times} if times else {})})
    elif as_csv:
        print_csv(rows, columns)
    else:
        show([*rows, *_total(found, rows, depth)], columns)
        print("\n".join(wrapped(remark) for remark in found.remarks()))


def compare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", show_default=False)],
    shapes: Shapes = None, depth: Depth = None,
    sort: Annotated[str | None, typer.Option("--sort", metavar="COLUMN", show_default=False,
                                             help="From the largest down: params, macs, peak, time ...")] = None,
    top: Top = None, timed: Annotated[bool, typer.Option("--time", help="Measure latency, too, in turns.")] = False,
    plot: Plot = None, as_json: Json = False, as_csv: Csv = False,
) -> None:
    """Set models side by side: what each costs, and how that stands to the first.

    With --depth, module by module.
    """
    import torchslim
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    _one_form(as_json, as_csv)
    if depth is not None and (timed or plot is not None):
        raise RequestError("compare: --depth sets modules side by side, without --time and --plot; leave one out")
    if plot is not None:
        from torchslim.cli import bar_charts as plotting

        plotting.check(plot)
    sources = [resolve(spec) for spec in models]
    built = [(build(source), example(source, shapes)) for source in sources]
    profiles = [torchslim.profile(network, inputs) for network, inputs in built]
    times = _latencies(built) if timed else [None] * len(built)
    names = [str(source) for source in sources]
    if depth is not None:
        _by_module(names, profiles, depth, sort, top, as_json, as_csv)
        return
    everything = list(zip(names, profiles, times, strict=True))
    columns = [column for column in _overall(everything[0])
               if len(models) > 1 or not column.key.startswith("of first")]
    rows = arranged(everything, columns, sort, top)
    if plot is not None:
        _draw_totals(plot, rows)
        say(f"drawn: {plot}")
    if as_json:
        print_json([{"model": name, **{column.key: column.value((name, found, ms)) for column in columns[1:]
                                       if not column.key.startswith("of first")}} for name, found, ms in rows])
    elif as_csv:
        print_csv(rows, columns)
    else:
        show(rows, columns)


def _one_form(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise RequestError("--json and --csv both print on stdout; give one of them")


def _times(network: Any, inputs: Any, found: Profile) -> dict[str, float]:
    """Milliseconds of each module with all that is in it, by name."""
    from torchslim.latency.per_layer import layer_times

    own = {layer.name: layer.ms for layer in layer_times(network, inputs)}
    return {module.name: sum(ms for name, ms in own.items() if _inside(name, module.name))
            for module in found.modules}


def _inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _latencies(built: Sequence[tuple[Any, Any]]) -> list[float]:
    """Milliseconds of a call of each model, on its own inputs, measured in turns."""
    from torchslim.latency.timing import measure
    from torchslim.utils.inputs import arguments

    def caller(network: Any, inputs: Any) -> Any:
        args, kwargs = arguments(inputs)
        network.eval()
        return lambda *_: network(*args, **kwargs)

    candidates = {str(place): caller(*one) for place, one in enumerate(built)}
    return [taken.median_ms for taken in measure(candidates, built[0][1]).values()]


def _rows(found: Profile, depth: int | None) -> list[Layer]:
    """The layers that cost something, or the modules down to a depth."""
    if depth is None:
        return [layer for layer in found.layers if layer.params or layer.macs]
    return [module for module in found.modules
            if _depth(module.name) <= depth and (module.params or module.memory_access or not module.name)]


def _bytes(number: float) -> str:
    return format_bytes(number).replace("\xa0", " ")


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _total(found: Profile, rows: Sequence[Layer], depth: int | None) -> list[Layer]:
    """The network as a whole, where the rows do not have it."""
    from dataclasses import replace

    return [] if depth is not None and any(not row.name for row in rows) else [
        replace(found.modules[0], name="total", kind="")]


def _columns(found: Profile, times: dict[str, float]) -> list[Column]:
    """What is said of a layer or module, and in which order it goes where the terminal is narrow."""
    ms = [Column("time", "ms", lambda layer: times.get(layer.name, times[""] if layer.name == "total" else 0.0),
                 lambda value: f"{value:.3f}")] if times else []
    return [
        Column("name", "layer", lambda layer: layer.name or "(model)"),
        Column("kind", "kind", lambda layer: layer.kind, rank=2),
        Column("params", "params", lambda layer: layer.params, "{:,}".format),
        Column("trainable", "trainable", lambda layer: layer.trainable, "{:,}".format, 9),
        Column("dead", "dead", lambda layer: layer.dead_params, "{:,}".format, 8 if not found.dead_params else 4),
        Column("macs", "MACs", lambda layer: layer.macs, "{:,}".format),
        Column("share", "of MACs", lambda layer: layer.macs / found.macs if found.macs else 0.0, percent, 1),
        *ms,
        Column("flops", "FLOPs", lambda layer: layer.flops, lambda n: format_count(n, " "), 7),
        Column("activations", "activations", lambda layer: layer.activations, lambda n: format_count(n, " "), 6),
        Column("access", "access", lambda layer: layer.memory_access, lambda n: format_count(n, " "), 5),
        Column("intensity", "FLOPs/byte", lambda layer: layer.intensity, "{:.1f}".format, 8),
        Column("peak", "peak memory", lambda layer: layer.peak_memory, _bytes, 5),
        Column("output", "output", lambda layer: "x".join(map(str, layer.out_shape)) or "never run", rank=3),
    ]


Whole = tuple[str, "Profile", float | None]


def _overall(first: Whole) -> list[Column]:
    """What is said of a network, and how each cost stands to the first network's."""
    def of_first(key: str) -> Column:
        return Column(f"of first {key}", "of first",
                      lambda row: _ratio(getattr(row[1], key), getattr(first[1], key)), percent, 1)

    time = [] if first[2] is None else [
        Column("time", "latency", lambda row: row[2], lambda ms: milliseconds(ms).replace("\xa0", " ")),
        Column("of first time", "of first", lambda row: row[2] / first[2], percent, 1)]
    return [
        Column("name", "model", lambda row: row[0]),
        Column("params", "params", lambda row: row[1].params, "{:,}".format), of_first("params"),
        Column("macs", "MACs", lambda row: row[1].macs, "{:,}".format), of_first("macs"),
        *time,
        Column("flops", "FLOPs", lambda row: row[1].flops, lambda n: format_count(n, " "), 6),
        Column("activations", "activations", lambda row: row[1].activations, lambda n: format_count(n, " "), 5),
        Column("access", "access", lambda row: row[1].memory_access, lambda n: format_count(n, " "), 4),
        Column("intensity", "FLOPs/byte", lambda row: row[1].intensity, "{:.1f}".format, 7),
        Column("peak", "peak memory", lambda row: row[1].peak_memory, _bytes, 3),
        Column("weights", "weights", lambda row: row[1].weight_bytes, _bytes, 5),
        Column("dead", "dead", lambda row: row[1].dead_params, "{:,}".format, 8),
    ]


def _ratio(cost: float, first: float) -> float:
    return cost / first if first else 1.0 if not cost else float("inf")


def _by_module(names: Sequence[str], profiles: Sequence[Profile], depth: int, sort: str | None, top: int | None,
               as_json: bool, as_csv: bool) -> None:
    """The modules of all models in one table: parameters and MACs of each model."""
    found = [{module.name: module for module in _rows(profile, depth)} for profile in profiles]
    modules = list(dict.fromkeys(name for rows in found for name in rows))

    def column(place: int, key: str, heading: str, rank: int) -> Column:
        rows = found[place]
        return Column(f"{key} {names[place]}", f"{heading} {place + 1}",
                      lambda name: getattr(rows[name], key) if name in rows else 0,
                      lambda n: format_count(n, " "), rank)

    columns = [Column("name", "module", lambda name: name or "(model)"),
               *(column(place, key, heading, 2 * place + first) for key, heading, first in (
                   ("params", "params", 1), ("macs", "MACs", 0)) for place in range(len(names)))]
    rows = arranged(modules, columns, sort, top)
    if as_json:
        print_json({"models": names, "modules": [
            {"name": name, "params": [r[name].params if name in r else None for r in found],
             "macs": [r[name].macs if name in r else None for r in found]} for name in rows]})
    elif as_csv:
        print_csv(rows, columns)
    else:
        print("\n".join(f"{place}: {name}" for place, name in enumerate(names, 1)))
        show(rows, columns)


def _few(found: Profile, depth: int | None) -> list[Layer]:
    """Modules for a chart: as deep as asked, or as goes with few bars, each operation in one of them alone."""
    depths = [depth] if depth is not None else [*range(max(_depth(m.name) for m in found.modules), 0, -1)]
    for one in depths:
        rows = [module for module in _rows(found, one) if module.name and (
            _depth(module.name) == one or not any(other.name.startswith(f"{module.name}.") for other in found.modules))]
        if depth is not None or len(rows) <= BARS:
            return rows or [found.modules[0]]
    return rows if depths else [found.modules[0]]


def _draw(path: Path, title: str, rows: Sequence[Layer], times: dict[str, float]) -> None:
    """Where the parameters, the multiply-adds and the time are."""
    from torchslim.cli.bar_charts import Panel, bars

    def panel(title: str, values: Sequence[float], texts: Sequence[str], measured: bool = False) -> Panel:
        return Panel(title, tuple(values), tuple(texts), measured)

    ms = [times.get(row.name, 0.0) for row in rows]
    bars(path, title, [row.name or "(model)" for row in rows], [
        panel("parameters", [row.params for row in rows], [format_count(row.params, " ") for row in rows]),
        panel("MACs", [row.macs for row in rows], [format_count(row.macs, " ") for row in rows]),
        panel("time, ms", ms, [f"{one:.2f}" for one in ms], measured=True)])


def _draw_totals(path: Path, rows: Sequence[Whole]) -> None:
    from torchslim.cli.bar_charts import Panel, bars

    panels = [Panel("parameters", tuple(float(p.params) for _, p, _ in rows),
                    tuple(format_count(p.params, " ") for _, p, _ in rows)),
              Panel("MACs", tuple(float(p.macs) for _, p, _ in rows),
                    tuple(format_count(p.macs, " ") for _, p, _ in rows)),
              Panel("peak memory", tuple(float(p.peak_memory) for _, p, _ in rows),
                    tuple(format_bytes(p.peak_memory) for _, p, _ in rows))]
    ms = [ms for _, _, ms in rows if ms is not None]
    if ms:
        panels.append(Panel("latency, ms", tuple(ms), tuple(f"{one:.2f}" for one in ms), measured=True))
    bars(path, "Costs side by side", [name for name, _, _ in rows], panels)
