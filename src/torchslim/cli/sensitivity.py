"""`sensitivity`: how well a network does with less of one group's channels, group by group; the shares that follow."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import (
    PICTURES,
    Json,
    Model,
    Pictures,
    Seed,
    Shapes,
    fraction,
    print_json,
    say,
    seeded,
    shape,
    warn_of_random,
    wrapped,
)
from torchslim.cli.prune import Exclude, Only
from torchslim.cli.tables import Column, show
from torchslim.errors import RequestError
from torchslim.utils.text import describe_error, format_shape

if TYPE_CHECKING:
    from torch import nn

    from torchslim.planning.sensitivity import Measured, Sensitivity
    from torchslim.train import Data

BLOCKS = "\N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\N{LOWER HALF BLOCK}" \
         "\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
BAR = 12
"""Characters of the longest bar."""
NOTES, RESULT, CHART, SHARES = "measured.json", "sensitivity.json", "sensitivity.svg", "shares.json"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sensitivity)


def sensitivity(
    model: Model,
    data: Annotated[str, typer.Option("--data", metavar="DATA", show_default=False, help=(
        "Measured on what is held out of digits, folder:PATH, torchvision:NAME@ROOT, package.module:factory or "
        "file.py:factory."))],
    ratios: Annotated[str, typer.Option(metavar="SHARE,...", help="Shares of a group's channels that are kept.")] =
        "0.9,0.7,0.5,0.3,0.1",
    importance: Annotated[str, typer.Option(
        help="Which channels of a group go first, as for prune.")] = "l2",
    measure: Annotated[str, typer.Option(
        metavar="accuracy|agreement|error", help="Of the labels, with the whole network's own answers, or of the "
        "outputs.")] = "accuracy",
    drop: Annotated[float, typer.Option(min=0, help=(
        "The most that a group may lose by itself, for the shares that follow: 0.01 is a point."))] = 0.01,
    pictures: Pictures = None,
    only: Only = None,
    exclude: Exclude = None,
    shortcuts: Annotated[bool, typer.Option(help="Also cut channels that shortcuts share.")] = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", show_default=False, help=(
        f"Keeps what is measured, so that the same command goes on after an interruption; then {RESULT}, {CHART} and "
        f"{SHARES}."))] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what was measured in this folder.")] = False,
    seed: Seed = 0,
    shapes: Shapes = None,
    as_json: Json = False,
) -> None:
    """Cut each channel group by itself to several widths, and measure what is left.

    Says which layers can do without most of their channels, and which without few.
    The shares that follow are a scope for plans:
    torchslim prune MODEL --scope FOLDER/shares.json --out slim.safetensors
    """
    from torchslim.importance import criterion
    from torchslim.planning import sensitivity as sensing
    from torchslim.train import labelled
    from torchslim.train.losses import cross_entropy
    from torchslim.zoo.sources import resolve

    asked = _ratios(ratios)
    source = resolve(model)
    found = _data(data, shapes, seed)
    network = seeded(source, seed)
    warn_of_random(source)
    held_out = labelled(replace(found, train=found.test), pictures or PICTURES, seed)
    inputs = held_out[0][0][:1]
    if measure == "accuracy":
        _check_classes(network, inputs, found, str(source))
    notes = None if out is None else _folder(out, restart) / NOTES
    result = sensing.sensitivity(
        network, inputs, held_out, ratios=asked, importance=importance, measure=measure, only=only or (),
        exclude=exclude or (), shortcuts=shortcuts, seed=seed, checkpoint=notes, progress=Line(),
        scoring=labelled(found, PICTURES, seed) if criterion(importance).needs_data else None, loss=cross_entropy())
    if out is not None:
        _keep(result, out, drop)
    if as_json:
        print_json({"model": str(source), **result.to_dict(), "drop": drop, "shares": result.shares(drop)})
    else:
        _print(result, drop, out)


def _ratios(text: str) -> list[float]:
    try:
        return [fraction(part) for part in text.split(",")]
    except typer.BadParameter:
        raise RequestError(f"--ratios {text}: wanted shares of channels kept, such as 0.9,0.5,0.1 or "
                           "90%,50%,10%") from None


def _data(spec: str, shapes: list[str] | None, seed: int) -> Data:
    from torchslim.train import load_data

    sizes = [shape(text) for text in shapes or []]
    if len(sizes) > 1 or any(len(size) != 4 or size[2] != size[3] for size in sizes):
        raise RequestError(f"--data {spec}: its pictures are square, one at a time; wanted no --input, or one such as "
                           "1x3x64x64")
    return load_data(spec, size=sizes[0][2] if sizes else None, seed=seed)


def _check_classes(network: nn.Module, inputs: Any, data: Data, name: str) -> None:
    """Accuracy means nothing where the scores are of other classes than the data's."""
    import torch

    from torchslim.train.losses import logits
    from torchslim.utils.eval_mode import evaluating

    try:
        with torch.no_grad(), evaluating(network):
            scores = logits(network(inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        raise RequestError(f"{name}: fails on a picture of {format_shape(inputs.shape)}: {describe_error(error)}; "
                           "try another --input") from error
    if scores.dim() != 2 or scores.shape[1] != len(data.classes):
        raise RequestError(f"{name}: gives scores of shape {format_shape(scores.shape)} for a picture, "
                           f"{data.name} has {len(data.classes)} classes; give a model of as many, or --measure "
                           "agreement, which compares answers with the whole network's own")


def _folder(out: Path, restart: bool) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out {out}: can't be used ({error.strerror}); choose another folder") from error
    for name in (NOTES, RESULT, CHART, SHARES) if restart else ():
        (out / name).unlink(missing_ok=True)
    return out


def _keep(result: Sensitivity, out: Path, drop: float) -> None:
    from torchslim.utils.files import write_text

    write_text(out / RESULT, result.to_json())
    write_text(out / CHART, result.svg())
    write_text(out / SHARES, json.dumps(result.shares(drop), indent=1))


# --- on the terminal ----------------------------------------------------------------------------------------

class Line:
    """Progress on stderr: on a terminal one line that changes, else a line for each group."""

    def __call__(self, at: Measured) -> None:
        """Say how far it is."""
        text = f"{at.done}/{at.total} {at.group}: {at.kept} of {at.channels} channels: {at.value:.3f}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="" if at.done < at.total else "\n", file=sys.stderr, flush=True)
        else:
            say(text)


def _print(result: Sensitivity, drop: float, out: Path | None) -> None:
    from torchslim.planning.sensitivity.result import shown

    print(wrapped(f"{result.measure} {shown(result, result.base)} as it is, on {result.items:,} answers; with a share "
                  "of one group's channels, the others whole:"))

    def value(at: int) -> Any:
        return lambda group: group.values[at]

    columns = [Column("group", "group", lambda group: group.name),
               Column("channels", "channels", lambda group: group.channels, "{:,}".format, 1),
               *(Column(f"at {ratio:g}", f"{ratio:g}", value(at), lambda number: shown(result, number), 2)
                 for at, ratio in enumerate(result.ratios)),
               Column("curve", "curve", lambda group: _curve(result, group.values), rank=3),
               Column("least", "needs", lambda group: result.least(group, drop),
                      lambda share: f"{_bar(share)} {share:>4.0%}")]
    show(list(result.groups), columns)
    of = f"{drop:g} of relative error" if result.measure == "error" else f"{100 * drop:g} point{'s' * (drop != 0.01)}"
    print(wrapped(f"needs: the least share of its channels at which a group by itself loses no more than {of}."))
    if result.left_alone:
        print(f"left alone: {len(result.left_alone)} channel groups (--json lists them with their reasons)")
    if out is not None:
        print(f"drawn: {out / CHART}")
        print(f"shares: {out / SHARES}, for prune --scope")


def _curve(result: Sensitivity, values: tuple[float, ...]) -> str:
    """What is left at each ratio, of what the whole network has, in eighths of a line."""
    left = [1 - result.loss(value) / (1 if result.measure == "error" else result.base or 1) for value in values]
    return "".join(BLOCKS[min(7, max(0, round(7 * share)))] for share in left)


def _bar(share: float) -> str:
    full = max(1, round(BAR * share))
    return "\N{FULL BLOCK}" * full + "\N{LIGHT SHADE}" * (BAR - full)
