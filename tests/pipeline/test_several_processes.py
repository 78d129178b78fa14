"""`slim` and `train` by two processes: the result of one, killed and interrupted on the way, and who prints."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchslim
from helpers import ROOT
from pipeline.conftest import NET, Ask
from pipeline.turns_of_a_run import COMMANDS, FEW
from torchslim.errors import RequestError
from torchslim.pipeline.run_folder import RunFolder
from torchslim.pipeline.runner import conditions, run_slim
from torchslim.pipeline.settings import Settings
from torchslim.surgery.plans import Plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the turns left what they wrote and printed; all but the killed process ended by themselves."""
    folder = tmp_path_factory.mktemp("turns")
    (folder / "networks.py").write_text(NET + FEW)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "together.py"), str(Path(__file__).with_name("turns_of_a_run.py")),
         str(folder), *["2"] * len(COMMANDS)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR"})
    assert done.returncode == 1, done.stderr
    assert not (folder / "killed.1.status").exists()
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, ask: Ask) -> Settings:
    """The same run, finished by a single process."""
    settings = ask(folder / "alone", model=f"{folder}/networks.py:plain", data=f"{folder}/networks.py:few", macs=0.5,
                   size=None, batch_size=30, round_to=1,
                   importance="l2", baseline_epochs=3, sparsify_epochs=None, finetune_epochs=1)
    run_slim(settings)
    return settings


def statuses(folder: Path, turn: str) -> list[str]:
    return [(folder / f"{turn}.{rank}.status").read_text() for rank in (0, 1)]


def printed(folder: Path, turn: str, stream: str) -> list[list[str]]:
    return [(folder / f"{turn}.{rank}.{stream}").read_text().splitlines() for rank in (0, 1)]


def last_lines(folder: Path, turn: str) -> list[str]:
    """How the command ended: lines on stderr that are no progress, of both processes."""
    return [line for lines in printed(folder, turn, "err") for line in lines if not line.startswith(("[", "epoch "))]


def test_the_plan_and_the_weights_are_those_of_one_process(folder: Path, alone: Settings) -> None:
    assert statuses(folder, "finished") == ["0", "0"]
    plans = [Plan.from_json((out / "plan.json").read_text()) for out in (folder / "run", alone.out)]
    assert plans[0].kept == plans[1].kept
    models = [torchslim.load(out / "slim.safetensors", trust_source=True) for out in (folder / "run", alone.out)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_only_the_first_prints(folder: Path) -> None:
    for turn, words in (("finished", "Proof:"), ("train", "Model: ")):
        assert statuses(folder, turn) == ["0", "0"]
        first, second = printed(folder, turn, "out")
        assert any(line.startswith(words) for line in first)
        assert second == []
        assert last_lines(folder, turn) == []
        assert printed(folder, turn, "err")[1] == []
    assert (folder / "trained.safetensors").exists()


def test_a_killed_process_ends_the_other_with_one_line(folder: Path) -> None:
    assert (folder / "killed.0.status").read_text() == "1"
    (line,) = last_lines(folder, "killed")
    assert line.startswith("error: process 0 of 2: another process has ended or can't be reached; ")


def test_ctrl_c_ends_all_with_one_line(folder: Path) -> None:
    assert statuses(folder, "interrupted") == ["130", "130"]
    assert last_lines(folder, "interrupted") == ["interrupted; the same command goes on"]


def test_a_killed_and_interrupted_run_went_on(folder: Path) -> None:
    """By epochs of the baseline: two of the first turn, none twice; the second's second was not kept."""
    log = (folder / "run" / "log.jsonl").read_text().splitlines()
    assert [line.partition('"epoch": ')[2][0] for line in log if '"baseline"' in line] == ["1", "2", "3"]


def test_what_can_not_be_is_refused_by_all_with_one_line(folder: Path) -> None:
    assert statuses(folder, "profile") == ["2", "2"]
    assert last_lines(folder, "profile") == [
        "error: profile: started as 2 processes, it runs in one; leave torchrun out, which is for slim, demo, train"]
    assert statuses(folder, "impossible") == ["2", "2"]
    (line,) = last_lines(folder, "impossible")
    assert line.startswith("error: ")
    assert "macs" in line
    assert not (folder / "never").exists()


def test_another_number_of_processes_is_refused(folder: Path, alone: Settings) -> None:
    settings = replace(alone, out=folder / "run")
    run_slim(settings)  # a finished run is shown
    (folder / "run" / "report.html").unlink()
    with pytest.raises(RequestError, match=r"run: holds a run by 2 processes \(now 1\); go on with as many, choose"):
        run_slim(settings)


def test_other_jobs_run_in_one_process(alone: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="start it without torchrun"), conditions(alone, RunFolder(alone.out)):
        pass
