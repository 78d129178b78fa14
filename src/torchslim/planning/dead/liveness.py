"""Which channels a network's outputs depend on, from the outputs back to the inputs.

A channel is *dead* if whatever reads it reads weights of zero, or a constant that can be moved into a bias, or makes
nothing that the outputs depend on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchslim.planning.dead.channels import Mask, Numbers
from torchslim.planning.dead.constants import ConstantsRun, Step
from torchslim.planning.dead.readers import UNLABELED, Reader
from torchslim.rules import preserves_values, row_name
from torchslim.tracing.graph import Graph, Op


@dataclass(frozen=True, eq=False)
class Fold:
    """What a tensor (a bias; the running mean of a batch norm) takes in place of removed constants.

    Attributes:
        name: the tensor's.
        added: what is added to each of its elements.
        channels: how many channels hold the constants.
    """

    name: str
    added: Numbers
    channels: int


@dataclass(frozen=True, eq=False)
class Liveness:
    """What the outputs depend on, if some channels may go.

    Attributes:
        dead: classes that may go and on which nothing depends.
        held: why classes of constant channels stay.
        folds: what takes the constants of the dead ones.
    """

    dead: Mask
    held: Mapping[int, str]
    folds: tuple[Fold, ...]


def dead_channels(run: ConstantsRun, removable: Mask) -> Liveness:
    """The largest set of classes, among those that may go, on which nothing depends once they are all gone.

    A constant is only moved where its channel goes. So where a channel stays, for whatever reason, what its constant is
    made of must stay, and the search goes on with fewer.
    """
    held: Mapping[int, str] | None = None
    while True:
        liveness = _Backward(run, removable).liveness()
        held = liveness.held if held is None else held
        if (liveness.dead == removable).all():
            return Liveness(liveness.dead, held, liveness.folds)
        removable = liveness.dead


class _Backward:
    """One pass from the outputs to the inputs.

    Arrays by class have one entry more, the last, for elements without labels.
    """

    def __init__(self, run: ConstantsRun, removable: Mask) -> None:
        self.run = run
        self.removable = np.append(removable, False)
        self.prunable = np.append(run.prunable, False)
        self.needed: defaultdict[int, Mask] = defaultdict(self._none)
        self.live = self._none()
        self.held: dict[int, str] = {}
        self.varying_read = self._none()
        self.folds: list[Fold] = []
        self.targets = FoldTargets(run)

    def _none(self) -> Mask:
        return np.zeros(self.run.coupling.num_classes + 1, dtype=bool)

    def liveness(self) -> Liveness:
        """The result of the pass."""
        for value in self.run.coupling.graphs[0].outputs:
            self.needed[self.run.number(value)][:] = True
            for track in self.run.tracks(value):
                self.live[track.ravel()] = True
        for step in reversed(self.run.steps):
            wanted = self._none()
            for number in step.outputs:
                wanted |= self.needed.pop(number, False)
            if step.writes_into_others:
                wanted[:] = True
            if not wanted.any():
                continue
            if step.reader is not None:
                self._through_reader(step, step.reader, wanted)
            elif step.opaque:
                for operand in step.operands:
                    self.live[operand.channels.classes] = True
                    self.needed[operand.value][:] = True
            else:
                self._by_channel(step, wanted)
        held = {label: reason for label, reason in self.held.items() if not self.varying_read[label]}
        made = self._none()
        for step in self.run.steps:
            made[step.made] = True
        return Liveness((self.removable & made & ~self.live)[:-1], held, tuple(self.folds))

    def _by_channel(self, step: Step, wanted: Mask) -> None:
        """Each channel needs itself; of a product that a factor makes zero, this factor alone."""
        settled = self._none()
        owners: list[Mask] = []
        for zeros in step.zeros:  # a static factor stays as it is, so that no other is needed
            own = self._none()
            own[zeros] = True
            owners.append(own & ~settled)
            settled |= own
        static = self._none()
        for operand, own in zip(step.operands, owners, strict=True):
            if operand.value < 0:
                static |= own
        made = self._none()
        made[step.made] = True
        for operand, own in zip(step.operands, owners, strict=True):
            if operand.value < 0:
                continue
            flows = wanted & (~settled | (own & ~static))
            here = self._none()
            here[operand.channels.classes] = True
            lost = here & ~made
            if preserves_values(step.op):
                lost &= ~self.prunable  # a part of the tensor that is left out is not read
            needs = (flows & here) | (lost & flows.any())
            needs[UNLABELED] = needs.any() if len(operand.channels.classes) else flows.any()
            self.needed[operand.value] |= needs

    def _through_reader(self, step: Step, reader: Reader, wanted: Mask) -> None:
        """A channel is needed where it goes into one that is, unless its constant is moved."""
        made = wanted[reader.makes]
        used = reader.leading_to(made)
        if reader.is_depthwise:  # the channels that it reads go with those that it makes
            read = used
        else:
            varying = np.isnan(reader.constants)
            stuck = ~varying & (reader.constants != 0) & (reader.pads or self.targets.of(reader) is None)
            read = used & (varying | stuck | ~self.removable[reader.reads])
            self.live[reader.reads[used & (varying | stuck)]] = True
            self.varying_read[reader.reads[used & varying]] = True
            self._note_held(reader, used & stuck)
            self._fold(reader, used & ~read & (reader.constants != 0), made)
        source = self.needed[reader.source]
        source[reader.reads[read]] = True
        for operand in step.operands:
            if operand.value == reader.source:
                source[np.setdiff1d(operand.channels.classes, reader.reads)] = True
        source[UNLABELED] = True

    def _note_held(self, reader: Reader, stuck: Mask) -> None:
        why = "with zeros around the map" if reader.pads else "without a bias to move it to"
        for label in reader.reads[stuck].tolist():
            self.held.setdefault(label, f"holds a constant that `{reader.op.module}` reads {why}")

    def _fold(self, reader: Reader, read: Mask, made: Mask) -> None:
        target = self.targets.of(reader)
        if read.any() and target is not None:
            name, sign = target
            added = np.where(made, sign * reader.contribution(read), 0.0)
            self.folds.append(Fold(name, added, int(read.sum())))


class FoldTargets:
    """Where the constants that weights read can go."""

    def __init__(self, run: ConstantsRun) -> None:
        self.run = run
        graph: Graph = run.coupling.graphs[0]
        self.readers: defaultdict[int, list[Op]] = defaultdict(list)
        for op in run.ops:
            for value in op.inputs:
                self.readers[run.number(value)].append(op)
        self.times_read = Counter({number: len(ops) for number, ops in self.readers.items()})
        self.times_read.update(run.number(value) for value in graph.outputs)

    def of(self, reader: Reader) -> tuple[str, int] | None:
        """The tensor that takes a constant and the sign with which it does, or None.

        A bias; where there is none, the running mean of a batch norm that alone reads what is made.
        """
        bias = reader.bias
        if bias is not None:
            fits = bias.name and self.times_read[self.run.number(bias)] == 1 and bias.shape == (len(reader.makes),)
            return (bias.name, 1) if fits else None
        number = self.run.number(reader.op.output)
        users: Sequence[Op] = self.readers[number]
        if self.times_read[number] != 1 or "batch_norm" not in row_name(users[0]):
            return None
        norm = users[0]
        mean = norm.args[3]
        # Without running statistics, or in train mode, a norm takes the mean of the batch.
        if mean is None or not mean.name or self.times_read[self.run.number(mean)] != 1 or any(
                item is True for item in norm.args[5:6]):
            return None
        return mean.name, -1
