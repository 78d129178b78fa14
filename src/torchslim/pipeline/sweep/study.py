"""The trials in their storage: shared by processes, sampled by the seed, tried again where a worker has died."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from torchslim.errors import MissingExtra, RequestError
from torchslim.pipeline.settings import option_name
from torchslim.pipeline.sweep.settings import SweepSettings
from torchslim.utils.seeding import derive_seed
from torchslim.utils.text import describe_error

RANDOM_TRIALS = 8
"""Trials before the sampler begins to learn from others."""
HEARTBEAT, GRACE = 30, 120
"""Seconds between the signs of life that a worker writes to a database, and after which it is taken for dead."""
MOST_ATTEMPTS = 3
"""Times that a trial is begun whose workers die."""
_SETTINGS = "torchslim sweep"


class SeededSampler(BaseSampler):
    """Optuna's tree-structured Parzen estimator for several objectives, seeded anew for each trial.

    A trial depends on the seed, its number and the trials before it, so that a sweep that was interrupted goes on as it
    would have, and workers of one seed do not try the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inner = TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed the sampler."""
        self._inner = TPESampler(seed=derive_seed(self._seed, 7, trial.number), n_startup_trials=RANDOM_TRIALS)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """See Optuna."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        """See Optuna."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


class _JournalLock:
    """The lock of a journal as a lock of the system, which is released when its process dies in any way."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_study(settings: SweepSettings) -> Study:
    """The sweep's study, made if it is not there.

    Raises:
        RequestError: the storage can't be used, or holds a study of this name with other settings.
        MissingExtra: the package of the database is not installed.
    """
    study = _opened(settings)
    _check_settings(study, settings)
    return study


def _opened(settings: SweepSettings) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.storage is None:
            lock: Any = _JournalLock(settings.out / "work" / "journal.lock")
            return _create(settings, JournalStorage(JournalFileBackend(str(settings.journal), lock)))
        return _in_database(settings, settings.storage)


def delete_study(settings: SweepSettings) -> None:
    """Delete the sweep's trials from their storage."""
    if settings.storage is None:
        settings.journal.unlink(missing_ok=True)
        return
    study = _opened(settings)
    optuna.delete_study(study_name=settings.study, storage=study._storage)


def _create(settings: SweepSettings, storage: BaseStorage) -> Study:
    return optuna.create_study(study_name=settings.study, storage=storage, directions=["maximize", "minimize"],
                               load_if_exists=True, sampler=SeededSampler(settings.seed))


def _in_database(settings: SweepSettings, url: str, attempts: int = 5) -> Study:
    """The study in a database; tried again where others make its tables at the same time."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    try:
        address = make_url(url)
    except ArgumentError:
        raise RequestError("--storage: no URL of a database; wanted one such as postgresql://user@host/name or "
                           "sqlite:////path/to/file.db") from None
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    shown = f"--storage {address.render_as_string(hide_password=True)}"
    for attempt in range(1, attempts + 1):
        try:
            storage = RDBStorage(address.render_as_string(hide_password=False), heartbeat_interval=HEARTBEAT,
                                 grace_period=GRACE)
            return _create(settings, storage)
        except ImportError as error:
            if address.drivername == "postgresql+psycopg":
                raise MissingExtra("psycopg", "postgresql", "a sweep in PostgreSQL") from error
            raise RequestError(f"{shown}: can't be used ({describe_error(error.__cause__ or error)}); install the "
                               "package of this database") from error
        except NoSuchModuleError as error:
            raise RequestError(f"{shown}: no database that SQLAlchemy knows ({describe_error(error)}); wanted one such "
                               "as postgresql://user@host/name") from error
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ or error
            if attempt == attempts or "connect" in str(cause).lower() or "unable to open" in str(cause).lower():
                raise RequestError(f"{shown}: can't be used ({describe_error(cause)}); look at the address, and "
                                   "whether the database is there") from error
            time.sleep(0.2 * attempt)
    raise AssertionError


def _check_settings(study: Study, settings: SweepSettings) -> None:
    """Note the settings with a new study; refuse one of others."""
    wanted: Mapping[str, Any] = json.loads(json.dumps(settings.identity()))
    there = study.user_attrs.get(_SETTINGS)
    if there is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(_SETTINGS, wanted)
        return
    if there is None:
        raise RequestError(f"--study {settings.study}: is there, and no sweep of torchslim; choose another name")
    odd = [f"{option_name(name)} {there.get(name)} (now {wanted.get(name)})"
           for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
    if odd:
        raise RequestError(f"--study {settings.study}: holds a sweep with {', '.join(odd)}; choose another name")


class Workers:
    """Who works in a folder: each worker holds a lock while it lives."""

    def __init__(self, work: Path, place: str, name: str) -> None:
        self._work, self.place, self.name = work, place, name
        self._lock = FileLock(self._path(name))

    def _path(self, name: str) -> Path:
        return self._work / f"worker-{name}.lock"

    def __enter__(self) -> Workers:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

    def runs(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's worker is alive, as far as can be known here."""
        place, name = trial.user_attrs.get("place"), trial.user_attrs.get("worker")
        if place != self.place:
            return True
        if name == self.name or not self._path(str(name)).exists():
            return False
        try:
            with FileLock(self._path(str(name)), timeout=0):
                pass
        except Timeout:
            return True
        self._path(str(name)).unlink(missing_ok=True)
        return False


def retry_lost(study: Study, workers: Workers, forget: Callable[[int], None], journal: bool) -> None:
    """Mark the trials of dead workers as failed, and put all that failed without an error of their own in line again.

    Args:
        study: the study.
        workers: of this folder; they are told apart under its lock.
        forget: deletes the files of a trial.
        journal: whether all workers are of this folder, so that a trial that names none is of a dead one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)  # of workers elsewhere
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not workers.runs(trial) or (journal and "worker" not in trial.user_attrs):
            with suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # a worker elsewhere was faster
                study.tell(trial.number, state=TrialState.FAIL)
            forget(trial.number)
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get("again") for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and not has_ended(trial) and trial.number not in again:
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number, "attempt": _attempt(trial) + 1})


def has_ended(trial: FrozenTrial) -> bool:
    """Whether a trial counts: complete, stopped, failed by an error of its own, or begun too often."""
    if trial.state == TrialState.FAIL:
        return "error" in trial.user_attrs or _attempt(trial) >= MOST_ATTEMPTS
    return trial.state.is_finished()


def _attempt(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempt", 1))
