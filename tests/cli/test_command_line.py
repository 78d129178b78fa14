"""The command line: what it prints where, and its exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchslim
from clocks import Blocky
from helpers import Call, heeds_ctrl_c
from torchslim.cli.loading import example_inputs
from torchslim.cli.options import amount, shape
from torchslim.errors import CheckpointError, RequestError, TorchslimError
from torchslim.latency.local_backend import LocalBackend
from torchslim.store.saving import read_header
from torchslim.surgery.plans import Plan
from torchslim.zoo.sources import Source, resolve

SMALL = "timm:test_resnet?num_classes=10"



def test_help_and_version(call: Call) -> None:
    for arguments in ((), ("--help",)):
        status, out, err = call(*arguments)
        assert (status, err) == (0, "")
        for command in ("models", "profile", "compare", "advise", "ladder", "prune", "sensitivity", "slim", "sweep",
                        "recipes", "export", "bench", "demo"):
            assert f"\n  {command} " in out
        assert max(map(len, out.splitlines())) <= 80
    assert call("--version") == (0, f"torchslim {torchslim.__version__}\n", "")


@pytest.mark.parametrize("command", [
    "models", "profile", "compare", "advise", "ladder", "prune", "sensitivity", "export", "bench", "slim", "sweep",
    "recipes", "demo"])
def test_every_command_explains_itself_in_80_columns(call: Call, command: str) -> None:
    status, out, _ = call(command, "--help")
    assert status == 0
    assert out.startswith(f"Usage: torchslim {command}")
    assert max(map(len, out.splitlines())) <= 80


def test_models(call: Call) -> None:
    status, out, err = call("models", "shufflenet_v2_*")
    assert (status, err) == (0, "")
    assert out.split() == torchslim.list_models("shufflenet_v2_*")
    assert json.loads(call("models", "shufflenet_v2_*", "--json")[1]) == out.split()
    assert call("models", "no such*") == (
        2, "", "error: 'no such*': no name matches; give a pattern such as 'mobilenet*', or none to list all\n")


MASKED = """
from torch import nn
from torch.nn.utils import prune

def net():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    prune.ln_structured(model[0], "weight", amount=2, n=2, dim=0)
    return model
