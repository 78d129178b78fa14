"""Random budgets of random networks: met, or the nearest that can be met is named, and is."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchslim as ts
from helpers import count, counted_macs, random_statistics
from property.blocks import networks
from torchslim.errors import BudgetError

SOME = settings().max_examples // 10  # each takes several plans

OPTIONS = st.fixed_dictionaries({
    "scope": st.sampled_from(["global", "global", "uniform"]), "shortcuts": st.booleans(),
    "round_to": st.sampled_from([1, 2, 8]), "min_channels": st.sampled_from([1, 5]),
    "min_kept": st.sampled_from([0.0, 0.5]), "importance": st.just("l1")})
SHARES = st.dictionaries(st.sampled_from(["macs", "params", "channels", "memory"]), st.floats(0.001, 0.6),
                         min_size=1, max_size=2)


@settings(max_examples=SOME)
@given(networks(), SHARES, OPTIONS)
def test_a_budget_is_met_or_the_nearest_is_named_and_met(model: nn.Module, asked: dict[str, float],
                                                         options: dict[str, Any]) -> None:
    model, x = random_statistics(model, 0), torch.randn(2, 3, 6, 6)
    try:
        plan, nearest = ts.plan(model, x, **asked, **options), asked
    except BudgetError as error:
        nearest = error.nearest
        assert nearest.keys() == asked.keys()
        assert any(nearest[resource] > share for resource, share in asked.items())
        plan = ts.plan(model, x, **asked, **options, strict=False)
        assert plan.notes[0].partition(":")[0] in asked
        for budget in (*ts.plan(model, x, **nearest, **options).budgets, *plan.budgets):
            assert budget.met <= nearest[budget.resource] * budget.before + 1e-6
    slim = ts.apply(model, plan)
    found = {"macs": counted_macs, "params": lambda network, _: count(network),
             "memory": lambda network, x: ts.profile(network, x).peak_memory}
    for resource in asked.keys() & found.keys():
        assert found[resource](slim, x) <= nearest[resource] * found[resource](model, x) + 1e-6
