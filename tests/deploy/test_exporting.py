"""Exports agree with the eager model, or are not there."""

from __future__ import annotations

import errno
import logging
import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim
from torchslim.deploy import exporting
from torchslim.deploy.exporting import export
from torchslim.deploy.runtimes import onnx_runner
from torchslim.errors import CheckpointError, ExportError, MissingExtra, RequestError
from torchslim.latency.backends import prepare_model

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

SUFFIXES = [".onnx", ".pt2", pytest.param(".xml", marks=pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed"))]


class Net(nn.Module):
    """Two convolutions, a batch norm in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Scaled(Net):
    """Several inputs, outputs in a nest."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        out = self.layers(x)
        return {"scaled": out if scale is None else out * scale, "rest": [out.mean(), out > 0]}


class Listed(Net):
    """A list of images, as detectors take it."""

    def forward(self, images: list[Tensor]) -> list[Tensor]:  # type: ignore[override]
        return [self.layers(image[None])[0] for image in images]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_export_agrees_and_disturbs_nothing(
        suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Net().train()
    model.layers[1].eval()
    calls: list[int] = []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = export(model, IMAGE, tmp_path / f"net{suffix}")
    assert done.path == tmp_path / f"net{suffix}"
    assert done.path.is_file()
    assert 0 <= done.error < 1e-5
    assert {path.stem for path in tmp_path.iterdir()} == {"net"}
    assert (model.training, model.layers[0].training, model.layers[1].training) == (True, True, False)
    assert len(model.layers[0]._forward_hooks) == 1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("make", "inputs"), [
    pytest.param(Scaled, (IMAGE, torch.rand(1, 2, 1, 1)), marks=pytest.mark.nightly),
    (Scaled, {"scale": torch.rand(1, 2, 1, 1), "x": IMAGE}),
    (Listed, [IMAGE[0], IMAGE[0, :, :8]]),
])
def test_all_forms_of_inputs(suffix: str, make: Callable[[], nn.Module], inputs: Any, tmp_path: Path) -> None:
    assert export(make(), inputs, tmp_path / f"net{suffix}").error < 1e-5


def test_an_onnx_file_holds_its_weights(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 400, 5).eval()
    path = export(model, IMAGE, tmp_path / "net.onnx").path
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert path.stat().st_size > 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_batch_is_fixed_unless_asked(suffix: str, tmp_path: Path) -> None:
    run = exporting._FORMATS[suffix].run
    images = torch.cat([IMAGE, IMAGE.flip(2), IMAGE.flip(3)])
    model = Net().eval()
    fixed = export(model, IMAGE, tmp_path / f"fixed{suffix}").path
    with pytest.raises(Exception, match=r".+"):
        run(fixed, ((images,), {}))
    free = export(model, IMAGE, tmp_path / f"free{suffix}", dynamic_batch=True).path
    with torch.no_grad():
        torch.testing.assert_close(run(free, ((images,), {}))[0], model(images))


def test_a_dynamic_batch_needs_a_batch(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="dynamic_batch: an input without a batch dimension"):
        export(Listed(), [IMAGE[0]], tmp_path / "net.onnx", dynamic_batch=True)

    class Choosing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[0] < 3 else x

    with pytest.raises(ExportError, match="try dynamic_batch=False"):
        export(Choosing(), IMAGE, tmp_path / "net.pt2", dynamic_batch=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_a_tolerance_of_its_own(dtype: torch.dtype, tmp_path: Path) -> None:
    assert export(Net().to(dtype), IMAGE.to(dtype), tmp_path / "net.pt2").error <= 1e-2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_disagrees_is_not_there(suffix: str, tmp_path: Path) -> None:
    class Drifting(Net):
        """Its second call and all after it give something else."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Drifting.calls += 1
            return super().forward(x) + Drifting.calls

    path = tmp_path / f"net{suffix}"
    path.write_text("the file of before")
    with pytest.raises(ExportError, match=r"differs from the eager model by .* nothing was written"):
        export(Drifting(), IMAGE, path)
    assert path.read_text() == "the file of before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda outputs: [outputs[0] * float("nan")], "by inf"),
    (lambda outputs: [outputs[0][:, :1]], "outputs 1x1x12x12 found, 1x2x12x12 wanted"),
    (lambda outputs: [], "1x2x12x12 wanted"),
])
def test_every_kind_of_disagreement_counts(
        wrong: Callable[[list[Tensor]], list[Tensor]], message: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporting._FORMATS[".pt2"]
    bad = exporting._Format(real.packages, real.extra, real.write, lambda path, call: wrong(real.run(path, call)))
    monkeypatch.setitem(exporting._FORMATS, ".pt2", bad)
    with pytest.raises(ExportError, match=message):
        export(Net(), IMAGE, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_the_callers(tmp_path: Path) -> None:
    model = Net()
    error = export(model, IMAGE, tmp_path / "net.onnx").error
    assert error > 0
    with pytest.raises(ExportError, match="try another format or tolerance="):
        export(model, IMAGE, tmp_path / "again.onnx", tolerance=error / 2)


def test_wrong_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"suffix '.tflite' found, one of .onnx, .pt2, .xml wanted"):
        export(Net(), IMAGE, tmp_path / "net.tflite")
    with pytest.raises(RequestError, match="lies in a folder that does not exist"):
        export(Net(), IMAGE, tmp_path / "absent" / "net.onnx")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"export to .onnx needs the package onnx.*torchslim\[onnx\]"):
        export(Net(), IMAGE, tmp_path / "net.onnx")
    with pytest.raises(MissingExtra, match=r"torchslim\[openvino\]"):
        export(Net(), IMAGE, tmp_path / "net.xml")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_cannot_be_exported_says_why_in_one_line(suffix: str, tmp_path: Path) -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ExportError, match=r"the export failed: \w+: .*try another format") as caught:
        export(Branching(), IMAGE, tmp_path / f"net{suffix}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_says_nothing_about_the_model(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers in C++ raise what does not name it."""
    def save(*_: object, **__: object) -> None:
        if named:
            raise RuntimeError("the writer failed") from OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(CheckpointError, match=r"m\.pt2: could not be written: OSError: .*No space left on device; no"):
        export(Net().eval(), IMAGE, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_model: nn.Module, _call: object, _dynamic: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(exporting._FORMATS, ".pt2", exporting._Format((), "", interrupt, exporting._run_pt2))
    with pytest.raises(KeyboardInterrupt):
        export(Net(), IMAGE, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_slim_network_goes_all_the_way_to_onnx(tmp_path: Path) -> None:
    model = torchslim.create_model("squeezenet1_1", num_classes=4).eval()
    image = torch.rand(1, 3, 64, 64)
    slim, _ = torchslim.prune(model, image, macs=0.5)
    done = torchslim.export(slim, image, tmp_path / "slim.onnx")
    whole = torchslim.export(model, image, tmp_path / "whole.onnx")
    assert done.path.stat().st_size < whole.path.stat().st_size
    assert onnx_runner(done.path, image)()[0].shape == (1, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_on_an_accelerator_stays_there(suffix: str, tmp_path: Path) -> None:
    model = Net().cuda()
    assert export(model, IMAGE.cuda(), tmp_path / f"net{suffix}").error < 1e-5
    assert {p.device.type for p in model.parameters()} == {"cuda"}


class Counting(Net):
    """Numbers and texts among its outputs."""

    def forward(self, x: Tensor) -> Any:
        out = self.layers(x)
        return {"y": out, "more": (out.mean(), {"scale": 1.5}), "name": "net", "none": None}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_outputs_that_are_no_tensors_are_named_or_left_out(suffix: str, tmp_path: Path) -> None:
    path, model = tmp_path / f"net{suffix}", Counting().eval()
    with pytest.raises(ExportError) as caught:
        export(model, IMAGE, path)
    assert "output['more'][1]['scale'] is float 1.5, output['name'] is str 'net', tensors wanted" in str(caught.value)
    assert export(model, IMAGE, path, tensors_only=True).error < 1e-4
    assert isinstance(model(IMAGE), dict)


class Finding(nn.Module):
    """What it returns depends on what it finds; what it finds it in has a fixed form."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, pictures: list[Tensor]) -> list[Tensor]:
        return [scores[scores > 0] for scores in self.layer(torch.stack(pictures))]

    def export_form(self, inputs: Any) -> tuple[nn.Module, Tensor]:
        return deepcopy(self.layer), torch.stack(inputs)


def test_a_model_may_say_what_is_written_of_it(tmp_path: Path) -> None:
    path, model, picture = tmp_path / "net.onnx", Finding().eval(), torch.rand(3, 8, 8)
    assert export(model, [picture], path, dynamic_batch=True).error < 1e-4
    [scores] = onnx_runner(path, picture[None])()
    assert torch.allclose(torch.from_numpy(scores), model.layer(picture[None]), atol=1e-5)
    [found] = prepare_model(model, [picture], "onnxruntime")()
    assert found.shape == (1, 4, 6, 6)
