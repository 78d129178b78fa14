"""Dead classes of the followed run as scores of the groups that are cut, and why what is dead stays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from torchslim.coupling.groups import ChannelGroup
from torchslim.coupling.labeled_graph import Index
from torchslim.importance import Scores
from torchslim.planning.dead.channels import Mask
from torchslim.planning.dead.constants import ConstantsRun
from torchslim.planning.dead.readers import UNLABELED
from torchslim.planning.feasible_cuts import FeasibleCut
from torchslim.planning.problem import PlanningProblem
from torchslim.utils.modules import tensors_of

AT_MINIMUM = "contributes nothing, but a group keeps 2 channels, and rows that must lose equally many lose the fewest"
IN_TRAINING = "contributes nothing in eval mode, but is read in training"


class DeadIndices:
    """Of every dimension of the network's tensors the indices that are dead.

    The run that was followed is one in eval mode. What only training reads is dead where it is zero.
    """

    def __init__(self, run: ConstantsRun, problem: PlanningProblem, dead: Mask) -> None:
        self.class_of = {key: dim.labels for key, dim in run.coupling.by_dimension.items()}
        self.dead = {key: dead[labels] for key, labels in self.class_of.items()}
        state = tensors_of(problem.model)
        for (name, dim), labeled in problem.coupling.by_dimension.items():
            if (name, dim) not in self.dead:
                self.dead[name, dim] = np.resize(_zero_slices(state[name], dim), len(labeled.labels))

    def scores(self, group: ChannelGroup) -> Scores:
        """0 for each channel of a group that is dead, 1 for the others."""
        return self._alive(group, evaluated_only=False)

    def dead_in_evaluation(self, group: ChannelGroup) -> Mask:
        """Of each channel of a group whether it is dead by what runs in eval mode."""
        return np.asarray(self._alive(group, evaluated_only=True) == 0)

    def _alive(self, group: ChannelGroup, evaluated_only: bool) -> Scores:
        alive, evaluated = np.zeros(group.channels, dtype=bool), False
        for member in group.members:
            key = member.name, member.dim
            evaluated |= key in self.class_of
            if key in self.class_of or not evaluated_only:
                alive |= ~self.dead[key][member.indices].all(1)
        return np.asarray(alive if evaluated else alive | evaluated_only, dtype=np.float64)

    def classes(self, group: ChannelGroup) -> Index:
        """The class in the followed run of each channel of a group; -1 for what it did not meet."""
        for member in group.members:
            labels = self.class_of.get((member.name, member.dim))
            if labels is not None:
                return np.asarray(labels[member.indices[:, 0]])
        return np.full(group.channels, UNLABELED)


def _zero_slices(tensor: Tensor, dim: int) -> Mask:
    return np.asarray((tensor.detach() == 0).movedim(dim, 0).reshape(tensor.shape[dim], -1).all(1).cpu().numpy())


def reasons_to_stay(feasible: FeasibleCut, run: ConstantsRun, dead: DeadIndices,
                    held: Mapping[int, str]) -> dict[int, str]:
    """Class of channels -> why it stays, of those that contribute nothing, or nothing but a constant.

    Args:
        feasible: the cut.
        run: the run that was followed.
        dead: what nothing depends on, whether it can be cut or not.
        held: why constants stay, by class of the run.
    """
    silent = np.append(_silent(run), False)
    reasons: dict[int, str] = {}
    for group in feasible.coupling.groups:
        without_use, alive = dead.dead_in_evaluation(group), dead.scores(group) > 0
        for place, (label, seen) in enumerate(zip(group.classes.tolist(), dead.classes(group).tolist(), strict=True)):
            if not feasible.cut.stays[label]:
                continue
            protected = feasible.protected.get(label)
            if without_use[place]:
                reasons[label] = protected or (IN_TRAINING if alive[place] else AT_MINIMUM)
            elif seen in held:
                reasons[label] = held[seen]
            elif silent[seen] and protected:
                reasons[label] = protected
    return reasons


def _silent(run: ConstantsRun) -> Mask:
    """Of each class whether all layers that make it make a constant."""
    made, varies = np.zeros(run.coupling.num_classes, dtype=bool), np.zeros(run.coupling.num_classes, dtype=bool)
    for reader in (step.reader for step in run.steps):
        if reader is not None and not reader.is_depthwise:
            known = reader.makes != UNLABELED
            made[reader.makes[known]] = True
            varies[reader.makes[known & reader.reached_from(reader.spoilt)]] = True
    return np.asarray(made & ~varies)
