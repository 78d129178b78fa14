"""`advise`: what makes a network heavier than it need be, and what to do about it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.cli.common import Json, Model, Shapes, example, print_json, wrapped
from torchslim.utils.formatting import percent

if TYPE_CHECKING:
    from torchslim.costs.findings import Finding

NAMED = 3
"""So many layers are named; --json names all."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(advise)


def advise(
    model: Model, shapes: Shapes = None,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Measure the time of each layer as evidence.")] = True,
    as_json: Json = False,
) -> None:
    """Say what makes a model heavier than it need be, worst first.

    Each finding comes with what was counted or measured, about what share it
    could save, and the command that acts on it.
    """
    from torchslim.costs.advice import advise as findings_of
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    network, inputs = build(source), example(source, shapes)
    ms: dict[str, float] = {}
    if timed:
        from torchslim.latency.per_layer import layer_times

        ms = {layer.name: layer.ms for layer in layer_times(network, inputs)}
    command = " ".join([shlex.quote(str(source)), *(f"--input {shape}" for shape in shapes or [])])
    found = findings_of(network, inputs, ms=ms, name=command)
    if as_json:
        print_json({"model": str(source), "findings": [asdict(finding) for finding in found]})
    elif not found:
        print(f"{source}: nothing found; it is about as light as its architecture allows")
    else:
        print("\n\n".join(_told(place, finding) for place, finding in enumerate(found, 1)))


def _told(place: int, finding: Finding) -> str:
    """A finding on a few lines, as wide as the terminal; commands are not broken."""
    gain = f"could save about {percent(finding.gain)} of the {finding.of}" if finding.gain >= 0.001 else "saves little"
    layers = ", ".join(finding.layers[:NAMED])
    more = f" and {len(finding.layers) - NAMED} more" if len(finding.layers) > NAMED else ""
    texts = (f"{finding.evidence}.", f"Where: {layers}{more}.", f"Do: {finding.remedy}")
    return "\n".join([f"{place}. {finding.kind}: {gain}", *(wrapped(text, "   ") for text in texts)])
