"""`export` and `bench`: other runtimes, and the clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import Json, Model, Shapes, example, print_json, print_table, say
from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torchslim.sources import Source


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command()(bench)


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
    from torchslim.exporting import export as write
    from torchslim.sources import build, resolve

    source = resolve(model)
    done = write(build(source), example(source, shapes), out, tolerance=tolerance,
                 dynamic_batch=dynamic_batch)
    print(f"{done.path}: differs from the eager model by {done.error:.1e} of its largest output")


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", show_default=False,
                                                help="Models as elsewhere, or ONNX files.")],
    shapes: Shapes = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, show_default=False, help="CPU threads.")] = None,
    as_json: Json = False,
) -> None:
    """Time models side by side, in turns.

    Each is compared with the first within each round, so that a busy machine slows both.
    """
    from torchslim.latency import measure, ratio

    inputs = example(_first_source(models, shapes), shapes)
    candidates = {}
    for number, spec in enumerate(models, start=1):
        name = spec if spec not in candidates else f"{spec} ({number})"
        candidates[name] = _candidate(spec, inputs, threads)
    times = measure(candidates, inputs, rounds=rounds, threads=threads)
    first = next(iter(times.values()))
    rows = [(name, taken, ratio(first, taken)) for name, taken in times.items()]
    if as_json:
        print_json([{"model": name, "median_ms": taken.median_ms, "p10_ms": taken.p10_ms,
                     "p90_ms": taken.p90_ms, "runs_ms": taken.runs, "ratio": share}
                    for name, taken, share in rows])
        return
    print_table(("model", "median ms", "p10", "p90", "of the first"), [
        (name, *(f"{ms:.2f}" for ms in (taken.median_ms, taken.p10_ms, taken.p90_ms)), f"{share:.1%}")
        for name, taken, share in rows])


def _first_source(models: list[str], shapes: list[str] | None) -> Source:
    from torchslim.sources import Source, default_input, resolve

    found = [resolve(spec) for spec in models if not spec.endswith(".onnx")]
    if not shapes:
        if not found:
            raise RequestError("bench: ONNX files alone do not tell their input; give --input 1x3x224x224")
        if len({default_input(source) for source in found}) > 1:
            say(f"note: the models have different usual inputs; all get that of {found[0]}, --input chooses")
    return found[0] if found else Source("file", "")


def _candidate(spec: str, inputs: Any, threads: int | None) -> Any:
    from torchslim.latency import onnx_runner
    from torchslim.sources import build

    return onnx_runner(spec, inputs, threads) if spec.endswith(".onnx") else build(spec)