"""


def test_prune_then_use_the_file_everywhere(call: Call, tmp_path: Path) -> None:
    slim, size = tmp_path / "slim.safetensors", ("--input", "1x3x64x64")
    status, out, err = call("prune", SMALL, "--macs", "0.5", *size, "--out", slim)
    assert status == 0
    assert err == f"note: {SMALL} has random weights; ?weights=DEFAULT asks for trained ones\n"
    assert "multiply-adds" in out
    assert "proof: differs from the silenced original by " in out
    assert f"saved: {slim}\n" in out
    assert max(map(len, out.replace(str(slim), "").splitlines())) <= 80

    before = json.loads(call("profile", SMALL, *size, "--json")[1])
    after = json.loads(call("profile", slim, *size, "--json")[1])
    assert after["macs"] <= before["macs"] / 2

    slimmer = tmp_path / "slimmer.safetensors"
    status, out, err = call("prune", slim, "--params", "70%", *size, "--out", slimmer, "--json")
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert data["params"]["before"] == after["params"]
    assert data["params"]["after"] <= 0.7 * after["params"]
    assert data["error"] < 1e-6
    slim.unlink()

    exported = tmp_path / "slimmer.onnx"
    status, out, _ = call("export", slimmer, exported, *size)
    assert status == 0
    assert out.startswith(f"{exported}: differs from the eager model by ")
    assert exported.is_file()

    status, out, err = call("bench", SMALL, slimmer, slimmer, exported, *size, "--rounds", "2", "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)["candidates"]
    assert [row["model"] for row in rows] == [SMALL, str(slimmer), f"{slimmer} (3)", str(exported)]
    assert rows[0]["ratio"] == 1
    assert {len(row["runs_ms"]) for row in rows} == {2}


def test_prune_by_what_a_loss_says_of_labelled_pictures(call: Call, tmp_path: Path) -> None:
    for importance in ("taylor", "hessian", "activation:apoz"):
        out = tmp_path / f"{importance}.safetensors"
        status, printed, _ = call("prune", "timm:test_resnet?num_classes=10", "--macs", "0.5", "--importance",
                                  importance, "--data", "digits", "--pictures", "64", "--out", out, "--json")
        assert status == 0
        found = json.loads(printed)
        assert found["error"] < 1e-9
        assert found["macs"]["after"] <= 0.5 * found["macs"]["before"]
        (plan,) = read_header(out).steps
        assert isinstance(plan, Plan)
        assert plan.settings["importance"] == importance


def test_prune_puts_back_what_is_lost(call: Call, tmp_path: Path) -> None:
    def weights(*more: str) -> dict[str, Tensor]:
        out = tmp_path / "slim.safetensors"
        status, printed, _ = call("prune", "timm:test_resnet?num_classes=10", "--macs", "0.5", "--importance", "obs",
                                  "--data", "digits", "--pictures", "64", "--out", out, *more)
        assert status == 0
        assert ("compensated: refitted to the original's outputs on 64 pictures" in printed) == bool(more)
        return torchslim.load(out).state_dict()

    cut, compensated = weights(), weights("--compensate")
    assert {name: value.shape for name, value in cut.items()} == {n: v.shape for n, v in compensated.items()}
    assert not torch.equal(cut["fc.weight"], compensated["fc.weight"])


def test_prune_refuses_what_is_out_of_reach_or_comes_near(call: Call, tmp_path: Path) -> None:
    asked = ("prune", SMALL, "--macs", "1", "--round-to", "16", "--input", "1x3x64x64")
    out = tmp_path / "slim.safetensors"
    status, printed, err = call(*asked, "--out", out)
    assert (status, printed, out.exists()) == (2, "", False)
    refused = err.splitlines()[-1]
    assert refused.startswith("error: --macs 1: asked for at most 1, which can't be met; the nearest feasible budget ")
    status, printed, _ = call(*asked, "--out", out, "--nearest")
    first, *others = printed.splitlines()
    assert (status, out.exists()) == (0, True)
    assert refused.startswith(f"error: --macs 1{first.removeprefix('macs').partition(' (')[0]} (")
    assert not any("can't be met" in line for line in others)
    assert call(*asked[:2], "--macs", "99G", "--out", out)[0] == 2


def test_prune_says_first_that_a_time_is_missed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Blocky):
        """A cut network takes nine tenths of the time, whatever its layers take."""

        def time_networks(self, models: Sequence[nn.Module], inputs: Tensor) -> list[list[float]]:
            found = super().time_networks(models, inputs)
            return [found[0], *([0.9 * time for time in found[0]] for _ in found[1:])]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(LocalBackend, "create", lambda name, inputs: Slow())
    asked = ("prune", SMALL, "--latency", "0.8", "--input", "1x3x64x64", "--out", tmp_path / "slim.safetensors")
    status, printed, _ = call(*asked)
    lines = printed.splitlines()
    assert status == 1
    assert lines[0].startswith("latency: missed, asked for at most ")
    assert [line.split()[-1] for line in lines if line.startswith("latency ")] == ["90.0%"]
    status, printed, _ = call(*asked, "--json")
    assert status == 1
    [budget] = json.loads(printed)["budgets"]
    assert budget["met"] == pytest.approx(0.9 * budget["before"], rel=1e-3)


def test_prune_takes_out_what_contributes_nothing(call: Call, tmp_path: Path) -> None:
    (tmp_path / "masked.py").write_text(MASKED)
    model, slim = f"{tmp_path}/masked.py:net", str(tmp_path / "slim.safetensors")
    status, printed, err = call("advise", model, "--input", "1x3x12x12", "--no-time", "--json")
    assert status == 0, err
    finding = next(each for each in json.loads(printed)["findings"] if each["kind"] == "dead channels")
    status, printed, err = call("prune", model, "--dead", "--input", "1x3x12x12", "--out", slim, "--json")
    assert status == 0, err
    result = json.loads(printed)
    assert finding["gain"] == pytest.approx(1 - result["macs"]["after"] / result["macs"]["before"])
    assert result["macs"]["after"] == 100 * 27 * 6 + 64 * 54 * 4
    assert not result["left_alone"]
    assert result["error"] < 1e-12
    status, printed, _ = call("profile", f"{slim}?trust_source=True", "--input", "1x3x12x12", "--json")
    assert json.loads(printed)["macs"] == result["macs"]["after"]


def test_prune_leaves_each_group_its_least(call: Call, tmp_path: Path) -> None:
    status, printed, _ = call("prune", SMALL, "--params", "2%", "--importance", "l1:filters", "--min-kept", "50%",
                              "--min-channels", "9", "--nearest", "--out", tmp_path / "slim.safetensors", "--json")
    assert status == 0
    assert "min_kept=" in json.loads(printed)["notes"][0]
    (plan,) = read_header(tmp_path / "slim.safetensors").steps
    assert isinstance(plan, Plan)
    assert (plan.settings["min_kept"], plan.settings["min_channels"]) == (0.5, 9)
    assert plan.settings["importance"] == "l1:filters"


def test_failed_work_ends_with_status_1_and_one_line(call: Call, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    torchslim.save(nn.Conv2d(3, 4, 3), broken)
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    status, out, err = call("profile", broken)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {broken}: its tensors are not the ones that were written")
    assert err.count("\n") == 1


def test_a_model_that_fails_on_its_inputs_is_a_wrong_request(call: Call) -> None:
    status, _, err = call("profile", SMALL, "--input", "1x4x32x32")
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("error", "status", "line"), [
    (RequestError("a: b"), 2, "error: a: b\n"),
    (CheckpointError("a\n b"), 1, "error: a b\n"),
    (TorchslimError("a"), 1, "error: a\n"),
    (PermissionError(13, "Permission denied", "x"), 1, "error: [Errno 13] Permission denied: 'x'\n"),
    (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero; run again with --debug for the traceback\n"),
    (KeyboardInterrupt(), 130, "error: interrupted; run the same command again\n"),
])
def test_every_error_has_its_status(call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int,
                                    line: str) -> None:
    def fail(_pattern: str) -> list[str]:
        raise error

    monkeypatch.setattr("torchslim.zoo.sources.list_models", fail)
    assert call("models") == (status, "", line)
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            call("models", "--debug")


def test_warnings_are_one_line_on_stderr(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def warn(_pattern: str) -> list[str]:
        warnings.warn("look\n  here", UserWarning, stacklevel=1)
        return ["a_network"]

    monkeypatch.setattr("torchslim.zoo.sources.list_models", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: sys.stderr.write(warnings.formatwarning(message, UserWarning, "", 0))
        assert call("models") == (0, "a_network\n", "warning: look here\n")


def test_amounts_and_shapes() -> None:
    cases = {"0.5": 0.5, "50%": 0.5, "1.0": 1.0, "1500000": 1500000, "1.5M": 1500000, "300k": 300000, "2G": 2 * 10**9,
             "1": 1, ".25": 0.25}
    for text, value in cases.items():
        found = amount("--macs", text)
        assert (found, type(found)) == (value, type(value))
    assert amount("--macs", None) is None
    for text in ("", "0", "0.0", "-1", "1.5", "101%", "x", "%", ".", "1e3", "5MM", "nan"):
        with pytest.raises(RequestError, match="--macs"):
            amount("--macs", text)
    assert shape("1x3x224x224") == (1, 3, 224, 224)
    assert shape("7") == (7,)
    for text in ("", "1x", "x1", "0x3", "1X3", "1x-3", "1,3"):
        with pytest.raises(RequestError, match="--input"):
            shape(text)


def test_examples_suit_the_model() -> None:
    plain = example_inputs(resolve("inception_v3"), None)
    assert plain.shape == (1, 3, 299, 299)
    assert torch.equal(example_inputs(resolve("inception_v3"), None), plain)
    images = example_inputs(resolve("fasterrcnn_resnet50_fpn"), ["2x3x64x64", "3x32x48"])
    assert [tuple(image.shape) for image in images] == [(3, 64, 64), (3, 64, 64), (3, 32, 48)]
    two = example_inputs(Source("module", "a:b"), ["1x2", "3x4"])
    assert [tuple(tensor.shape) for tensor in two] == [(1, 2), (3, 4)]
    assert example_inputs(resolve("resnet18"), None, batch=5).shape == (5, 3, 224, 224)
    assert [tuple(tensor.shape) for tensor in example_inputs(Source("module", "a:b"), ["1x2", "3x4"], batch=2)] == [
        (2, 2), (2, 4)]
    many = example_inputs(resolve("fasterrcnn_resnet50_fpn"), ["2x3x64x64", "3x32x48"], batch=1)
    assert [tuple(image.shape) for image in many] == [(3, 64, 64), (3, 32, 48)]


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c)


def test_ctrl_c_ends_a_command_with_one_line() -> None:
    code = """
import sys, time
import torchslim.zoo.sources
from torchslim import cli
def wait(pattern):
    print("ready", flush=True)
    time.sleep(60)
torchslim.zoo.sources.list_models = wait
sys.argv = ["torchslim", "models"]
sys.exit(cli.main())
"""
    process = run(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted; run the same command again\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise on Windows")
def test_a_reader_that_stops_is_no_error() -> None:
    code = """
import sys
import torchslim.zoo.sources
from torchslim import cli
torchslim.zoo.sources.list_models = lambda pattern: ["name" * 100] * 10_000
sys.argv = ["torchslim", "models"]
sys.exit(cli.main())
"""
    process = run(code)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("name")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
