"""`sweep`: many cuts of one model, and the front of the best: the metric against a cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchslim.cli.interrupts import interrupts
from torchslim.cli.options import DATA_FORMS, Exclude, Json, Model, Only, Seed, SkipBroken
from torchslim.cli.output import print_json, print_table, say, wrapped
from torchslim.cli.slim import BaselineEpochs, Lr
from torchslim.cli.training_options import BatchSize, Size, Threads, Workers
from torchslim.cli.usage import flags_for_keywords

if TYPE_CHECKING:
    from torchslim.pipeline.sweep.result import SweepResult

Data = Annotated[str, typer.Option("--data", metavar="DATA", show_default=False, help=f"{DATA_FORMS}.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", show_default=False, help="The sweep's folder.")]
Trials = Annotated[int, typer.Option(min=1, help="Finished trials in all, those of other processes among them.")]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", show_default=False, help=(
    "Begin no trial after so long."))]
Objective = Annotated[str, typer.Option(metavar="macs|params|latency", help=(
    "The cost, as a share of the uncut network's; a latency is measured in turns with it."))]
Storage = Annotated[str | None, typer.Option(metavar="URL", show_default=False, help=(
    "A database for several machines: postgresql://user@host/name; default: a file in the folder, for several "
    "processes."))]
Study = Annotated[str, typer.Option(metavar="NAME", help="The sweep's name in the storage.")]
Space = Annotated[Path | None, typer.Option(metavar="FILE.toml", show_default=False, help=(
    "Narrows what is searched, with lines such as macs = [0.2, 0.5]; default: macs, importance, scope, round_to, "
    "finetune_lr and distill."))]
Margin = Annotated[float, typer.Option(min=0, help=(
    "A trial that is behind a finished one of no more cost by more than this is stopped."))]
Best = Annotated[str, typer.Option(metavar="WHICH", show_default=False, help=(
    "Write the network of one trial on the front to best.safetensors: knee, accuracy:0.95 (the cheapest that reaches "
    "it), or macs:0.3 (the best that costs no more)."))]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that run trials; the cores are shared among them.")]
FinetuneEpochs = Annotated[int, typer.Option(min=0, help="Epochs after each cut.")]
Restart = Annotated[bool, typer.Option("--restart", help="Delete the sweep in this folder, and begin anew.")]


def sweep(
    context: typer.Context,
    model: Model,
    data: Data,
    out: Out,
    trials: Trials = 20,
    timeout: Timeout = None,
    objective: Objective = "macs",
    space: Space = None,
    storage: Storage = None,
    study: Study = "sweep",
    jobs: Jobs = 1,
    best: Best = "",
    margin: Margin = 0.1,
    seed: Seed = 0,
    size: Size = None,
    skip_broken: SkipBroken = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    baseline_epochs: BaselineEpochs = None,
    finetune_epochs: FinetuneEpochs = 4,
    only: Only = None,
    exclude: Exclude = None,
    threads: Threads = None,
    workers: Workers = None,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Search budgets, criteria, rounding and rates for the best metric at each cost.

    Each trial plans, cuts, proves, refits, fine-tunes briefly and measures. The same
    command continues an interrupted sweep, and further processes share it. The folder
    has the front as front.html and front.png, and its networks. Needs torchslim[sweep].
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as for `slim`
    from torchslim.pipeline.sweep.runner import run_sweep
    from torchslim.pipeline.sweep.settings import SweepSettings
    from torchslim.pipeline.sweep.space import with_space

    given = {"size": size, "skip_broken": skip_broken, "batch_size": batch_size, "lr": lr,
             "baseline_epochs": baseline_epochs, "threads": threads, "workers": workers}
    settings = with_space(SweepSettings(
        model=model, data=data, out=out, seed=seed, finetune_epochs=finetune_epochs, only=tuple(only or ()),
        exclude=tuple(exclude or ()), objective=objective, space=space, margin=margin, trials=trials, timeout=timeout,
        storage=storage, study=study, jobs=jobs, best=best,
        **{name: value for name, value in given.items() if value is not None}))  # type: ignore[arg-type]
    interrupts.remedy = f"go on with: {settings.command()}"
    with flags_for_keywords(context):
        result = run_sweep(settings, say, restart=restart)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result, out)


def _print(result: SweepResult, out: Path) -> None:
    """The front as a table, and where everything is."""
    from torchslim.pipeline.sweep.result import COSTS
    from torchslim.utils.formatting import format_metric, percent

    costs = list(dict.fromkeys([result.objective, "macs", "params"]))
    rows = [(str(trial.number), *(percent((trial.costs or {}).get(name)) for name in costs),
             format_metric(result.metric, trial.score), trial.settings_text()) for trial in result.front]
    print_table(("trial", *(COSTS[name] for name in costs), result.metric, "settings"), rows, {len(costs) + 2})
    states = [trial.state for trial in result.trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(wrapped(f"{len(states)} trials ({counted}); uncut: {result.metric} "
                  f"{format_metric(result.metric, result.baseline)}"))
    if result.best is not None:
        print(f"Best: {out / 'best.safetensors'} (trial {result.best})")
    print(f"Front: {out / 'front.html'}")
