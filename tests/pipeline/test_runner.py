"""The pipeline from end to end: what it leaves, that it survives being killed, and what it refuses."""

from __future__ import annotations

import contextlib
import html
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torchslim
from clocks import Blocky, time_of
from helpers import Call, heeds_ctrl_c
from torchslim import cli
from torchslim.cli.progress import ProgressBars, ProgressLines
from torchslim.errors import ProofError, RequestError, TrainingError
from torchslim.latency.local_backend import LocalBackend
from torchslim.pipeline import compensation, context, phases
from torchslim.pipeline import runner as slim
from torchslim.pipeline.norm_statistics import with_recent_statistics
from torchslim.pipeline.runner import PhaseEvent, run_slim
from torchslim.pipeline.settings import Settings
from torchslim.report.record import Record
from torchslim.surgery.plans import Plan
from torchslim.train import History, evaluate, fit, load_data
from torchslim.train.tasks import task_for

Ask = Callable[..., Settings]
Finished = tuple[Settings, Record, list[PhaseEvent]]

FILES = ["baseline.onnx", "baseline.safetensors", "log.jsonl", "plan.json", "record.json", "report.html", "slim.onnx",
         "slim.safetensors", "work"]


def weights(settings: Settings) -> bytes:
    return (settings.out / "slim.safetensors").read_bytes()


# --- a run ------------------------------------------------------------------------------------------------------------

def test_what_a_run_leaves(finished: Finished) -> None:
    settings, record, _ = finished
    assert sorted(path.name for path in settings.out.iterdir()) == FILES
    assert sorted(path.name for path in (settings.out / "work").iterdir()) == ["lock", "state.json"]
    assert Record.from_json((settings.out / "record.json").read_text()) == record
    assert "<html" in (settings.out / "report.html").read_text()


def test_the_record_says_what_is_true(finished: Finished) -> None:
    settings, record, _ = finished
    data = load_data("digits", size=8, seed=0)
    inputs = torch.randn(1, 3, 8, 8)
    for measured, name in ((record.before, "baseline.safetensors"), (record.after, "slim.safetensors")):
        model = torchslim.load(settings.out / name, trust_source=True)
        profile = torchslim.profile(model, inputs)
        assert (measured.params, measured.macs) == (profile.params, profile.macs)
        assert measured.score == evaluate(model, data)
        assert measured.file_bytes == (settings.out / name).stat().st_size
        assert set(measured.latency) == {"eager", "onnxruntime"}
    assert record.after.macs <= 0.4 * record.before.macs
    assert record.before.score > 0.8
    assert record.proof_error < 1e-12
    assert record.onnx_error is not None
    assert record.onnx_error < 1e-4
    assert [len(curve.loss) for curve in record.curves] == [4, 3, 3]
    assert record.command == settings.command()
    assert record.samples


def test_the_layers_add_up(finished: Finished) -> None:
    _, record, _ = finished
    assert sum(layer.macs_before for layer in record.layers) == record.before.macs
    assert sum(layer.macs_after for layer in record.layers) == record.after.macs
    assert any(layer.channels_after < layer.channels_before for layer in record.layers)
    assert record.layers[-1].channels_after == 10


def test_the_scores_count_every_channel_that_competed(finished: Finished) -> None:
    settings, record, _ = finished
    plan = Plan.from_json((settings.out / "plan.json").read_text())
    gone = sum(24 - len(plan.kept[name][0]) if "first" in name else 16 - len(plan.kept[name][0])
               for name in ("0.weight", "4.first.weight") if name in plan.kept)
    assert record.scores is not None
    assert sum(record.scores.removed) == gone
    assert sum(record.scores.kept) == 16 + 24 - gone
    assert len(record.scores.edges) == len(record.scores.kept) + 1


def test_shortcut_channels_are_cut(ask: Ask, finished: Finished) -> None:
    settings, _, _ = finished
    plan = Plan.from_json((settings.out / "plan.json").read_text())
    assert plan.settings["shortcuts"]
    assert "4.second.weight" in plan.kept


def test_numbers_of_channels_are_multiples(finished: Finished) -> None:
    settings, _, _ = finished
    plan = Plan.from_json((settings.out / "plan.json").read_text())
    assert settings.round_to == 2
    assert all(len(plan.kept[name][0]) % 2 == 0 for name in ("0.weight", "4.first.weight") if name in plan.kept)


