"""`export`: a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchslim.cli.common import Model, Shapes, example


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)


def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False,
                                        help="The file: .onnx, .pt2 (torch.export) or .xml (OpenVINO).")],
    shapes: Shapes = None,
    tolerance: Annotated[float | None, typer.Option(
        show_default=False, help="Largest difference to the eager model, as a share of its output.")] = None,
    dynamic_batch: Annotated[bool, typer.Option(
        "--dynamic-batch", help="Let the batch take any size.")] = False,
) -> None:
    """Write a model for another runtime, checked there."""
    from torchslim.deploy.exporting import export as write
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    done = write(build(source), example(source, shapes), out, tolerance=tolerance,
                 dynamic_batch=dynamic_batch)
    print(f"{done.path}: differs from the eager model by {done.error:.1e} of its largest output")
