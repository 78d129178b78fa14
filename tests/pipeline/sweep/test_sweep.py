"""Sweeps of a tiny network on few digits: finished, killed, stopped, picked, in several processes and a database."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest

import torchslim
from helpers import Call
from torchslim.errors import MissingExtra, RequestError
from torchslim.pipeline import phases
from torchslim.pipeline.sweep import page
from torchslim.pipeline.sweep.result import SweepResult
from torchslim.pipeline.sweep.runner import run_sweep
from torchslim.pipeline.sweep.settings import SweepSettings
from torchslim.pipeline.sweep.space import with_space
from torchslim.pipeline.sweep.study import MOST_ATTEMPTS, Workers, has_ended, open_study, retry_lost
from torchslim.train import evaluate

DIGITS = """
from torch.utils.data import TensorDataset
from torchslim.train import Data

def digits():
    from sklearn.datasets import load_digits
    pictures, classes = load_digits(return_X_y=True)
    x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8).expand(-1, 3, 8, 8) / 8 - 1
    y = torch.tensor(classes)
    return Data("few", TensorDataset(x[:128], y[:128]), TensorDataset(x[128:192], y[128:192]), tuple("0123456789"),
                (3, 8, 8))
"""
FAST = 'macs = {macs}\nimportance = {importance}\nscope = "uniform"\nround_to = 1\ncompensate = false\ndistill = 0\n'

Ask = Callable[..., SweepSettings]


@pytest.fixture(scope="module")
def ask(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Settings of a sweep of seconds."""
    file = tmp_path_factory.mktemp("sweep") / "few.py"
    file.write_text(network.read_text() + DIGITS)

    def settings(out: Path, **changes: Any) -> SweepSettings:
        return with_space(SweepSettings(**{
            "model": f"{file}:tiny", "data": f"{file}:digits", "out": out, "trials": 3, "batch_size": 32, "threads": 1,
            "baseline_epochs": 4, "finetune_epochs": 1, **changes}))

    return settings


@pytest.fixture(scope="module")
def finished(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepSettings, SweepResult]:
    """An undisturbed sweep."""
    settings = ask(tmp_path_factory.mktemp("finished") / "sweep", best="knee")
    return settings, run_sweep(settings)


def quiet(line: str) -> None:
    """Nothing is told."""


def found(result: SweepResult) -> list[Any]:
    return [(trial.settings, trial.score, trial.cost) for trial in result.trials if trial.state == "complete"]


def test_a_sweep_leaves_its_front(finished: tuple[SweepSettings, SweepResult]) -> None:
    settings, result = finished
    assert [trial.state for trial in result.trials] == ["complete"] * 3
    kept = {int(path.name): path for path in (settings.out / "trials").iterdir()}
    assert sorted(kept) == sorted(trial.number for trial in result.front)
    data = phases.torchslim.train.load_data(settings.data)
    before = torchslim.load(settings.out / "baseline.safetensors", trust_source=True)
    macs = torchslim.profile(before, data.test[0][0][None]).macs
    for trial in result.front:
        slim = torchslim.load(kept[trial.number] / "finetuned.safetensors", trust_source=True)
        assert evaluate(slim, data) == pytest.approx(trial.score)
        assert torchslim.profile(slim, data.test[0][0][None]).macs / macs == pytest.approx(trial.cost)
    lines = (settings.out / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["cost"] for line in lines] == [trial.cost for trial in result.trials]
    assert (settings.out / "front.png").read_bytes()[:4] == b"\x89PNG"
    best = torchslim.load(settings.out / "best.safetensors", trust_source=True)
    assert evaluate(best, data) == pytest.approx(next(t.score for t in result.trials if t.number == result.best))


def test_the_page_has_every_trial_and_needs_nothing(finished: tuple[SweepSettings, SweepResult]) -> None:
    settings, result = finished
    text = (settings.out / "front.html").read_text()
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            opened.append(tag)
            assert not {"src", "onload", "onclick"} & {name for name, _ in attrs}

    Reader().feed(text)
    assert opened.count("circle") == 3
    assert "script" not in opened
    assert not re.search(r"https?://(?!www.w3.org)", text)
    assert all(trial.settings_text() in text for trial in result.trials)


