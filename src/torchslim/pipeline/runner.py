"""The pipeline: the phases of a run, their order, and running them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchslim.errors import BudgetError, CheckpointError, MissingExtra, RequestError, TrainingError
from torchslim.pipeline.run_folder import CHECKPOINTS, FINAL, RunFolder
from torchslim.pipeline.settings import Settings
from torchslim.utils.formatting import NOT_SHARES
from torchslim.utils.launcher import requested_on_machine, requested_processes

if TYPE_CHECKING:
    from torchslim.pipeline.processes import Team
    from torchslim.report.record import Record
    from torchslim.train import Progress


@dataclass(frozen=True)
class Phase:
    """A phase of the pipeline.

    Attributes:
        name: its name.
        work: its function in `torchslim.pipeline.phases`.
        needs: files that it reads.
        makes: files that it writes.
        title: shown to users.
    """

    name: str
    work: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    title: str

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it writes, with its checkpoint if it trains."""
        return (*self.makes, *(name for name in CHECKPOINTS if name == f"{self.name}.checkpoint"))


_BASE, _SPARSE, _CUT, _REFITTED, _TUNED = (f"{name}.safetensors" for name in (
    "baseline", "sparse", "cut", "compensated", "finetuned"))
_SLIM = "slim.safetensors"

PHASES = (
    Phase("baseline", "baseline", (), (_BASE,), "train the baseline"),
    Phase("sparsify", "sparsify", (_BASE,), (_SPARSE,), "press scales toward zero"),
    Phase("plan", "plan", (_SPARSE,), ("plan.json",), "choose channels"),
    Phase("cut", "cut", (_SPARSE, "plan.json"), (_CUT,), "cut and prove"),
    Phase("compensate", "compensate", (_BASE, _SPARSE, _CUT, "plan.json"), (_REFITTED,), "refit to the uncut network"),
    Phase("finetune", "finetune", (_BASE, _CUT, _REFITTED, "plan.json"), (_TUNED,), "fine-tune"),
    Phase("measure", "measure_latency", (_BASE, _TUNED), (), "time before and after"),
    Phase("save", "save_slim", (_TUNED, "plan.json"), (_SLIM,), "save"),
    Phase("export", "export", (_BASE, _SLIM), ("baseline.onnx", "slim.onnx"), "export and compare"),
    Phase("report", "report", (_BASE, _SLIM, "plan.json"), ("record.json", "report.html"), "write the report"),
)


@dataclass(frozen=True)
class PhaseEvent:
    """A progress event of a run.

    Attributes:
        phase: the phase.
        number: its position, from 1.
        phases: number of phases.
        kind: "begin", "step", "epoch", "end", or "skip" for a phase that was done before.
        done: share of the phase that is done, 0 to 1.
        text: a message.
    """

    phase: Phase
    number: int
    phases: int
    kind: str
    done: float = 0.0
    text: str = ""


EventCallback = Callable[[PhaseEvent], None]


def run_slim(settings: Settings, progress: EventCallback = lambda event: None, *, restart: bool = False) -> Record:
    """Run the pipeline, or the rest of it, in the folder `settings.out`.

    Under torchrun every process calls it; they train and score together, and the first does and writes the rest
    (docs/distributed.md).

    An interrupted run continues from its last finished phase or epoch, and ends with the same weights, to the bit, as
    an uninterrupted one on this machine; with a latency budget, whose plan depends on measured times, only once the
    plan is made. A finished one returns its record at once.

    Args:
        settings: of the run.
        progress: called with each event.
        restart: delete the run in the folder.

    Raises:
        RequestError: the folder holds a run with other settings or what is no run, or is in use; the model, the data
            or the budget are invalid. Nothing was written then.
        BudgetError: a budget can't be met; before anything is trained, but for a latency.
        MissingExtra: a package that a phase needs is not installed.
        ProofError: the cut network does not equal its silenced original.
        TorchslimError: a phase failed.

    Returns:
        The record of the run, in all processes.
    """
    if requested_processes() == 1:
        return _lead(settings, progress, restart)
    from torchslim.pipeline.processes import Team
    from torchslim.train.processes import join_processes

    processes = join_processes()
    team = Team(processes)
    with processes.connected():
        if not processes.is_first:
            return _follow(settings, team)
        with team.leading():
            record = _lead(settings, progress, restart, team)
        processes.broadcast(record.to_json())
    return record


