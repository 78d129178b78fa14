"""The clock: who runs when, in which mode, and how the times are summed up. No test asserts a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim
from torchslim.deploy.runtimes import onnx_runner
from torchslim.errors import CheckpointError, MissingExtra, RequestError
from torchslim.latency.timing import Latency, measure, ratio

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Witness(nn.Module):
    """Writes down each call: its name, mode, gradients, threads."""

    def __init__(self, name: str, log: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.inner = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        self.log.append((self.name, self.training or self.inner.training, torch.is_inference_mode_enabled(),
                         torch.get_num_threads()))
        return x


def test_candidates_take_turns_in_eval_mode_without_gradients() -> None:
    log: list[tuple[Any, ...]] = []
    first, second = Witness("a", log).train(), Witness("b", log).eval()
    second.inner.train()
    threads = torch.get_num_threads()
    times = measure({"a": first, "b": second}, IMAGE, rounds=3, warmup=2, threads=1, min_seconds=0)
    # two calls to warm up; then in each turn one that does not count, and one that does
    assert "".join(entry[0] for entry in log) == "aabb" + "aabb" * 3
    assert {entry[1:] for entry in log} == {(False, True, 1)}
    assert (first.training, first.inner.training) == (True, True)
    assert (second.training, second.inner.training) == (False, True)
    assert torch.get_num_threads() == threads
    assert list(times) == ["a", "b"]
    assert all(len(taken.runs) == 3 for taken in times.values())


def test_everything_is_put_back_after_a_failure() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    model, threads = Failing().train(), torch.get_num_threads()
    with pytest.raises(ValueError, match="no"):
        measure({"model": model}, IMAGE, threads=threads + 1)
    assert model.training
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


def test_turns_of_fast_candidates_have_several_calls() -> None:
    calls = []
    measure({"f": lambda x: calls.append(x)}, IMAGE, rounds=2, warmup=1, min_seconds=0.002)
    assert len(calls) > 1 + 2


def test_a_turn_begins_with_calls_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def candidate(name: str, seconds: float) -> Callable[[Tensor], None]:
        def run(_: Tensor) -> None:
            log.append(name)
            now[0] += seconds
        return run

    runners = {"a": candidate("a", 0.03), "b": candidate("b", 0.5)}
    times = measure(runners, IMAGE, rounds=2, warmup=1, min_seconds=0)
    assert "".join(log) == "ab" + "aaaaabb" * 2  # until a tenth of a second is over: threads of others may still spin
    assert times["a"].runs == pytest.approx((30, 30))
    log.clear()
    measure(runners, IMAGE, rounds=1, warmup=1, min_seconds=0, settle_seconds=0)
    assert "".join(log) == "ab" + "aabb"
    log.clear()
    measure({"a": runners["a"]}, IMAGE, rounds=3, warmup=1, min_seconds=0)
    assert "".join(log) == "a" + "aaa"


def test_throughput_is_in_images_a_second() -> None:
    assert Latency(20.0, 0, 0, (20.0,)).throughput() == 50
    assert Latency(20.0, 0, 0, (20.0,)).throughput(8) == 400


@pytest.mark.parametrize(("inputs", "expected"), [
    (IMAGE, ((IMAGE,), {})),
    ((IMAGE, 2), ((IMAGE, 2), {})),
    ([IMAGE, IMAGE], (([IMAGE, IMAGE],), {})),
    ({"x": IMAGE}, ((), {"x": IMAGE})),
])
def test_inputs_reach_the_candidates_by_the_convention(inputs: Any, expected: Any) -> None:
    seen: list[Any] = []
    listener = {"f": lambda *args, **kwargs: seen.append((args, kwargs))}
    measure(listener, inputs, rounds=1, warmup=1, min_seconds=0)
    assert len(seen) == 2
    assert str(seen[0]) == str(expected)


def test_a_summary_says_what_the_rounds_were() -> None:
    taken = measure({"f": lambda x: x}, IMAGE, rounds=7, min_seconds=0)["f"]
    assert taken.median_ms == statistics.median(taken.runs)
    assert min(taken.runs) <= taken.p10_ms <= taken.median_ms <= taken.p90_ms <= max(taken.runs)
    assert "7 rounds" in str(taken)
    assert len(torchslim.measure({"f": lambda x: x}, IMAGE, rounds=1)["f"].runs) == 1


def test_the_ratio_is_paired_round_by_round() -> None:
    # A machine that slows down tenfold half-way: the medians say nothing, the pairs say 2.
    first = Latency(0, 0, 0, (1.0, 1.0, 10.0, 10.0, 10.0))
    second = Latency(0, 0, 0, (2.0, 2.0, 20.0, 20.0, 2.0))
    assert ratio(first, second) == 2.0
    assert ratio(second, first) == 0.5
    with pytest.raises(RequestError, match=r"5 and 1 rounds found"):
        ratio(first, Latency(0, 0, 0, (1.0,)))


@pytest.mark.parametrize("options", [{"rounds": 0}, {"warmup": 0}, {"threads": 0}, {"threads": -1}])
def test_impossible_requests_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(options))}=.* found, at least 1 wanted"):
        measure({"f": lambda x: x}, IMAGE, **options)  # type: ignore[arg-type]


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(RequestError, match="no candidate"):
        measure({}, IMAGE)


def test_an_onnx_file_is_a_candidate_like_any_other(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    path = torchslim.export(model, IMAGE, tmp_path / "model.onnx").path
    runner = onnx_runner(path, IMAGE, threads=1)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(runner()[0]), model(IMAGE))
    times = measure({"eager": model, "onnx": runner}, IMAGE, rounds=2, min_seconds=0)
    assert list(times) == ["eager", "onnx"]
    with pytest.raises(RequestError, match=r"2 input tensors found, wanted 1: "):
        onnx_runner(path, (IMAGE, IMAGE))
    with pytest.raises(RequestError, match=r"model\.onnx: 2x3x8x8 found for its input \w+, 1x3x8x8 wanted; the file"):
        onnx_runner(path, IMAGE.repeat(2, 1, 1, 1))
    with pytest.raises(RequestError, match=r"3x8x8 found for its input \w+, 1x3x8x8 wanted"):
        onnx_runner(path, IMAGE[0])


def test_files_that_onnx_runtime_cannot_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    for wrong in (path, tmp_path / "absent.onnx"):
        with pytest.raises(CheckpointError, match="ONNX Runtime cannot open it"):
            onnx_runner(wrong, IMAGE)
    monkeypatch.setattr("torchslim.deploy.runtimes.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'torchslim\[onnx\]'"):
        onnx_runner(path, IMAGE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accelerators_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    real = torch.accelerator.synchronize
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: (waits.append(device), real(device)))
    measure({"model": nn.Conv2d(3, 4, 3).cuda()}, IMAGE.cuda(), rounds=2, warmup=1, min_seconds=0)
    assert len(waits) == 2 * 3
