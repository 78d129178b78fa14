"""`prune --dead`: take out what contributes nothing, and save the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchslim.cli.options import check_out
from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

    from torchslim.zoo.sources import Source

DEFAULTS: Mapping[str, object] = {
    "--macs": None, "--params": None, "--channels": None, "--memory": None, "--latency": None, "--backend": None,
    "--threads": None, "--only": None, "--preset": None, "--scope": "global", "--importance": "l2", "--data": None,
    "--pictures": None, "--compensate": False, "--no-shortcuts": True, "--round-to": 1, "--min-channels": 1,
    "--min-kept": 0.0, "--approximate": False, "--whole-groups": False, "--nearest": False,
    "--show": False}
"""The options that say what else to cut, or how, and their values where they are not given."""


def check_request(given: Sequence[object], out: Path | None) -> Path:
    """Where to save; `given` are the values of the options in `DEFAULTS`, in order.

    Raises:
        RequestError: one of them contradicts --dead, or there is nowhere to save.
    """
    for (option, default), value in zip(DEFAULTS.items(), given, strict=True):
        if value != default:
            raise RequestError(f"{option}: --dead takes out what contributes nothing, and cuts nothing else; leave one "
                               "of them out")
    if out is None:
        raise RequestError("prune: nowhere to save the slim model; give --out slim.safetensors")
    check_out(out)
    return out


def remove_dead(original: nn.Module, inputs: Any, exclude: Sequence[str], source: Source, out: Path,
                as_json: bool) -> dict[str, Any]:
    """Remove, compare, save and print; returns the result as data."""
    import torchslim
    from torchslim.cli.output import print_costs
    from torchslim.planning.dead.removal import removed_and_compared

    slim, plan, error = removed_and_compared(original, inputs, exclude)
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
