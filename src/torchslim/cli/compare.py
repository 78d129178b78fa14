"""`compare`: what several networks cost, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from torchslim.cli.loading import example_inputs, named_inputs
from torchslim.cli.options import Json, Shapes
from torchslim.cli.output import print_json, say
from torchslim.cli.profile import Csv, Depth, Plot, Top, check_output_form, modules_to_depth
from torchslim.cli.tables import Column, bytes_cell, count_cell, print_csv, print_fitted, sorted_rows
from torchslim.errors import RequestError
from torchslim.utils.formatting import format_bytes, milliseconds, percent

if TYPE_CHECKING:
    from torchslim.costs.profiler import Profile


class _Network(NamedTuple):
    """A row of the table."""

    name: str
    profile: Profile
    ms: float | None


def compare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", show_default=False, help="Models as elsewhere.")],
    shapes: Shapes = None,
    depth: Depth = None,
    sort: Annotated[str | None, typer.Option("--sort", metavar="COLUMN", show_default=False,
                                             help="From the largest down: params, macs, peak, time ...")] = None,
    top: Top = None,
    timed: Annotated[bool, typer.Option("--time", help="Measure latency, too, in turns.")] = False,
    plot: Plot = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Set models side by side: what each costs, and its ratio to the first.

    With --depth, module by module.
    """
    import torchslim
    from torchslim.cli.bar_charts import check_chart_path
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    check_output_form(as_json, as_csv)
    if depth is not None and (timed or plot is not None):
        raise RequestError("compare: --depth sets modules side by side, without --time and --plot; leave one out")
    if plot is not None:
        check_chart_path(plot)
    sources = [resolve(spec) for spec in models]
    built = [(build(source), example_inputs(source, shapes)) for source in sources]
    profiles = []
    for source, (network, inputs) in zip(sources, built, strict=True):
        with named_inputs(source, shapes):
            profiles.append(torchslim.profile(network, inputs))
    names = [str(source) for source in sources]
    if depth is not None:
        by_module = _ModuleTable(names, profiles, depth)
        by_module.show(sorted_rows(by_module.names, by_module.columns(), sort, top), as_json, as_csv)
        return
    times = _latencies(built) if timed else [None] * len(built)
    networks = [_Network(*row) for row in zip(names, profiles, times, strict=True)]
    columns = [column for column in _columns(networks[0])
               if len(models) > 1 or not column.key.startswith("of first")]
    rows = sorted_rows(networks, columns, sort, top)
    if plot is not None:
        _draw(plot, rows)
        say(f"drawn: {plot}")
    if as_json:
        print_json([{"model": row.name, **{column.key: column.value(row) for column in columns[1:]
                                           if not column.key.startswith("of first")}} for row in rows])
    elif as_csv:
        print_csv(rows, columns)
    else:
        print_fitted(rows, columns)


def _latencies(built: Sequence[tuple[Any, Any]]) -> list[float]:
    """Milliseconds of a call of each model, on its own inputs, measured in turns."""
    from torchslim.latency.timing import measure
    from torchslim.utils.inputs import arguments

    def caller(network: Any, inputs: Any) -> Any:
        args, kwargs = arguments(inputs)
        network.eval()
        return lambda *_: network(*args, **kwargs)

    candidates = {str(index): caller(network, inputs) for index, (network, inputs) in enumerate(built)}
    return [timing.median_ms for timing in measure(candidates, built[0][1]).values()]


def _columns(first: _Network) -> list[Column]:
    """The costs of a network, and the ratio of each to that of the first network."""
    def of_first(key: str) -> Column:
        return Column(f"of first {key}", "of first",
                      lambda row: _ratio(getattr(row.profile, key), getattr(first.profile, key)), percent, 1)

    time = [] if first.ms is None else [
        Column("time", "latency", lambda row: row.ms, lambda ms: milliseconds(ms).replace("\xa0", " ")),
        Column("of first time", "of first", lambda row: row.ms / first.ms, percent, 1)]
    return [
        Column("name", "model", lambda row: row.name),
        Column("params", "params", lambda row: row.profile.params, "{:,}".format), of_first("params"),
        Column("macs", "MACs", lambda row: row.profile.macs, "{:,}".format), of_first("macs"),
        *time,
        Column("flops", "FLOPs", lambda row: row.profile.flops, count_cell, 6),
        Column("activations", "activations", lambda row: row.profile.activations, count_cell, 5),
        Column("access", "access", lambda row: row.profile.memory_access, count_cell, 4),
        Column("intensity", "FLOPs/byte", lambda row: row.profile.intensity, "{:.1f}".format, 7),
        Column("peak", "peak memory", lambda row: row.profile.peak_memory, bytes_cell, 3),
        Column("weights", "weights", lambda row: row.profile.weight_bytes, bytes_cell, 5),
        Column("dead", "dead", lambda row: row.profile.dead_params, "{:,}".format, 8),
    ]


def _ratio(cost: float, first: float) -> float:
    return cost / first if first else 1.0 if not cost else float("inf")


class _ModuleTable:
    """The modules of all models in one table: parameters and MACs of each model."""

    def __init__(self, models: Sequence[str], profiles: Sequence[Profile], depth: int) -> None:
        self.models = models
        self.modules = [{module.name: module for module in modules_to_depth(profile, depth)} for profile in profiles]
        self.names = list(dict.fromkeys(name for modules in self.modules for name in modules))

    def columns(self) -> list[Column]:
        """The name of a module, and its parameters and MACs in each model."""
        def column(index: int, key: str, heading: str, rank: int) -> Column:
            modules = self.modules[index]
            return Column(f"{key} {self.models[index]}", f"{heading} {index + 1}",
                          lambda name: getattr(modules[name], key) if name in modules else 0,
                          count_cell, rank)

        costs = (("params", "params", 1), ("macs", "MACs", 0))
        return [Column("name", "module", lambda name: name or "(model)"),
                *(column(index, key, heading, 2 * index + rank) for key, heading, rank in costs
                  for index in range(len(self.models)))]

    def show(self, names: Sequence[str], as_json: bool, as_csv: bool) -> None:
        """Print the rows of these modules."""
        if as_json:
            print_json({"models": self.models, "modules": [
                {"name": name, "params": [m[name].params if name in m else None for m in self.modules],
                 "macs": [m[name].macs if name in m else None for m in self.modules]} for name in names]})
        elif as_csv:
            print_csv(names, self.columns())
        else:
            print("\n".join(f"{number}: {model}" for number, model in enumerate(self.models, 1)))
            print_fitted(names, self.columns())


def _draw(path: Path, rows: Sequence[_Network]) -> None:
    from torchslim.cli.bar_charts import Panel, draw_bars

    def panel(title: str, values: Sequence[int], text: Any) -> Panel:
        return Panel(title, tuple(map(float, values)), tuple(text(value) for value in values))

    panels = [panel("parameters", [row.profile.params for row in rows], count_cell),
              panel("MACs", [row.profile.macs for row in rows], count_cell),
              panel("peak memory", [row.profile.peak_memory for row in rows], format_bytes)]
    times = [row.ms for row in rows if row.ms is not None]
    if times:
        panels.append(Panel("latency, ms", tuple(times), tuple(f"{ms:.2f}" for ms in times), measured=True))
    draw_bars(path, "Costs side by side", [row.name for row in rows], panels)
