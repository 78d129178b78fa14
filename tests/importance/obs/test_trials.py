"""Trials of cuts: the refit against numpy's least squares, what is lost against a network cut by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import torchslim as ts
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance import OBS, Evidence
from torchslim.importance.activations import readers_of
from torchslim.importance.obs.readers import WeightReader, weight_readers
from torchslim.importance.obs.statistics import LayerStatistics, collect_statistics
from torchslim.importance.obs.trials import TrialCuts, refitted

DAMP = 0.1


class Small(nn.Module):
    """A layer, one that reads its channels, and a head."""

    def __init__(self, reader: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.first, self.reader, self.head = nn.Conv2d(2, 8, 1), reader, head

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        if isinstance(self.reader, nn.Linear):
            y = y.flatten(1)
        out: Tensor = self.head(self.reader(y))
        return out


def pooled(channels: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


READERS = {
    "pointwise": lambda: Small(nn.Conv2d(8, 6, 1), pooled(6)),
    "3x3": lambda: Small(nn.Conv2d(8, 6, 3, bias=False), pooled(6)),
    "grouped": lambda: Small(nn.Conv2d(8, 6, (2, 1), groups=2), pooled(6)),
    "transposed in groups": lambda: Small(nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), pooled(4)),
    "flattened": lambda: Small(nn.Linear(8 * 16, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 3))),
}


def trial_cuts_of(model: nn.Module,
                  batches: list[Tensor]) -> tuple[TrialCuts, list[WeightReader], dict[str, LayerStatistics]]:
    """Trial cuts, and what reads the first layer's channels."""
    evidence = Evidence(model.eval(), batches[0][:1], batches, gains=lambda _: 1.0)
    [group] = [one for one in ts.groups(model, batches[0][:1]) if "first" in one.makers]
    readings = list(weight_readers(group, evidence, readers_of(model)))
    layers = {one.layer: (one.spec, one.columns) for one in readings}
    statistics = collect_statistics(model, batches, layers, 0)
    return TrialCuts(model, batches, statistics, DAMP), readings, statistics


