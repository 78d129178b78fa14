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
from torchslim.latency import layer_benchmark
from torchslim.latency.cache import LatencyCache, default_folder
from torchslim.latency.interpolation import LayerLatency, sampled_widths, sampled_workloads, width_penalties
from torchslim.latency.local_backend import LocalBackend
from torchslim.latency.workloads import LabeledWorkload, Workload, layer_workloads
from torchslim.tracing.runs import trace_modes
from torchslim.utils.layer_spec import LayerSpec

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


def conv(in_channels: int, out_channels: int, input_size: tuple[int, ...], kernel: tuple[int, ...],
         stride: tuple[int, ...] | None = None, padding: tuple[int, ...] | None = None) -> Workload:
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    spec = LayerSpec(in_channels, out_channels, kernel, stride or ones, padding or zeros, ones, (), 1, False, False,
                     "zeros")
    return Workload(spec, 1, input_size)


def linear(rows: int, in_features: int, out_features: int, dtype: str = "float32") -> Workload:
    spec = LayerSpec(in_features, out_features, (), (), (), (), (), 1, False, False, "zeros")
    return Workload(spec, rows, dtype=dtype)


def traced(model: nn.Module, x: Tensor) -> list[LabeledWorkload]:
    return [layer for _, layer in layer_workloads(couple(trace_modes(model.eval(), x)).labeled_graphs[0])]


def test_layers_are_what_the_modules_say() -> None:
    dense, depthwise, grouped, up, linear_ = traced(Mixed(), torch.randn(2, 3, 16, 16))
    assert dense.workload.key == "convolution 2x3x16x16 to 32 k3x3 s2x2 p1x1 d1x1 g1 plain float32"
    assert depthwise.workload.key == "convolution 2x32x8x8 to 32 k5x5 s1x1 p4x4 d2x2 g32 bias float32"
    assert grouped.workload.key == "convolution 2x32x8x8 to 64 k1x1 s1x1 p0x0 d1x1 g4 bias float32"
    assert up.workload.key == "transposed 2x64x8x8 to 24 k2x2 s2x2 p0x0 d2x2 o1x1 g1 bias float32"
    assert linear_.workload.key == "linear 2x24 to 10 g1 bias float32"
    assert [layer.workload.removes_groups for layer in (dense, depthwise, grouped)] == [False, True, False]
    assert np.array_equal(dense.out_classes, depthwise.in_classes)
    # Images and outputs can't be cut.
    assert [layer.cuts_inputs for layer in (dense, depthwise, linear_)] == [False, True, True]
    assert depthwise.workload.with_channels(20, 99).weight_shape == (20, 1, 5, 5)
    assert grouped.workload.with_channels(18, 31).weight_shape == (28, 4, 1, 1)
    assert up.workload.with_channels(10, 6).weight_shape == (10, 6, 2, 2)


@pytest.mark.parametrize(("width", "points"), [
    (3, (2, 3)), (10, (2, 4, 8, 10)), (24, (8, 16, 24)), (64, (8, 16, 32, 48, 64)), (100, (16, 32, 48, 80, 100)),
    (1024, (16, 128, 256, 512, 768, 1024))])
def test_layers_are_measured_at_few_widths(width: int, points: tuple[int, ...]) -> None:
    assert sampled_widths(width) == points


