"""`prune`: plan, cut, prove, save; or show what would be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchslim.cli.loading import build_model, example_inputs, load_pictures, named_inputs, note_random_weights
from torchslim.cli.options import (
    DATA_FORMS,
    MAX_THREADS,
    Backend,
    Exclude,
    Json,
    Latency,
    Memory,
    Model,
    Nearest,
    Only,
    Pictures,
    Seed,
    Shapes,
    Shortcuts,
    SkipBroken,
    amount,
    check_out,
    duration,
    fraction,
    given_options,
    parse_scope,
)
from torchslim.cli.output import print_costs, print_json
from torchslim.cli.prune_dead import prune_dead
from torchslim.cli.usage import flags_for_keywords
from torchslim.errors import ProofError, RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchslim.planning.options import PlanOptions
    from torchslim.surgery.plans import Plan
    from torchslim.zoo.sources import Source

Out = Annotated[Path | None, typer.Option(
    "--out", metavar="FILE", show_default=False, help="Where to save the slim model: slim.safetensors.")]
Budget = Annotated[str | None, typer.Option(
    metavar="AMOUNT", show_default=False, help="What to keep: a share (0.5, 50%) or a count (1500000, 1.5M).")]
Threads = Annotated[int | None, typer.Option(
    min=1, max=MAX_THREADS, show_default=False, help="CPU threads to time on; default: as many as torch takes.")]
Preset = Annotated[str | None, typer.Option(
    metavar="inner|all", show_default=False,
    help="Cut only the layers that network slimming cuts in this network: without its shortcuts, or with them.")]
Scope = Annotated[str, typer.Option(
    metavar="global|uniform|FILE",
    help="Compare scores over the whole network, keep the same share of each group, or keep what a JSON file says: "
         "layer pattern to share, as `sensitivity` writes it.")]
Importance = Annotated[str, typer.Option(
    help="What ranks the channels: auto (obs on --data, else bn_scale if training pressed the scales, else l2), l2, "
         "l1, bn_scale, fpgm, lamp, random; obs, activation, taylor and hessian ask for --data. An option follows a "
         "colon: l2:max, l1:filters.")]
Data = Annotated[str | None, typer.Option(
    "--data", metavar="DATA", show_default=False,
    help=f"Pictures for --compensate, and for the criteria that ask for them: {DATA_FORMS}.")]
Compensate = Annotated[bool | None, typer.Option(
    "--compensate/--no-compensate", show_default="with auto on --data",
    help="Refit the remaining weights to the original's outputs on --data, without labels, after the proof.")]
RoundTo = Annotated[int, typer.Option(min=1, max=2**16, help="Keep multiples of this many channels.")]
MinChannels = Annotated[int, typer.Option(min=1, max=2**16, help="The least number of channels that a group keeps.")]
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

WITHOUT_BUDGET = ("--show", "--approximate", "--whole-groups", "--seed", "--input", "--json")
BUDGETS = "--macs 0.5, --params 1.5M, --channels 0.5, --memory 0.5, --latency 0.5 or several of them"


def prune(
    context: typer.Context,
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
    importance: Importance = "auto",
    data: Data = None,
    pictures: Pictures = None, skip_broken: SkipBroken = None,
    compensate: Compensate = None,
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
    """Cut channels to a budget, prove the cut against the silenced original, save the result."""
    from torchslim.zoo.sources import resolve
    if dead:
        return prune_dead(context, model, out, exclude or (), shapes, seed, as_json)
    budgets = _budgets(latency, macs=macs, params=params, channels=channels, memory=memory)
    shares = parse_scope(scope)
    has_budget = any(budgets.values()) or not isinstance(shares, str)
    source = resolve(model)
    _check(context, source, has_budget)
    with named_inputs(source, shapes), flags_for_keywords(context):
        options = None if not has_budget else _plan_options(
            **budgets, allow_approximate=approximate, whole_groups=whole_groups, backend=backend, scope=shares,
            only=only or _preset(source, preset), exclude=exclude or (), importance=importance, shortcuts=shortcuts,
            round_to=round_to, min_channels=min_channels, min_kept=min_kept, seed=seed, strict=not nearest)
        labelled = _labelled_pictures(source, importance, bool(compensate), data, shapes, pictures, seed, skip_broken)
        inputs = example_inputs(source, shapes, seed) if labelled is None or shapes else labelled[0][0][:1]
        original = build_model(source, seed)
        plan = None if options is None else _plan(options, original, inputs, labelled, as_json)
        note_random_weights(source)
        result: dict[str, Any] = {"model": str(source), **(_show(
            source, original, inputs, plan, as_json, allow_approximate=approximate, whole_groups=whole_groups)
            if show else {})}
        if plan is not None:
            pictures_to_fit = labelled if _refits(plan, compensate) else None
            result |= _carry_out(plan, original, inputs, pictures_to_fit, source, out, as_json)
    if as_json:
        print_json(result)
    return int(plan is not None and not plan.is_met and not nearest)


def _budgets(latency: str | None, **counted: str | None) -> dict[str, Any]:
    """What is to be kept, by the keywords of `torchslim.plan`."""
    return {**{name: amount(f"--{name}", text) for name, text in counted.items()},
            "latency": duration("--latency", latency)}


def _check(context: typer.Context, source: Source, has_budget: bool) -> None:
    """Refuse, before any work, a request that can't be carried out."""
    given, out, show = given_options(context), context.params["out"], context.params["show"]
    if {"--only", "--preset"} <= set(given):
        raise RequestError("prune: --preset and --only both say which layers may be cut; give one of them")
    if not has_budget and (out is not None or not show):
        raise RequestError(f"prune: no budget; give {BUDGETS}")
    idle = [option for option in given if option not in WITHOUT_BUDGET]
    if not has_budget and idle:
        raise RequestError(f"{idle[0]}: says where a budget may cut, and there is no budget; give {BUDGETS}")
    if out is None and not show:
        raise RequestError("prune: nowhere to save the slim model; give --out slim.safetensors, or --show to see what "
                           "would be cut")
    if out is not None:
        check_out(out, source)
    if context.params["threads"] is not None:
        _set_threads(context.params["threads"], timed=not {"--latency", "--backend"}.isdisjoint(given))


