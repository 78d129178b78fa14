"""`sensitivity`: accuracy with fewer channels of one group, group by group, and the shares to keep."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.loading import (
    build_model,
    channels_of_pictures,
    named_inputs,
    note_random_weights,
    picture_size,
)
from torchslim.cli.options import (
    DATA_FORMS,
    PICTURES,
    Exclude,
    Json,
    Model,
    Only,
    Pictures,
    Seed,
    Shapes,
    Shortcuts,
    SkipBroken,
    fractions,
)
from torchslim.cli.output import print_json, say, wrapped
from torchslim.cli.tables import Column, print_fitted
from torchslim.cli.usage import flags_for_keywords
from torchslim.errors import RequestError
from torchslim.utils.text import describe_error, did_you_mean, format_shape, quoted

if TYPE_CHECKING:
    from torch import nn

    from torchslim.planning.sensitivity import Measured, Sensitivity
    from torchslim.train import Data as Dataset

BLOCKS = "\N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\N{LOWER HALF BLOCK}" \
         "\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
BAR = 12  # characters of the longest bar
MEASUREMENTS, RESULT, CHART, SHARES = "measured.json", "sensitivity.json", "sensitivity.svg", "shares.json"

Data = Annotated[str, typer.Option("--data", metavar="DATA", show_default=False, help=(
    f"Measured on what is held out of {DATA_FORMS}."))]
Measure = Annotated[str, typer.Option(metavar="accuracy|agreement|error", help=(
    "Of the labels, with the whole network's own answers, or of the outputs."))]
Drop = Annotated[float, typer.Option(min=0, help=(
    "The most that a group may lose by itself, for the resulting shares: 0.01 is a point."))]
Out = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", show_default=False, help=(
    f"Stores the measurements, so that the same command continues after an interruption; then {RESULT}, {CHART} and "
    f"{SHARES}."))]


def sensitivity(
    context: typer.Context,
    model: Model,
    data: Data,
    ratios: Annotated[str, typer.Option(metavar="SHARE,...", help="Shares of a group's channels that are kept.")] =
        "0.9,0.7,0.5,0.3,0.1",
    importance: Annotated[str, typer.Option(help="Which channels of a group go first, as for prune.")] = "auto",
    measure: Measure = "accuracy",
    drop: Drop = 0.01,
    pictures: Pictures = None,
    skip_broken: SkipBroken = None,
    only: Only = None,
    exclude: Exclude = None,
    shortcuts: Shortcuts = True,
    out: Out = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete the measurements in this folder first.")] = False,
    seed: Seed = 0,
    shapes: Shapes = None,
    as_json: Json = False,
) -> None:
    """Cut each channel group by itself to several widths, and measure the network.

    Says which layers can do without most of their channels, and which without few.
    The resulting shares are a scope for plans:
    torchslim prune MODEL --scope FOLDER/shares.json --out slim.safetensors
    """
    from torchslim.importance import criterion
    from torchslim.planning.sensitivity import sensitivity as measure_groups
    from torchslim.train import labelled, load_data
    from torchslim.train.losses import cross_entropy
    from torchslim.zoo.sources import resolve

    _check(measure, drop, restart and out is None)
    kept = fractions("--ratios", ratios, "shares of channels kept, such as 0.9,0.5,0.1 or 90%,50%,10%",
                     zero=False)
    with flags_for_keywords(context):
        ranking = criterion(importance)
    source = resolve(model)
    size = picture_size(data, shapes)
    with flags_for_keywords(context):
        dataset = load_data(data, size=size, seed=seed, channels=channels_of_pictures(source, shapes),
                            skip_broken=skip_broken or 0.0)
    network = build_model(source, seed)
    held_out = labelled(replace(dataset, train=dataset.test), pictures or PICTURES, seed)
    inputs = held_out[0][0][:1]
    if measure == "accuracy":
        _check_classes(network, inputs, dataset, str(source))
    checkpoint = None if out is None else _prepare_folder(out, restart) / MEASUREMENTS
    with named_inputs(source, shapes), flags_for_keywords(context):
        result = measure_groups(
            network, inputs, held_out, ratios=kept, importance=importance, measure=measure, only=only or (),
            exclude=exclude or (), shortcuts=shortcuts, seed=seed, checkpoint=checkpoint, progress=_print_progress,
            scoring=labelled(dataset, PICTURES, seed) if ranking.looks_at_data else None, loss=cross_entropy())
    note_random_weights(source)
    if out is not None:
        _write(result, out, drop)
    if as_json:
        print_json({"model": str(source), **result.to_dict(), "drop": drop, "shares": result.shares(drop)})
    else:
        _print(result, drop, out)


def _check(measure: str, drop: float, restart_alone: bool) -> None:
    """Refuse values out of range before any work."""
    from torchslim.planning.sensitivity.result import MEASURES

    if measure not in MEASURES:
        raise RequestError(f"--measure {quoted(measure)}: {did_you_mean(measure, MEASURES)}")
    if not drop < math.inf:
        raise RequestError(f"--drop {drop}: wanted a number, 0 or more, such as 0.01")
    if restart_alone:
        raise RequestError("--restart: deletes the measurements in a folder, and there is none; give --out FOLDER, or "
                           "leave it out")


def _check_classes(network: nn.Module, inputs: Any, data: Dataset, name: str) -> None:
    """Refuse a model whose classes are not the data's: accuracy would mean nothing."""
    import torch

    from torchslim.train.losses import answer
    from torchslim.utils.eval_mode import evaluating

    try:
        with torch.no_grad(), evaluating(network):
            scores = answer(network(inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        raise RequestError(f"{name}: fails on a picture of {format_shape(inputs.shape)}: {describe_error(error)}; "
                           "try another --input") from error
    if scores.dim() != 2 or scores.shape[1] != len(data.classes):
        raise RequestError(f"{name}: gives scores of shape {format_shape(scores.shape)} for a picture, "
                           f"{data.name} has {len(data.classes)} classes; give a model of as many, or --measure "
                           "agreement, which compares answers with the whole network's own")


def _prepare_folder(out: Path, restart: bool) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out {out}: can't be used ({error.strerror}); choose another folder") from error
    for name in (MEASUREMENTS, RESULT, CHART, SHARES) if restart else ():
        (out / name).unlink(missing_ok=True)
    return out


def _write(result: Sensitivity, out: Path, drop: float) -> None:
    from torchslim.utils.files import write_text

    write_text(out / RESULT, result.to_json())
    write_text(out / CHART, result.svg())
    write_text(out / SHARES, json.dumps(result.shares(drop), indent=1))


def _print_progress(measured: Measured) -> None:
    """On a terminal one line that is overwritten, else a line for each measurement."""
    text = (f"{measured.done}/{measured.total} {measured.group}: {measured.kept} of {measured.channels} channels: "
            f"{measured.value:.3f}")
    if sys.stderr.isatty():
        last = measured.done == measured.total
        print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    else:
        say(text)


def _print(result: Sensitivity, drop: float, out: Path | None) -> None:
    from torchslim.planning.sensitivity.result import shown

    print(wrapped(f"{result.measure} {shown(result, result.base)} as it is, on {result.items:,} answers; with a share "
                  "of one group's channels, the others whole:"))

    def value(index: int) -> Any:
        return lambda group: group.values[index]

    columns = [Column("group", "group", lambda group: group.name),
               Column("channels", "channels", lambda group: group.channels, "{:,}".format, 1),
               *(Column(f"at {ratio:g}", f"{ratio:g}", value(index), lambda number: shown(result, number), 2)
                 for index, ratio in enumerate(result.ratios)),
               Column("curve", "curve", lambda group: _curve(result, group.values), rank=3),
               Column("least", "needs", lambda group: result.least(group, drop),
                      lambda share: f"{_bar(share)} {share:>4.0%}")]
    print_fitted(list(result.groups), columns)
    loss = f"{drop:g} of relative error" if result.measure == "error" else f"{100 * drop:g} point{'s' * (drop != 0.01)}"
    print(wrapped(f"needs: the least share of its channels at which a group by itself loses no more than {loss}."))
    if result.left_alone:
        print(f"left alone: {len(result.left_alone)} channel groups (--json lists them with their reasons)")
    if out is not None:
        print(f"drawn: {out / CHART}")
        print(f"shares: {out / SHARES}, for prune --scope")


def _curve(result: Sensitivity, values: tuple[float, ...]) -> str:
    """The measure at each ratio as a share of the whole network's, in eighths of a line's height."""
    left = [1 - result.loss(value) / (1 if result.measure == "error" else result.base or 1) for value in values]
    return "".join(BLOCKS[min(7, max(0, round(7 * share)))] for share in left)


def _bar(share: float) -> str:
    full = max(1, round(BAR * share))
    return "\N{FULL BLOCK}" * full + "\N{LIGHT SHADE}" * (BAR - full)
