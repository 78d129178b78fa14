"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

import os
import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.errors import RequestError
from torchslim.utils.text import describe_error, quoted

if TYPE_CHECKING:
    from torchslim.zoo.sources import Source

Model = Annotated[str, typer.Argument(
    metavar="MODEL", show_default=False,
    help="torchslim:NAME, torchvision:NAME, timm:NAME, a bare NAME (the first of these that has it), "
         "package.module:factory, file.py:factory, or the path of a saved slim model; options after a question mark.")]
Shapes = Annotated[list[str] | None, typer.Option(
    "--input", metavar="SHAPE", show_default=False,
    help="Input shape, 1x3x224x224; again for each further input; default: one image of its usual size.")]
DATA_FORMS = ("digits, folder:PATH, masks:PATH, coco:IMAGES@FILE.json, yolo:FILE.yaml, csv:FILE, hf:NAME, shapes:TASK, "
              "torchvision:NAME@ROOT, package.module:factory or file.py:factory")
"""Of --data, as `torchslim.train.datasets.registry` has them; importing that would import torch."""
MAX_VALUES = 2**31
"""Of an input: 8 GiB, more than any network takes."""
MAX_THREADS = 1024
PICTURES = 256
Pictures = Annotated[int | None, typer.Option(
    "--pictures", min=1, show_default=False, help=f"So many pictures of --data, if not {PICTURES}.")]
Latency = Annotated[str | None, typer.Option(
    "--latency", metavar="AMOUNT", show_default=False,
    help="Measured time of a call to keep: a share (0.5, 50%) or a time (3ms, 250us). Exit status 1: it is missed.")]
Backend = Annotated[str | None, typer.Option(
    "--backend", metavar="NAME", show_default=False,
    help="Where the slim model is to be fast, and is timed: eager, channels-last, compiled, onnxruntime, openvino or "
         "cuda; with other budgets alone they are met by cuts that save time there. For --latency: eager.")]
Memory = Annotated[str | None, typer.Option(
    metavar="AMOUNT", show_default=False,
    help="Peak of activations to keep: a share (0.5, 50%) or bytes (1500000, 1.5M).")]
Only = Annotated[list[str] | None, typer.Option(
    metavar="PATTERN", show_default=False,
    help="Cut only the output channels of layers of this name: 'layer1.*'; again for each further pattern.")]
Exclude = Annotated[list[str] | None, typer.Option(
    metavar="PATTERN", show_default=False,
    help="Do not cut the output channels of layers of this name; again for each further pattern.")]
Shortcuts = Annotated[bool, typer.Option(help="Also cut channels that shortcuts share.")]
Nearest = Annotated[bool, typer.Option(
    "--nearest", help="Where a budget can't be met, take the nearest that can, with as little cut as gives it.")]
Json = Annotated[bool, typer.Option("--json", help="Print data, and nothing else, on stdout.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of every random choice.")]


def given_options(context: typer.Context) -> list[str]:
    """The options that stand on the command line, in the order of the help, as they are spelt there."""
    given = [option for option in context.command.params if option.opts[0].startswith("-")
             and getattr(context.get_parameter_source(str(option.name)), "name", "") == "COMMANDLINE"]
    return [option.secondary_opts[0] if option.secondary_opts and not context.params[str(option.name)]
            else option.opts[0] for option in given]


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def shape(text: str) -> tuple[int, ...]:
    """`1x3x224x224` as numbers.

    Raises:
        RequestError: anything else.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text, re.ASCII):
        raise RequestError(f"--input {quoted(text)}: no shape; wanted sizes joined by x, such as 1x3x224x224")
    sizes = tuple(int(size) for size in text.split("x"))
    if prod(sizes) > MAX_VALUES:
        raise RequestError(f"--input {text}: {prod(sizes):,} values, at most {MAX_VALUES:,} wanted; give a smaller "
                           "one, such as 1x3x224x224")
    return sizes


def amount(option: str, text: str | None) -> float | int | None:
    """What is to be kept: `0.5` or `50%` a share, `1500000` or `1.5M` a count.

    Raises:
        RequestError: anything else, or a share that is not above 0 and at most 1.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)?(\.\d*)?([KMG%]?)", text.strip(), re.IGNORECASE)
    number = float((match[1] or "0") + (match[2] or "")) if match and (match[1] or match[2]) else 0.0
    if not match or number <= 0:
        raise RequestError(f"{option} {quoted(text)}: wanted a share such as 0.5 or 50%, or a count such as 1500000 "
                           "or 1.5M")
    unit = match[3].upper()
    if unit == "%" or (not unit and match[2] is not None):
        share = number / 100 if unit else number
        if share > 1:
            raise RequestError(f"{option} {text}: a share above 1; wanted at most 1.0, or a count without a "
                               "point")
        return share
    return round(number * _UNITS[unit])


