"""Layers visited in order: in one pass over joined batches, or a pass for each layer, with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Calls, conv, random_statistics
from torchslim.compensation import compensate as compensation
from torchslim.compensation import layerwise
from torchslim.compensation.layerwise import concatenated, joined_batches, visit_in_order
from torchslim.compensation.recalibration import recalibrated
from torchslim.compensation.ridge import solve_ridge
from torchslim.errors import TraceError


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return random_statistics(nn.Sequential(
        conv(3, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), conv(16, 12, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(inplace=True), conv(12, 4))).eval()  # type: ignore[return-value]


def pictures(*sizes: int, side: int = 12) -> list[Tensor]:
    return [torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(size)) for size in sizes]


# --- joining ------------------------------------------------------------------------------------------------

def test_batches_of_every_form_are_joined() -> None:
    a, b = pictures(2, 3)
    assert torch.equal(concatenated([a, b]), torch.cat([a, b]))
    assert [len(each) for each in concatenated([(a, a), (b, b)])] == [5, 5]
    assert len(concatenated([{"x": a, "scale": 2}, {"x": b, "scale": 2}])["x"]) == 5
    assert len(concatenated([[*a], [*b]])) == 5


@pytest.mark.parametrize("batches", [
    [torch.zeros(2, 3), torch.zeros(2, 4)], [torch.zeros(2, 3), torch.zeros(2, 3).double()],
    [torch.tensor(1.0), torch.tensor(2.0)], [(torch.zeros(2), 1), (torch.zeros(2), 2)],
    [(torch.zeros(2),), (torch.zeros(2), torch.zeros(2))], [{"x": torch.zeros(2)}, {"y": torch.zeros(2)}],
    [torch.zeros(2), [torch.zeros(2)]]])
def test_batches_of_several_forms_are_not(batches: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"several|differ|longer|shorter"):
        concatenated(batches)


def mixes_items(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x) - self.a(x).mean(0, keepdim=True))  # type: ignore[no-any-return]


def time_first(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x.movedim(0, -1).movedim(-2, 0))).sum(0).T  # type: ignore[no-any-return]


def test_models_that_mix_the_items_of_a_batch_get_no_joined_one() -> None:
    batches = pictures(2, 3)
    plain = Calls(lambda self, x: self.b(self.a(x)), a=conv(3, 4), b=conv(4, 2)).eval()
    joined = joined_batches(plain, ["a", "b"], batches)
    assert isinstance(joined, Tensor)
    assert len(joined) == 5
    mixing = Calls(mixes_items, a=conv(3, 4), b=conv(4, 2)).eval()
    assert joined_batches(mixing, ["a", "b"], batches) is None
    assert joined_batches(mixing, ["a", "b"], batches[:1]) is batches[0]


def test_models_whose_layers_read_the_batch_elsewhere_get_no_joined_one() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x.transpose(0, 1))).transpose(0, 1)  # type: ignore[no-any-return]

    model = Calls(forward, a=nn.Linear(5, 4), b=nn.Linear(4, 2)).eval()
    batches = [torch.randn(2, 7, 5), torch.randn(3, 7, 5)]
    whole = model(torch.cat(batches))
    torch.testing.assert_close(whole, torch.cat([model(batch) for batch in batches]))
    assert joined_batches(model, ["a", "b"], batches) is None


# --- visiting -----------------------------------------------------------------------------------------------

def test_each_layer_is_visited_once_with_what_the_layers_before_it_became() -> None:
    model, twin, seen = network(), network(), []
    batches = pictures(2, 3)

    def visit(name: str, inputs: list[Tensor]) -> None:
        seen.append((name, sum(map(len, inputs))))
        torch.testing.assert_close(torch.cat(inputs), twin[:int(name)](torch.cat(batches)))
        for each in (model, twin):
            each.get_parameter(f"{name}.weight").mul_(2)

    visit_in_order([model], ["0", "3", "6"], batches, visit)
    assert seen == [("0", 5), ("3", 5), ("6", 5)]


@pytest.mark.parametrize("views", [1, 2])
def test_one_pass_and_a_pass_a_layer_give_the_same(views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = pictures(2, 3, 4)
    seen: list[list[Tensor]] = []
    for joined in (True, False):
        networks = [network() for _ in range(views)]
        if views == 2:
            random_statistics(networks[1][1])
        with monkeypatch.context() as patch:
            if not joined:
                patch.setattr(layerwise, "joined_batches", lambda *_: None)
            seen.append([])
            visit_in_order(networks, ["0", "3", "6"], batches, lambda _, xs: seen[-1].append(torch.cat(xs)))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_that_runs_on_some_batches_only_is_named() -> None:
    model = Calls(lambda self, x: self.b(self.a(x)) if len(x) > 2 else self.a(x), a=conv(3, 3), b=conv(3, 3)).eval()
    with pytest.raises(TraceError, match="`b` runs 0 times on batch 1"):
        visit_in_order([model], ["a", "b"], pictures(3, 2), lambda *_: None)


def test_norms_get_the_statistics_of_what_those_before_them_give(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = pictures(8, 8)
    for joined in (True, False):
        with monkeypatch.context() as patch:
            if not joined:
                patch.setattr(layerwise, "joined_batches", lambda *_: None)
            result: Any = recalibrated(network(), batches)
        x = torch.cat(batches)
        for place in (1, 4):
            given = result[:place](x).detach()
            torch.testing.assert_close(result[place].running_mean, given.mean((0, 2, 3)))
            torch.testing.assert_close(result[place].running_var, given.var((0, 2, 3), correction=0))


# --- compensation in several passes -------------------------------------------------------------------------

@pytest.mark.parametrize("way", ["pass for each layer", "several chunks"])
def test_the_way_of_visiting_does_not_change_the_result(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = network(), pictures(6, 6, 6)
    slim, plan = ts.prune(model, batches[0], macs=0.5)
    expected = ts.compensate(model, slim, plan, batches).state_dict()
    if way == "several chunks":
        monkeypatch.setattr(compensation, "MAX_STORED_BYTES", 1)
    else:
        monkeypatch.setattr(layerwise, "joined_batches", lambda *_: None)
    result = ts.compensate(model, slim, plan, batches).state_dict()
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(result["3.weight"], slim.state_dict()["3.weight"])


def test_batches_of_several_sizes_are_used_all_the_same() -> None:
    model = network()
    x = pictures(6)[0]
    slim, plan = ts.prune(model, x, macs=0.5)
    better = ts.compensate(model, slim, plan, [x, *pictures(4, side=16)])
    new = torch.randn(4, 3, 20, 20)
    with torch.no_grad():
        wanted = model(new)
        assert (better(new) - wanted).norm() < 0.9 * (slim(new) - wanted).norm()


# --- the solver ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("with_prior", [True, False])
def test_ridge_regression_is_least_squares_with_further_rows(with_prior: bool) -> None:
    x, y = torch.randn(2, 50, 6).double(), torch.randn(2, 50, 3).double()
    ridge, prior = torch.rand(2, 6).double() + 0.1, torch.randn(2, 3, 6).double()
    result = solve_ridge(x.mT @ x, y.mT @ x, ridge, prior if with_prior else None)
    root = torch.diag_embed(ridge.sqrt())
    target = root @ prior.mT if with_prior else torch.zeros(2, 6, 3).double()
    wanted = torch.linalg.lstsq(torch.cat([x, root], 1), torch.cat([y, target], 1)).solution.mT
    torch.testing.assert_close(result, wanted)


def test_a_gram_matrix_that_rounding_left_indefinite_is_solved() -> None:
    gram = torch.diag(torch.tensor([1.0, -1e-12], dtype=torch.float64))
    cross = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(solve_ridge(gram, cross, torch.zeros(2, dtype=torch.float64)), cross)
