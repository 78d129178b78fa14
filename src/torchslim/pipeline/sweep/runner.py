"""A sweep: the baseline once, trials in one process or several, the pick, the files."""

from __future__ import annotations

import math
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from torchslim.errors import MissingExtra, RequestError, TorchslimError
from torchslim.pipeline.run_folder import LOCK, STATE, WORK, RunFolder
from torchslim.pipeline.runner import PHASES, conditions
from torchslim.pipeline.sweep.result import SweepResult, SweepTrial, check_best, pick
from torchslim.pipeline.sweep.settings import SweepSettings
from torchslim.utils.formatting import format_metric

if TYPE_CHECKING:
    from torchslim.pipeline.context import RunContext
    from torchslim.pipeline.sweep.worker import Worker
    from torchslim.train import Progress

BEST, BEST_PLAN, PICTURE = "best.safetensors", "best-plan.json", "front.png"
Tell = Callable[[str], None]


def run_sweep(settings: SweepSettings, tell: Tell = print, *, restart: bool = False) -> SweepResult:
    """Run a sweep, or the rest of it, in the folder `settings.out`.

    Several processes may call this with the same settings at once, and with a database on several machines. A process
    may be killed at any time: another, or the same call again, marks its trial as failed and begins it anew. With one
    process the trials depend on the seed alone, interrupted or not; with several, on which of them is first.

    Args:
        settings: with a space (see `torchslim.pipeline.sweep.space.with_space`).
        tell: is given lines of progress; with several jobs it must be a function of a module.
        restart: delete the sweep in the folder and in the storage first.

    Raises:
        RequestError: the folder holds a sweep with other settings or what is none; the model, the data, the storage or
            what is to be picked are invalid.
        MissingExtra: Optuna or a package of the training is not installed.
        TorchslimError: the baseline's training failed, or all trials did.
    """
    if find_spec("optuna") is None:
        raise MissingExtra("optuna", "sweep", "a sweep")
    if restart:
        _delete(settings)
    deadline = math.inf if settings.timeout is None else time.time() + settings.timeout
    with _worker(settings, tell) as worker:
        others = [_start(settings, tell, deadline) for _ in range(settings.jobs - 1)]
        try:
            worker.run(deadline)
            for process in others:
                process.join()
            worker.run(deadline)  # what a worker that has died leaves undone
        finally:
            for process in others:
                process.terminate()
        result: SweepResult = worker.write()
        errors = [trial.reason for trial in result.trials if trial.state == "failed" and trial.reason]
        if errors and not any(trial.finished for trial in result.trials):
            raise TorchslimError(f"no trial is complete; the last one failed: {errors[-1]}")
        if settings.best:
            best = pick(result, settings.best)
            _write_best(settings, best)
            result = worker.write(best.number)
        if not _draw(result, settings.out / PICTURE):
            tell(f"{PICTURE} is left out: matplotlib is not installed (pip install 'torchslim[plot]')")
    return result


def _delete(settings: SweepSettings) -> None:
    from torchslim.pipeline.sweep.study import delete_study
    from torchslim.pipeline.sweep.trial import FOLDER
    from torchslim.pipeline.sweep.worker import PAGE, TRIALS

    folder = RunFolder(settings.out)
    folder.open(settings, restart=True)
    if not folder.file(STATE).exists():
        return
    with folder.locked():
        folder.clear()
        folder.begin(1)
        delete_study(settings)
        for name in (TRIALS, PAGE, PICTURE, BEST, BEST_PLAN):
            (settings.out / name).unlink(missing_ok=True)
        shutil.rmtree(settings.out / FOLDER, ignore_errors=True)


@contextmanager
def _worker(settings: SweepSettings, tell: Tell) -> Iterator[Worker]:
    """A worker with its baseline, under the conditions in which trials run."""
    from torchslim.pipeline.context import RunContext
    from torchslim.pipeline.sweep.study import open_study
    from torchslim.pipeline.sweep.worker import Worker

    folder = RunFolder(settings.out)
    folder.open(settings)
    baseline = PHASES[0]
    folder.check_writable(baseline.files)
    shared = settings.jobs if settings.threads is None else 1
    with conditions(settings, folder) as most:
        import torch

        threads = max(1, most // shared)
        torch.set_num_threads(threads)
        sweep = RunContext(settings, folder, threads, _epochs(tell))
        if settings.best:
            check_best(settings.best, sweep.task.metric, settings.objective)
        if baseline.name not in folder.found:
            from torchslim.pipeline.checks import check_request

            check_request(sweep)
        study = None if settings.storage is None else open_study(settings)
        _make_baseline(sweep, most, tell)
        yield Worker(sweep, settings, tell, study)


def _make_baseline(sweep: RunContext, threads: int, tell: Tell) -> None:
    """Train the baseline, or take it as it is; where another process does so, wait for it."""
    from torchslim.pipeline import phases

    settings, folder, baseline = sweep.settings, sweep.folder, PHASES[0]
    (settings.out / WORK).mkdir(parents=True, exist_ok=True)
    with FileLock(settings.out / WORK / LOCK):
        folder.open(settings)
        if baseline.name not in folder.found or not all(folder.file(name).exists() for name in baseline.makes):
            folder.begin(threads)
            folder.claim(baseline.files)
            folder.finish(baseline.name, phases.baseline(sweep))
            folder.file(f"{baseline.name}.checkpoint").unlink(missing_ok=True)
            score = folder.found[baseline.name]["metrics"][sweep.task.metric]
            tell(f"baseline: {sweep.task.metric} {format_metric(sweep.task.metric, score)}")


def _epochs(tell: Tell) -> Callable[[Progress], None]:
    """Lines for the epochs of the baseline; trials have one each."""

    def on_progress(at: Progress) -> None:
        if at.finished and at.score is not None:
            tell(f"epoch {at.epoch}/{at.epochs}: {at.metric} {format_metric(at.metric, at.score)}")

    return on_progress


def _start(settings: SweepSettings, tell: Tell, deadline: float) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(settings, tell, deadline))
    process.start()
    return process


def _work(settings: SweepSettings, tell: Tell, deadline: float) -> None:
    """A further process."""
    try:
        with _worker(settings, tell) as worker:
            worker.run(deadline)
    except KeyboardInterrupt:
        sys.exit(130)
    except TorchslimError as error:
        tell(f"a worker ended: {error}")
        sys.exit(1)


def _write_best(settings: SweepSettings, best: SweepTrial) -> None:
    """Copy the picked network and its plan."""
    from torchslim.pipeline.sweep.trial import PLAN, SLIM, trial_path
    from torchslim.utils.files import write_atomically

    for name, final in ((SLIM, BEST), (PLAN, BEST_PLAN)):
        path = trial_path(settings.out, best.number) / name
        if not path.exists():
            raise RequestError(f"--best {settings.best}: trial {best.number} was run in {best.place}; ask there")
        content = path.read_bytes()
        write_atomically(settings.out / final, lambda draft, content=content: draft.write_bytes(content))  # type: ignore[misc]


def _draw(result: SweepResult, path: Path) -> bool:
    from torchslim.pipeline.sweep.page import draw_png

    return draw_png(result, path)