def _follow(settings: Settings, team: Team) -> Record:
    """Work for the first process, to the end of its run."""
    from torchslim.pipeline.checks import check_training
    from torchslim.pipeline.context import TrainingContext
    from torchslim.report.record import Record

    run = TrainingContext(settings, processes=team.processes)
    with _deterministic(_threads(settings)):
        team.works |= {"check": partial(check_training, run), "train": run.train_together, "score": run.scores}
        team.follow()
    return Record.from_json(team.processes.broadcast(None))


def _lead(settings: Settings, progress: EventCallback, restart: bool, team: Team | None = None) -> Record:
    """Run the pipeline in this process, with those of the team if there are others."""
    _check_out_is_not_data(settings)
    folder = RunFolder(settings.out)
    folder.open(settings, restart)
    due = _pending_phases(folder, settings)
    if folder.is_tidy() and not due:
        return _record(folder)
    world = 1 if team is None else team.processes.world
    folder.check_processes(world)
    folder.check_writable(name for phase in due for name in phase.files)
    _preflight(settings)
    threads = folder.threads or _threads(settings)
    with _deterministic(threads):
        if PHASES[0] in due:
            _check_request(settings, folder, threads, team)
        with folder.locked():
            folder.open(settings, restart)  # another process may have worked here meanwhile
            if restart:
                folder.clear()
            folder.begin(threads, world)
            _run_phases(settings, folder, threads, progress, team)
    return _record(folder)


def phases_of(settings: Settings) -> list[Phase]:
    """The phases of a run."""
    skipped = {"sparsify"} if not settings.pressing_epochs else set()
    if not settings.compensate:
        skipped.add("compensate")
    if not settings.export:
        skipped.add("export")
    return [phase for phase in PHASES if phase.name not in skipped]


def _pending_phases(folder: RunFolder, settings: Settings) -> list[Phase]:
    """The phases that are still to run: not done, or with missing files that are needed."""
    phases = phases_of(settings)
    due = [phase for phase in phases if phase.name not in folder.found
           or ("problem" not in folder.found[phase.name]
               and any(name in FINAL and not folder.file(name).exists() for name in phase.makes))]
    for phase in reversed(phases):
        if any(name in other.needs and not folder.file(name).exists() for other in due for name in phase.makes):
            due.append(phase)
    if due:
        due.append(phases[-1])  # the report covers all of them
    return [phase for phase in phases if phase in due]


def _run_phases(settings: Settings, folder: RunFolder, threads: int, progress: EventCallback,
                team: Team | None) -> None:
    from torchslim.pipeline import phases as works
    from torchslim.pipeline.context import RunContext
    from torchslim.pipeline.processes import Team

    phases, due = phases_of(settings), _pending_phases(folder, settings)
    for number, phase in enumerate(phases, start=1):

        def tell(kind: str, done: float = 0.0, text: str = "", phase: Phase = phase, number: int = number) -> None:
            progress(PhaseEvent(phase, number, len(phases), kind, done, text))

        if phase not in due:
            tell("skip", 1.0)
            continue
        tell("begin")
        run = RunContext(settings, folder, threads, _progress_callback(tell), team or Team())
        try:
            folder.claim(phase.files)
            results = getattr(works, phase.work)(run)
            folder.finish(phase.name, results)
        except BudgetError:
            raise
        except CheckpointError as error:  # a full disk, say
            raise type(error)(f"{error}; then the same command goes on") from error
        except RequestError as error:  # the request was checked, and files were written: now it is the work that fails
            raise TrainingError(f"{phase.name}: {error}; then the same command goes on") from error
        folder.file(f"{phase.name}.checkpoint").unlink(missing_ok=True)
        tell("end", 1.0, _summary(results))
    folder.delete_intermediate()


