"""`lighten`: replace a model's heavy layers by light ones, show what that saves, save the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.loading import build_model, example_inputs, load_pictures, named_inputs, note_random_weights
from torchslim.cli.options import DATA_FORMS, Json, Model, Pictures, Seed, Shapes, SkipBroken, check_out, fraction
from torchslim.cli.output import print_json
from torchslim.cli.tables import Column, print_fitted
from torchslim.cli.usage import flags_for_keywords
from torchslim.utils.formatting import percent

if TYPE_CHECKING:
    from torchslim.rewriting import LightenResult, RewrittenLayer

Data = Annotated[str | None, typer.Option(
    "--data", metavar="DATA", show_default=False,
    help=f"Fit the new layers to the old ones' outputs on pictures of {DATA_FORMS}.")]
Out = Annotated[Path | None, typer.Option(
    "--out", metavar="FILE", show_default=False, help="Where to save the result: light.safetensors.")]
Only = Annotated[list[str] | None, typer.Option(
    "--only", metavar="PATTERN", show_default=False, help="Only layers of such names; may be repeated.")]
Exclude = Annotated[list[str] | None, typer.Option(
    "--exclude", metavar="PATTERN", show_default=False, help="No layers of such names; may be repeated.")]
Kernels = Annotated[list[int] | None, typer.Option(
    "--kernels", min=1, metavar="SIZE", show_default=False, help="Only kernels of this size; may be repeated.")]


def lighten(
    context: typer.Context,
    model: Model,
    rules: Annotated[str, typer.Option(
        "--rules", metavar="RULE,...", show_default=False,
        help="One after the other: separable, grouped:4[:shuffle], asymmetric, depthwise, lowrank:0.25, ghost, fire, "
             "pointwise-after, pointwise-before.")],
    out: Out = None,
    data: Data = None,
    pictures: Pictures = None,
    skip_broken: SkipBroken = None,
    shapes: Shapes = None,
    only: Only = None,
    exclude: Exclude = None,
    kernels: Kernels = None,
    min_channels: Annotated[int, typer.Option(
        "--min-channels", min=0, help="Only layers with at least so many inputs and outputs.")] = 0,
    min_share: Annotated[float, typer.Option(
        "--min-share", parser=fraction, metavar="SHARE",
        help="Only layers with at least this share of the MACs.")] = 0.0,
    ends: Annotated[bool, typer.Option("--ends", help="The first and the last layers, too.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Fresh weights, not those nearest to the old ones.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Replace a model's heavy layers by light ones, and show what that saves.

    The new layers start from the old weights. Prints each rewritten layer, before
    and after, with parameters, MACs and the relative error of its outputs, on white
    noise or on the pictures of --data. Train the result that --out saves.
    """
    import torchslim
    from torchslim.rewriting import lighten_with_report
    from torchslim.rewriting.request import parse_rules
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    if out is not None:
        check_out(out, source)
    with flags_for_keywords(context):
        labelled = load_pictures(source, data, shapes, pictures, seed, skip_broken)
    batches = None if labelled is None else [images for images, _ in labelled]
    inputs = batches[0][:1] if batches is not None and not shapes else example_inputs(source, shapes)
    parsed = [rule.strip() for rule in rules.split(",")]
    parse_rules(parsed)  # before a model is built
    with named_inputs(source, shapes), flags_for_keywords(context):
        result = lighten_with_report(
            build_model(source, seed), parsed, inputs, only=only or (), exclude=exclude or (),
            kernels=kernels or (), min_channels=min_channels, min_share=min_share, ends=ends, fresh=fresh,
            data=batches, seed=seed)
    if out is not None:
        note_random_weights(source)
    saved = None if out is None else str(torchslim.save(result.model, out, plan=result.steps, source=source))
    if as_json:
        print_json({"model": str(source), "out": saved, **result.to_dict()})
        return
    print_fitted(list(result.layers), _columns())
    print(_total(result))
    if saved is not None:
        print(f"saved: {saved}")


def _columns() -> list[Column]:
    """A rewritten layer: before and after."""
    def cost(key: str, index: int) -> Any:
        def value(layer: RewrittenLayer) -> int:
            before_and_after: tuple[int, int] = getattr(layer, key)
            return before_and_after[index]

        return value

    return [Column("layer", "layer", lambda row: row.layer), Column("rule", "rule", lambda row: row.rule, rank=4),
            Column("before", "before", lambda row: row.before, rank=2),
            Column("after", "after", lambda row: row.after, rank=1),
            Column("params", "params", cost("params", 0), "{:,}".format, 3),
            Column("new params", "then", cost("params", 1), "{:,}".format, 3),
            Column("macs", "MACs", cost("macs", 0), "{:,}".format, 2),
            Column("new macs", "then", cost("macs", 1), "{:,}".format, 2),
            Column("error", "error", lambda row: row.error, lambda error: "-" if error is None else f"{error:.3f}")]


def _total(result: LightenResult) -> str:
    """The network as a whole, and the layers that were left alone."""
    assert result.macs is not None
    lines = [f"{what}: {before:,} -> {after:,} ({percent(after / max(before, 1))})"
             for what, (before, after) in (("parameters", result.params), ("MACs", result.macs))]
    return "\n".join([*lines, *result.remarks()])
