"""Recurrent layers: what they cost in every form, and which units live or die together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import torchslim as ts
from helpers import Calls
from torchslim.coupling.coupling import Coupling, couple, trace_modes

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
FORMS = [*product((nn.LSTM, nn.GRU, nn.RNN), (1, 3), (False, True), (0,)),
         *product((nn.LSTM,), (1, 2), (False, True), (4,))]


def coupled(model: nn.Module, *inputs: Tensor) -> Coupling:
    return couple(trace_modes(model, inputs))


def classes(coupling: Coupling, name: str, dim: int) -> list[int]:
    return coupling.by_dimension[name, dim].labels.tolist()


def frozen(coupling: Coupling, name: str, dim: int) -> set[str]:
    wanted = set(classes(coupling, name, dim))
    return {group.frozen for group in coupling.groups if wanted & set(group.classes.tolist())}


@pytest.mark.parametrize(("kind", "layers", "bidirectional", "projected"), FORMS)
def test_multiply_adds_in_every_precision(kind: Any, layers: int, bidirectional: bool, projected: int) -> None:
    steps, batch, features, units, both = 7, 2, 5, 6, 1 + bidirectional
    given = projected or units
    options = {"proj_size": projected} if projected else {}
    expected = sum(both * (GATES[kind] * units * ((features if layer == 0 else both * given) + given)
                           + projected * units) for layer in range(layers)) * steps * batch
    for dtype, batch_first in product((torch.float32, torch.float64, torch.bfloat16), (False, True)):
        model = kind(features, units, layers, bidirectional=bidirectional, batch_first=batch_first, dtype=dtype,
                     **options)
        x = torch.randn((batch, steps, features) if batch_first else (steps, batch, features), dtype=dtype)
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            model(x)
        assert ts.profile(model, x).macs == expected == counter.get_total_flops() // 2
        assert ts.profile(model.to("meta"), x.to("meta")).macs == expected


def test_two_layers_by_hand() -> None:
    profile = ts.profile(nn.LSTM(10, 20, 2), torch.zeros(7, 1, 10))
    assert profile.macs == (4 * (10 * 20 + 20 * 20) + 4 * (20 * 20 + 20 * 20)) * 7 == 39_200
    assert profile.unknown == ()


def unrolled(cell: Callable[..., tuple[Tensor, ...]], states: int, gates: int) -> nn.Module:
    """The layer as people write it, with the weights of linear layers."""
    def forward(s: Any, x: Tensor) -> Tensor:
        state = tuple(torch.zeros(x.shape[1], s.hidden.in_features, dtype=x.dtype) for _ in range(states))
        for step in x:
            state = cell(s.into(step), s.hidden(state[0]), *state)
        return state[0]

    return Calls(forward, into=nn.Linear(5, 6 * gates), hidden=nn.Linear(6, 6 * gates))


def lstm(into: Tensor, hidden: Tensor, _: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (into + hidden).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(into: Tensor, hidden: Tensor, h: Tensor) -> tuple[Tensor]:
    (ir, iz, im), (hr, hz, hm) = into.chunk(3, 1), hidden.chunk(3, 1)
    new = (im + (ir + hr).sigmoid() * hm).tanh()
    return (new + (iz + hz).sigmoid() * (h - new),)


@pytest.mark.parametrize(("kind", "cell"), [(nn.LSTM, lstm), (nn.GRU, gru),
                                            (nn.RNN, lambda into, hidden, h: ((into + hidden).tanh(),))])
def test_operations_are_those_of_the_layer_written_out(kind: Any, cell: Any) -> None:
    x, layer = torch.zeros(4, 2, 5, dtype=torch.float64), kind(5, 6).double()
    written = ts.profile(unrolled(cell, 1 + (kind is nn.LSTM), GATES[kind]).double(), x)
    single = ts.profile(getattr(nn, kind.__name__ + "Cell")(5, 6).double(), x[0])
    for profile, times in ((ts.profile(layer, x), 1), (single, 4)):
        assert (profile.macs * times, profile.flops * times) == (written.macs, written.flops)


@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {"proj_size": 4})])
def test_units_of_all_gates_are_one_and_directions_are_joined(kind: Any, options: dict[str, Any]) -> None:
    projected = options.get("proj_size", 0)
    model = Calls(lambda s, x: s.last(s.rnn(s.first(x))[0]), first=nn.Linear(3, 5),
                  rnn=kind(5, 6, 2, bidirectional=True, **options), last=nn.Linear(2 * (projected or 6), 2))
    coupling = coupled(model, torch.zeros(4, 2, 3))
    read, seen = classes(coupling, "first.weight", 0), set[int]()
    for layer in (0, 1):
        hidden = []
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            units = classes(coupling, f"rnn.weight_ih_{suffix}", 0)[:6]
            given = classes(coupling, f"rnn.weight_hr_{suffix}", 0) if projected else units
            assert len(set(units)) == 6
            assert seen.isdisjoint({*units, *given})
            seen |= {*units, *given}
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                assert classes(coupling, f"rnn.{name}_{suffix}", 0) == units * GATES[kind]
            assert classes(coupling, f"rnn.weight_hh_{suffix}", 1) == given
            assert not projected or classes(coupling, f"rnn.weight_hr_{suffix}", 1) == units
            assert classes(coupling, f"rnn.weight_ih_{suffix}", 1) == read
            hidden += given
            assert all(frozen(coupling, f"rnn.{name}_{suffix}", 0) == {""} for name in ("weight_ih", "weight_hh"))
        read = hidden
    assert classes(coupling, "last.weight", 1) == read
    assert sorted(matrix.labels.shape for matrix in coupling.constraints if len(matrix.labels) == 4) == (
        [(4, 4), (4, 6)] if projected else [(4, 6)])
    roles = {(m.name, m.dim): m.role for group in coupling.groups for m in group.members}
    assert {roles[f"rnn.weight_{name}_l1", 0] for name in ("ih", "hh")} == {"makes"}
    assert {roles[f"rnn.weight_{name}_l1", 1] for name in ("ih", "hh")} == {"reads"}
    assert sum(c.amount for c in coupling.macs) == ts.profile(model, torch.zeros(4, 2, 3)).macs


def test_what_can_not_be_cut_keeps_its_units() -> None:
    x = torch.zeros(4, 2, 5)
    alone = coupled(Calls(lambda s, x: s.last(s.rnn(x)[0]), rnn=nn.GRU(5, 6), last=nn.Linear(6, 2)), x)
    assert frozen(alone, "rnn.weight_ih_l0", 1) == {"reads the network's input in `rnn` (aten.gru)"}
    assert frozen(alone, "rnn.weight_ih_l0", 0) == {""}
    for returned in (lambda s, x: s.rnn(x)[0], lambda s, x: s.last(s.rnn(x)[1]), lambda s, x: s.rnn(x)[1]):
        handed_out = "the network's output" if "last" not in returned.__code__.co_names else ""
        coupling = coupled(Calls(returned, rnn=nn.GRU(5, 6), last=nn.Linear(6, 2)), x)
        assert frozen(coupling, "rnn.weight_hh_l0", 0) == {handed_out}
    over_time = coupled(Calls(lambda s, x: s.rnn(s.first(x).transpose(0, 2)), first=nn.Linear(5, 7),
                              rnn=nn.RNN(4, 6)), x)
    assert frozen(over_time, "first.weight", 0) == {"worked on step by step in `rnn` (aten.rnn_tanh)"}
    single = coupled(Calls(lambda s, x: s.last(s.rnn(x)[0]), rnn=nn.LSTM(5, 1), last=nn.Linear(1, 2)), x)
    assert frozen(single, "rnn.weight_ih_l0", 0) == {"reads units that can't be cut in `rnn` (aten.lstm)"}


def ramp(x: Tensor) -> Tensor:
    return torch.arange(6.0, device=x.device).expand(2, x.shape[1], 6)


@pytest.mark.parametrize(("start", "together", "reason"), [
    (lambda s, x: torch.zeros(2, x.shape[1], 6), False, ""),
    (lambda s, x: torch.ones(2, x.shape[1], 6).to(x.device), False, ""),
    (lambda s, x: s.scale.expand(2, x.shape[1], 6), False, ""),
    (lambda s, x: s.state.expand(-1, x.shape[1], -1), True, ""),
    (lambda s, x: s.init(x[0]).expand(2, -1, -1), True, ""),
    (lambda s, x: torch.zeros(2, x.shape[1], 6).add_(s.state), True, ""),
    (lambda s, x: torch.zeros(2, x.shape[1], 6) + ramp(x), True, "meets a tensor that can't be cut"),
    (lambda s, x: ramp(x), False, "starts from a state that can't be cut"),
], ids=["zeros", "ones", "scale", "state", "computed", "written", "numbers", "ramp"])
def test_what_a_layer_starts_from(start: Any, together: bool, reason: str) -> None:
    model = Calls(lambda s, x: s.last(s.rnn(x, start(s, x))[0]), rnn=nn.GRU(5, 6, 2), last=nn.Linear(6, 2),
                  init=nn.Linear(5, 6))
    model.state, model.scale = nn.Parameter(torch.randn(2, 1, 6)), nn.Parameter(torch.randn(1, 1, 1))
    coupling = coupled(model, torch.zeros(4, 3, 5))
    layers = [classes(coupling, f"rnn.weight_hh_l{layer}", 1) for layer in (0, 1)]
    assert (layers[0] == layers[1]) == together
    assert all(reason in said and bool(said) == bool(reason) for said in frozen(coupling, "rnn.weight_hh_l1", 1))
    if "state" in start.__code__.co_names:
        assert classes(coupling, "state", 2) == layers[0]
        assert frozen(coupling, "state", 0) <= {"states of several layers or samples in `rnn` (aten.gru)"}


@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTMCell, {}), (nn.GRUCell, {}), (nn.RNNCell, {}), (nn.RNNCell, {"nonlinearity": "relu"})])
def test_cells(kind: Any, options: dict[str, Any]) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        state = s.init(x)
        for _ in range(3):
            result = s.cell(s.first(x), (state, torch.zeros_like(state)) if kind is nn.LSTMCell else state)
            state = result[0] if kind is nn.LSTMCell else result
        return s.last(state)

    model = Calls(forward, init=nn.Linear(4, 6), first=nn.Linear(4, 5), cell=kind(5, 6, **options),
                  last=nn.Linear(6, 2))
    coupling = coupled(model, torch.zeros(2, 4))
    units = classes(coupling, "init.weight", 0)
    assert len(set(units)) == 6
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert classes(coupling, f"cell.{name}", 0) == units * GATES[kind]
    assert classes(coupling, "cell.weight_ih", 1) == classes(coupling, "first.weight", 0)
    assert classes(coupling, "cell.weight_hh", 1) == classes(coupling, "last.weight", 1) == units
    assert frozen(coupling, "last.weight", 1) == {""}
    roles = {(m.name, m.dim): m.role for group in coupling.groups for m in group.members}
    for name in ("cell.weight_ih", "cell.weight_hh"):
        assert (roles[name, 0], roles[name, 1]) == ("makes", "reads")
    assert sum(c.amount for c in coupling.macs) == ts.profile(model, torch.zeros(2, 4)).macs


def test_packed_sequences_keep_their_features_and_no_steps() -> None:
    def forward(s: Any, x: Tensor, turned: bool = False) -> Tensor:
        x = s.first(x)
        return s.rnn(pack_padded_sequence(x.transpose(0, 2) if turned else x, [4, 2]))[0].data

    model = Calls(forward, first=nn.Linear(3, 5), rnn=nn.GRU(5, 6))
    coupling = coupled(model, torch.zeros(4, 2, 3))
    assert classes(coupling, "rnn.weight_ih_l0", 1) == classes(coupling, "first.weight", 0)
    assert frozen(coupling, "first.weight", 0) == {""}
    assert ts.profile(model, torch.zeros(4, 2, 3)).macs == 8 * 15 + 6 * 3 * 6 * (5 + 6)
    turned = Calls(lambda s, x: pack_padded_sequence(s.first(x).transpose(0, 2), [5, 2]).data, first=nn.Linear(3, 5))
    assert frozen(coupled(turned, torch.zeros(4, 2, 3)), "first.weight", 0) == {
        "packed in `model` (aten._pack_padded_sequence)"}