def _set_threads(threads: int, timed: bool) -> None:
    if not timed:
        raise RequestError(f"--threads {threads}: says how to time, and nothing is timed; give --latency or --backend")
    import torch

    torch.set_num_threads(threads)


def _labelled_pictures(source: Source, importance: str, compensate: bool, data: str | None,
                       shapes: list[str] | None, pictures: int | None, seed: int,
                       skip_broken: float | None) -> list[tuple[Tensor, Tensor]] | None:
    """Labelled pictures where a criterion looks at pictures, or the cut is compensated; None where not."""
    from torchslim.importance import criterion

    ranking = criterion(importance)
    needs_data = ranking.needs_data
    if (needs_data or compensate) and data is None:
        option = f"--importance {importance}" if needs_data else "--compensate"
        raise RequestError(f"prune: {option} asks for pictures; give --data digits, folder:PATH, ...")
    if not ranking.looks_at_data and not compensate and data is not None:
        raise RequestError(f"prune: --importance {importance} does not look at --data; leave it out, or give "
                           "--compensate")
    return load_pictures(source, data, shapes, pictures, seed, skip_broken)


def _refits(plan: Plan, compensate: bool | None) -> bool:
    """Whether the cut is compensated: as asked, or if "auto" took "obs", whose scores reckon with that."""
    return plan.settings["importance"] == "auto" and plan.settings["ranked_by"] == "obs" if compensate is None else (
        compensate)


def _preset(source: Source, strategy: str | None) -> Sequence[str]:
    """The patterns of a strategy, if one is given, for a network; for a saved slim model those of its original."""
    if strategy is None:
        return ()
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
          labelled: list[tuple[Tensor, Tensor]] | None, as_json: bool) -> Plan:
    """The plan; a budget that it does not meet is said at once."""
    from torchslim.planning.pruning import plan_with
    from torchslim.train.losses import cross_entropy

    plan = plan_with(options, original, inputs, labelled, None if labelled is None else cross_entropy())
    if not plan.is_met and not as_json:
        print(plan.notes[0])
    return plan


def _show(source: Source, original: nn.Module, inputs: Any, plan: Plan | None, as_json: bool,
          **options: bool) -> dict[str, Any]:
    """Draw the tree of layers, unless `as_json`; returns it as data. `options` are those of `torchslim.groups`."""
    import torchslim
    from torchslim.cli.group_tree import as_data, draw, groups_with_layers, tree_layers

    groups = groups_with_layers(original, torchslim.groups(original, inputs, **options))
    layers = tree_layers(original, groups, plan)
    if not as_json:
        draw(str(source), layers, planned=plan is not None)
    return as_data(layers, groups)


def _carry_out(plan: Plan, original: nn.Module, inputs: Any, labelled: list[tuple[Tensor, Tensor]] | None,
               source: Source, out: Path | None, as_json: bool) -> dict[str, Any]:
    """Cut and save if there is somewhere to save; print and return what came of the plan."""
    result: dict[str, Any] = {}
    if out is not None:
        result = _cut(original, inputs, plan, source, out, as_json, [batch for batch, _ in labelled or ()])
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
        for note in plan.notes[not plan.is_met:]:  # the first line has that one
            print(f"note: {note}")
        print(f"proof: differs from the silenced original by {error:.1e}")
        if pictures:
            print(f"compensated: refitted to the original's outputs on {sum(map(len, pictures))} pictures")
        if plan.left_alone:
            print(f"left alone: {len(plan.left_alone)} channel groups (--json lists them with their reasons)")
        print(f"saved: {out}")
    return {"out": str(out), "error": error, "params": {"before": before.params, "after": after.params},
            "macs": {"before": before.macs, "after": after.macs}}
