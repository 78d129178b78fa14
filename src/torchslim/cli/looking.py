"""`models` and `profile`: what there is, and what it costs."""

from __future__ import annotations

from typing import Annotated

import typer

from torchslim.cli.common import Json, Model, Shapes, example, print_json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(models)
    app.command()(profile)


def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Shell-style: 'mobilenet*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List the names of the models that can be built."""
    from torchslim.sources import list_models

    names = list_models(pattern)
    if as_json:
        print_json(names)
    elif names:
        print("\n".join(names))


def profile(model: Model, shapes: Shapes = None, as_json: Json = False) -> None:
    """Count a model's parameters and multiply-adds, layer by layer."""
    import torchslim
    from torchslim.sources import build, resolve

    source = resolve(model)
    found = torchslim.profile(build(source), example(source, shapes))
    if not as_json:
        print(found)
        return
    print_json({
        "model": str(source), "params": found.params, "trainable": found.trainable, "macs": found.macs,
        "flops": found.flops,
        "layers": [{"name": layer.name, "kind": layer.kind, "params": layer.params, "macs": layer.macs,
                    "in_shape": layer.in_shape, "out_shape": layer.out_shape} for layer in found.layers],
    })
