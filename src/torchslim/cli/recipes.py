"""`recipes`: the published results that `slim --recipe` reproduces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.options import Json
from torchslim.cli.output import print_json, wrapped

if TYPE_CHECKING:
    from torchslim.pipeline.recipes import Recipe


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME|FILE", show_default=False, help=(
        "Print this recipe's file, to change and to run as one's own."))] = None,
    as_json: Json = False,
) -> None:
    """List the published results whose settings are shipped, or print one of them.

    Run one with torchslim slim --recipe NAME --out FOLDER; all options of `slim`
    change it.
    """
    from torchslim.pipeline import recipes as library

    if as_json:
        print_json([_data(library.read(each)) for each in ([name] if name else library.names())])
    elif name:
        print(library.text_of(name), end="")
    else:
        for each in library.names():
            recipe = library.read(each)
            print(each)
            print(wrapped(recipe.title, "    "))
            if recipe.published:
                print(wrapped("; ".join(f"{what} {figure}" for what, figure in recipe.published.items()), "    "))
            print(wrapped(f"{recipe.paper.partition(':')[0]}, {recipe.url}", "    "))


def _data(recipe: Recipe) -> dict[str, Any]:
    return {"name": recipe.name, "title": recipe.title, "paper": recipe.paper, "url": recipe.url,
            "published": dict(recipe.published), "differs": list(recipe.differs),
            "settings": {key: list(value) if isinstance(value, tuple) else value
                         for key, value in recipe.settings.items()}}
