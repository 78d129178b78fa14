"""Random small networks: what a scan measures is what silencing by the plan that its shares make measures, by group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchslim as ts
from helpers import random_statistics, silenced_oracle, tensors
from property.blocks import networks
from torchslim.errors import RequestError

SOME = max(10, settings().max_examples // 10)  # each takes many plans


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([part.flatten() for part in tensors(model(x))])


@settings(max_examples=SOME)
@given(networks(), st.sampled_from(["l2", "random"]), st.booleans())
def test_each_value_is_that_of_the_silenced_network(model: nn.Module, importance: str, whole_groups: bool) -> None:
    model = random_statistics(model.double()).eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"importance": importance, "whole_groups": whole_groups}
    try:
        found = ts.sensitivity(model, x, [x], ratios=(0.5,), measure="error", **options)
    except RequestError as error:
        assert "no channel group can be cut" in str(error)  # noqa: PT017
        assume(False)
    old = outputs(model, x)
    layers = [layer for group in found.groups for layer in group.layers]
    assert len(layers) == len(set(layers))
    shares = found.shares(1e9)
    for group in found.groups:
        own = {name: share if name in group.layers else 1.0 for name, share in shares.items()}
        plan = ts.plan(model, x, scope=own, **options)
        new = outputs(silenced_oracle(model, plan), x)
        assert group.values[0] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-6, abs=1e-9)
        assert group.macs[0] == pytest.approx(
            plan.predicted["macs"] / ts.profile(model, x).macs, abs=1e-9)
