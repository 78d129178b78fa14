"""Budgets of time, by a clock that is arithmetic: met, worth their loss, confirmed by the network itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from clocks import Blocky, blocks, nanoseconds, time_of
from helpers import Call, conv, in_turn, oracle_error, random_statistics
from torchslim.coupling.coupling import couple
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.latency.predictor import LatencyPredictor, required_workloads
from torchslim.latency.target import parse_latency
from torchslim.tracing.runs import trace_modes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of these widths, with activations between them."""
    return nn.Sequential(*(part for pair in pairwise(widths) for part in (conv(*pair), nn.ReLU()))).eval()


NETWORKS = [("torchvision:resnet18", 0.7), ("torchvision:mobilenet_v2", 0.4), ("torchvision:shufflenet_v2_x1_0", 0.7),
            ("torchvision:densenet121", 0.4), ("torchvision:regnet_y_400mf", 0.4), ("torchvision:googlenet", 0.7),
            ("unet", 0.4)]


@pytest.mark.parametrize(("name", "share"), in_turn(NETWORKS, NETWORKS[:2]))
def test_the_budget_is_met_and_is_what_the_slim_network_takes(name: str, share: float) -> None:
    torch.manual_seed(0)
    model = random_statistics(ts.create_model(name, **({"width": 0.5} if name == "unet" else {}))).eval()
    x = torch.randn(1, 3, 125, 125) if name == "unet" else torch.randn(1, 3, 64, 64)
    plan = ts.plan(model, x, latency=share, backend=Blocky())
    [budget] = plan.budgets
    assert (budget.resource, budget.before) == ("latency", round(time_of(model, x)))
    assert budget.asked == int(share * budget.before)
    assert budget.met <= budget.asked
    assert plan.predicted["latency"] == budget.met
    slim = ts.apply(model, plan)
    assert time_of(slim, x) == pytest.approx(budget.met, rel=0.02)
    assert budget.met >= 0.95 * budget.asked or "the next step is larger" in plan.notes[0]
    assert oracle_error(model, slim, plan, x) < 1e-9


def test_the_meter_is_the_sum_over_the_layers_and_the_rest_goes_by_bytes() -> None:
    model, x = chain(3, 32, 64, 48), torch.randn(1, 3, 8, 8)
    clock = Blocky(fixed=9000.0)
    coupling = couple(trace_modes(model, x))
    wanted = list(required_workloads(coupling))
    today = min(clock.time_networks([model], x)[0])
    meter = LatencyPredictor(coupling, dict(zip(wanted, clock.time_layers(wanted), strict=True)), today)
    shares = np.ones(coupling.num_classes)
    assert meter(shares) == meter.total == round(today)
    first, second = (group.classes for group in coupling.groups if not group.frozen)
    assert (len(first), len(second)) == (32, 64)
    shares[first[:16]] = 0
    shares[second[:24]] = 0
    layers = nanoseconds(64, 9, 3, 16, 1) + nanoseconds(64, 9, 16, 40, 1) + nanoseconds(64, 9, 40, 48, 1)
    # Two activations are read and written by as many ReLUs, and the third, of 48 channels, stays; 40 are a begun block.
    rest = 9000 * (16 + 48 + 48) / (32 + 64 + 48)
    assert meter(shares) == round(layers + rest)


def losses(scores: np.ndarray, kept: int) -> float:
    """Importance times -log of the share that stays, what can't go for certain counting like what goes last."""
    ordered = np.sort(scores)
    gone, last = ordered[: len(scores) - kept], ordered[len(scores) - 16 - 1]
    whole = ordered[: len(scores) - 16].sum() + 16 * last
    return float(-whole * np.log(1 - gone.sum() / whole))


@pytest.mark.parametrize("seed", range(8))
def test_little_is_lost_beside_the_best_of_all_selections(seed: int) -> None:
    widths = (64, 96, 48)
    model, x = chain(3, *widths, 8), torch.randn(1, 3, 6, 6)
    numbers = np.random.default_rng(seed)
    scores = {width: numbers.gamma(2.0, size=width) for width in widths}

    def importance(group: ChannelGroup) -> np.ndarray:
        return scores[group.channels]

    share = float(numbers.uniform(0.3, 0.9))
    plan = ts.plan(model, x, latency=share, backend=Blocky(), importance=importance)
    kept = [len(plan.kept.get(f"{place}.weight", {}).get(0, range(width)))
            for place, width in zip((0, 2, 4), widths, strict=True)]

    def time(chosen: tuple[int, ...]) -> float:
        every = (3, *chosen, 8)
        return sum(nanoseconds(36, 9, a, b, 1) for a, b in pairwise(every))

    def loss(chosen: tuple[int, ...]) -> float:
        return sum(losses(scores[width], n) for width, n in zip(widths, chosen, strict=True))

    limit = share * time(widths)
    best = min(loss(chosen) for chosen in product(*(range(16, width + 1, 16) for width in widths))
               if time(chosen) <= limit)
    assert all(n == blocks(n) for n in kept)
    assert time(tuple(kept)) <= limit
    assert loss(tuple(kept)) <= 1.25 * best + 1e-9
    # Nothing could be taken back.
    for place, width in enumerate(widths):
        more = tuple(n + 16 * (other == place) for other, n in enumerate(kept))
        assert more[place] > width or time(more) > limit


