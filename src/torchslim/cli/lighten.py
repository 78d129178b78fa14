"""`lighten`: put light layers in the place of a model's heavy ones, show what that saves, save the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import (
    Json,
    Model,
    Pictures,
    Seed,
    Shapes,
    check_out,
    example,
    fraction,
    pictures_of,
    print_json,
    seeded,
    warn_of_random,
)
from torchslim.cli.tables import Column, show
from torchslim.utils.formatting import percent

if TYPE_CHECKING:
    from torchslim.rewriting import LightenResult, RewrittenLayer



def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lighten)


def lighten(
    model: Model,
    rules: Annotated[str, typer.Option(
        "--rules", metavar="RULE,...", show_default=False,
        help="One after the other: separable, grouped:4[:shuffle], asymmetric, depthwise, lowrank:0.25, ghost, fire, "
             "pointwise-after, pointwise-before.")],
    out: Annotated[Path | None, typer.Option(
        "--out", metavar="FILE", show_default=False, help="Where to save the result: light.safetensors.")] = None,
    data: Annotated[str | None, typer.Option(
        "--data", metavar="DATA", show_default=False,
        help="Fit the new layers to the old ones' outputs on pictures of digits, folder:PATH, torchvision:NAME@ROOT, "
             "package.module:factory or file.py:factory.")] = None,
    pictures: Pictures = None,
    shapes: Shapes = None,
    only: Annotated[list[str] | None, typer.Option(
        "--only", metavar="PATTERN", show_default=False, help="Only layers of such names; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(
        "--exclude", metavar="PATTERN", show_default=False, help="No layers of such names; may be repeated.")] = None,
    kernels: Annotated[list[int] | None, typer.Option(
        "--kernels", metavar="SIZE", show_default=False, help="Only kernels of this size; may be repeated.")] = None,
    min_channels: Annotated[int, typer.Option(
        "--min-channels", min=0, help="Only layers with at least so many inputs and outputs.")] = 0,
    min_share: Annotated[float, typer.Option(
        "--min-share", parser=fraction, metavar="SHARE",
        help="Only layers with at least this share of the MACs.")] = 0.0,
    ends: Annotated[bool, typer.Option("--ends", help="The first and the last layers, too.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Fresh weights, not those nearest to the old ones.")] = False,
    seed: Seed = 0, as_json: Json = False,
) -> None:
    """Put light layers in the place of a model's heavy ones, and show what that saves.

    The new layers start from the old weights. Prints each rewritten layer, before
    and after, with parameters, MACs and the relative error of its outputs, on white
    noise or on the pictures of --data. Train what --out saves: a rewrite is a start.
    """
    import torchslim
    from torchslim.rewriting import lighten_with_report
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    if out is not None:
        check_out(out)
        warn_of_random(source)
    told = pictures_of(data, shapes, pictures, seed)
    batches = None if told is None else [inputs for inputs, _ in told]
    inputs = batches[0][:1] if batches is not None and not shapes else example(source, shapes)
    found = lighten_with_report(
        seeded(source, seed), [rule.strip() for rule in rules.split(",")], inputs, only=only or (),
        exclude=exclude or (), kernels=kernels or (), min_channels=min_channels, min_share=min_share, ends=ends,
        fresh=fresh, data=batches, seed=seed)
    saved = None if out is None else str(torchslim.save(found.model, out, plan=found.steps, source=source))
    if as_json:
        print_json({"model": str(source), "out": saved, **found.to_dict()})
        return
    show(list(found.layers), _columns())
    print(_total(found))
    if saved is not None:
        print(f"saved: {saved}")


def _columns() -> list[Column]:
    """What is said of a layer, and in which order it goes where the terminal is narrow."""
    def part(key: str, place: int) -> Any:
        def value(row: RewrittenLayer) -> int:
            found: tuple[int, int] = getattr(row, key)
            return found[place]

        return value

    return [Column("layer", "layer", lambda row: row.layer), Column("rule", "rule", lambda row: row.rule, rank=4),
            Column("before", "before", lambda row: row.before, rank=2),
            Column("after", "after", lambda row: row.after, rank=1),
            Column("params", "params", part("params", 0), "{:,}".format, 3),
            Column("new params", "then", part("params", 1), "{:,}".format, 3),
            Column("macs", "MACs", part("macs", 0), "{:,}".format, 2),
            Column("new macs", "then", part("macs", 1), "{:,}".format, 2),
            Column("error", "error", lambda row: row.error, lambda error: "-" if error is None else f"{error:.3f}")]


def _total(found: LightenResult) -> str:
    """The network as a whole, and what was left alone."""
    assert found.macs is not None
    lines = [f"{what}: {before:,} -> {after:,} ({percent(after / max(before, 1))})"
             for what, (before, after) in (("parameters", found.params), ("MACs", found.macs))]
    return "\n".join([*lines, *found.remarks()])
