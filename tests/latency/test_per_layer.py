"""Times by module, on a clock that moves only when a test says so. No test asserts a real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as machinery

import torchslim
from torchslim.errors import RequestError
from torchslim.latency.per_layer import REASONS, HookTimer, seconds_per_mac, time_modules

IMAGE = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass
class Clock:
    """Stands still but for `tick`; reading it may take time, too."""

    now: float = 0.0
    reading: float = 0.0

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def read(self) -> float:
        self.now += self.reading
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made.read)
    return made


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """No hook, mode or number of threads outlives a measurement, failed ones included."""
    def hooks() -> list[int]:
        return [len(getattr(machinery, name)) for name in dir(machinery) if name.startswith("_global_forward")]

    before, threads = hooks(), torch.get_num_threads()
    yield
    assert hooks() == before
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


class Work(nn.Module):
    """Takes its time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock.tick(self.seconds)
        return x * 2


class Block(nn.Module):
    """Work before, between and after two calls of one child, which others may share."""

    def __init__(self, clock: Clock, child: nn.Module) -> None:
        super().__init__()
        self.clock, self.child = clock, child

    def forward(self, x: Tensor) -> Tensor:
        self.clock.tick(1)
        y = self.child(x)
        self.clock.tick(2)
        y = self.child(y)
        self.clock.tick(4)
        return x + y


def spent(model: nn.Module, x: Tensor = IMAGE) -> dict[str, float]:
    timer = HookTimer(model, lambda: None)
    with torch.no_grad():
        timer(x)
    return {name: time.seconds for name, time in timer.records[-1].items()}


def test_a_module_has_its_own_time_without_that_of_its_children(clock: Clock) -> None:
    work = Work(clock, 16)
    model = nn.Sequential(Block(clock, work), Work(clock, 32), Block(clock, nn.Sequential(work, Work(clock, 64))))
    expected = {"": 0, "0": 7, "0.child": 16 * 4, "1": 32, "2": 7, "2.child": 0, "2.child.1": 64 * 2}
    assert spent(model) == expected
    found = time_modules(model, IMAGE, rounds=3, threads=1)
    assert {layer.name: layer.ms for layer in found.layers} == {name: 1e3 * s for name, s in expected.items()}
    assert {layer.name: layer.calls for layer in found.layers} == {
        "": 1, "0": 1, "0.child": 4, "1": 1, "2": 1, "2.child": 2, "2.child.1": 2}
    assert found.total_ms == found.whole.median_ms == 1e3 * sum(expected.values())
    assert found.hooks_ms == 0
    assert [layer.name for layer in found.layers[:2]] == ["2.child.1", "0.child"]
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert found.layers[0].share == 128 / 238


def test_a_module_that_fails_keeps_its_time_and_its_parent_the_rest(clock: Clock) -> None:
    class Failing(Work):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ValueError("no")

    class Patient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(Work(clock, 1), Failing(clock, 2))
            self.other = Work(clock, 4)

        def forward(self, x: Tensor) -> Tensor:
            clock.tick(8)
            try:
                x = self.inner(x)
            except ValueError:
                clock.tick(16)
            return self.other(x)

    assert spent(Patient()) == {"": 24, "inner": 0, "inner.0": 1, "inner.1": 2, "other": 4}
    with pytest.raises(ValueError, match="no"):
        spent(Failing(clock, 1))


def test_everything_is_put_back_when_a_round_fails(clock: Clock) -> None:
    class Tiring(Work):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen = torch.get_num_threads()
            Tiring.calls += 1
            if Tiring.calls > 6:
                raise ValueError("tired")
            return super().forward(x)

    model = nn.Sequential(Tiring(clock, 1)).train()
    model[0].eval()
    with pytest.raises(ValueError, match="tired"):
        time_modules(model, IMAGE, threads=torch.get_num_threads() + 1)
    assert (model.training, model[0].training) == (True, False)


def test_hooks_of_the_model_belong_to_it_and_stay(clock: Clock) -> None:
    model = nn.Sequential(Work(clock, 1), Work(clock, 2))
    model[1].register_forward_pre_hook(lambda *_: clock.tick(4))
    assert spent(model) == {"": 0, "0": 1, "1": 6}
    assert len(model[1]._forward_pre_hooks) == 1
    assert len(model[1]._forward_hooks) == 0


