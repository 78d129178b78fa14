"""Recurrent layers in networks: after convolutions, from states of their own, packed, as cells in a loop, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchslim as ts
from constructs.cutting import Cut
from helpers import Calls, conv

PICTURES = torch.randn(2, 3, 6, 9)


class Reader(nn.Module):
    """Reads the columns of a picture: convolution, recurrent layer, linear layer."""

    def __init__(self, kind: Any, start: str = "", packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.conv, self.rnn = conv(3, 8), kind(8, 12, batch_first=True, **options)
        rows = self.rnn.num_layers * (1 + self.rnn.bidirectional)
        self.start, self.packed, self.rows, self.width = start, packed, rows, 12
        self.state = nn.Parameter(torch.randn(rows, 1, 12)) if start == "learned" else None
        self.last = nn.Linear((self.rnn.proj_size or 12) * (1 + self.rnn.bidirectional), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().mean(2).transpose(1, 2)
        if self.packed:
            packed = pack_padded_sequence(x, [5, 9], batch_first=True, enforce_sorted=False)
            return self.last(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])
        if not self.start:
            return self.last(self.rnn(x)[0])
        h = (self.state.expand(-1, len(x), -1).contiguous() if self.start == "learned"
             else torch.zeros(self.rows, len(x), self.width, dtype=x.dtype, device=x.device))
        return self.last(self.rnn(x, (h, h) if isinstance(self.rnn, nn.LSTM) else h)[0])


BOTH = {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTM, {}), (nn.GRU, BOTH), (nn.RNN, {"nonlinearity": "relu", "bias": False, **BOTH}),
    (nn.LSTM, {"proj_size": 7, "dropout": 0.1, **BOTH}), (nn.LSTM, {"start": "learned", **BOTH}),
    (nn.GRU, {"start": "zeros"}), (nn.LSTM, {"packed": True, **BOTH})])
def test_features_and_units_are_cut(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    cut = Cut(Reader(kind, **options), PICTURES)
    rnn = cut.slim.rnn
    assert (rnn.input_size, rnn.hidden_size) == (cut.size("conv.weight"), cut.after("rnn.weight_ih_l0")[0]
                                                 // (cut.before("rnn.weight_ih_l0")[0] // 12))
    assert rnn.hidden_size < 12 or rnn.proj_size < 7
    assert cut.after("rnn.weight_hh_l0")[1] == (rnn.proj_size or rnn.hidden_size)
    assert all(a is b for a, b in zip(rnn._flat_weights, rnn.parameters(), strict=True))
    assert ts.profile(cut.slim, PICTURES).macs == cut.plan.budgets[0].met <= ts.profile(cut.model, PICTURES).macs / 2
    cut.loads_back(tmp_path)


def test_layers_and_directions_keep_units_of_their_own() -> None:
    cut = Cut(Reader(nn.GRU, **BOTH), PICTURES)
    assert len({cut.kept(f"rnn.weight_hh_{suffix}", 1) for suffix in ("l0", "l0_reverse", "l1", "l1_reverse")}) > 1


def test_a_cut_at_the_wrong_unit_shows_at_the_layer() -> None:
    cut = Cut(Reader(nn.LSTM), PICTURES)
    with torch.no_grad():
        cut.slim.rnn.bias_hh_l0[-1] += 1
        cut.slim.last.weight.zero_()
        cut.model.last.weight.zero_()
    assert ts.verify(cut.model, cut.slim, cut.plan, PICTURES) > 1e-6


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_a_decoder_of_cells_that_starts_from_an_encoder(kind: Any) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        sequence, h = s.encoder(s.conv(x).relu().mean(2).transpose(1, 2))
        h = c = s.bridge(torch.cat([h[0], h[1]], 1)).tanh()
        word = torch.zeros(len(x), dtype=torch.long, device=x.device)
        outputs = []
        for step in range(3):
            result = s.cell(torch.cat([s.words(word), sequence[:, step]], 1), (h, c) if kind is nn.LSTMCell else h)
            h, c = result if kind is nn.LSTMCell else (result, c)
            outputs.append(s.last(h))
        return torch.stack(outputs, 1)

    model = Calls(forward, conv=conv(3, 8), encoder=nn.GRU(8, 10, batch_first=True, bidirectional=True),
                  bridge=nn.Linear(20, 14), words=nn.Embedding(5, 6), cell=kind(26, 14), last=nn.Linear(14, 5))
    cut = Cut(model, PICTURES, macs=0.4)
    assert cut.slim.cell.hidden_size == cut.size("bridge.weight") == cut.size("cell.weight_hh", 1)
    assert cut.slim.cell.input_size == cut.after("words.weight")[1] + 2 * cut.slim.encoder.hidden_size < 26


def test_an_lstm_by_hand() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.conv(x).relu().mean(2)
        h = c = torch.zeros(len(x), s.hidden.in_features, dtype=x.dtype, device=x.device)
        for step in x.unbind(2):
            i, f, g, o = (s.into(step) + s.hidden(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return s.last(h)

    cut = Cut(Calls(forward, conv=conv(3, 8), into=nn.Linear(8, 48), hidden=nn.Linear(12, 48), last=nn.Linear(12, 5)),
              PICTURES)
    assert cut.size("into.weight") == 4 * cut.size("last.weight", 1)


@pytest.mark.parametrize("importance", ["l1", "l2", "activation", "taylor"])
def test_criteria_remove_units_that_do_nothing(importance: str) -> None:
    model = Reader(nn.LSTM, **BOTH)
    silent = [1, 4, 5, 10]
    with torch.no_grad():  # their gates are closed, and nothing reads them
        for name, tensor in model.rnn.named_parameters():
            tensor.view(4, 12, -1)[:, silent] = -9.0 * name.startswith("bias")
            if name.startswith("weight_hh"):
                tensor[:, silent] = 0
            elif "l1" in name and name.startswith("weight_ih"):
                tensor[:, silent + [12 + unit for unit in silent]] = 0
        model.last.weight[:, silent + [12 + unit for unit in silent]] = 0
    with torch.no_grad():
        batches: list[Any] = [torch.randn(2, 3, 6, 9) for _ in range(2)]
        if importance == "taylor":
            batches = [(x, torch.zeros_like(model(x))) for x in batches]
    data = {"data": batches} if importance in ("activation", "taylor") else {}
    loss = {"loss": functional.mse_loss} if importance == "taylor" else {}
    plan = ts.plan(model, PICTURES, macs=0.7, importance=importance, exclude=["conv"], **data, **loss)
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        gone = set(range(12)) - set(plan.kept[f"rnn.weight_hh_{suffix}"][1])
        assert gone
        assert gone <= set(silent)