def test_between_the_points_times_are_read_in_blocks() -> None:
    classes = np.arange(64)
    layer = LabeledWorkload(conv(64, 64, (8, 8), (1, 1)), classes, classes)

    def time(workload: Workload) -> float:
        reads, makes = workload.spec.inputs, workload.spec.outputs
        if reads % 8 or makes % 8:
            return time(layer.workload.with_channels(-(-reads // 16) * 16, -(-makes // 16) * 16)) * 3
        if reads % 16 and reads > 8:
            return time(layer.workload.with_channels(reads + 8, makes)) * 0.75
        return 100.0 * reads + 7.0 * reads * makes

    times = {workload: time(workload) for workload in sampled_workloads(layer)}
    penalties = width_penalties([layer], times)
    assert penalties["convolution, pointwise", "in"].half_block == pytest.approx(0.75)
    assert penalties["convolution, pointwise", "out"].unaligned == pytest.approx(3)
    latency = LayerLatency(layer, times, penalties)

    def at(in_channels: int, out_channels: int) -> float:
        return float(latency(np.array([in_channels]), np.array([out_channels]))[0])

    for widths in ((64, 64), (48, 16), (8, 32), (16, 8)):  # measured
        assert at(*widths) == time(layer.workload.with_channels(*widths))
    assert at(24, 64) == pytest.approx(0.75 * time(layer.workload.with_channels(32, 64)))
    assert at(64, 41) == pytest.approx(3 * time(layer.workload.with_channels(64, 48)))
    half_block = penalties["convolution, pointwise", "out"].half_block
    assert at(64, 24) == pytest.approx(time(layer.workload.with_channels(64, 32)) * half_block)
    assert at(5, 64) == at(8, 64)
    assert at(100, 64) == at(64, 64)


def test_factors_are_medians_and_small_ones_are_noise() -> None:
    classes = np.arange(64)
    layers = [LabeledWorkload(linear(rows, 64, 64), classes, classes) for rows in (1, 2, 3)]
    for ratios, expected in (((1.02, 0.97, 1.04), 1.0), ((1.5, 1.0, 9.0), 1.5), ((0.5, 0.6, 0.7), 1.0)):
        times = {workload: 100.0 for layer in layers for workload in sampled_workloads(layer)}
        for layer, ratio in zip(layers, ratios, strict=True):
            times[layer.workload.with_channels(47, 64)] = 100 * ratio
        assert width_penalties(layers, times)["linear", "in"].unaligned == expected


# --- the cache -----------------------------------------------------------------------------------------------

class Counting:
    """A backend that gives each layer another time and counts."""

    name = "counting"

    def __init__(self, machine: str = "here") -> None:
        self.environment: Mapping[str, str] = {"machine": machine}
        self.count = 0

    def time_layers(self, workloads: Sequence[Workload]) -> list[float]:
        self.count += len(workloads)
        return [float(prod(workload.weight_shape)) for workload in workloads]

    def time_networks(self, models: Sequence[nn.Module], inputs: object) -> list[list[float]]:
        raise NotImplementedError


LAYERS = [linear(1, width, 8) for width in (4, 6, 8)]


def test_times_are_measured_once(tmp_path: Path) -> None:
    clock = Counting()
    table = LatencyCache(clock, tmp_path)
    assert table.layer_times([*LAYERS, *LAYERS]) == {layer: layer.spec.inputs * 8.0 for layer in LAYERS}
    assert LatencyCache(clock, tmp_path).layer_times(LAYERS) == table.layer_times(LAYERS)
    assert clock.count == 3
    LatencyCache(Counting("there"), tmp_path).layer_times(LAYERS)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    one, other = LatencyCache(Counting(), tmp_path), LatencyCache(Counting(), tmp_path)
    one.layer_times(LAYERS[:1])
    other.layer_times(LAYERS[1:])
    clock = Counting()
    LatencyCache(clock, tmp_path).layer_times(LAYERS)
    assert clock.count == 0


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", '"times"', '{"times": {}}', '{"format": 2, "environment": {"machine": "else"}, "times": {}}',
    '{"format": 9, "environment": {"machine": "here"}, "times": {}}',
    '{"format": 2, "environment": {"machine": "here"}, "times": {"a": "fast"}}',
    '{"format": 2, "environment": {"machine": "here"}, "times": {"a": -1}}',
    '{"format": 2, "environment": {"machine": "here"}, "times": {"a": NaN}}', "[" * 100_000])
def test_what_is_no_cache_is_set_aside(tmp_path: Path, text: str) -> None:
    path = LatencyCache(Counting(), tmp_path).path
    path.write_text(text, encoding="utf-8")
    with pytest.warns(TorchslimWarning, match="no cache of measured times .*set aside"):
        table = LatencyCache(Counting(), tmp_path)
    assert path.with_suffix(".broken").read_text(encoding="utf-8") == text
    assert table.layer_times(LAYERS)[LAYERS[0]] == 32.0
    assert json.loads(path.read_text(encoding="utf-8"))["times"][LAYERS[0].key] == 32.0


def test_a_folder_that_can_not_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    table = LatencyCache(Counting(), tmp_path / "file" / "folder")
    with pytest.warns(TorchslimWarning, match="measured times could not be kept .*set XDG_CACHE_HOME"):
        assert table.layer_times(LAYERS)[LAYERS[0]] == 32.0


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "torchslim"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if os.name == "posix":
        assert default_folder() == tmp_path / "home" / ".cache" / "torchslim"


# --- the clocks ----------------------------------------------------------------------------------------------

EVERY_KIND = [*(layer.workload for layer in traced(Mixed(), torch.randn(2, 3, 16, 16))),
              conv(8, 8, (20,), (3,), padding=(1,)),
              conv(4, 6, (5, 6, 7), (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 0))]


@pytest.mark.parametrize("backend", ["eager", "channels-last", "onnxruntime", "openvino"])
def test_every_kind_of_layer_is_timed(backend: str) -> None:
    if backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
    times = LocalBackend.create(backend, torch.randn(1)).time_layers(EVERY_KIND)
    assert len(times) == len(EVERY_KIND)
    assert all(time > 0 for time in times)


def test_the_file_of_layers_computes_what_torch_does() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(layer_benchmark._onnx_file(EVERY_KIND), providers=["CPUExecutionProvider"])
    outputs = session.run(None, layer_benchmark._feeds(EVERY_KIND))
    for workload, output in zip(EVERY_KIND, outputs, strict=True):
        expected = layer_benchmark._torch_call(workload, torch.device("cpu"), channels_last=False)()
        assert torch.allclose(torch.from_numpy(output), expected, atol=1e-6)


def test_layers_are_timed_in_portions_that_memory_holds() -> None:
    large = linear(1, 4096, 4096)  # 64 MiB
    assert [len(part) for part in layer_benchmark._batches([large, large, *LAYERS, large])] == [1, 1, 3, 1]
    assert [len(part) for part in layer_benchmark._batches([*LAYERS])] == [3]


def test_types_that_runtimes_are_not_timed_in_are_refused() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(RequestError, match="a layer in bfloat16 found"):
        LocalBackend.create("onnxruntime", torch.randn(1)).time_layers([linear(1, 8, 8, "bfloat16")])


def test_layers_that_the_runtime_does_not_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_benchmark.LAYER_TIMERS, "onnxruntime", lambda workloads, threads: [[1.0], []])
    with pytest.raises(ExportError, match="backend onnxruntime: 1 of 2 layers were not timed"):
        layer_benchmark.time_layers(LAYERS[:2], "onnxruntime", torch.device("cpu"), 1)


def test_of_each_network_one_time() -> None:
    backend = LocalBackend.create("eager", torch.randn(1))
    models = [nn.Conv2d(3, width, 3) for width in (8, 64)]
    times = backend.time_networks(models, torch.randn(1, 3, 32, 32))
    assert len(times) == 2
    assert len(times[0]) == len(times[1]) >= 20
    assert all(time > 0 for own in times for time in own)
    assert backend.environment["backend"] == "eager"
    assert backend.environment["threads"] == str(torch.get_num_threads())
