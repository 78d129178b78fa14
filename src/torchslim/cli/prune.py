"""`prune`: plan, cut, prove, save; or show what would be cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.loading import build_model, example_inputs, load_pictures
from torchslim.cli.options import (
    Backend,
    Exclude,
    Json,
    Latency,
    Model,
    Nearest,
    Only,
    Pictures,
    Seed,
    Shapes,
    Shortcuts,
    amount,
    check_out,
    duration,
    fraction,
)
from torchslim.cli.output import print_costs, print_json
from torchslim.cli.prune_dead import check_request, remove_dead
from torchslim.errors import ProofError, RequestError
from torchslim.utils.text import describe_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchslim.coupling.groups import ChannelGroups
    from torchslim.planning.options import PlanOptions
    from torchslim.surgery.plans import Plan
    from torchslim.zoo.sources import Source

Out = Annotated[Path | None, typer.Option(
    "--out", metavar="FILE", show_default=False, help="Where to save the slim model: slim.safetensors.")]
Budget = Annotated[str | None, typer.Option(
    metavar="AMOUNT", show_default=False, help="What to keep: a share (0.5, 50%) or a count (1500000, 1.5M).")]
Memory = Annotated[str | None, typer.Option(
    metavar="AMOUNT", show_default=False,
    help="Peak of activations to keep: a share (0.5, 50%) or bytes (1500000, 1.5M).")]
Threads = Annotated[int | None, typer.Option(
    min=1, show_default=False, help="CPU threads to time on; default: as many as torch takes.")]
Preset = Annotated[str | None, typer.Option(
    metavar="inner|all", show_default=False,
    help="Cut only the layers that network slimming cuts in this network: without its shortcuts, or with them.")]
Scope = Annotated[str, typer.Option(
    metavar="global|uniform|FILE",
    help="Compare scores over the whole network, keep the same share of each group, or keep what a JSON file says: "
         "layer pattern to share, as `sensitivity` writes it.")]
Importance = Annotated[str, typer.Option(
    help="What ranks the channels: l2, l1, bn_scale, fpgm, lamp, random; obs, activation, taylor and hessian ask for "
         "--data. An option follows a colon: l2:max, l1:filters.")]
Data = Annotated[str | None, typer.Option(
    "--data", metavar="DATA", show_default=False,
    help="Pictures for --compensate, and for the criteria that ask for them: digits, folder:PATH, "
         "torchvision:NAME@ROOT, package.module:factory or file.py:factory.")]
Compensate = Annotated[bool, typer.Option(
    "--compensate",
    help="Refit the remaining weights to the original's outputs on --data, without labels, after the proof.")]
RoundTo = Annotated[int, typer.Option(min=1, help="Keep multiples of this many channels.")]
MinChannels = Annotated[int, typer.Option(min=1, help="The least number of channels that a group keeps.")]
MinKept = Annotated[float, typer.Option(
    parser=fraction, metavar="SHARE", help="The least share of its channels that a group keeps.")]
Approximate = Annotated[bool, typer.Option(
    "--approximate",
    help="Also cut channels that a layer norm or a similar operation mixes; the result is then no exact cut.")]
WholeGroups = Annotated[bool, typer.Option(
    "--whole-groups", help="Grouped convolutions lose whole groups, not equally many channels of each.")]
Dead = Annotated[bool, typer.Option(
    "--dead", help="Take out what contributes nothing, and cut nothing else: zeroed filters, channels that nobody "
                   "reads, parameters never used. The outputs stay the same.")]
Show = Annotated[bool, typer.Option(
    "--show", help="Draw the layers as a tree: widths, what is cut together, what stays and why. Needs no --out, and "
                   "no budget.")]

BUDGETS = "--macs 0.5, --params 1.5M, --channels 0.5, --memory 0.5, --latency 0.5 or several of them"


def prune(
    model: Model,
    out: Out = None,
    macs: Budget = None,
    params: Budget = None,
    channels: Budget = None,
    memory: Memory = None,
    latency: Latency = None,
    backend: Backend = None,
    threads: Threads = None,
    only: Only = None,
    exclude: Exclude = None,
    preset: Preset = None,
    scope: Scope = "global",
    importance: Importance = "l2",
    data: Data = None,
    pictures: Pictures = None,
    compensate: Compensate = False,
    shortcuts: Shortcuts = True,
    round_to: RoundTo = 1,
    min_channels: MinChannels = 1,
    min_kept: MinKept = 0.0,
    approximate: Approximate = False,
    whole_groups: WholeGroups = False,
    nearest: Nearest = False,
    dead: Dead = False,
    show: Show = False,
    seed: Seed = 0,
    shapes: Shapes = None,
    as_json: Json = False,
) -> int:
    """Cut channels to a budget, prove the cut, save the result.

    The proof compares the slim model with the original in which the removed channels are silenced. Exit status 1: a
    latency is missed when measured.
    """
    import torchslim
    from torchslim.zoo.sources import resolve

    if dead:
        target = check_request([macs, params, channels, memory, latency, backend, threads, only, preset, scope,
                                importance, data, pictures, compensate, shortcuts, round_to, min_channels, min_kept,
                                approximate, whole_groups, nearest, show], out)
        source = resolve(model)
        outcome = remove_dead(build_model(source, seed), example_inputs(source, shapes, seed), exclude or (), source,
                              target, as_json)
        if as_json:
            print_json({"model": str(source), **outcome})
        return 0
    budgets = _budgets(latency, macs=macs, params=params, channels=channels, memory=memory)
    shares = _scope(scope)
    has_budget = any(budgets.values()) or not isinstance(shares, str)
    _check(has_budget, out, show, {"--only": only, "--exclude": exclude, "--preset": preset, "--backend": backend})
    _set_threads(threads, timed=latency is not None or backend is not None)
    source = resolve(model)
    patterns = only or () if preset is None else _preset(source, preset)
    options = None if not has_budget else _plan_options(
        **budgets, allow_approximate=approximate, whole_groups=whole_groups, backend=backend, scope=shares,
        only=patterns, exclude=exclude or (), importance=importance, shortcuts=shortcuts, round_to=round_to,
        min_channels=min_channels, min_kept=min_kept, seed=seed, strict=not nearest)
    labelled = _labelled_pictures(importance, compensate, data, shapes, pictures, seed)
    inputs = example_inputs(source, shapes, seed) if labelled is None or shapes else labelled[0][0][:1]
    original = build_model(source, seed)
    plan = None if options is None else _plan(options, original, inputs, labelled)
    result: dict[str, Any] = {"model": str(source)}
    unmet = plan is not None and not all(budget.is_met for budget in plan.budgets)
    if plan is not None and unmet and not as_json:
        print(plan.notes[0])
    if show:
        groups = torchslim.groups(original, inputs, allow_approximate=approximate, whole_groups=whole_groups)
        result |= _show(str(source), original, groups, plan, as_json)
    if plan is not None:
        images = [batch for batch, _ in labelled] if compensate and labelled else ()
        result |= _carry_out(plan, original, inputs, images, source, out, as_json)
    if as_json:
        print_json(result)
    return int(unmet and not nearest)


def _budgets(latency: str | None, **counted: str | None) -> dict[str, Any]:
    """What is to be kept, by the keywords of `torchslim.plan`."""
    return {**{name: amount(f"--{name}", text) for name, text in counted.items()},
            "latency": duration("--latency", latency)}


def _check(has_budget: bool, out: Path | None, show: bool, restrictions: dict[str, object]) -> None:
    """Refuse, before any work, a request that can't be carried out; `restrictions` are options that need a budget."""
    if restrictions["--only"] and restrictions["--preset"]:
        raise RequestError("prune: --preset and --only both say which layers may be cut; give one of them")
    if not has_budget and (out is not None or not show):
        raise RequestError(f"prune: no budget; give {BUDGETS}")
    if not has_budget and any(restrictions.values()):
        given = next(option for option, value in restrictions.items() if value)
        raise RequestError(f"{given}: says where a budget may cut, and there is no budget; give {BUDGETS}")
    if out is None and not show:
        raise RequestError("prune: nowhere to save the slim model; give --out slim.safetensors, or --show to see what "
                           "would be cut")
    if out is not None:
        check_out(out)