def test_a_network_that_saves_less_than_its_layers_is_planned_again() -> None:
    model, x = chain(3, 128, 128, 128, 128, 8), torch.randn(1, 3, 16, 16)
    clock = Blocky(true=0.8)
    plan = ts.plan(model, x, latency=0.5, backend=clock)
    slim = ts.apply(model, plan)
    seen = clock.whole - 0.8 * (clock.whole - time_of(slim, x))
    assert seen == pytest.approx(plan.budgets[0].asked, rel=0.05)
    assert seen == pytest.approx(plan.budgets[0].met, rel=0.02)
    assert f"{seen / clock.whole:.1%} of the original's" in plan.notes[-1]


def test_an_unsteady_clock_is_not_believed() -> None:
    model, x = chain(3, 128, 128, 128, 128, 8), torch.randn(1, 3, 16, 16)

    class Unsteady(Blocky):
        def time_networks(self, models: Sequence[nn.Module], inputs: Tensor) -> list[list[float]]:
            found = super().time_networks(models, inputs)
            return [[time * (1 + 0.2 * place * number) for number, time in enumerate(times)]
                    for place, times in enumerate(found)]

    plan = ts.plan(model, x, latency=0.5, backend=Unsteady())
    assert plan.kept == ts.plan(model, x, latency=0.5, backend=Blocky(rounds=(1.0,))).kept
    assert "the clock was unsteady" in plan.notes[-1]
    assert "unsteady" not in str(ts.plan(model, x, latency=0.5, backend=Blocky(true=0.9)))


def test_an_unsteady_clock_is_followed_where_it_is_further_off_than_it_is_unsteady() -> None:
    model, x = chain(3, 128, 128, 128, 128, 8), torch.randn(1, 3, 16, 16)

    class Unsteady(Blocky):
        def time_networks(self, models: Sequence[nn.Module], inputs: Tensor) -> list[list[float]]:
            found = super().time_networks(models, inputs)
            return [[time * (1 + 0.08 * place * (number > 0)) for number, time in enumerate(times)]
                    for place, times in enumerate(found)]

    rounds = (1.0,) * 8
    plan = ts.plan(model, x, latency=0.5, backend=Unsteady(true=0.6, rounds=rounds))
    assert plan.kept == ts.plan(model, x, latency=0.5, backend=Blocky(true=0.6, rounds=rounds)).kept
    assert plan.kept != ts.plan(model, x, latency=0.5, backend=Blocky(rounds=rounds)).kept
    assert "the clock was unsteady" in plan.notes[-1]


def test_an_unsteady_clock_is_looked_at_again_until_it_is_steady() -> None:
    model, x = chain(3, 128, 128, 128, 128, 8), torch.randn(1, 3, 16, 16)

    class Calming(Blocky):
        @property
        def environment(self) -> Mapping[str, str]:
            return {"backend": "calming"}  # its times are its own

        def time_networks(self, models: Sequence[nn.Module], inputs: Tensor) -> list[list[float]]:
            found = super().time_networks(models, inputs)
            busy = len(models) == 2 and self.asked[1] == 3  # while the cut network is measured for the first time
            return [[time * (1 + 0.3 * place * (number < 6) * busy) for number, time in enumerate(times)]
                    for place, times in enumerate(found)]

    rounds = (1.0,) * 8
    clock, calm = Calming(rounds=rounds), Blocky(rounds=rounds)
    plan = ts.plan(model, x, latency=0.5, backend=clock)
    assert plan.kept == ts.plan(model, x, latency=0.5, backend=calm).kept
    assert (clock.asked[1], calm.asked[1]) == (5, 3)
    assert "unsteady" not in str(plan)


