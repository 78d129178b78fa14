"""The table behind budgets of time: what layers are, how they are timed, how times are kept and read between them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchslim.coupling.coupling import couple
from torchslim.errors import ExportError, RequestError, TorchslimWarning
from torchslim.latency import layer_benchmark as stopwatches
from torchslim.latency.cache import Timetable, folder_of_caches
from torchslim.latency.interpolation import Surface, factors, grid, wanted
from torchslim.latency.layer_benchmark import watch
from torchslim.latency.workloads import Geometry, Layer, layers
from torchslim.tracing.runs import trace_modes

NAN = float("nan")


class Mixed(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 5, padding=4, dilation=2, groups=32)
        self.grouped = nn.Conv2d(32, 64, 1, groups=4)
        self.up = nn.ConvTranspose2d(64, 24, 2, stride=2, output_padding=1, dilation=2)
        self.linear = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.grouped(self.depthwise(self.dense(x).relu()).relu()).relu())
        return self.linear(y.relu().mean((2, 3)))


def found(model: nn.Module, x: Tensor) -> list[Layer]:
    return [layer for _, layer in layers(couple(trace_modes(model.eval(), x)).tapes[0])]


def test_layers_are_what_the_modules_say() -> None:
    dense, depthwise, grouped, up, linear = found(Mixed(), torch.randn(2, 3, 16, 16))
    assert dense.geometry.key == "convolution 2x3x16x16 to 32 k3x3 s2x2 p1x1 d1x1 g1 plain float32"
    assert depthwise.geometry.key == "convolution 2x32x8x8 to 32 k5x5 s1x1 p4x4 d2x2 g32 bias float32"
    assert grouped.geometry.key == "convolution 2x32x8x8 to 64 k1x1 s1x1 p0x0 d1x1 g4 bias float32"
    assert up.geometry.key == "transposed 2x64x8x8 to 24 k2x2 s2x2 p0x0 d2x2 o1x1 g1 bias float32"
    assert linear.geometry.key == "linear 2x24 to 10 g1 bias float32"
    assert [layer.geometry.whole for layer in (dense, depthwise, grouped)] == [False, True, False]
    assert dense.made is not None
    assert np.array_equal(dense.made, depthwise.read)
    # Pictures and answers stay.
    assert dense.read is None or len(dense.read) == 3
    assert depthwise.geometry.at(20, 99).weight_shape == (20, 1, 5, 5)
    assert grouped.geometry.at(18, 31).weight_shape == (28, 4, 1, 1)
    assert up.geometry.at(10, 6).weight_shape == (10, 6, 2, 2)


@pytest.mark.parametrize(("width", "points"), [
    (3, (2, 3)), (10, (2, 4, 8, 10)), (24, (8, 16, 24)), (64, (8, 16, 32, 48, 64)), (100, (16, 32, 48, 80, 100)),
    (1024, (16, 128, 256, 512, 768, 1024))])
def test_layers_are_measured_at_few_widths(width: int, points: tuple[int, ...]) -> None:
    assert grid(width) == points


def test_between_the_points_times_are_read_in_blocks() -> None:
    classes = np.arange(64)
    layer = Layer(Geometry("convolution", 1, 64, 64, (8, 8), (1, 1), (1, 1), (0, 0), (1, 1)), classes, classes)

    def time(geometry: Geometry) -> float:
        if geometry.reads % 8 or geometry.makes % 8:
            return time(layer.geometry.at(-(-geometry.reads // 16) * 16, -(-geometry.makes // 16) * 16)) * 3
        if geometry.reads % 16 and geometry.reads > 8:
            return time(layer.geometry.at(geometry.reads + 8, geometry.makes)) * 0.75
        return 100.0 * geometry.reads + 7.0 * geometry.reads * geometry.makes

    times = {geometry: time(geometry) for geometry in wanted(layer)}
    beside = factors([layer], times)
    assert beside["convolution, pointwise", "reads"].half == pytest.approx(0.75)
    assert beside["convolution, pointwise", "makes"].odd == pytest.approx(3)
    surface = Surface(layer, times, beside)

    def at(reads: int, makes: int) -> float:
        return float(surface(np.array([reads]), np.array([makes]))[0])

    for reads, makes in ((64, 64), (48, 16), (8, 32), (16, 8)):  # measured
        assert at(reads, makes) == time(layer.geometry.at(reads, makes))
    assert at(24, 64) == pytest.approx(0.75 * time(layer.geometry.at(32, 64)))
    assert at(64, 41) == pytest.approx(3 * time(layer.geometry.at(64, 48)))
    assert at(64, 24) == pytest.approx(time(layer.geometry.at(64, 32)) * beside["convolution, pointwise", "makes"].half)
    assert at(5, 64) == at(8, 64)
    assert at(100, 64) == at(64, 64)


def test_factors_are_medians_and_small_ones_are_noise() -> None:
    classes = np.arange(64)
    own = [Layer(Geometry("linear", rows, 64, 64), classes, classes) for rows in (1, 2, 3)]
    for ratios, settled in (((1.02, 0.97, 1.04), 1.0), ((1.5, 1.0, 9.0), 1.5), ((0.5, 0.6, 0.7), 1.0)):
        times = {geometry: 100.0 for layer in own for geometry in wanted(layer)}
        for layer, ratio in zip(own, ratios, strict=True):
            times[layer.geometry.at(47, 64)] = 100 * ratio
        assert factors(own, times)["linear", "reads"].odd == settled


# --- the cache -----------------------------------------------------------------------------------------------

class Counting:
    """A backend that gives each layer another time and counts."""

    name = "counting"

    def __init__(self, setting: str = "here") -> None:
        self.setting: Mapping[str, str] = {"machine": setting}
        self.count = 0

    def layers(self, wanted: Sequence[Geometry]) -> list[float]:
        self.count += len(wanted)
        return [float(prod(geometry.weight_shape)) for geometry in wanted]


LAYERS = [Geometry("linear", 1, width, 8) for width in (4, 6, 8)]


def test_times_are_measured_once(tmp_path: Path) -> None:
    clock = Counting()
    table = Timetable(clock, tmp_path)
    assert table.times([*LAYERS, *LAYERS]) == {layer: layer.reads * 8.0 for layer in LAYERS}
    assert Timetable(clock, tmp_path).times(LAYERS) == table.times(LAYERS)
    assert clock.count == 3
    Timetable(Counting("there"), tmp_path).times(LAYERS)
    assert len(list(tmp_path.iterdir())) == 2


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    one, other = Timetable(Counting(), tmp_path), Timetable(Counting(), tmp_path)
    one.times(LAYERS[:1])
    other.times(LAYERS[1:])
    clock = Counting()
    Timetable(clock, tmp_path).times(LAYERS)
    assert clock.count == 0


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", '"times"', '{"times": {}}', '{"format": 1, "setting": {"machine": "else"}, "times": {}}',
    '{"format": 9, "setting": {"machine": "here"}, "times": {}}',
    '{"format": 1, "setting": {"machine": "here"}, "times": {"a": "fast"}}',
    '{"format": 1, "setting": {"machine": "here"}, "times": {"a": -1}}',
    '{"format": 1, "setting": {"machine": "here"}, "times": {"a": NaN}}', "[" * 100_000])
def test_what_is_no_cache_is_set_aside(tmp_path: Path, text: str) -> None:
    path = Timetable(Counting(), tmp_path).path
    path.write_text(text, encoding="utf-8")
    with pytest.warns(TorchslimWarning, match="no cache of measured times .*set aside"):
        table = Timetable(Counting(), tmp_path)
    assert path.with_suffix(".broken").read_text(encoding="utf-8") == text
    assert table.times(LAYERS)[LAYERS[0]] == 32.0
    assert json.loads(path.read_text(encoding="utf-8"))["times"][LAYERS[0].key] == 32.0


def test_a_folder_that_can_not_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    table = Timetable(Counting(), tmp_path / "file" / "folder")
    with pytest.warns(TorchslimWarning, match="measured times could not be kept .*set XDG_CACHE_HOME"):
        assert table.times(LAYERS)[LAYERS[0]] == 32.0


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_of_caches() == tmp_path / "torchslim"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if os.name == "posix":
        assert folder_of_caches() == tmp_path / "home" / ".cache" / "torchslim"


# --- the clocks ----------------------------------------------------------------------------------------------

EVERY_KIND = [*(layer.geometry for layer in found(Mixed(), torch.randn(2, 3, 16, 16))),
              Geometry("convolution", 1, 8, 8, (20,), (3,), (1,), (1,), (1,)),
              Geometry("convolution", 1, 4, 6, (5, 6, 7), (3, 1, 2), (1, 2, 1), (1, 0, 0), (1, 1, 1))]


@pytest.mark.parametrize("backend", ["eager", "channels-last", "onnxruntime", "openvino"])
def test_every_kind_of_layer_is_timed(backend: str) -> None:
    if backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
    times = watch(backend, torch.randn(1)).layers(EVERY_KIND)
    assert len(times) == len(EVERY_KIND)
    assert all(time > 0 for time in times)


def test_the_file_of_layers_computes_what_torch_does() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(stopwatches._file(EVERY_KIND), providers=["CPUExecutionProvider"])
    outputs = session.run(None, stopwatches._feeds(EVERY_KIND))
    for geometry, output in zip(EVERY_KIND, outputs, strict=True):
        expected = stopwatches._call(geometry, torch.device("cpu"), last=False)()
        assert torch.allclose(torch.from_numpy(output), expected, atol=1e-6)


def test_layers_are_timed_in_portions_that_memory_holds() -> None:
    large = Geometry("linear", 1, 4096, 4096)  # 64 MiB
    assert [len(part) for part in stopwatches._portions([large, large, *LAYERS, large])] == [1, 1, 3, 1]
    assert [len(part) for part in stopwatches._portions([*LAYERS])] == [3]


def test_types_that_runtimes_are_not_timed_in_are_refused() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(RequestError, match="a layer in bfloat16 found"):
        watch("onnxruntime", torch.randn(1)).layers([Geometry("linear", 1, 8, 8, dtype="bfloat16")])


def test_layers_that_the_runtime_does_not_name_are_an_error() -> None:
    with pytest.raises(ExportError, match="1 of 2 layers were not timed"):
        stopwatches._checked([[1.0], []], "onnxruntime")


def test_of_each_network_one_time() -> None:
    clock = watch("eager", torch.randn(1))
    models = [nn.Conv2d(3, width, 3) for width in (8, 64)]
    times = clock.networks(models, torch.randn(1, 3, 32, 32))
    assert len(times) == 2
    assert len(times[0]) == len(times[1]) >= 20
    assert all(time > 0 for own in times for time in own)
    assert clock.setting["backend"] == "eager"
    assert clock.setting["threads"] == str(torch.get_num_threads())
