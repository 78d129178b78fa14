"""`prune`: plan, cut, prove, save; or show what would be cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.common import (
    Backend,
    Json,
    Model,
    Pictures,
    Seed,
    Shapes,
    Time,
    amount,
    check_out,
    duration,
    example,
    fraction,
    pictures_of,
    print_json,
    print_table,
    seeded,
    warn_of_random,
)
from torchslim.errors import ProofError, RequestError
from torchslim.utils.text import describe_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchslim.coupling.groups import ChannelGroups
    from torchslim.surgery.plans import Plan
    from torchslim.zoo.sources import Source

Keep = Annotated[str | None, typer.Option(
    metavar="AMOUNT", show_default=False,
    help="What to keep: a share (0.5, 50%) or a count (1500000, 1.5M).")]
Only = Annotated[list[str] | None, typer.Option(
    metavar="PATTERN", show_default=False,
    help="Cut only what layers of this name make: 'layer1.*'; again for each further pattern.")]
Exclude = Annotated[list[str] | None, typer.Option(
    metavar="PATTERN", show_default=False, help="Leave what layers of this name make alone; again for each further.")]
Preset = Annotated[str | None, typer.Option(
    metavar="inner|all", show_default=False,
    help="Cut only the layers that network slimming cuts in this network: without its shortcuts, or with them.")]

BUDGETS = "--macs 0.5, --params 1.5M, --channels 0.5, --memory 0.5, --latency 0.5 or several of them"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prune)


def prune(
    model: Model,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", show_default=False,
                                             help="Where to save the slim model: slim.safetensors.")] = None,
    macs: Keep = None,
    params: Keep = None,
    channels: Keep = None,
    memory: Annotated[str | None, typer.Option(
        metavar="AMOUNT", show_default=False,
        help="Peak of activations to keep: a share (0.5, 50%) or bytes (1500000, 1.5M).")] = None,
    latency: Time = None,
    backend: Backend = None,
    threads: Annotated[int | None, typer.Option(
        min=1, show_default=False, help="CPU threads to time on; default: as many as torch takes.")] = None,
    only: Only = None,
    exclude: Exclude = None,
    preset: Preset = None,
    scope: Annotated[str, typer.Option(metavar="global|uniform|FILE", help=(
        "Compare scores over the whole network, keep the same share of each group, or keep what a JSON file says: "
        "layer pattern to share, as `sensitivity` writes it."))] = "global",
    importance: Annotated[str, typer.Option(
        help="What ranks the channels: l2, l1, bn_scale, fpgm, lamp, random; obs, activation, taylor and hessian ask "
             "for --data. Options follow colons: l2:max, l1:filters."),
    ] = "l2",
    data: Annotated[str | None, typer.Option(
        "--data", metavar="DATA", show_default=False,
        help="Pictures for --compensate, and for the criteria that ask for them: digits, folder:PATH, "
             "torchvision:NAME@ROOT, package.module:factory or file.py:factory.")] = None,
    pictures: Pictures = None,
    compensate: Annotated[bool, typer.Option("--compensate", help=(
        "Refit what is left to the original's outputs on --data, without labels, after the proof."))] = False,
    shortcuts: Annotated[bool, typer.Option(help="Also cut channels that shortcuts share.")] = True,
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of this many channels.")] = 1,
    min_channels: Annotated[int, typer.Option(min=1, help="The least that a group of layers keeps.")] = 1,
    min_kept: Annotated[float, typer.Option(
        parser=fraction, metavar="SHARE", help="The least share of its channels that a group of layers keeps.")] = 0.0,
    approximate: Annotated[bool, typer.Option("--approximate", help=(
        "Also cut channels that a layer norm or its like mixes; the result is then no exact cut."))] = False,
    whole_groups: Annotated[bool, typer.Option("--whole-groups", help=(
        "Grouped convolutions lose whole groups, not equally many channels of each."))] = False,
    show: Annotated[bool, typer.Option("--show", help=(
        "Draw the layers as a tree: widths, what is cut together, what stays and why. Needs no --out, and no "
        "budget."))] = False,
    seed: Seed = 0,
    shapes: Shapes = None,
    as_json: Json = False,
) -> None:
    """Cut channels to a budget, prove the cut, save the result.

    The proof compares the slim model with the original in which the removed channels are silenced.
    """
    import torch

    import torchslim
    from torchslim.train.losses import cross_entropy
    from torchslim.zoo.sources import resolve

    asked = {"macs": macs, "params": params, "channels": channels, "memory": memory}
    limits: dict[str, Any] = {name: amount(f"--{name}", text) for name, text in asked.items()}
    limits["latency"] = duration("--latency", latency)
    shares = _scope(scope)
    _check(limits, out, show, not isinstance(shares, str),
           {"--only": only, "--exclude": exclude, "--preset": preset, "--backend": backend})
    if threads is not None:
        if latency is None and backend is None:
            raise RequestError("--threads: says how to time, and nothing is timed; give --latency or --backend")
        torch.set_num_threads(threads)
    source = resolve(model)
    patterns = _preset(source, preset) if preset is not None else only or ()
    told = _labels(importance, compensate, data, shapes, pictures, seed)
    inputs = example(source, shapes, seed) if told is None or shapes else told[0][0][:1]
    original = seeded(source, seed)
    warn_of_random(source)
    plan = None
    if any(limits.values()) or not isinstance(shares, str):
        plan = torchslim.plan(original, inputs, **limits, backend=backend, scope=shares, only=patterns,
                              exclude=exclude or (), importance=importance, shortcuts=shortcuts, round_to=round_to,
                              min_channels=min_channels, min_kept=min_kept,
                              allow_approximate=approximate, whole_groups=whole_groups, data=told,
                              loss=None if told is None else cross_entropy(), seed=seed)
    found: dict[str, Any] = {"model": str(source)}
    if show:
        groups = torchslim.groups(original, inputs, allow_approximate=approximate, whole_groups=whole_groups)
        found |= _show(str(source), original, groups, plan, as_json)
    if plan is not None and out is not None:
        found |= _cut(original, inputs, plan, source, out, as_json, [x for x, _ in told] if compensate and told else ())
    elif plan is not None and not as_json:
        _print_table([(budget.resource, budget.before, budget.met) for budget in plan.budgets])
    if plan is not None:
        found |= {"budgets": [asdict(budget) for budget in plan.budgets],
                  "left_alone": [{"name": group.name, "channels": group.channels, "reason": group.reason}
                                 for group in plan.left_alone], "notes": list(plan.notes)}
    if as_json:
        print_json(found)


def _check(limits: dict[str, Any], out: Path | None, show: bool, ruled: bool, choice: dict[str, object]) -> None:
    """Raise for a request that could not end well: before the work, not after it."""
    if choice["--only"] and choice["--preset"]:
        raise RequestError("prune: --preset and --only both say which layers may be cut; give one of them")
    budget = ruled or any(limits.values())
    if not budget and (out is not None or not show):
        raise RequestError(f"prune: no budget; give {BUDGETS}")
    if not budget and any(choice.values()):
        given = next(option for option, value in choice.items() if value)
        raise RequestError(f"{given}: says where a budget may cut, and there is no budget; give {BUDGETS}")
    if out is None and not show:
        raise RequestError("prune: nowhere to save the slim model; give --out slim.safetensors, or --show to see what "
                           "would be cut")
    if out is not None:
        check_out(out)


def _scope(text: str) -> str | dict[str, float]:
    """A scope by its name, or the shares in a file."""
    if text in ("global", "uniform"):
        return text
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"--scope {text}: {describe_error(error)}; wanted global, uniform, or a JSON file of layer "
                           "patterns and the share of channels that each keeps") from error
    if not isinstance(found, dict) or not all(type(share) in (int, float) for share in found.values()):
        raise RequestError(f'--scope {text}: wanted layer patterns and shares, such as {{"layer1.*": 0.8}}')
    return found


def _labels(importance: str, compensate: bool, data: str | None, shapes: list[str] | None, pictures: int | None,
            seed: int) -> list[tuple[Tensor, Tensor]] | None:
    """Labelled pictures where a criterion looks at pictures, or the cut is compensated; None where not."""
    from torchslim.importance import criterion

    needs_data = criterion(importance).needs_data
    if (needs_data or compensate) and data is None:
        who = f"--importance {importance}" if needs_data else "--compensate"
        raise RequestError(f"prune: {who} asks for pictures; give --data digits, folder:PATH, ...")
    if not needs_data and not compensate and data is not None:
        raise RequestError(f"prune: --importance {importance} does not look at --data; leave it out, or give "
                           "--compensate")
    return pictures_of(data, shapes, pictures, seed)


def _preset(source: Source, strategy: str) -> Sequence[str]:
    """The patterns of a strategy for the network that a source names; a saved slim model's is its original's."""
    from torchslim.planning.presets import preset

    name = source.name
    if source.kind == "saved":
        from torchslim.store.header import read_header

        name = (read_header(source.name).source or name).partition("?")[0]
    return preset(name, strategy)


def _show(title: str, original: nn.Module, found: ChannelGroups, plan: Plan | None, as_json: bool) -> dict[str, Any]:
    """Draw the tree; what it shows, as data."""
    from torchslim.cli import group_tree as tree

    groups = tree.with_layers(original, found)
    shown = tree.layers(original, groups, plan)
    if not as_json:
        tree.draw(title, shown, planned=plan is not None)
    return tree.as_data(shown, groups)


def _cut(original: nn.Module, inputs: Any, plan: Plan, source: Source, out: Path, as_json: bool,
         pictures: Sequence[Tensor]) -> dict[str, Any]:
    """Cut, prove, refit on pictures if there are any, save and tell; what came of it, as data."""
    import torchslim
    from torchslim.planning.pruning import TOLERANCE

    slim = torchslim.apply(original, plan)
    error = torchslim.verify(original, slim, plan, inputs)
    if not error <= TOLERANCE:
        raise ProofError(f"prune: the slim network differs from its silenced original by {error:.1e}, at "
                         f"most {TOLERANCE:.0e} is accepted; nothing was saved")
    before, after = torchslim.profile(original, inputs), torchslim.profile(slim, inputs)
    if pictures:
        slim = torchslim.compensate(original, slim, plan, pictures)
    torchslim.save(slim, out, plan=plan, source=source)
    if not as_json:
        _print_table([("parameters", before.params, after.params), ("multiply-adds", before.macs, after.macs),
                      *((b.resource, b.before, b.met) for b in plan.budgets if b.resource == "latency")])
        for note in plan.notes:
            print(f"note: {note}")
        print(f"proof: differs from the silenced original by {error:.1e}")
        if pictures:
            print(f"compensated: refitted to the original's outputs on {sum(map(len, pictures))} pictures")
        if plan.left_alone:
            print(f"left alone: {len(plan.left_alone)} channel groups (--json lists them with their reasons)")
        print(f"saved: {out}")
    return {"out": str(out), "error": error, "params": {"before": before.params, "after": after.params},
            "macs": {"before": before.macs, "after": after.macs}}


def _print_table(rows: list[tuple[str, int, int]]) -> None:
    from torchslim.surgery.plans import spoken

    print_table(("", "before", "after", "kept"), [
        (name, spoken(name, old), spoken(name, new), f"{new / old:.1%}" if old else "-") for name, old, new in rows])
