"""`export`: a file for another runtime."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from torchslim.cli.loading import check_runs, example_inputs
from torchslim.cli.options import Model, Shapes
from torchslim.errors import RequestError


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
    from torchslim.deploy.exporting import check_path
    from torchslim.deploy.exporting import export as write
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    check_path(out)
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise RequestError(f"--tolerance {tolerance}: wanted a number above 0, such as 1e-4")
    source = resolve(model)
    network, inputs = build(source), example_inputs(source, shapes)
    check_runs(network, inputs, source, shapes)
    exported = write(network, inputs, out, tolerance=tolerance, dynamic_batch=dynamic_batch)
    print(f"{exported.path}: differs from the eager model by {exported.error:.1e} of its largest output")