def duration(option: str, text: str | None) -> float | int | None:
    """What is to be kept of the time: `0.5` or `50%` a share, `3ms` or `250us` nanoseconds.

    Raises:
        RequestError: anything else.
    """
    from torchslim.latency.target import parse_latency

    if text is None:
        return None
    try:
        kept = parse_latency(text) if text.strip().lower().endswith("s") else amount(option, text)
    except RequestError:
        kept = None
    if kept is None or (isinstance(kept, int) and text.strip()[-1] != "s"):
        raise RequestError(f"{option} {quoted(text)}: wanted a share such as 0.5 or 50%, or a time with its unit such "
                           "as 3ms, 250us or 0.1s")
    return kept


def parse_scope(text: str) -> str | dict[str, float]:
    """A scope by its name, or layer patterns and shares as JSON, or in a file of JSON.

    Raises:
        RequestError: anything else.
    """
    from torchslim.pipeline.settings import parse_shares

    if text in ("global", "uniform"):
        return text
    if text.startswith("{"):
        return parse_shares(text)
    try:
        shares = Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"--scope {quoted(text)}: {describe_error(error)}; wanted global, uniform, or a JSON file "
                           "of layer patterns and the share of channels that each keeps") from error
    try:
        return parse_shares(shares)
    except RequestError as error:
        raise RequestError(f"--scope {quoted(text)}: {error.args[0].partition(': ')[2]}") from error


def fraction(text: str | float) -> float:
    """`0.1` or `10%`, from 0 to 1: how an option reads its text.

    Raises:
        BadParameter: anything else.
    """
    text = str(text).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{quoted(text)}: wanted a share from 0 to 1, such as 0.1 or 10%")
    return share


SkipBroken = Annotated[float | None, typer.Option(
    "--skip-broken", parser=fraction, metavar="SHARE", show_default="0: any is refused",
    help="Leave out pictures of --data that can't be read, with their labels, up to this share of all: 0.02, 2%.")]


def fractions(option: str, text: str, example: str, zero: bool = True) -> tuple[float, ...]:
    """Shares that are joined by commas; `zero` is whether 0 is one.

    Raises:
        RequestError: anything else; the message says what was wanted by an example.
    """
    try:
        shares = tuple(fraction(part) for part in text.split(","))
    except typer.BadParameter:
        shares = ()
    if not shares or not (zero or all(shares)):
        raise RequestError(f"{option} {quoted(text)}: wanted {example}")
    return shares


def check_out(out: Path, source: Source) -> None:
    """Check, before the work for it, that a model made of another can be saved to this file.

    Raises:
        RequestError: its folder does not exist, it is a folder itself, its name is not that of a saved model, or the
            other model comes from it.
    """
    from torchslim.zoo.misplaced_files import SAVED_SUFFIX

    if not out.parent.is_dir():
        raise RequestError(f"--out {out}: lies in a folder that does not exist; make {out.parent} first")
    if not os.access(out.parent, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise RequestError(f"--out {out}: may not be written by this user; choose another place")
    if out.is_dir():
        raise RequestError(f"--out {out}: is a folder; wanted the name of a file, such as {out / 'slim.safetensors'}")
    if out.suffix != SAVED_SUFFIX:
        raise RequestError(f"--out {out}: models are saved as {SAVED_SUFFIX}, the suffix by which saved models are "
                           f"recognised; try {out.with_suffix(SAVED_SUFFIX)}")
    read = [source.name] if source.kind == "saved" else [source.options.get("checkpoint")]
    if out.exists() and any(isinstance(path, str) and Path(path).exists() and out.samefile(path) for path in read):
        raise RequestError(f"--out {out}: is what the model is read from, and would be lost; try "
                           f"{out.with_stem(f'{out.stem}-2')}")
