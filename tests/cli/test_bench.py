"""`torchslim bench`: who runs when, what is printed, what is left out and why. No test asserts a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import torchslim
from helpers import Call
from torchslim.errors import ExportError
from torchslim.latency import backends

SMALL = "timm:test_resnet?num_classes=10"
SIZE = ("--input", "1x3x32x32")



def test_one_backend_is_named_above_a_row_for_each_model(call: Call) -> None:
    status, out, err = call("bench", SMALL, SMALL, *SIZE, "--rounds", "1", "--threads", "1", "--batch", "2")
    assert (status, err) == (0, "")
    header, table = " ".join(out.split("\n\n")[0].split()), out.split("\n\n")[1].splitlines()
    assert header.startswith(f"torch {torch.__version__}; eager; ")
    assert header.endswith(", 1 thread; input 2x3x32x32, batch 2; 1 round")
    assert table[0].split() == ["model", "median", "ms", "p10", "p90", "images/s", "of", "first"]
    assert [line.split("  ")[0] for line in table[2:]] == [SMALL, f"{SMALL} (2)"]
    assert "100.0%" in table[2]
    assert max(map(len, out.splitlines())) <= 80


def test_several_backends_stand_below_their_model(call: Call) -> None:
    status, out, err = call("bench", SMALL, "test_convnext", *SIZE, "--rounds", "1",
                            "--backend", "eager, channels-last", "--backend", "eager")
    assert (status, err) == (0, "")
    rows = out.split("\n\n")[1].splitlines()[2:]
    assert [row.split("   ")[0].rstrip() for row in rows] == [
        SMALL, "  eager", "  channels-last", "test_convnext", "  eager", "  channels-last"]
    assert "eager" not in out.split("\n\n")[0]
    assert max(map(len, out.splitlines())) <= 80


def test_the_data_says_what_was_measured_on_what(call: Call) -> None:
    status, out, err = call("bench", SMALL, *SIZE, "--batch", "3", "--rounds", "2", "--threads", "1",
                            "--backend", "channels-last,onnxruntime", "--json")
    assert (status, err) == (0, f"preparing {SMALL}: onnxruntime\n")
    data = json.loads(out)
    candidates = data.pop("candidates")
    assert data.pop("versions").keys() == {"torch", "onnxruntime"}
    assert isinstance(data.pop("processor"), str)
    assert data == {"device": "cpu", "accelerator": "", "threads": 1, "batch": 3, "inputs": [[3, 3, 32, 32]],
                    "rounds": 2}
    assert [(row["model"], row["backend"]) for row in candidates] == [(SMALL, "channels-last"), (SMALL, "onnxruntime")]
    for row in candidates:
        assert len(row["runs_ms"]) == 2
        assert row["images_per_second"] == pytest.approx(3e3 / row["median_ms"])
        assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    assert candidates[0]["ratio"] == 1


def test_models_and_backends_take_turns_in_one_measurement(call: Call, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench_nets.py").write_text("""
import torch
LOG = []
class Net(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name, self.layer = name, torch.nn.Conv2d(3, 4, 3)
    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        LOG.append((self.name + ("-last" if last else ""), torch.get_num_threads()))
        return self.layer(x)
def a():
    return Net("a")
def b():
    return Net("b")
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchslim.latency.timing.SETTLE_SECONDS", 0.0)
    assert call("bench", "bench_nets:a", "bench_nets:b", *SIZE, "--backend", "eager,channels-last", "--rounds", "3",
                "--threads", "1")[0] == 0
    log = sys.modules.pop("bench_nets").LOG
    order = [name for place, (name, _) in enumerate(log) if not place or log[place - 1][0] != name]
    assert order[-3 * 4:] == ["a", "a-last", "b", "b-last"] * 3
    assert {threads for _, threads in log} == {1}


def test_all_are_those_that_can_run_and_the_others_are_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in ("onnx", "openvino") else object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("CXX", "c++")
    status, out, err = call("bench", SMALL, *SIZE, "--rounds", "1", "--backend", "all", "--json")
    assert status == 0
    assert [row["backend"] for row in json.loads(out)["candidates"]] == ["eager", "channels-last"]
    assert err.splitlines() == [
        "left out: backend compiled: torch.compile needs a C++ compiler, and c++ was not found; install one, or name "
        "it in the environment variable CXX",
        "left out: backend onnxruntime needs the package onnx, which is not installed: pip install 'torchslim[onnx]'",
        "left out: backend openvino needs the package openvino, which is not installed: "
        "pip install 'torchslim[openvino]'"]
    status, out, err = call("bench", SMALL, *SIZE, "--backend", "eager,openvino")
    assert (status, out) == (2, "")
    assert err.startswith("error: --backend openvino needs the package openvino, which is not installed")


def test_a_backend_that_fails_is_left_out_of_all_and_an_error_by_name(call: Call,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExportError("model.onnx: no")

    monkeypatch.setattr(backends, "export", fail)
    monkeypatch.setattr(backends, "backend_problems", lambda device: {"eager": "", "onnxruntime": ""})
    status, out, err = call("bench", SMALL, *SIZE, "--rounds", "1", "--backend", "all", "--json")
    assert status == 0
    assert [row["backend"] for row in json.loads(out)["candidates"]] == ["eager"]
    assert err.splitlines()[1].startswith(f"left out: {SMALL}: backend onnxruntime: ")
    status, out, err = call("bench", SMALL, *SIZE, "--backend", "onnxruntime")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: backend onnxruntime: ")


def test_onnx_files_run_in_the_runtimes_that_read_them(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torchslim.export(torch.nn.Conv2d(3, 4, 3), torch.rand(1, 3, 32, 32), path)
    status, out, _ = call("bench", path, SMALL, *SIZE, "--rounds", "1", "--json")
    assert status == 0
    assert [(row["model"], row["backend"]) for row in json.loads(out)["candidates"]] == [
        (str(path), "onnxruntime"), (SMALL, "eager")]
    status, _, err = call("bench", path, *SIZE, "--batch", "4")
    assert status == 2
    assert "4x3x32x32 found for its input" in err
    assert "1x3x32x32 wanted; the file has fixed sizes" in err


def test_layers_have_their_time_beside_their_costs(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = call("bench", SMALL, *SIZE, "--per-layer", "--rounds", "1", "--threads", "1")
    assert (status, err) == (0, "")
    header, table, rest = out.split("\n\n")
    assert "eager" in header
    assert table.splitlines()[0].split() == ["layer", "kind", "ms", "share", "MACs", "share", "memory", "marked"]
    assert len(table.splitlines()) > 4  # which layers are shown depends on their times
    assert rest.startswith("sum of the layers ")
    assert "the whole call " in rest
    assert max(map(len, out.splitlines())) <= 80

    data = json.loads(call("bench", SMALL, *SIZE, "--per-layer", "--rounds", "1", "--json")[1])
    layers = data["layers"]
    assert data["layers_ms"] == pytest.approx(sum(layer["ms"] for layer in layers))
    assert {"whole_ms", "p10_ms", "p90_ms", "hooks_ms", "threads", "versions"} < data.keys()
    assert [layer["ms"] for layer in layers] == sorted((layer["ms"] for layer in layers), reverse=True)
    model = torchslim.create_model("timm:test_resnet", num_classes=10)
    assert sum(layer["macs"] for layer in layers) == torchslim.profile(model, torch.rand(1, 3, 32, 32)).macs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_an_accelerator(call: Call) -> None:
    status, out, _ = call("bench", SMALL, *SIZE, "--device", "cuda", "--rounds", "1", "--json")
    assert status == 0
    assert json.loads(out)["accelerator"] == torch.cuda.get_device_name()
    assert call("bench", SMALL, *SIZE, "--device", "cuda", "--rounds", "1", "--per-layer")[0] == 0
    assert call("bench", SMALL, *SIZE, "--device", "cuda", "--backend", "onnxruntime")[0] == 2
