"""Random small networks, cut at random: always exact, never above the budget, always trainable.

    pytest tests/property --hypothesis-profile=nightly      2000 networks instead of 200
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchslim as ts
from helpers import Untouched, check_training, count, counted_macs, oracle_error, random_statistics, tensors
from property.blocks import networks
from torchslim.coupling.coupling import couple
from torchslim.tracing.runs import trace_modes

EXACT = 1e-9


@st.composite
def requests(draw: Callable[..., Any]) -> dict[str, Any]:
    """What a caller may ask `plan` for."""
    asked = {draw(st.sampled_from(["macs", "params", "channels"])): draw(st.sampled_from([0.15, 0.3, 0.5, 0.7, 0.9]))}
    if draw(st.booleans()):
        asked["params"] = draw(st.sampled_from([0.3, 0.6]))
    return {**asked,
            "importance": draw(st.sampled_from(["random", "l2", "l1", "fpgm"])),
            "seed": draw(st.integers(0, 9)),
            "scope": draw(st.sampled_from(["global", "uniform"])),
            "shortcuts": draw(st.sampled_from([True, True, False])),
            "round_to": draw(st.sampled_from([1, 1, 2])),
            "min_channels": draw(st.sampled_from([1, 3])),
            "min_kept": draw(st.sampled_from([0.0, 0.0, 0.4])),
            "whole_groups": draw(st.sampled_from([False, False, True]))}


@given(networks(), requests(), st.integers(0, 3))
def test_every_cut_is_exact_and_fits_and_trains(model: nn.Module, request: dict[str, Any], seed: int) -> None:
    model = random_statistics(model.double(), seed)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    before = Untouched(model)
    plan = ts.plan(model, x, **request, strict=False)
    slim = ts.apply(model, plan)

    assert ts.verify(model, slim, plan, x) < EXACT
    assert oracle_error(model, slim, plan, x) < EXACT

    assert plan.predicted == {"params": count(slim), "macs": counted_macs(slim, x)}
    assert all(len(dims[0]) >= request["min_kept"] * len(model.get_parameter(name)) - EXACT
               for name, dims in plan.kept.items() if 0 in dims and name.endswith("weight"))
    for budget in plan.budgets:
        assert budget.is_met or any(note.startswith(budget.resource) for note in plan.notes)
    assert ts.Plan.from_json(plan.to_json()) == plan
    before.check()
    assert check_training(slim, x) == check_training(model, x)


@settings(max_examples=settings.default.max_examples // 8)
@given(networks(), st.integers(0, 99))
def test_channels_that_contribute_nothing_go_and_the_outputs_stay(model: nn.Module, seed: int) -> None:
    model = random_statistics(model.double().eval(), seed)
    numbers = torch.Generator().manual_seed(seed)
    x, other = torch.randn(2, 2, 3, 6, 6, dtype=torch.float64, generator=numbers)
    with torch.no_grad():  # some filters, what reads some channels, some biases and scales
        for name, parameter in model.named_parameters():
            if not name.endswith((".weight", ".bias")):
                continue  # a norm of zeros is not a number
            for dim in range(min(parameter.dim(), 2)):
                gone = torch.rand(parameter.shape[dim], generator=numbers) < 0.2
                parameter.index_fill_(dim, gone.nonzero().flatten(), 0)
    coupling = couple(trace_modes(model, x))
    constrained = set(numpy.concatenate([part.ravel() for part in (
        *coupling.sub_tensors, *(rows.labels for rows in coupling.constraints), numpy.zeros(0, int))]).tolist())
    unread = [(group, [place for place in range(group.channels) if is_unread(model, group, place)])
              for group in coupling.groups if not group.frozen and constrained.isdisjoint(group.classes.tolist())]
    before = Untouched(model)
    slim, plan = ts.remove_dead(model, x)
    before.check()
    for expected, output in zip(tensors(model(other)), tensors(slim(other)), strict=True):
        assert (output - expected).abs().max() <= EXACT * expected.abs().max()
    for group, places in unread:
        first = group.members[0]
        kept = plan.kept.get(first.name, {}).get(first.dim, range(max(map(int, first.indices.ravel())) + 1))
        stay = [place for place in places if int(first.indices[place, 0]) in kept]
        assert not stay or group.channels - len(places) + len(stay) <= 2 or any(
            entry.name == group.name and "fails" in entry.reason for entry in plan.left_alone)


def is_unread(model: nn.Module, group: Any, place: int) -> bool:
    """Whether each weight that reads a channel is a plain one, and zero; and at least one does."""
    readers = [member for member in group.members if member.role == "reads"]
    parameters = dict(model.named_parameters())
    return bool(readers) and all(
        member.groups == 1 and member.name.endswith(".weight") and member.name in parameters
        and not parameters[member.name].index_select(member.dim, torch.from_numpy(member.indices[place])).any()
        for member in readers)
