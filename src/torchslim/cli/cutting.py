"""`prune`: plan, cut, prove, save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import Json, Model, Seed, Shapes, amount, example, print_json, print_table, say
from torchslim.errors import ProofError, RequestError

if TYPE_CHECKING:
    from torchslim.sources import Source

Keep = Annotated[str | None, typer.Option(
    metavar="AMOUNT", show_default=False,
    help="What to keep: a share (0.5, 50%) or a count (1500000, 1.5M).")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prune)


def prune(
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", show_default=False,
                                      help="Where to save the slim model: slim.safetensors.")],
    macs: Keep = None,
    params: Keep = None,
    importance: Annotated[str, typer.Option(help="What ranks the channels: l2, l1, bn_scale, ...")] = "l2",
    shortcuts: Annotated[bool, typer.Option(help="Also cut channels that shortcuts share.")] = True,
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of this many channels.")] = 1,
    seed: Seed = 0,
    shapes: Shapes = None,
    as_json: Json = False,
) -> None:
    """Cut channels to a budget, prove the cut, save the result.

    The proof compares the slim model with the original in which the removed channels are silenced.
    """
    import torchslim
    from torchslim.pruning import TOLERANCE
    from torchslim.sources import build, resolve

    limits = {"macs": amount("--macs", macs), "params": amount("--params", params)}
    if not any(limits.values()):
        raise RequestError("prune: no budget; give --macs 0.5, --params 1.5M or both")
    if not out.parent.is_dir():  # before the work, not after it
        raise RequestError(f"--out {out}: lies in a folder that does not exist; make {out.parent} first")
    source = resolve(model)
    original, inputs = build(source), example(source, shapes, seed)
    if _is_random(source):
        say(f"note: {source} has random weights; ?weights=DEFAULT asks for trained ones")
    plan = torchslim.plan(original, inputs, macs=limits["macs"], params=limits["params"],
                          importance=importance, shortcuts=shortcuts, round_to=round_to, seed=seed)
    slim = torchslim.apply(original, plan)
    error = torchslim.verify(original, slim, plan, inputs)
    if not error <= TOLERANCE:
        raise ProofError(f"prune: the slim network differs from its silenced original by {error:.1e}, at "
                         f"most {TOLERANCE:.0e} is accepted; nothing was saved")
    before, after = torchslim.profile(original, inputs), torchslim.profile(slim, inputs)
    torchslim.save(slim, out, plan=plan, source=source)
    if as_json:
        print_json({
            "model": str(source), "out": str(out), "error": error,
            "params": {"before": before.params, "after": after.params},
            "macs": {"before": before.macs, "after": after.macs},
            "left_alone": [{"name": group.name, "channels": group.channels, "reason": group.reason}
                           for group in plan.left_alone],
            "notes": list(plan.notes),
        })
        return
    _print_result(before, after)
    for note in plan.notes:
        print(f"note: {note}")
    print(f"proof: differs from the silenced original by {error:.1e}")
    if plan.left_alone:
        print(f"left alone: {len(plan.left_alone)} channel groups (--json lists them with their reasons)")
    print(f"saved: {out}")


def _print_result(before: Any, after: Any) -> None:
    rows = (("parameters", before.params, after.params), ("multiply-adds", before.macs, after.macs))
    print_table(("", "before", "after", "kept"), [
        (name, f"{old:,}", f"{new:,}", f"{new / old:.1%}" if old else "-") for name, old, new in rows])


def _is_random(source: Source) -> bool:
    return source.kind in ("torchvision", "timm") and not source.options.get("weights")