def test_what_was_measured_is_kept_and_the_plan_stays_the_same() -> None:
    model, x = chain(3, 64, 64, 8), torch.randn(1, 3, 16, 16)
    clock, later = Blocky(), Blocky()
    first = ts.plan(model, x, latency=0.5, backend=clock)
    assert clock.asked[0] > 20
    assert clock.asked[1] == 3  # the network by itself, then beside the cut one
    assert ts.plan(model, x, latency=0.5, backend=later) == first
    assert later.asked == [0, 0]
    ts.plan(model, x, latency=0.6, backend=later)
    assert later.asked == [0, 2]
    other = Blocky(fixed=1.0)
    ts.plan(model, x, latency=0.5, backend=other)
    assert other.asked[0] == clock.asked[0]


def test_where_a_cut_saves_nothing_it_says_so_and_cuts_elsewhere() -> None:
    model, x = chain(3, 16, 128, 8), torch.randn(1, 3, 16, 16)  # sixteen channels are one block
    plan = ts.plan(model, x, latency=0.6, backend=Blocky())
    assert {name for name, dims in plan.kept.items() if 0 in dims} == {"2.weight", "2.bias"}
    assert {entry.name: entry.reason for entry in plan.left_alone}["0"] == "a cut here would not make it faster"


def test_a_time_that_can_not_be_reached_says_so() -> None:
    model, x = chain(3, 32, 8), torch.randn(1, 3, 16, 16)
    plan = ts.plan(model, x, latency=0.01, backend=Blocky(), strict=False)
    assert plan.budgets[0].met > plan.budgets[0].asked
    assert "the nearest feasible budget is 0.0128" in plan.notes[0]
    assert "latency: 0.0246\N{NO-BREAK SPACE}ms -> " in str(plan)


@pytest.mark.parametrize("scope", ["uniform", {"2": 0.5}])
def test_scopes_hold(scope: str | dict[str, float]) -> None:
    model, x = chain(3, 64, 64, 64, 8), torch.randn(1, 3, 16, 16)
    plan = ts.plan(model, x, latency=0.6, backend=Blocky(), scope=scope)
    kept = [len(plan.kept[f"{place}.weight"].get(0, range(64))) for place in (0, 2, 4)]
    assert plan.budgets[0].met <= plan.budgets[0].asked
    assert max(kept) - min(kept) <= 16 if scope == "uniform" else kept[1] == 32


def test_budgets_go_together() -> None:
    model, x = chain(3, 64, 128, 64, 8), torch.randn(1, 3, 16, 16)
    plan = ts.plan(model, x, latency=0.7, macs=0.3, params=0.6, memory=0.9, backend=Blocky())
    assert [budget.resource for budget in plan.budgets] == ["macs", "params", "memory", "latency"]
    assert all(budget.met <= budget.asked for budget in plan.budgets)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "torchvision:resnet18"])
def test_a_budget_of_macs_for_a_backend_is_met_by_cuts_that_save_time(name: str) -> None:
    torch.manual_seed(0)
    model, x = ts.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    blind = ts.apply(model, ts.plan(model, x, macs=0.5))
    plan = ts.plan(model, x, macs=0.5, backend=Blocky())
    [budget] = plan.budgets
    assert 0.98 * budget.asked <= budget.met <= budget.asked
    slim = ts.apply(model, plan)
    assert ts.profile(slim, x).macs == budget.met
    assert plan.predicted["latency"] == pytest.approx(time_of(slim, x), rel=0.01)
    assert time_of(slim, x) < 0.6 * time_of(model, x) < 0.9 * time_of(blind, x)


def test_whole_groups_and_grouped_convolutions() -> None:
    def grouped() -> nn.Sequential:
        middle = nn.Conv2d(64, 128, 3, padding=1, groups=4)
        return nn.Sequential(conv(3, 64), nn.ReLU(), middle, nn.ReLU(), conv(128, 8))

    for whole in (False, True):
        model, x = random_statistics(grouped()).eval(), torch.randn(1, 3, 16, 16)
        plan = ts.plan(model, x, latency=0.6, backend=Blocky(), whole_groups=whole)
        slim = ts.apply(model, plan)
        assert oracle_error(model, slim, plan, x) < 1e-9
        assert plan.budgets[0].met <= plan.budgets[0].asked
        assert time_of(slim, x) == pytest.approx(plan.budgets[0].met, rel=0.1)


# --- requests ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("asked", "found"), [(0.5, 0.5), (1.0, 1.0), (3_000_000, 3_000_000), ("3ms", 3_000_000),
                                              ("250 us", 250_000), ("250µs", 250_000), (".1s", 100_000_000),
                                              ("1.5ms", 1_500_000), ("900ns", 900)])