def _set_threads(threads: int | None, timed: bool) -> None:
    if threads is None:
        return
    if not timed:
        raise RequestError("--threads: says how to time, and nothing is timed; give --latency or --backend")
    import torch

    torch.set_num_threads(threads)


def _scope(text: str) -> str | dict[str, float]:
    """A scope by its name, or the shares in a file."""
    if text in ("global", "uniform"):
        return text
    try:
        shares = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"--scope {text}: {describe_error(error)}; wanted global, uniform, or a JSON file of layer "
                           "patterns and the share of channels that each keeps") from error
    if not isinstance(shares, dict) or not all(type(share) in (int, float) for share in shares.values()):
        raise RequestError(f'--scope {text}: wanted layer patterns and shares, such as {{"layer1.*": 0.8}}')
    return shares


def _labelled_pictures(importance: str, compensate: bool, data: str | None, shapes: list[str] | None,
                       pictures: int | None, seed: int) -> list[tuple[Tensor, Tensor]] | None:
    """Labelled pictures where a criterion looks at pictures, or the cut is compensated; None where not."""
    from torchslim.importance import criterion

    needs_data = criterion(importance).needs_data
    if (needs_data or compensate) and data is None:
        option = f"--importance {importance}" if needs_data else "--compensate"
        raise RequestError(f"prune: {option} asks for pictures; give --data digits, folder:PATH, ...")
    if not needs_data and not compensate and data is not None:
        raise RequestError(f"prune: --importance {importance} does not look at --data; leave it out, or give "
                           "--compensate")
    return load_pictures(data, shapes, pictures, seed)


