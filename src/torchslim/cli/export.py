"""`export`: a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchslim.cli.loading import example_inputs
from torchslim.cli.options import Model, Shapes


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
    """Write a model for another runtime, and compare it there with the eager model."""
    from torchslim.deploy.exporting import export as write
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    exported = write(build(source), example_inputs(source, shapes), out, tolerance=tolerance,
                     dynamic_batch=dynamic_batch)
    print(f"{exported.path}: differs from the eager model by {exported.error:.1e} of its largest output")
