"""Recurrent layers: LSTM, GRU and plain RNN of any depth, in one direction or both, and single cells of them.

Tracing keeps each call whole (`aten.lstm`, not its products step by step), so one row says it all: weights read the
input's features and the hidden states, and the n-th units of all gates are one. A layer's hidden width is one number
for all its layers and directions, which therefore lose equally many units.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from torchslim.rules.broadcasting import label_repeated
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.rules.tracks import Labels
from torchslim.tracing.graph import Op, Value


@dataclass(frozen=True, eq=False)
class Recurrence:
    """The arguments of a recurrent operation.

    Attributes:
        x: the input: (steps, batch, features) or (batch, steps, features), packed (steps, features), or of a single
            step (batch, features).
        states: the initial hidden state, and the cell state of an LSTM: (layers x directions, batch, units), without
            the first dimension for a single cell.
        cells: the weights of each layer and direction, as torch orders them: of the input, of the hidden state, their
            biases if there are any, the projection if there is one.
        directions: 1 or 2.
    """

    x: Value
    states: tuple[Value, ...]
    cells: tuple[tuple[Value, ...], ...]
    directions: int

    @property
    def steps(self) -> int:
        """How often a cell works: over all steps and the batch."""
        return prod(self.x.shape[:-1])

    @property
    def units(self) -> int:
        """Hidden units of all cells."""
        projected = self.states[-1]  # of an LSTM with projections the cell state alone is as wide as the gates
        return len(self.cells) * projected.shape[-1]


def recurrence(op: Op) -> Recurrence:
    """The arguments of a recurrent operation by what they are."""
    given: dict[str, Any] = dict(zip((a.name for a in op.overload._schema.arguments), op.args, strict=False))
    given |= op.kwargs
    states = given["hx"] if isinstance(given["hx"], list | tuple) else (given["hx"],)
    x = given["data"] if "data" in given else given["input"]
    if "w_ih" in given:
        weights = (given["w_ih"], given["w_hh"], given.get("b_ih"), given.get("b_hh"))
        return Recurrence(x, tuple(states), (tuple(value for value in weights if value is not None),), 1)
    directions, params = 1 + given["bidirectional"], given["params"]
    each = len(params) // (given["num_layers"] * directions)
    return Recurrence(x, tuple(states), tuple(tuple(params[at:at + each]) for at in range(0, len(params), each)),
                      directions)


def recurrent_macs(op: Op) -> int:
    """Every weight once a step: gates x units x (features + hidden units), and projections."""
    layer = recurrence(op)
    return layer.steps * sum(weight.numel for cell in layer.cells for weight in cell if len(weight.shape) == 2)


def recurrent(space: LabelSpace, op: Op) -> None:
    """aten.lstm(x, (h, c), weights, ...) -> output, h, c; gru and rnn without c; cells without the output."""
    layer = recurrence(op)
    read = space.only_along(layer.x, -1, op, "worked on step by step")
    doing = "reads the network's input" if layer.x.source == "input" else "reads channels that can't be cut"
    hidden: list[Labels] = []  # of each layer and direction, as the cells give it
    units: list[Labels] = []
    for number in range(0, len(layer.cells), layer.directions):
        for cell in layer.cells[number:number + layer.directions]:
            cell_units, given = _cell(space, op, layer, cell, read, doing)
            units.append(cell_units)
            hidden.append(given)
        read = np.concatenate(hidden[-layer.directions:])
    outputs = [value for value in op.outputs if value is not None]
    states = [_stacked(labels, layer.states[0]) for labels in (hidden, units)[:len(layer.states)]]
    for value, track in zip(layer.states, states, strict=True):
        _starts(space, op, value, track)
    for value, track in zip(outputs[-len(states):], states, strict=True):
        space.set(value, [track])
    if len(outputs) > len(states):
        space.set_along(outputs[0], -1, read)


def _cell(space: LabelSpace, op: Op, layer: Recurrence, weights: tuple[Value, ...], read: Labels | None,
          doing: str) -> tuple[Labels, Labels]:
    """The labels of a cell's units, and of the hidden state that it gives: those, or those of their projection."""
    matrices = [value for value in weights if len(value.shape) == 2]
    rows = [space.along(value, 0, op) for value in weights if value not in matrices[2:]]
    for other in rows[1:]:
        space.tie(rows[0], other, op, "units of gates that can't be cut")
    width = layer.states[-1].shape[-1]
    gates = _labels(space, op, rows[0], matrices[0].shape[0]).reshape(-1, width)
    space.union(gates[:1], gates)
    units = hidden = gates[0]
    if len(matrices) > 2:
        hidden = _labels(space, op, space.along(matrices[2], 0, op), matrices[2].shape[0])
    positions = layer.steps // max(1, space.batch_size)
    for weight, made, labels in zip(matrices, (*rows[:2], hidden), (read, hidden, units), strict=False):
        columns = space.along(weight, 1, op)
        space.tie(labels, columns, op, doing if weight is matrices[0] else "reads units that can't be cut")
        if columns is not None:
            space.reads(weight, columns, positions)
        if made is not None:
            space.makes(made, positions)
        space.meter(op, layer.steps * weight.numel, (made, labels))
    return units, hidden


def _labels(space: LabelSpace, op: Op, labels: Labels | None, size: int) -> Labels:
    """The labels of a dimension, or new ones that stay where it can't be cut."""
    if labels is None:
        labels = space.new_labels(size)
        space.freeze(labels, f"units that can't be cut in {op.where}")
    return labels


def _stacked(rows: list[Labels], like: Value) -> Labels:
    """The track of a state: the units of each layer and direction."""
    return np.stack(rows).reshape(len(rows), *(1,) * (len(like.shape) - 2), -1)


def _starts(space: LabelSpace, op: Op, state: Value, track: Labels) -> None:
    """What a layer starts from meets its units."""
    labels = space.along(state, -1, op) if space.is_blank(state) else None
    if labels is not None:  # of equal elements, only their number matters: it is that of every row
        space.union(labels, track.reshape(-1, track.shape[-1])[0])
        return
    meeting = [other for other in space.tracks(state) if other.shape[-1] > 1]
    for other in space.tracks(state):
        if other.shape[-1] == 1:
            space.freeze(other, f"states of several layers or samples in {op.where}")
    for other in meeting:
        space.union(other, track)
    if not meeting and not label_repeated(space, state, track):
        space.freeze(track, f"starts from a state that can't be cut in {op.where}")


def packed(space: LabelSpace, op: Op) -> None:
    """aten._pack_padded_sequence(x, lengths, batch_first) -> data, batch_sizes: steps and samples become one."""
    x = op.args[0]
    for track in space.tracks(x):
        if track.shape[0] > 1 or track.shape[1] > 1:
            space.freeze(track, f"packed in {op.where}")
    space.set(op.output, [track[0] for track in space.tracks(x) if track.shape[:2] == (1, 1)])


RECURRENT = Row(recurrent, recurrent_macs)

ROWS = {
    **{f"aten.{name}{cell}": RECURRENT for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")},
    "aten._pack_padded_sequence": Row(packed),
}