def _preset(source: Source, strategy: str) -> Sequence[str]:
    """The patterns of a strategy for a network; for a saved slim model those of its original."""
    from torchslim.planning.presets import preset

    name = source.name
    if source.kind == "saved":
        from torchslim.store.header import read_header

        name = (read_header(source.name).source or name).partition("?")[0]
    return preset(name, strategy)


def _plan_options(**options: Any) -> PlanOptions:
    """The options of `torchslim.plan`, checked before a model is built."""
    from torchslim.planning.options import PlanOptions

    return PlanOptions(**options)


def _plan(options: PlanOptions, original: nn.Module, inputs: Any,
          labelled: list[tuple[Tensor, Tensor]] | None) -> Plan:
    from torchslim.planning.pruning import plan_with
    from torchslim.train.losses import cross_entropy

    return plan_with(options, original, inputs, labelled, None if labelled is None else cross_entropy())


def _show(title: str, original: nn.Module, all_groups: ChannelGroups, plan: Plan | None,
          as_json: bool) -> dict[str, Any]:
    """Draw the tree of layers, unless `as_json`; returns the tree as data."""
    from torchslim.cli.group_tree import as_data, draw, groups_with_layers, tree_layers

    groups = groups_with_layers(original, all_groups)
    layers = tree_layers(original, groups, plan)
    if not as_json:
        draw(title, layers, planned=plan is not None)
    return as_data(layers, groups)


def _carry_out(plan: Plan, original: nn.Module, inputs: Any, pictures: Sequence[Tensor], source: Source,
               out: Path | None, as_json: bool) -> dict[str, Any]:
    """Cut and save if there is somewhere to save; print and return what came of the plan."""
    result: dict[str, Any] = {}
    if out is not None:
        result = _cut(original, inputs, plan, source, out, as_json, pictures)
    elif not as_json:
        print_costs([(budget.resource, budget.before, budget.met) for budget in plan.budgets])
    return {**result, "budgets": [asdict(budget) for budget in plan.budgets],
            "left_alone": [{"name": group.name, "channels": group.channels, "reason": group.reason}
                           for group in plan.left_alone], "notes": list(plan.notes)}


def _cut(original: nn.Module, inputs: Any, plan: Plan, source: Source, out: Path, as_json: bool,
         pictures: Sequence[Tensor]) -> dict[str, Any]:
    """Cut, prove, refit on pictures if there are any, save and print; returns the result as data."""
    import torchslim
    from torchslim.proof.verification import TOLERANCE

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
        print_costs([("parameters", before.params, after.params), ("multiply-adds", before.macs, after.macs),
                      *((b.resource, b.before, b.met) for b in plan.budgets if b.resource == "latency")])
        for note in plan.notes[not all(budget.is_met for budget in plan.budgets):]:  # the first line has that one
            print(f"note: {note}")
        print(f"proof: differs from the silenced original by {error:.1e}")
        if pictures:
            print(f"compensated: refitted to the original's outputs on {sum(map(len, pictures))} pictures")
        if plan.left_alone:
            print(f"left alone: {len(plan.left_alone)} channel groups (--json lists them with their reasons)")
        print(f"saved: {out}")
    return {"out": str(out), "error": error, "params": {"before": before.params, "after": after.params},
            "macs": {"before": before.macs, "after": after.macs}}