def columns_of(model: Any, x: Tensor) -> list[np.ndarray]:
    """What the filters of each group of a plain reader see at every place, by what gives it: (places, columns)."""
    reader = model.reader
    with torch.no_grad():
        y = model.first(x).tanh().double()
        if isinstance(reader, nn.Linear):
            return [y.flatten(1).numpy()]
        groups, found = reader.groups, []
        taps = int(np.prod(reader.kernel_size))
        for part in y.chunk(groups, 1):
            ones = []
            for channel in range(part.shape[1]):
                for tap in range(taps):
                    unit = torch.zeros(1, 1, taps).double()
                    unit[0, 0, tap] = 1
                    unit = unit.reshape(1, 1, *reader.kernel_size)
                    one = part[:, channel:channel + 1]
                    seen = nn.functional.conv_transpose2d(one, unit, stride=reader.stride) if reader.transposed else \
                        nn.functional.conv2d(one, unit, stride=reader.stride, padding=reader.padding)
                    ones.append(seen.flatten().numpy())
            found.append(np.stack(ones, 1))
        return found


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("name", READERS)
def test_the_refit_is_ridge_regression_on_one_half_of_the_batches(name: str, half: int) -> None:
    torch.manual_seed(1)
    model = READERS[name]().eval()
    batches = list(torch.randn(3, 24, 2, 4, 4))
    _, readings, statistics = trial_cuts_of(model, batches)
    gone = np.array([1, 6])
    found = refitted(readings, statistics["reader"], gone, half, DAMP)
    seen = columns_of(model, torch.cat(batches[half::2]))
    per = seen[0].shape[1] * len(seen) // 8
    before = readings[0].weight
    for place, rows in enumerate(seen):
        lost = np.isin(np.arange(rows.shape[1]) // per + place * (8 // len(seen)), gone)
        centred = rows - rows.mean(0)
        squares = np.sqrt(DAMP * np.square(centred).mean(0) * len(rows))[~lost]
        wanted = before[place].numpy()
        # Ridge regression as plain least squares: a row more for each weight that would rather stay as it is.
        stacked = np.vstack([centred[:, ~lost], np.diag(squares)])
        targets = np.vstack([centred @ wanted.T, squares[:, None] * wanted[:, ~lost].T])
        best = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
        own = torch.as_tensor(np.zeros_like(wanted))
        own[:, torch.from_numpy(~lost)] = torch.from_numpy(best)
        stored = found.weight
        if found.spec.transposed:
            stored = stored.reshape(found.spec.groups, -1, *stored.shape[1:]).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(stored.reshape(before.shape)[place].double(), own, rtol=2e-3, atol=2e-4)
        shift = rows.mean(0) @ (wanted - own.numpy()).T
        np.testing.assert_allclose(found.shift.reshape(before.shape[:2])[place], shift, rtol=2e-3, atol=2e-4)


def test_what_is_lost_is_what_a_network_cut_by_hand_loses_on_the_other_half() -> None:
    torch.manual_seed(2)
    model: Any = READERS["pointwise"]().eval()
    batches = list(torch.randn(4, 16, 2, 5, 5))
    trial_cuts, readings, statistics = trial_cuts_of(model, batches)
    gone = np.array([0, 3, 4])
    fitted = refitted(readings, statistics["reader"], gone, 0, DAMP)
    lost = {place: trial_cuts.lost(readings, gone, 0, trial) for trial, place in [(0, 1), (1, 3), (2, 1)]}
    with torch.no_grad():
        wanted = [model(x) for x in batches]
        model.reader.weight.copy_(fitted.weight)
        model.reader.bias.add_(fitted.shift)
        model.first.weight[[0, 3, 4]] = 7.0  # nobody may read these
        found = [model(x) for x in batches]
    for place, own in lost.items():
        error = (found[place] - wanted[place]).double().square().mean() / wanted[place].double().var(correction=0)
        assert own == pytest.approx(float(error), rel=1e-4)
    assert lost[1] != lost[3]


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize("wrap", [
    lambda layer: prune.identity(layer, "weight"),  # type: ignore[no-untyped-call]  # computed by a hook before each call
    lambda layer: parametrize.register_parametrization(layer, "weight", Halved())])
def test_computed_weights_are_replaced_too(wrap: Any) -> None:
    torch.manual_seed(3)
    model: Any = READERS["pointwise"]().eval()
    wrap(model.reader)
    with torch.no_grad():
        plain: Any = READERS["pointwise"]().eval()
        plain.first.load_state_dict(model.first.state_dict())
        plain.head.load_state_dict(model.head.state_dict())
        plain.reader.weight.copy_(model.reader.weight)
        plain.reader.bias.copy_(model.reader.bias)
    batches, gone = list(torch.randn(2, 16, 2, 5, 5)), np.array([0, 3, 4])
    trial_cuts, readings, _ = trial_cuts_of(plain, batches)
    lost = trial_cuts.lost(readings, gone, 0, 0)
    assert lost
    again, readings, _ = trial_cuts_of(model, batches)
    for _ in range(2):  # and put back behind each trial
        assert again.lost(readings, gone, 0, 0) == pytest.approx(lost, rel=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(model(batches[0]), plain(batches[0]))


class Memory(nn.Module):
    """Two branches alike but that one is seen at few places: its refit is no more than those places learnt by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.seldom = nn.Conv2d(8, 40, 1), nn.Conv2d(8, 40, 1)
        self.close, self.shut = nn.Conv2d(40, 6, 1), nn.Conv2d(40, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        few = nn.functional.adaptive_avg_pool2d(x, 1)
        return torch.cat([self.close(self.often(x).relu()).mean((2, 3)),
                          self.shut((8 * self.seldom(few)).relu()).mean((2, 3))], 1)


def test_prices_of_a_refit_that_learns_by_heart_are_raised_by_the_trial() -> None:
    torch.manual_seed(4)
    model = Memory().eval()
    batches = list(torch.randn(2, 12, 8, 8, 8))
    groups = [one for one in ts.groups(model, batches[0][:1]) if not one.frozen]
    names = [one.name for one in groups]
    evidence = [Evidence(model, batches[0][:1], batches, gains=lambda _: 1.0) for _ in range(2)]
    plain = OBS(damp=0.01, tried=())(groups, evidence[0])
    tried = OBS(damp=0.01)(groups, evidence[1])
    raised = {name: float((two / one).mean()) for name, one, two in zip(names, plain, tried, strict=True)}
    for one, two in zip(plain, tried, strict=True):  # in the same order
        np.testing.assert_array_equal(np.argsort(one, kind="stable"), np.argsort(two, kind="stable"))
    assert raised["seldom"] > 3 * raised["often"]


class Counting(nn.Module):
    """As many outputs as there are large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reader(self.first(x))
        large: Tensor = y[y > 0.1]
        return large


def test_outputs_whose_shapes_hang_on_their_values_leave_prices_as_they_are() -> None:
    torch.manual_seed(5)
    model = Counting().eval()
    batches = list(torch.randn(2, 4, 2, 6, 6))
    evidence = Evidence(model, batches[0][:1], batches, gains=lambda _: 1.0)
    trial_cuts, readings, _ = _of(model, evidence)
    assert trial_cuts.lost(readings, np.array([0, 1]), 0, 0) is None
    assert trial_cuts.law(readings, np.arange(1.0, 9.0), (0.3,)) is None


class Half(nn.Module):
    """One of two branches decides how many outputs there are."""

    def __init__(self) -> None:
        super().__init__()
        self.steady, self.close = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 1)
        self.sieve = Counting()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.close(self.steady(x).relu()), self.sieve(x)


def test_where_one_group_can_not_be_tried_none_is() -> None:
    torch.manual_seed(7)
    model = Half().eval()
    batches = list(torch.randn(2, 4, 2, 6, 6))
    both = [_group({"first": "steady", "reader": "close"}), _group({"first": "sieve.first", "reader": "sieve.reader"})]
    evidence = Evidence(model, batches[0][:1], batches, gains=lambda _: 1.0)
    alone = OBS()([both[0]], evidence)[0] / OBS(tried=())([both[0]], evidence)[0]
    assert not np.allclose(alone, 1)
    for one, two in zip(OBS()(both, evidence), OBS(tried=())(both, evidence), strict=True):
        np.testing.assert_array_equal(one, two)


def _group(names: dict[str, str]) -> ChannelGroup:
    """The channels of `first`, by other names: those whose number of outputs hangs on values can't be coupled."""
    found = ts.groups(Small(nn.Conv2d(8, 6, 1), pooled(6)), torch.zeros(1, 2, 6, 6))
    group = next(one for one in found if "first" in one.makers)
    return replace(group, members=tuple(
        replace(each, name=".".join([names[each.name.split(".")[0]], each.name.split(".")[1]]))
        for each in group.members))


def _of(model: nn.Module, evidence: Evidence) -> tuple[TrialCuts, list[WeightReader], dict[str, LayerStatistics]]:
    readings = list(weight_readers(_group({"first": "first", "reader": "reader"}), evidence, readers_of(model)))
    layers = {reader.layer: (reader.spec, reader.columns) for reader in readings}
    statistics = collect_statistics(model, evidence.batches, layers, 0)
    return TrialCuts(model, evidence.batches, statistics, DAMP), readings, statistics


def test_one_batch_is_fitted_and_tried_on() -> None:
    torch.manual_seed(6)
    model = READERS["3x3"]().eval()
    trial_cuts, readings, _ = trial_cuts_of(model, [torch.randn(16, 2, 5, 5)])
    lost, prices = trial_cuts.lost(readings, np.arange(4), 0, 0), np.arange(1.0, 9.0)
    assert lost
    found = trial_cuts.law(readings, prices, (0.5,))
    assert found is not None
    assert found.power == 1
    assert found.costs(prices)[:4].sum() == pytest.approx(-np.log1p(-lost))


def test_a_reader_that_loses_all_that_it_reads_gives_its_mean() -> None:
    torch.manual_seed(8)
    model: Any = Small(nn.Conv2d(8, 6, 1), pooled(6)).eval()
    batches = list(torch.randn(2, 16, 2, 5, 5))
    trial_cuts, readings, _ = trial_cuts_of(model, batches)
    lost = trial_cuts.lost(readings, np.arange(8), 0, 0)
    with torch.no_grad():
        wanted = model(batches[1])
        mean = model.reader(model.first(batches[0]).tanh()).mean((0, 2, 3))
        model.reader.weight.zero_()
        model.reader.bias.copy_(mean)
        error = (model(batches[1]) - wanted).double().square().mean() / wanted.double().var(correction=0)
    assert lost == pytest.approx(float(error), rel=1e-4)


class Masked(nn.Module):
    """Outputs of which some are ruled out."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner: Any = READERS["pointwise"]()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return torch.cat([y, torch.full_like(y[:, :1], self.value)], 1)


def test_outputs_that_are_ruled_out_say_nothing_and_nan_is_told() -> None:
    torch.manual_seed(9)
    batches, gone = list(torch.randn(2, 16, 2, 5, 5)), np.array([0, 3, 4])
    plain: Any = READERS["pointwise"]().eval()
    masked, broken = (Masked(value).eval() for value in (-torch.inf, torch.nan))
    masked.inner.load_state_dict(plain.state_dict())
    wanted, readings, statistics = trial_cuts_of(plain, batches)
    found = TrialCuts(masked, batches, {f"inner.{name}": one for name, one in statistics.items()}, DAMP)
    inner = [one._replace(layer=f"inner.{one.layer}") for one in readings]
    assert found.lost(inner, gone, 0, 0) == pytest.approx(wanted.lost(readings, gone, 0, 0))
    with pytest.raises(RequestError, match="the model gives NaN on batch 1 of the data"):
        TrialCuts(broken, batches, {}, DAMP).lost([], gone, 0, 0)


@pytest.mark.parametrize("tried", [(0.0,), (1.1,), ("a",), (0.2, float("nan"))])
def test_wrong_shares_are_told(tried: Any) -> None:
    with pytest.raises(RequestError, match=r"tried=.* shares above 0 and up to 1 wanted"):
        OBS(tried=tried)
