"""`advise`: what makes a network heavy without need, and what to do about it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.cli.loading import check_runs, example_inputs, named_inputs
from torchslim.cli.options import Json, Model, Shapes
from torchslim.cli.output import print_json, wrapped
from torchslim.utils.formatting import percent

if TYPE_CHECKING:
    from torchslim.costs.findings import Finding

NAMED_LAYERS = 3  # --json names all


def advise(
    model: Model,
    shapes: Shapes = None,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Measure the time of each layer as evidence.")] = True,
    as_json: Json = False,
) -> None:
    """Say what makes a model heavy without need, worst first.

    Each finding comes with what was counted or measured, about what share it
    could save, and the command that acts on it.
    """
    from torchslim.costs.advice import advise as find
    from torchslim.planning.dead.finding import dead_channels
    from torchslim.store.loading import build
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    network, inputs = build(source), example_inputs(source, shapes)
    ms: dict[str, float] = {}
    if timed:
        check_runs(network, inputs, source, shapes)
        from torchslim.latency.per_layer import time_modules

        ms = {layer.name: layer.ms for layer in time_modules(network, inputs).layers}
    command = " ".join([shlex.quote(str(source)), *(f"--input {shape}" for shape in shapes or [])])
    with named_inputs(source, shapes):
        dead = dead_channels(network, inputs, command)
        findings = sorted([*find(network, inputs, ms=ms, name=command), *([] if dead is None else [dead])],
                          key=lambda finding: -finding.gain)
    if as_json:
        print_json({"model": str(source), "findings": [asdict(finding) for finding in findings]})
    elif not findings:
        print(f"{source}: nothing found; it is about as light as its architecture allows")
    else:
        print("\n\n".join(_describe(number, finding) for number, finding in enumerate(findings, 1)))


def _describe(number: int, finding: Finding) -> str:
    """A finding as a paragraph that fits the terminal; commands are not broken."""
    gain = f"could save about {percent(finding.gain)} of the {finding.of}" if finding.gain >= 0.001 else "saves little"
    layers = ", ".join(finding.layers[:NAMED_LAYERS])
    more = f" and {len(finding.layers) - NAMED_LAYERS} more" if len(finding.layers) > NAMED_LAYERS else ""
    texts = (f"{finding.evidence}.", f"Where: {layers}{more}.", f"Do: {finding.remedy}")
    return "\n".join([f"{number}. {finding.kind}: {gain}", *(wrapped(text, "   ") for text in texts)])
