"""What the commands share: arguments, example inputs, output."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchslim.zoo.sources import Source

Model = Annotated[str, typer.Argument(
    metavar="MODEL", show_default=False,
    help="torchslim:NAME, torchvision:NAME, timm:NAME, a bare NAME (the first of these that has it), "
         "package.module:factory, file.py:factory, or the path of a saved slim model; options after a question mark.")]
Shapes = Annotated[list[str] | None, typer.Option(
    "--input", metavar="SHAPE", show_default=False,
    help="Input shape, 1x3x224x224; again for each further input; default: one image of its usual size.")]
PICTURES = 256
Pictures = Annotated[int | None, typer.Option(
    "--pictures", min=1, show_default=False, help=f"So many pictures of --data, if not {PICTURES}.")]
Time = Annotated[str | None, typer.Option(
    "--latency", metavar="AMOUNT", show_default=False,
    help="Measured time of a call to keep: a share (0.5, 50%) or a time (3ms, 250us).")]
Backend = Annotated[str | None, typer.Option(
    "--backend", metavar="NAME", show_default=False,
    help="Where the slim model is to be fast, and is timed: eager, channels-last, compiled, onnxruntime, openvino or "
         "cuda; with other budgets alone they are met by cuts that save time there. For --latency: eager.")]
Json = Annotated[bool, typer.Option("--json", help="Print data, and nothing else, on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def shape(text: str) -> tuple[int, ...]:
    """`1x3x224x224` as numbers.

    Raises:
        RequestError: anything else.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise RequestError(f"--input {text}: no shape; wanted sizes joined by x, such as 1x3x224x224")
    return tuple(int(size) for size in text.split("x"))


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
        raise RequestError(f"{option} {text}: wanted a share such as 0.5 or 50%, or a count such as 1500000 "
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
        found = parse_latency(text) if text.strip().lower().endswith("s") else amount(option, text)
    except RequestError:
        found = None
    if found is None or (isinstance(found, int) and text.strip()[-1] != "s"):
        raise RequestError(f"{option} {text}: wanted a share such as 0.5 or 50%, or a time with its unit such as 3ms, "
                           "250us or 0.1s")
    return found


def fraction(text: str | float) -> float:
    """`0.1` or `10%`, from 0 to 1: how an option reads its text.

    Raises:
        BadParameter: anything else.
    """
    written = str(text).strip()
    try:
        found = float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise typer.BadParameter(f"{text}: wanted a share from 0 to 1, such as 0.1 or 10%")
    return found


def check_out(out: Path) -> None:
    """Raise for a file that could not be written, before the work for it.

    Raises:
        RequestError: its folder does not exist, it is a folder itself, or its name is not that of a saved model.
    """
    from torchslim.zoo.sources import SAVED_SUFFIX

    if not out.parent.is_dir():
        raise RequestError(f"--out {out}: lies in a folder that does not exist; make {out.parent} first")
    if out.is_dir():
        raise RequestError(f"--out {out}: is a folder; wanted the name of a file, such as {out / 'slim.safetensors'}")
    if out.suffix != SAVED_SUFFIX:
        raise RequestError(f"--out {out}: models are saved as {SAVED_SUFFIX}, by which they are known when they are "
                           f"read; try {out.with_suffix(SAVED_SUFFIX)}")


def seeded(source: Source, seed: int) -> nn.Module:
    """The model of a source; its random weights, if it has some, are those of the seed."""
    import torch

    from torchslim.store.loading import build

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(source)


def warn_of_random(source: Source) -> None:
    """A remark where a library's network has random weights."""
    if source.kind in ("torchvision", "torchslim", "timm") and not source.options.get("weights"):
        from torchslim.zoo.libraries import has_weights

        trained = "; ?weights=DEFAULT asks for trained ones" if has_weights(source.kind, source.name) else ""
        say(f"note: {source} has random weights{trained}")


def example(source: Source, shapes: Sequence[str] | None, seed: int = 0, batch: int | None = None) -> Any:
    """Random inputs for a model: of the shapes given, or one image of its usual size; `batch` of them, if asked for.

    Detectors take a list of images without a batch dimension.
    """
    import torch

    from torchslim.store.loading import default_input

    sizes = [shape(text) for text in shapes or []] or [(1, *default_input(source))]
    detects = _is_detector(source)
    if batch is not None:
        sizes = [(batch, *(size if detects and len(size) == 3 else size[1:])) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.rand(size, generator=generator) for size in sizes]
    if detects:
        return [image for tensor in tensors for image in (tensor if tensor.ndim == 4 else [tensor])]
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def pictures_of(data: str | None, shapes: list[str] | None, count: int | None,
                seed: int) -> list[tuple[Tensor, Tensor]] | None:
    """Batches of pictures and their classes, of the size of --input or their own; None without data.

    Raises:
        RequestError: unknown data, an input that is no square picture, a number of pictures of no data.
    """
    from torchslim.train import labelled, load_data

    if data is None:
        if count is not None:
            raise RequestError(f"--pictures {count}: of no data; give --data, such as --data digits, or leave it out")
        return None
    sizes = [shape(text) for text in shapes or []]
    if len(sizes) > 1 or any(len(size) != 4 or size[2] != size[3] for size in sizes):
        raise RequestError(f"--data {data}: its pictures are square, one at a time; wanted no --input, or one such as "
                           "1x3x64x64")
    found = load_data(data, size=sizes[0][2] if sizes else None, seed=seed)
    return labelled(found, count or PICTURES, seed)


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 120 columns that fit the terminal; what stands between backticks stays on one."""
    whole = re.sub("`[^`]+`", lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.fill(whole, min(shutil.get_terminal_size().columns, 120), initial_indent=indent,
                          subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def say(message: str) -> None:
    """A remark to the user, on stderr."""
    print(message, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """Data on stdout."""
    print(json.dumps(data, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[int] = (0,),
                tight: bool = False, width: int | None = None) -> None:
    """A table on stdout: these columns are text, by default the first, and the others are numbers.

    Two spaces are between columns if `tight`, else three. It folds at the terminal's width, or at `width`.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if tight else 1, 0, 1))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in text else "right", overflow="fold",
                         no_wrap=place not in text)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, width=width).print(table)


def _is_detector(source: Source) -> bool:
    from torchslim.zoo.sources import is_library, resolve

    if source.kind == "saved":
        from torchslim.store.header import read_header

        origin = read_header(source.name).source
        return bool(origin) and is_library(str(origin)) and _is_detector(resolve(str(origin)))
    if source.kind != "torchvision":
        return False
    from torchvision import models

    return source.name in models.list_models(module=models.detection)