def test_modules_made_on_the_way_and_other_models_belong_to_who_calls_them(clock: Clock) -> None:
    class Making(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Work(clock, 8)(x)

    assert spent(nn.Sequential(Making(), Work(clock, 1))) == {"": 0, "0": 8, "1": 1}


def test_a_module_that_calls_itself(clock: Clock) -> None:
    class Recursive(nn.Module):
        def forward(self, x: Tensor, depth: int = 3) -> Tensor:
            clock.tick(1)
            return self(x, depth - 1) if depth else x * 1

    assert spent(nn.Sequential(Recursive())) == {"": 0, "0": 4}


def test_what_the_hooks_take_is_deducted(clock: Clock) -> None:
    """Looking at the clock takes a second: one more in a module at each of its calls, and at each that it makes."""
    work = Work(clock, 16)
    model = nn.Sequential(Block(clock, work), work)
    clock.reading = 1.0
    assert spent(model) == {"": 3, "0": 7 + 3, "0.child": 3 * (16 + 1)}
    found = time_modules(model, IMAGE, rounds=2)
    times = {layer.name: layer.ms / 1e3 for layer in found.layers}
    assert times["0.child"] == 48
    assert times["0"] == pytest.approx(7, abs=0.1)
    assert times[""] == pytest.approx(0, abs=0.1)
    assert found.hooks_ms / 1e3 == pytest.approx(9, abs=0.1)


def ticking(clock: Clock, seconds: float) -> Callable[..., None]:
    return lambda *_: clock.tick(seconds)


def test_marks_and_their_reasons(clock: Clock) -> None:
    class Joining(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view_as(x)

    layers = {
        "usual": (nn.Conv2d(64, 64, 3, padding=1), 1.0, ""),
        "slow": (nn.Conv2d(64, 64, 3, padding=1), 8.0, "slow kernel"),
        "within": (nn.Conv2d(64, 64, 3, padding=1), 2.9, ""),
        "same": (nn.Conv2d(64, 64, 3, padding=1), 1.0, ""),
        "again": (nn.Conv2d(64, 64, 3, padding=1), 1.0, ""),
        "deep": (nn.Conv2d(64, 64, 3, padding=1, groups=64), 8.0, "memory-bound"),
        "norm": (nn.BatchNorm2d(64), 8.0, "element-wise"),
        "act": (nn.ReLU6(), 8.0, "element-wise"),
        "quick": (nn.ReLU6(), 0.01, ""),
        "idle": (Idle(), 8.0, "no ops"),
        "joined": (Joining(), 8.0, "moves data"),
        "pool": (nn.MaxPool2d(2), 8.0, "no MACs"),
        "narrow": (nn.AdaptiveAvgPool2d(1), 0.0, ""),
        "scale": (nn.Sigmoid(), 8.0, "small ops"),
    }
    model = nn.Sequential()
    for name, (layer, seconds, _) in layers.items():
        layer.register_forward_pre_hook(ticking(clock, seconds))
        model.add_module(name, layer)
    found = {layer.name: layer for layer in time_modules(model, torch.rand(1, 64, 32, 32), rounds=1, warmup=1).layers}
    assert {name: found[name].reason for name in layers} == {name: reason for name, (_, _, reason) in layers.items()}
    assert {layer.reason for layer in found.values()} == {"", *REASONS}
    assert {name: found[name].ms for name in layers} == pytest.approx({name: 1e3 * s for name, (_, s, _)
                                                                       in layers.items()})


def test_without_macs_nothing_is_marked(clock: Clock) -> None:
    model = nn.Sequential(nn.ReLU(), Work(clock, 5))
    assert {(layer.reason, layer.macs_share) for layer in time_modules(model, IMAGE, rounds=1).layers} == {("", 0.0)}


def test_the_pace_is_that_of_the_median_mac() -> None:
    assert seconds_per_mac({"a": 1.0, "b": 10.0, "c": 6.0}, {"a": 10, "b": 10, "c": 30}) == 0.2
    assert seconds_per_mac({"a": 1.0, "b": 100.0, "c": 5.0}, {"a": 10, "b": 1, "c": 0}) == 0.1
    assert seconds_per_mac({"a": 1.0}, {"a": 0}) == 0.0


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121"])
def test_layers_and_costs_are_those_of_the_profile(name: str) -> None:
    model, image = torchslim.create_model(name), torch.rand(1, 3, 64, 64)
    found = {layer.name: layer for layer in time_modules(model, image, rounds=1, warmup=1).layers}
    profile = torchslim.profile(model, image)
    assert sum(layer.macs for layer in found.values()) == profile.macs
    assert sum(layer.memory_access for layer in found.values()) == profile.memory_access
    for layer in profile.layers:
        assert (found[layer.name].kind, found[layer.name].calls) == (layer.kind, layer.calls)
    assert all(module.training for module in model.modules())


def test_wrappers_are_looked_through_and_wrong_requests_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    assert {layer.name for layer in time_modules(nn.DataParallel(model), IMAGE, rounds=1).layers} == {"", "0", "1"}
    with pytest.raises(RequestError, match="rounds=0 found, at least 1 wanted"):
        time_modules(model, IMAGE, rounds=0)
    with pytest.raises(RequestError, match="failed while the model was run"):
        time_modules(model, IMAGE[:, :2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accelerators_are_waited_for_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    real = torch.accelerator.synchronize
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: (waits.append(device), real(device)))
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).cuda()
    assert len(time_modules(model, IMAGE.cuda(), rounds=1, warmup=1).layers) == 3
    assert len(waits) > 6
