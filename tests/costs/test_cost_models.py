"""Cost models: sums of terms against sums by hand, and the peak of memory against a run's own count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchslim as ts
from helpers import Calls, conv
from holding import Holding
from torchslim.costs.cost_models import CostModel, KeptShare, PeakMemory
from torchslim.coupling.coupling import couple
from torchslim.rules.declarations import CostTerm
from torchslim.tracing.runs import trace_modes

A, B = np.arange(4), np.arange(4, 10)


def cost(*terms: tuple[int, list[np.ndarray]]) -> CostModel:
    return CostModel([CostTerm(amount, tuple(along)) for amount, along in terms])


def test_a_count_goes_with_the_kept_shares_of_all_its_dimensions() -> None:
    model = cost((7, []), (40, [A]), (240, [A, B]))
    assert model.total == 287
    assert model(np.ones(10)) == 287
    shares = np.ones(10)
    shares[[0, 1, 2, 4, 5]] = 0  # 1 of 4 and 4 of 6 stay
    assert model(shares) == 7 + 10 + 40
    assert model.at_shares(shares) == pytest.approx(57.0)


def test_terms_along_the_same_dimensions_are_one() -> None:
    model = cost((10, [A]), (20, [A.copy()]), (5, [B, A]), (5, [A, B]))
    assert [term.weight for term in model.terms] == [30, 5, 5]
    assert len(model.dims) == 2


def test_a_dimension_may_have_a_class_twice_and_indices_that_stay() -> None:
    model = cost((8, [np.array([0, 0, 1, -1])]))
    shares = np.array([0.0, 1.0])
    assert model(shares) == 4  # two of four indices


@given(st.lists(st.tuples(st.integers(1, 1000), st.sampled_from([(), (0,), (1,), (0, 1)])), max_size=6),
       st.lists(st.tuples(st.integers(1, 1000), st.sampled_from([(0,), (1,), (1, 0)])), max_size=6),
       st.floats(0.01, 10), st.lists(st.booleans(), min_size=10, max_size=10))
def test_included_costs_add_up(first: Any, second: Any, factor: float, kept: list[bool]) -> None:
    """In whichever order their dimensions came."""
    one, other = (cost(*((amount, [(A, B)[dim] for dim in dims]) for amount, dims in terms))
                  for terms in (first, second))
    shares = np.array(kept, dtype=float)
    both = CostModel()
    both.include(one, 1.0)
    both.include(other, factor)
    assert both.at_shares(shares) == pytest.approx(one.at_shares(shares) + factor * other.at_shares(shares))
    widths = {labels.tobytes(): np.asarray(float(shares[labels].sum())) for labels in (A, B)}
    assert both.at_widths([widths[labels.tobytes()] for labels in both.dims]) == pytest.approx(both.at_shares(shares))


def test_functions_of_widths_are_included_with_their_factor() -> None:
    time = CostModel()
    time.add(3.0, [A], lambda width: np.asarray(np.ceil(width / 2)))
    both = cost((10, [A]))
    both.include(time, 0.5)
    shares = np.array([1, 1, 1, 0, *[1] * 6], dtype=float)
    assert both.at_shares(shares) == pytest.approx(7.5 + 0.5 * 3 * 2)


def test_a_begun_block_counts_as_a_whole_one() -> None:
    share = KeptShare((16, 4), block=8)
    assert float(share(np.asarray(9.0), np.asarray(4.0))) == 1.0
    assert float(share(np.asarray(8.0), np.asarray(1.0))) == 0.5


# --- memory -------------------------------------------------------------------------------------------------

def peak(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), Holding(model, x) as run:
        model(x)
    return run.peak()


def test_the_peak_of_memory_follows_the_layers_that_are_alive_at_once() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)) + self.a(x))  # type: ignore[no-any-return]

    model = Calls(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    coupling = couple(trace_modes(model, x))
    memory = PeakMemory(coupling.labeled_graphs[0])
    assert memory.total == peak(model, x) == memory(np.ones(coupling.num_classes))
    for share in (0.75, 0.5, 0.4):
        plan = ts.plan(model, x, channels=share)
        slim = ts.apply(model, plan)
        shares = np.ones(coupling.num_classes)
        for (name, dim), labeled in coupling.by_dimension.items():
            kept = plan.kept.get(name, {}).get(dim)
            if kept is not None:
                shares[np.delete(labeled.labels, list(kept))] = 0
        assert memory(shares) == peak(slim, x)