def _progress_callback(tell: Callable[..., None]) -> Callable[[Progress], None]:
    def on_progress(at: Progress) -> None:
        within = at.step / at.steps if at.steps else 0.0
        done = (at.epoch - 1 + (1.0 if at.finished else within)) / at.epochs
        text = f"epoch {at.epoch}/{at.epochs}, loss {at.loss:.3f}"
        if at.score is not None:
            text += f", {at.metric} {_in_progress(at.metric, at.score)}"
        tell("epoch" if at.finished else "step", done, text)

    return on_progress


def _summary(results: dict[str, Any]) -> str:
    words = [f"{name} {_in_progress(name, value)}" for name, value in list(results.get("metrics", {}).items())[:1]]
    if results.get("error") is not None:
        words.append(f"largest relative error {results['error']:.1e}")
    return "; ".join(filter(None, (", ".join(words), results.get("remark"))))


def _in_progress(metric: str, value: float) -> str:
    """A metric with a digit more than in a table, to show how it changes from epoch to epoch."""
    return f"{value:.4f}" if metric in NOT_SHARES else f"{value:.2%}"


def _record(folder: RunFolder) -> Record:
    from torchslim.report.record import Record

    path = folder.file("record.json")
    try:
        return Record.from_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({type(error).__name__}); delete it and run again") from error


def _check_out_is_not_data(settings: Settings) -> None:
    """Raise if the run's folder is the data's, or lies in it."""
    kind, _, place = settings.data.partition(":")
    if kind == "folder" and Path(place).expanduser().resolve() in (out := settings.out.resolve(), *out.parents):
        raise RequestError(f"--out {settings.out}: lies in the folder of the data, {place}, where its files would "
                           "be taken for data; choose a folder elsewhere, such as runs/mine")


def _preflight(settings: Settings) -> None:
    """Check requirements before any computation."""
    from torchslim.zoo.sources import resolve

    if resolve(settings.model).kind == "saved" and settings.fresh:
        raise RequestError(f"--fresh: {settings.model} is a saved model, whose weights are all that it has; leave "
                           "--fresh out, or give the architecture that it was made from")
    if find_spec("accelerate") is None:
        raise MissingExtra("accelerate", "train", "training")
    for package in ("onnx", "onnxscript", "onnxruntime") if settings.export else ():
        if find_spec(package) is None:
            raise MissingExtra(package, "onnx", "export to ONNX (--no-export leaves it out)")


def _check_request(settings: Settings, folder: RunFolder, threads: int, team: Team | None) -> None:
    """Check data, model, criterion and budget before the folder is made."""
    from torchslim.pipeline.checks import check_request
    from torchslim.pipeline.context import RunContext
    from torchslim.pipeline.processes import Team

    check_request(RunContext(settings, folder, threads, lambda _: None, team or Team()))


def _threads(settings: Settings) -> int:
    """CPU threads of each process."""
    return settings.threads or max(1, _available_cores() // requested_on_machine())


def _available_cores() -> int:
    """Number of usable CPU cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """Set torch's threads and deterministic kernels; afterwards restore its settings."""
    # Read by CUDA's libraries at startup; required for deterministic kernels.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    checks: Any = torch.utils.deterministic
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
              torch.is_deterministic_algorithms_warn_only_enabled(),
              checks.fill_uninitialized_memory, torch.backends.cudnn.benchmark)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    checks.fill_uninitialized_memory = False  # slow, and only for debugging kernels
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        checks.fill_uninitialized_memory = before[3]
        torch.backends.cudnn.benchmark = before[4]


@contextmanager
def conditions(settings: Settings, folder: RunFolder) -> Iterator[int]:
    """What `run_slim` does around the phases, for other jobs of them: the checks before any work, torch's settings.

    Yields:
        CPU threads.
    """
    if requested_processes() > 1:
        raise RequestError("started as several processes by torchrun, this job runs in one at a time; start it without "
                           "torchrun")
    _check_out_is_not_data(settings)
    _preflight(settings)
    threads = folder.threads or _threads(settings)
    with _deterministic(threads):
        yield threads
