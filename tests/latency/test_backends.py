"""Models in other ways of running them: what can run here, what comes out, what is left as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchslim.deploy.runtimes import openvino_runner
from torchslim.errors import ExportError, MissingExtra, RequestError, TorchslimError, UnsupportedModel
from torchslim.latency import backends
from torchslim.latency.backends import BACKENDS, backend_problems, check_backend, prepare_model
from torchslim.latency.timing import measure

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = {"openvino": (needs_openvino,), "compiled": (needs_compiler,)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.drop = nn.Dropout()
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.twin = nn.Conv2d(8, 8, 3, padding=1)
        self.twin.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(self.second(self.drop(self.first(x)).relu()))


@pytest.mark.parametrize("backend", [pytest.param(name, marks=MARKS.get(name, ())) for name in BACKENDS])
def test_every_backend_gives_what_the_eager_model_gives(backend: str, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, threads = Net().train(), torch.get_num_threads()
    model.second.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    candidate = prepare_model(model, IMAGE, backend, threads=1)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in model.parameters())
    assert [path for path in tmp_path.iterdir() if path.name.startswith("torchslim-")] == []
    with torch.inference_mode():
        if isinstance(candidate, nn.Module):
            candidate.eval()
        found = candidate(IMAGE)
        found = found if isinstance(found, Tensor) else torch.from_numpy(found[0])
        torch.testing.assert_close(found, model.eval()(IMAGE), rtol=1e-4, atol=1e-4)
    assert len(measure({backend: candidate}, IMAGE, rounds=1, min_seconds=0)[backend].runs) == 1


@needs_compiler
def test_compiled_code_is_made_before_the_measurement() -> None:
    from torch._dynamo.utils import counters

    candidate = prepare_model(Net(), IMAGE, "compiled", threads=1)
    made = counters["stats"]["unique_graphs"]
    measure({"compiled": candidate}, IMAGE, rounds=1, threads=1, min_seconds=0)
    assert counters["stats"]["unique_graphs"] == made > 0


def test_channels_last_lays_weights_and_inputs_out() -> None:
    seen: list[bool] = []

    class Looking(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (x, *self.parameters())
                        if t.ndim == 4)
            assert self.twin.weight is self.second.weight
            assert not self.training
            return super().forward(x)

    candidate = prepare_model(Looking(), {"x": IMAGE}, "channels-last")
    seen.clear()
    candidate(x=IMAGE)
    assert seen == [True] * 3
    volume = torch.rand(1, 2, 4, 4, 4)
    assert prepare_model(nn.Conv3d(2, 3, 3), volume, "channels-last")(volume).shape == (1, 3, 2, 2, 2)


@pytest.mark.parametrize(("gone", "backend", "message"), [
    ("onnx", "onnxruntime", "backend onnxruntime needs the package onnx, which is not installed: "
                            "pip install 'torchslim[onnx]'"),
    ("onnxruntime", "onnxruntime", "backend onnxruntime needs the package onnxruntime, which is not installed: "
                                   "pip install 'torchslim[onnx]'"),
    ("openvino", "openvino", "backend openvino needs the package openvino, which is not installed: "
                             "pip install 'torchslim[openvino]'"),
])
def test_missing_packages_are_named(gone: str, backend: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == gone else object())
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert backend_problems() == {name: message if name == backend else "" for name in BACKENDS}
    with pytest.raises(MissingExtra) as caught:
        prepare_model(Net(), IMAGE, backend)
    assert str(caught.value) == message


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-c++ -O1")
    with pytest.raises(RequestError, match=r"torch\.compile needs a C\+\+ compiler, and my-c\+\+ was not found"):
        check_backend("compiled")
    monkeypatch.setenv("CXX", "")
    assert "was not found" in backend_problems()["compiled"]
    assert backend_problems()["eager"] == backend_problems()["channels-last"] == ""


def test_what_an_accelerator_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    found = backend_problems("cuda")
    assert [name for name in BACKENDS if not found[name]] == ["eager", "channels-last", "compiled"]
    assert found["openvino"] == "backend openvino: runs on the CPU only, cuda asked for; leave it or the device out"
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert "needs the package triton on cuda" in backend_problems("cuda")["compiled"]


def test_wrong_requests() -> None:
    with pytest.raises(RequestError, match="backend tensorrt: there is none of that name; wanted one of eager, "):
        prepare_model(Net(), IMAGE, "tensorrt")
    for backend in ("eager", "compiled", "onnxruntime"):
        with pytest.raises(RequestError, match=r"Net: failed on the given inputs: RuntimeError: .*check their shapes"):
            prepare_model(Net(), IMAGE[:, :2], backend)
    stubborn = Net()
    stubborn.first.generator = (x for x in ())  # type: ignore[assignment]
    with pytest.raises(UnsupportedModel, match="backend channels-last: Net can't be copied"):
        prepare_model(stubborn, IMAGE, "channels-last")


def test_failures_name_the_backend_and_no_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ExportError, match=r"^backend onnxruntime: the export failed: ") as caught:
        prepare_model(Branching(), IMAGE, "onnxruntime")
    assert "torchslim-" not in str(caught.value)

    def refuse(_model: nn.Module, **_: Any) -> Callable[..., Any]:
        def fail(*_args: Any) -> None:
            raise ValueError("no kernel\nand more")
        return fail

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(TorchslimError, match=r"^backend compiled: torch\.compile failed: ValueError: no kernel; leave"):
        prepare_model(Net(), IMAGE, "compiled")


def test_files_are_opened_with_the_threads_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def opened(path: Path, _inputs: Tensor, threads: int) -> None:
        seen.append((path.suffix, path.is_file(), threads))

    runtime = backends.FILE_RUNTIMES["onnxruntime"]
    monkeypatch.setitem(backends.FILE_RUNTIMES, "onnxruntime", replace(runtime, open=opened))
    prepare_model(Net(), IMAGE, "onnxruntime", threads=3)
    assert seen == [(".onnx", True, 3)]


@needs_openvino
def test_openvino_reads_onnx_files_too_and_checks_its_inputs(tmp_path: Path) -> None:
    from torchslim.deploy.exporting import export

    model = Net().eval()
    path = export(model, IMAGE, tmp_path / "net.onnx").path
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(openvino_runner(path, IMAGE, 1)()[0]), model(IMAGE))
    with pytest.raises(RequestError, match="1x3x16x16 found for its input x, 2x3x16x16 wanted; the file has fixed"):
        openvino_runner(path, IMAGE[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["eager", "channels-last", "compiled"])
def test_models_on_an_accelerator(backend: str) -> None:
    model = Net().cuda().eval()
    with torch.inference_mode():
        torch.testing.assert_close(prepare_model(model, IMAGE.cuda(), backend)(IMAGE.cuda()), model(IMAGE.cuda()),
                                   rtol=1e-2, atol=1e-2)
    with pytest.raises(RequestError, match="runs on the CPU only, cuda asked for"):
        prepare_model(model, IMAGE.cuda(), "onnxruntime")
