"""`models`: the names of the models that can be built."""

from __future__ import annotations

from typing import Annotated

import typer

from torchslim.cli.options import Json
from torchslim.cli.output import print_json


def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Shell-style: 'mobilenet*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List the names of the models that can be built.

    A name without its library in front is torchslim's own, else torchvision's, else timm's.
    """
    from torchslim.zoo.sources import list_models

    names = list_models(pattern)
    if as_json:
        print_json(names)
    elif names:
        print("\n".join(names))