def test_times_as_people_write_them(asked: float | str, found: float) -> None:
    assert parse_latency(asked) == found
    assert type(parse_latency(asked)) is type(found)


@pytest.mark.parametrize("asked", ["3 parsecs", "ms", "", "-3ms", "0ms", "3", "nan", 0, -1, 0.0, 1.5, float("nan"),
                                   True])
def test_what_is_no_time_is_refused_before_anything_is_measured(asked: object) -> None:
    clock = Blocky()
    with pytest.raises(RequestError, match=r"wanted a float in \(0, 1\], the share kept of today, an int of nanosec"):
        ts.plan(chain(3, 32, 8), torch.randn(1, 3, 8, 8), latency=asked, backend=clock)  # type: ignore[arg-type]
    assert clock.asked == [0, 0]


def test_all_of_the_time_cuts_nothing() -> None:
    plan = ts.plan(chain(3, 32, 8), torch.randn(1, 3, 9, 9), latency=1.0, backend=Blocky(fixed=0.7))
    assert plan.kept == {}
    assert plan.budgets[0].met == plan.budgets[0].asked == plan.budgets[0].before


def test_what_is_no_clock_is_refused() -> None:
    with pytest.raises(RequestError, match="list without name, environment, time_layers, time_networks; wanted one"):
        ts.plan(chain(3, 32, 8), torch.randn(1, 3, 8, 8), latency=0.5, backend=["eager"])  # type: ignore[arg-type]


def test_more_than_it_takes_is_refused() -> None:
    with pytest.raises(RequestError, match=r"the network takes 0.*ms as it is, which is less; ask for a shorter"):
        ts.plan(chain(3, 32, 8), torch.randn(1, 3, 8, 8), latency="3s", backend=Blocky())


@pytest.mark.parametrize(("backend", "says"), [
    ("onxruntime", "there is none of that name; did you mean onnxruntime"),
    pytest.param("cuda", "torch finds no CUDA device here",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"))])
def test_backends_that_can_not_run_are_refused(backend: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        ts.plan(chain(3, 32, 8), torch.randn(1, 3, 8, 8), latency=0.5, backend=backend)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchslim.latency.backends.find_spec", lambda _: None)
    with pytest.raises(ts.errors.MissingExtra, match=r"torchslim\[onnx\]"):
        ts.plan(chain(3, 32, 8), torch.randn(1, 3, 8, 8), latency=0.5, backend="onnxruntime")


def test_a_network_that_can_not_be_exported_is_one_clear_line() -> None:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = chain(3, 32, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if y.sum().item() > 1e9 else -y

    with pytest.raises(ts.errors.ExportError, match=r"^backend onnxruntime: the export failed: .*") as found:
        ts.plan(Numpy(), torch.randn(1, 3, 8, 8), latency=0.5, backend="onnxruntime")
    assert "\n" not in str(found.value)


NETWORK = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(64, 8, 3))
"""


def test_the_command_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK, encoding="utf-8")
    model, out = f"{tmp_path / 'net.py'}:network", tmp_path / "slim.safetensors"
    status, printed, _ = call("prune", model, "--input", "1x3x32x32", "--latency", "60%", "--backend", "eager",
                              "--threads", 1, "--out", out)
    assert status in (0, 1)  # 1: on a busy machine the cut may be measured to be slower than was asked
    assert out.exists()
    assert "latency" in printed
    assert "ms" in printed
    assert list((tmp_path / "cache" / "torchslim").glob("eager-*.json"))


@pytest.mark.parametrize(("options", "says"), [
    (["--latency", "3 parsecs"], "error: --latency '3 parsecs': wanted a share such as 0.5 or 50%, or a time with its"),
    (["--latency", "3"], "error: --latency 3: wanted a share"),
    (["--latency", "2.0"], "error: --latency 2.0: wanted a share"),
    (["--macs", "0.5", "--threads", "2"], "error: --threads 2: says how to time, and nothing is timed"),
    (["--latency", "0.5", "--backend", "fpga"], "error: --backend fpga: there is none of that name")])
def test_wrong_requests_on_the_command_line(call: Call, tmp_path: Path, options: list[str], says: str) -> None:
    status, _, told = call("prune", "squeezenet1_1", "--out", tmp_path / "slim.safetensors", *options)
    assert status == 2
    assert says in told


def test_a_backend_without_a_budget_is_refused(call: Call) -> None:
    status, _, told = call("prune", "squeezenet1_1", "--show", "--backend", "eager")
    assert status == 2
    assert "error: --backend: says where a budget may cut, and there is no budget" in told