def test_what_is_told_on_the_way(finished: Finished) -> None:
    _, _, events = finished
    order = ["baseline", "sparsify", "plan", "cut", "compensate", "finetune", "measure", "save", "export", "report"]
    assert [event.phase.name for event in events if event.kind == "begin"] == order
    assert [event.phase.name for event in events if event.kind == "end"] == order
    assert next(event.text for event in events if event.kind == "epoch").startswith("epoch 1/4, loss ")
    for name in order:
        shares = [event.done for event in events if event.phase.name == name]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


def test_a_finished_run_answers_at_once(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, record, _ = finished
    monkeypatch.setattr(slim, "_preflight", lambda _: pytest.fail("the run began again"))
    events: list[PhaseEvent] = []
    assert run_slim(settings, events.append) == record
    assert run_slim(replace(settings, export=False), events.append) == record
    assert not events


# --- interruption -----------------------------------------------------------------------------------------------------

def command(settings: Settings) -> list[str]:
    words = settings.command().removeprefix("torchslim ")
    code = "import sys; from torchslim.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *shlex.split(words)]


def start_and(settings: Settings, signal_: int, when: Callable[[Path], bool]) -> tuple[int, str]:
    """Start the command and send it a signal as soon as its folder looks so; its status, what it said on stderr."""
    with subprocess.Popen(command(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          preexec_fn=heeds_ctrl_c) as process:
        while process.poll() is None and not when(settings.out):
            time.sleep(0.005)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        process.send_signal(signal_)
        said = process.communicate(timeout=600)[1]
        return process.returncode, said


@pytest.mark.nightly
def test_killed_in_a_training_it_ends_with_the_same_bits(ask: Ask, finished: Finished, tmp_path: Path) -> None:
    settings = ask(tmp_path / "run")
    start_and(settings, signal.SIGKILL, lambda out: (out / "work" / "finetune.checkpoint").exists())
    assert not (settings.out / "slim.safetensors").exists()
    done = subprocess.run(command(settings), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1/9] baseline: done before" in done.stderr
    assert "[2/9] sparsify: done before" in done.stderr
    assert "finetune: epoch 1/3" not in done.stderr
    assert "finetune: epoch 3/3" in done.stderr
    assert weights(settings) == weights(finished[0])
    assert not [path for path in settings.out.rglob("*") if path.name.startswith(".")]


class Halt(BaseException):
    """Stands for a process that ends here."""


def test_stopped_before_each_phase_is_noted_it_ends_with_the_same_bits(
        ask: Ask, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: a phase's files are there, and the folder does not say so yet."""
    settings = ask(tmp_path / "run")
    finish = slim.RunFolder.finish
    for phase in slim.phases_of(settings):

        def halt(folder: Any, name: str, results: Any, phase: str = phase.name) -> None:
            if name == phase:
                raise Halt
            finish(folder, name, results)

        events: list[PhaseEvent] = []
        monkeypatch.setattr(slim.RunFolder, "finish", halt)
        with pytest.raises(Halt):
            run_slim(settings, events.append)
        monkeypatch.setattr(slim.RunFolder, "finish", finish)
        assert len([event for event in events if event.kind == "begin"]) == (1 if phase.name == "baseline" else 2)
    run_slim(settings)
    assert weights(settings) == weights(finished[0])


def test_interrupted_by_hand_it_says_how_to_go_on(ask: Ask, tmp_path: Path) -> None:
    settings = ask(tmp_path / "run")
    status, said = start_and(settings, signal.SIGINT, lambda out: (out / "work" / "baseline.checkpoint").exists())
    assert status == 130
    assert said.splitlines()[-1] == f"interrupted; go on with: {settings.command()}"
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "again"), [
    ("report.html", ["report"]),
    ("slim.safetensors", ["sparsify", "cut", "compensate", "finetune", "save", "report"]),
])
def test_a_result_that_was_deleted_is_made_again(ask: Ask, finished: Finished, tmp_path: Path, name: str,
                                                 again: list[str]) -> None:
    settings = ask(tmp_path / "run")
    shutil.copytree(finished[0].out, settings.out)
    (settings.out / name).unlink()
    events: list[PhaseEvent] = []
    run_slim(settings, events.append)
    assert [event.phase.name for event in events if event.kind == "begin"] == again
    assert weights(settings) == weights(finished[0])


# --- other ways to ask ------------------------------------------------------------------------------------------------

def test_a_trained_model_without_sparsity(ask: Ask, finished: Finished, tmp_path: Path) -> None:
    """The slim model of one run is the model of the next."""
    settings = ask(tmp_path / "run", model=str(finished[0].out / "slim.safetensors") + "?trust_source=True",
                   baseline_epochs=0, sparsify_epochs=0, finetune_epochs=1, importance="l2", macs=0.7)
    record = run_slim(settings)
    assert record.before.score == finished[1].after.score
    assert record.after.macs <= 0.7 * finished[1].after.macs
    again = torchslim.load(settings.out / "slim.safetensors", trust_source=True)
    assert evaluate(again, load_data("digits", size=8)) == record.after.score


def test_a_network_without_batch_norms_is_ranked_refitted_and_distilled(
        ask: Ask, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[float] = []

    def fitted(model: torch.nn.Module, *args: Any, **options: Any) -> History:
        if options.get("teacher") is not None:
            taught.append(options["alpha"])
        return fit(model, *args, **options)

    monkeypatch.setattr(context, "fit", fitted)
    settings = ask(tmp_path / "run", model=f"{network}:plain", sparsify_epochs=None, distill=0.25, scope="uniform",
                   only=("0",), baseline_epochs=8)
    record = run_slim(settings)
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert (plan.settings["ranked_by"], plan.settings["scope"], plan.settings["only"]) == ("obs", "uniform", ["0"])
    assert any(note.startswith("Compensate: ") for note in record.notes)
    assert taught == [0.25]
    assert record.scores is not None
    assert "obs" in record.scores.label


def test_a_refit_that_makes_things_worse_is_left_out(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", size=8)
    model = torchslim.load(finished[0].out / "baseline.safetensors", trust_source=True)
    plan = torchslim.plan(model, torch.zeros(1, 3, 8, 8), macs=0.5)
    slim = torchslim.apply(model, plan)
    better, said = compensation.compensated(model, slim, plan, data, task_for(data), 0)
    assert "refitted to the uncut network's outputs on 256 training pictures" in said
    assert evaluate(better, data) > evaluate(slim, data)
    monkeypatch.setattr(compensation, "compensate", lambda *_: model.apply(
        lambda layer: layer.weight.data.zero_() if isinstance(layer, torch.nn.Linear) else None))
    same, said = compensation.compensated(better, better, plan, data, task_for(data), 0)
    assert same is better
    assert "was left out" in said


def test_criteria_that_ask_for_a_loss_get_one(ask: Ask, tmp_path: Path) -> None:
    record = run_slim(ask(tmp_path / "run", importance="taylor", baseline_epochs=2, sparsify_epochs=0,
                          finetune_epochs=1, min_kept=0.5))
    assert record.after.macs <= 0.4 * record.before.macs
    assert record.scores is not None
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.settings["importance"] == "taylor"
    assert len(plan.kept["0.weight"][0]) >= 8  # half of 16
    assert len(plan.kept["4.first.weight"][0]) >= 12  # half of 24


def test_a_budget_of_time_is_met_on_the_backends_clock(ask: Ask, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    asked: list[object] = []

    def create(name: object, _: object) -> Blocky:
        asked.append(name)
        return Blocky()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match="backend 'abacus': there is none of that name"):
        run_slim(ask(tmp_path / "other", backend="abacus"))
    monkeypatch.setattr(LocalBackend, "create", create)
    record = run_slim(ask(tmp_path / "run", macs=None, latency=0.9, backend="onnxruntime", baseline_epochs=1,
                          sparsify_epochs=0, finetune_epochs=1, importance="l2"))
    assert set(asked) == {"onnxruntime"}
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    [budget] = plan.budgets
    assert budget.resource == "latency"
    before, after = (torchslim.load(tmp_path / "run" / f"{name}.safetensors", trust_source=True)
                     for name in ("baseline", "slim"))
    inputs = torch.zeros(1, 3, 8, 8)
    assert time_of(after, inputs) <= 0.9 * time_of(before, inputs)
    assert any(note.startswith("latency: ") and "measured in blocky" in note for note in record.notes)
    assert "--latency 0.9 --backend onnxruntime" in record.command
    command = shlex.split(record.command)
    assert call(*command[1:])[1].count("measured in blocky") == 1
    command[command.index("0.9")] = "50us"
    assert "--latency 0.9 (now 50000ns)" in call(*command[1:])[2]


def test_a_network_without_batch_norm(ask: Ask, network: Path, tmp_path: Path) -> None:
    model = f"{network}:plain"
    with pytest.raises(RequestError, match="--sparsify-epochs 0 --importance l2"):
        run_slim(ask(tmp_path / "a", model=model))
    record = run_slim(ask(tmp_path / "b", model=model, baseline_epochs=1, sparsify_epochs=0, finetune_epochs=1,
                          importance="l2"))
    assert record.after.macs <= 0.4 * record.before.macs


# --- trainings that go wrong ------------------------------------------------------------------------------------------

def test_only_a_criterion_that_ranks_by_scales_presses_them_unasked(ask: Ask, tmp_path: Path) -> None:
    for importance, asked, pressed in (("bn_scale", None, 10), ("bn_scale:max", None, 10), ("bn_scale", 0, 0),
                                       ("l2", None, 0), ("l2", 3, 3)):
        settings = ask(tmp_path, importance=importance, sparsify_epochs=asked)
        assert settings.pressing_epochs == settings.identity()["sparsify_epochs"] == pressed
        assert ("sparsify" in [phase.name for phase in slim.phases_of(settings)]) is (pressed > 0)


def test_a_training_that_collapses_is_undone(ask: Ask, finished: Finished, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def ruin(model: Any, *_: object, **__: object) -> History:
        torch.nn.init.zeros_(model.get_submodule("7").weight)
        return History()

    monkeypatch.setattr(context, "fit", ruin)
    model = f"{finished[0].out / 'baseline.safetensors'}?trust_source=True"
    record = run_slim(ask(tmp_path / "run", model=model, macs=0.8))
    changes = ("baseline", "sparsify", "finetune")
    found = json.loads((tmp_path / "run" / "work" / "state.json").read_text())["found"]
    assert ["the weights from before this phase were taken instead" in found[name]["remark"] for name in changes] == [
        True] * 3
    assert sum("collapsed" in note for note in record.notes) == 3
    assert found["sparsify"]["metrics"]["accuracy"] == found["baseline"]["metrics"]["accuracy"] == record.before.score
    assert record.before.score == finished[1].before.score
    assert record.after.score == found["compensate"]["metrics"]["accuracy"]  # nothing trained, and nothing lost


def test_batch_norms_that_lag_get_recent_statistics(finished: Finished) -> None:
    data = load_data("digits", size=8, seed=0)
    model = torchslim.load(finished[0].out / "baseline.safetensors", trust_source=True)
    good = evaluate(model, data)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.mul_(0.3)
            norm.running_var.mul_(0.3).add_(0.7)
    bad = evaluate(model, data)
    better, remark = with_recent_statistics(model, data, task_for(data), seed=0)
    assert bad < good - 0.2
    assert evaluate(better, data) > good - 0.05
    assert evaluate(model, data) == bad  # a copy
    assert "lagged; they are now those of 512 training pictures" in remark
    assert with_recent_statistics(better, data, task_for(data), seed=0) == (better, "")
    few = replace(data, train=torch.utils.data.Subset(data.train, range(15)))
    assert with_recent_statistics(model, few, task_for(few), seed=0) == (model, "")


NOISE = """
import torch
from torch.utils.data import TensorDataset

def pair():
    numbers = torch.Generator().manual_seed(0)
    return tuple(TensorDataset(torch.randn(48, 3, 8, 8, generator=numbers), torch.arange(48) % 4) for _ in "ab")
"""


def test_a_network_that_knows_nothing_is_no_success(ask: Ask, tmp_path: Path, call: Call) -> None:
    (tmp_path / "noise.py").write_text(NOISE)
    settings = ask(tmp_path / "run", data=f"{tmp_path / 'noise.py'}:pair", size=None, baseline_epochs=1,
                   finetune_epochs=1, importance="l2", sparsify_epochs=None)
    words = shlex.split(settings.command())[1:]
    for _ in range(2):  # the run, and the finished run again
        status, out, err = call(*words)
        assert status == 1, err
        assert out.startswith("No success: the slim network is at chance level: right on ")
    status, out, _ = call(*words, "--json")
    record = Record.from_json(out)
    assert status == 1
    assert record.useless
    assert record.outcome in html.unescape((settings.out / "report.html").read_text())


# --- what goes wrong --------------------------------------------------------------------------------------------------

def test_other_settings_are_refused_until_restart(ask: Ask, finished: Finished, tmp_path: Path) -> None:
    settings, _, _ = finished
    before = weights(settings)
    with pytest.raises(RequestError, match=r"--macs 0\.4 \(now 0\.5\).*--restart"):
        run_slim(replace(settings, macs=0.5))
    assert weights(settings) == before
    epoch_settings = {"baseline_epochs": 1, "sparsify_epochs": 0, "finetune_epochs": 0}
    run_slim(ask(tmp_path / "run", **epoch_settings))
    first = weights(ask(tmp_path / "run"))
    run_slim(ask(tmp_path / "run", macs=0.7, **epoch_settings), restart=True)
    assert weights(ask(tmp_path / "run")) != first


def test_a_loss_that_is_no_number_leaves_nothing(ask: Ask, tmp_path: Path) -> None:
    settings = ask(tmp_path / "run", lr=1e30)
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+ \(items .*\): the loss is (nan|inf); try a lower"):
        run_slim(settings)
    assert [path.name for path in settings.out.iterdir()] == ["work"]
    run_slim(replace(settings, lr=0.05, baseline_epochs=1, sparsify_epochs=0, finetune_epochs=0))


def test_a_cut_that_is_not_proven_stops_the_run(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases.torchslim, "verify", lambda *_: 2e-6)
    settings = ask(tmp_path / "run", baseline_epochs=1, sparsify_epochs=0, finetune_epochs=0)
    with pytest.raises(ProofError, match=r"differs from its silenced original by 2\.0e-06"):
        run_slim(settings)
    assert not (settings.out / "slim.safetensors").exists()


# --- the command line -------------------------------------------------------------------------------------------------

def test_the_command_prints_a_table(finished: Finished, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    settings, record, _ = finished
    monkeypatch.setattr(sys, "argv", command(settings)[2:])
    assert cli.main() == 0
    shown = capsys.readouterr().out
    for words in ("parameters", "MACs", "file size", "latency, eager", "latency, onnxruntime", "accuracy", "Proof:",
                  f"Report: {settings.out / 'report.html'}"):
        assert words in shown
    assert shown.startswith(record.outcome)
    table = shown.removeprefix(record.outcome).partition("Proof:")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    monkeypatch.setattr(sys, "argv", [*command(settings)[2:], "--json"])
    assert cli.main() == 0
    assert Record.from_json(capsys.readouterr().out) == record


def test_the_demo_is_the_call_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []

    def note(settings: Settings, *_: object, **__: object) -> None:
        asked.append(settings)
        raise RequestError("enough")

    monkeypatch.setattr(slim, "run_slim", note)
    for words in ("demo", "slim torchvision:resnet18 --data digits --macs 0.4 --recipe slimming --out runs/demo"):
        monkeypatch.setattr(sys, "argv", ["torchslim", *words.split()])
        assert cli.main() == 2
    assert asked[0] == asked[1]
    assert asked[0].command() == ("torchslim slim torchvision:resnet18 --data digits --macs 0.4 --sparsify-epochs 10 "
                                  "--importance bn_scale --no-compensate --distill 0 --out runs/demo")


def test_requests_on_the_command_line_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    base = ["torchslim", "slim", "torchvision:resnet18", "--data", "digits", "--out", str(tmp_path / "run")]
    for words, expected in (([], "no budget"), (["--macs", "1.4"], "a share above 1"),
                            (["--latency", "3"], "--latency 3: wanted a share such as 0.5 or 50%, or a time"),
                            (["--macs", "0.4", "--lr", "0"], "--lr"),
                            (["--macs", "0.4", "--rounds", "3"], "--rounds: no such option")):
        monkeypatch.setattr(sys, "argv", [*base, *words])
        assert cli.main() == 2
        said = capsys.readouterr()
        assert expected in said.err
        assert len(said.err.splitlines()) == 1
        assert not said.out


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_names_phases_and_the_time_that_is_left(
        terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    phase = slim.PHASES[0]
    events = [PhaseEvent(phase, 1, 9, "begin"), PhaseEvent(phase, 1, 9, "step", 0.2, "epoch 1/4, loss 2.000"),
              PhaseEvent(phase, 1, 9, "epoch", 0.25, "epoch 1/4, loss 1.900, accuracy 50.00%"),
              PhaseEvent(phase, 1, 9, "end", 1.0, "accuracy 98.00%"), PhaseEvent(slim.PHASES[1], 2, 9, "skip", 1.0)]
    with ProgressBars() if terminal else contextlib.nullcontext(ProgressLines()) as watch:
        for event in events:
            watch(event)
    said = capsys.readouterr()
    assert not said.out
    for words in ("baseline", "accuracy 98.00%", "sparsify", "done before"):
        assert words in said.err
    if not terminal:
        assert "[1/9] baseline: epoch 1/4, loss 1.900, accuracy 50.00%, 0 s left" in said.err