def test_an_interrupted_sweep_goes_on_as_it_would_have(finished: tuple[SweepSettings, SweepResult], ask: Ask,
                                                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep"
    run_sweep(ask(out, trials=1), quiet)
    monkeypatch.setattr(phases, "compensate", lambda run: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(ask(out, trials=2), quiet)
    monkeypatch.undo()
    result = run_sweep(ask(out, trials=2), quiet)
    assert [trial.state for trial in result.trials] == ["complete", "failed", "complete"]
    assert found(result) == found(finished[1])[:2]
    with pytest.raises(RequestError, match=r"holds a run with --seed 0 \(now 1\)"):
        run_sweep(ask(out, seed=1), quiet)
    result = run_sweep(ask(out, seed=1, trials=1, finetune_epochs=0, baseline_epochs=0), quiet, restart=True)
    assert [trial.state for trial in result.trials] == ["complete"]
    assert found(result) != found(finished[1])[:1]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_killed_worker_costs_no_trial(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, finetune = os.getpid(), phases.finetune

    def fatal(run: Any) -> Any:
        """Kill the other process in the middle of its trial; go on when it is dead."""
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        for process in multiprocessing.active_children():
            process.join()
        return finetune(run)

    monkeypatch.setattr(phases, "finetune", fatal)
    fork = multiprocessing.get_context("fork")  # imports nothing anew
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    result = run_sweep(ask(tmp_path / "sweep", jobs=2, baseline_epochs=1, finetune_epochs=0), quiet)
    states = [trial.state for trial in result.trials]
    assert (states.count("complete"), states.count("failed"), len(states)) == (3, 1, 4)
    lost = next(trial for trial in result.trials if trial.state == "failed")
    assert lost.settings in [trial.settings for trial in result.trials if trial.state == "complete"]
    assert not (tmp_path / "sweep" / "trials" / f"{lost.number:04d}").exists()


def test_a_trial_that_is_behind_is_stopped(ask: Ask, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text(FAST.format(macs="0.5", importance='"l2"') + "finetune_lr = [1e-9, 0.03, 0.5]\n")
    result = run_sweep(ask(tmp_path / "sweep", space=space, trials=3, margin=0.0, finetune_epochs=2), quiet)
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    assert stopped
    for trial in stopped:
        number = int(re.match(r"trial (\d+) costs no more and is ahead", trial.reason)[1])  # type: ignore[index]
        ahead = result.trials[number]
        assert ahead.cost <= trial.cost
        assert trial.stages[-1][1] < dict(ahead.stages)[trial.stages[-1][0]]
        assert not (tmp_path / "sweep" / "trials" / f"{trial.number:04d}").exists()


def test_measured_latency_against_the_metric_in_a_database(ask: Ask, tmp_path: Path, call: Call) -> None:
    space = tmp_path / "space.toml"
    space.write_text(FAST.format(macs="[0.2, 0.6]", importance='"l2"') + "finetune_lr = 0.01\n")
    settings = ask(tmp_path / "sweep")
    status, out, _ = call("sweep", settings.model, "--data", settings.data, "--out", settings.out, "--trials", 2,
                          "--threads", 1, "--baseline-epochs", 1, "--finetune-epochs", 0, "--objective", "latency",
                          "--storage", f"sqlite:///{tmp_path}/a.db", "--study", "mine", "--space", space, "--json")
    assert status == 0
    trials = json.loads(out)["trials"]
    assert all(0 < trial["costs"]["latency"] == trial["cost"] < 3 and trial["costs"]["macs"] < 1 for trial in trials)
    assert not list(settings.out.glob("*.journal"))
    with pytest.raises(RequestError, match=r"--study mine: holds a sweep with .*--objective latency \(now macs\)"):
        run_sweep(ask(tmp_path / "other", storage=f"sqlite:///{tmp_path}/a.db", study="mine"), quiet)


def test_lost_trials_are_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    workers = Workers(tmp_path, "here", "me")
    for place, worker in ("here", "dead"), ("elsewhere", "any"), ("here", "alive"):
        trial = study.ask()
        trial.suggest_float("macs", 0, 1)
        trial.set_user_attr("place", place)
        trial.set_user_attr("worker", worker)
    forgotten: list[int] = []
    with Workers(tmp_path, "here", "alive"):
        for _ in range(2):
            retry_lost(study, workers, forgotten.append, journal=False)
        assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING", "RUNNING", "WAITING"]
        assert forgotten == [0]
        for attempt in range(2, MOST_ATTEMPTS + 2):
            retry_lost(study, workers, forgotten.append, journal=True)
            waiting = [trial for trial in study.trials if trial.state.name == "WAITING"]
            assert len(waiting) == (attempt <= MOST_ATTEMPTS)
            for _ in waiting:
                again = study.ask()
                assert again.suggest_float("macs", 0, 1) == study.trials[0].params["macs"]
                study.tell(again, state=optuna.trial.TrialState.FAIL)
    assert has_ended(study.trials[-1])


@pytest.mark.skipif("TORCHSLIM_POSTGRESQL" not in os.environ, reason="TORCHSLIM_POSTGRESQL names no database")
def test_a_postgresql_database(ask: Ask, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    settings = ask(tmp_path / "a", storage=os.environ["TORCHSLIM_POSTGRESQL"], study=tmp_path.as_posix(), trials=1)
    first = run_sweep(settings, quiet)
    second = run_sweep(replace(settings, out=tmp_path / "b", trials=2), quiet)
    assert found(second)[:1] == found(first)


def test_what_is_missing_is_said(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 finished: tuple[SweepSettings, SweepResult]) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    told: list[str] = []
    run_sweep(finished[0], told.append)
    assert told == ["front.png is left out: matplotlib is not installed (pip install 'torchslim[plot]')"]
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'torchslim\[postgresql\]'"):
        open_study(replace(finished[0], storage="postgresql://a@b/c"))
    monkeypatch.setattr("torchslim.pipeline.sweep.runner.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'torchslim\[sweep\]'"):
        run_sweep(ask(tmp_path / "sweep"), quiet)
