"""`prune --dead`: take out what contributes nothing, and save the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from torchslim.cli.loading import build_model, example_inputs, named_inputs, note_random_weights
from torchslim.cli.options import check_out, given_options
from torchslim.cli.output import print_costs, print_json
from torchslim.cli.usage import flags_for_keywords
from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

    from torchslim.zoo.sources import Source

_ALLOWED = {"--dead", "--out", "--exclude", "--input", "--seed", "--json"}


def prune_dead(context: typer.Context, model: str, out: Path | None, exclude: Sequence[str], shapes: list[str] | None,
               seed: int, as_json: bool) -> int:
    """The whole command; the exit status.

    Raises:
        RequestError: an option says what else to cut, or how; or there is nowhere to save.
    """
    for option in given_options(context):
        if option not in _ALLOWED:
            raise RequestError(f"{option}: --dead takes out what contributes nothing, and cuts nothing else; leave one "
                               "of them out")
    if out is None:
        raise RequestError("prune: nowhere to save the slim model; give --dead --out slim.safetensors")
    from torchslim.zoo.sources import resolve

    source = resolve(model)
    check_out(out, source)
    with named_inputs(source, shapes), flags_for_keywords(context):
        outcome = _remove_dead(build_model(source, seed), example_inputs(source, shapes, seed), exclude, source, out,
                               as_json)
    if as_json:
        print_json({"model": str(source), **outcome})
    return 0


def _remove_dead(original: nn.Module, inputs: Any, exclude: Sequence[str], source: Source, out: Path,
                 as_json: bool) -> dict[str, Any]:
    """Remove, compare, save and print; returns the result as data."""
    import torchslim
    from torchslim.planning.dead.removal import removed_and_compared

    slim, plan, error = removed_and_compared(original, inputs, exclude)
    note_random_weights(source)
    before, after = torchslim.profile(original, inputs), torchslim.profile(slim, inputs)
    torchslim.save(slim, out, plan=plan, source=source)
    if not as_json:
        print_costs([("parameters", before.params, after.params), ("multiply-adds", before.macs, after.macs)])
        for note in plan.notes:
            print(f"note: {note}")
        print(f"proof: outputs differ by {error:.1e}")
        for entry in plan.left_alone:
            print(f"left alone: {entry.channels} of {entry.name}: {entry.reason}")
        print(f"saved: {out}")
    return {"out": str(out), "error": error, "params": {"before": before.params, "after": after.params},
            "macs": {"before": before.macs, "after": after.macs},
            "left_alone": [asdict(entry) for entry in plan.left_alone], "notes": list(plan.notes),
            "unused": list(plan.unused)}
