"""`recipes`: the published results that `slim --recipe` goes after."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from torchslim.cli.common import Json, print_json, wrapped


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(recipes)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME|FILE", show_default=False, help=(
        "Print this recipe's file, to change and to run as one's own."))] = None,
    as_json: Json = False,
) -> None:
    """List the published results whose settings are shipped, or print one of them.

    Run one with torchslim slim --recipe NAME --out FOLDER; all options of `slim`
    change it.
    """
    from torchslim.pipeline import recipes as shipped

    if as_json:
        print_json([_data(shipped.read(each)) for each in ([name] if name else shipped.names())])
    elif name:
        print(shipped.text_of(name), end="")
    else:
        for each in shipped.names():
            found = shipped.read(each)
            print(each)
            print(wrapped(found.title, "    "))
            print(wrapped("; ".join(f"{what} {figure}" for what, figure in found.published.items()), "    "))
            print(wrapped(f"{found.paper.partition(':')[0]}, {found.url}", "    "))


def _data(found: Any) -> dict[str, Any]:
    return {"name": found.name, "title": found.title, "paper": found.paper, "url": found.url,
            "published": dict(found.published), "differs": list(found.differs),
            "settings": {key: list(value) if isinstance(value, tuple) else value
                         for key, value in found.settings.items()}}
