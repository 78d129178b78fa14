"""`models`: the names of the models that can be built."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated

import typer

from torchslim.cli.options import Json
from torchslim.cli.output import print_json
from torchslim.errors import RequestError
from torchslim.utils.text import did_you_mean, quoted


def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Shell-style: 'mobilenet*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List the names of the models that can be built.

    A name without its library in front is torchslim's own, else torchvision's, else timm's.
    """
    from torchslim.zoo.libraries import LIBRARIES
    from torchslim.zoo.sources import list_models

    library, colon, _ = pattern.partition(":")
    if colon and not any(fnmatchcase(name, library) for name in LIBRARIES):
        raise RequestError(f"{quoted(pattern)}: no library of that name; {did_you_mean(library, LIBRARIES)}")
    names = list_models(pattern)
    if not names:
        hint = did_you_mean(pattern, list_models("*"), "give a pattern such as 'mobilenet*', or none to list all")
        raise RequestError(f"{quoted(pattern)}: no name matches; {hint}")
    if as_json:
        print_json(names)
    elif names:
        print("\n".join(names))
