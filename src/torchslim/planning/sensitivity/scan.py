"""The scan: each channel group by itself is cut to several widths, and the network that is left is measured.

Cutting equals silencing, and a cut network is the cheaper one to run. So each measurement is a plan for one group, a
cut copy and a run of it; the scores that choose the channels are found once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchslim.coupling.coupling import Coupling
from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance import Criterion, Evidence, Importance, Scores, criterion, score
from torchslim.importance.gradients import Loss
from torchslim.planning.candidates import macs_per_channel
from torchslim.planning.options import PlanOptions
from torchslim.planning.problem import PlanningProblem, prepare
from torchslim.planning.pruning import decide
from torchslim.planning.sensitivity.checkpoint import ScanCheckpoint, fingerprint
from torchslim.planning.sensitivity.metrics import OutputMetric, batches_in, is_labelled
from torchslim.planning.sensitivity.result import GroupSensitivity, Sensitivity
from torchslim.surgery.cutting import apply
from torchslim.surgery.plans import LeftAlone, Plan
from torchslim.utils.files import check_writable
from torchslim.utils.inputs import Inputs, unwrap
from torchslim.utils.patterns import all_match

RATIOS = (0.9, 0.7, 0.5, 0.3, 0.1)


@dataclass(frozen=True)
class Measured:
    """One measurement, for who watches: of which group at which ratio, and how many are done.

    Attributes:
        group: the group's name.
        ratio: the share of its channels that was asked for.
        kept, channels: how many of its channels stay, and how many there are.
        value: what was measured.
        done, total: measurements that are done, and that there will be.
    """

    group: str
    ratio: float
    kept: int
    channels: int
    value: float
    done: int
    total: int


@torch.inference_mode(False)
def sensitivity(model: nn.Module, inputs: Inputs, data: Any, *, ratios: Sequence[float] = RATIOS,
                importance: Importance = "auto", measure: str | None = None,
                shortcuts: bool = True, only: Sequence[str] = (), exclude: Sequence[str] = (),
                allow_approximate: bool = False, whole_groups: bool = False, scoring: Iterable[Any] | None = None,
                loss: Loss | None = None, seed: int = 0, checkpoint: str | Path | None = None,
                progress: Callable[[Measured], None] | None = None) -> Sensitivity:
    """How well a network does with a share of one channel group's channels, for each group and several shares.

    Groups that can only be cut together (rows that lose equally many, groups that one layer makes) are taken together.
    Nothing is trained or refitted between. Per-layer sensitivity to pruning: Li et al. 2017, section 3.2.

    Args:
        model: any convolutional network; it is left as it was.
        inputs: what it is called with (see `torchslim.plan`).
        data: what it is measured on: batches (inputs, targets), the targets integers; batches of inputs; a dataset;
            a `torchslim.train.Data`, of which the part that is held out is taken. They are gone through once for every
            measurement and must be the same each time.
        ratios: shares of channels kept, each above 0 and at most 1.
        importance: which of a group's channels go first (see `torchslim.plan`).
        measure: "accuracy", "agreement" with the whole network's answers (the targets have no part in it), or "error",
            relative, of the outputs. By default the accuracy where there are targets, the agreement where the outputs
            are one score a class, (B, classes), and else the error.
        shortcuts, only, exclude, allow_approximate, whole_groups: which groups are cut (see `torchslim.plan`).
        scoring: batches for the criteria that look at data, of (inputs, targets) for those that ask for labels; by
            default those of `data`.
        loss: of outputs and targets, for those.
        seed: of importance="random".
        checkpoint: a file that holds what has been measured so far. If it is there, the scan goes on from it, and ends
            with what one that was never interrupted would have found.
        progress: called after every measurement.

    Raises:
        RequestError: ratios that are no shares, data that does not suit, nothing to cut, or a checkpoint of another
            model, other data or other settings.
        CheckpointError: the checkpoint is damaged or something else, or can't be written.
        TraceError: the model fails on these inputs.
    """
    model, widths, batches = unwrap(model), _checked(ratios), batches_in(data)
    path = None if checkpoint is None else check_writable(Path(checkpoint), "scan.json")
    options: dict[str, Any] = {"shortcuts": shortcuts, "exclude": tuple(exclude), "whole_groups": whole_groups,
                               "allow_approximate": allow_approximate, "seed": seed}
    # A plan that takes nothing: it checks the request, and says what can't be cut.
    keep_all = PlanOptions(channels=1.0, importance="random", only=only, **options)
    problem = prepare(model, inputs, keep_all)
    uncut, coupling = decide(problem, keep_all), problem.coupling
    units = _units(coupling, [group for group in coupling.groups if _may_go(group, keep_all)])
    if not units:
        raise RequestError("sensitivity: no channel group can be cut: "
                           + "; ".join(dict.fromkeys(entry.reason for entry in uncut.left_alone)))
    scores = _CachedScores(problem, units, importance, batches if scoring is None else batches_in(scoring), loss)
    metric = OutputMetric(model, batches, measure)
    saved = ScanCheckpoint(path, {
        "model": fingerprint(model), "data": metric.digest, "measure": metric.measure, "importance": str(scores),
        "ranking": scores.ranking(), **options})
    entries = _Scan(problem, {**options, "importance": scores}, metric, uncut.predicted["macs"]).measure_all(
        units, widths, saved, progress)
    full = [unit for unit in units if entries[unit.name][-1]["kept"] == unit.channels]
    groups = tuple(unit.result(entries[unit.name]) for unit in units if unit not in full)
    left = (*uncut.left_alone, *(unit.left_alone(widths[-1]) for unit in full))
    return Sensitivity(metric.measure, metric.base, metric.items, widths, str(scores), groups, left)


def _checked(ratios: Sequence[float]) -> tuple[float, ...]:
    listed = list(ratios) if isinstance(ratios, Iterable) else [ratios]
    if not listed or not all(type(ratio) in (int, float) and 0 < ratio <= 1 for ratio in listed):
        raise RequestError(f"ratios: got {ratios!r}, wanted shares of channels kept, each above 0 and at most 1; try "
                           f"{RATIOS}")
    return tuple(sorted({float(ratio) for ratio in listed}, reverse=True))


# --- what is cut together -----------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class _Unit:
    """Groups that go down together; mostly a single one."""

    groups: tuple[ChannelGroup, ...]

    @property
    def name(self) -> str:
        return self.groups[0].name

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer for group in self.groups for layer in group.makers))

    @property
    def channels(self) -> int:
        return sum(group.channels for group in self.groups)

    def result(self, entries: Sequence[dict[str, Any]]) -> GroupSensitivity:
        """What was measured, an entry a ratio."""
        kept, macs, values = (tuple(entry[key] for entry in entries) for key in ("kept", "macs", "value"))
        return GroupSensitivity(self.name, self.layers, self.channels, kept, macs, values)

    def left_alone(self, ratio: float) -> LeftAlone:
        """A unit that no ratio narrows, this smallest one included."""
        return LeftAlone(self.name, self.channels, f"loses none, not even where {ratio:g} of them would do")

    def kept(self, decided: Plan) -> int:
        """How many of the channels stay."""
        count = 0
        for group in self.groups:
            maker = next(member for member in group.members if member.role == "makes")
            stays = decided.kept.get(maker.name, {}).get(maker.dim)
            count += group.channels if stays is None else int(np.isin(maker.indices[:, 0], stays).sum())
        return count


def _may_go(group: ChannelGroup, options: PlanOptions) -> bool:
    """As `plan` decides it; layers' names are all that its patterns know, so groups that no layer makes stay."""
    return (bool(group.makers) and not group.frozen and (options.shortcuts or not group.shortcut)
            and (not options.only or all_match(group.makers, options.only))
            and not any(all_match([layer], options.exclude) for layer in group.makers))


def _units(coupling: Coupling, free: Sequence[ChannelGroup]) -> list[_Unit]:
    """Groups with a layer in common, which no pattern tells apart, or in rows that must lose equally many."""
    home = {id(group): [group] for group in free}
    meetings = [[group for group in free if layer in group.makers]
                for layer in dict.fromkeys(layer for group in free for layer in group.makers)]
    meetings += [[group for group in free if np.isin(group.classes, constraint.labels).any()]
                 for constraint in coupling.constraints]
    for first, *others in filter(None, meetings):
        for other in others:
            joined, unit_of_other = home[id(first)], home[id(other)]
            if joined is not unit_of_other:
                joined += unit_of_other
                home.update((id(group), joined) for group in unit_of_other)
    order = {id(group): index for index, group in enumerate(free)}
    distinct = {id(unit_of_other): unit_of_other for unit_of_other in home.values()}.values()
    units = [_Unit(tuple(sorted(unit_of_other, key=lambda group: order[id(group)]))) for unit_of_other in distinct]
    return sorted(units, key=lambda unit: order[id(unit.groups[0])])


class _CachedScores:
    """A criterion's scores, found once for all groups: those that look at data run the network for them."""

    def __init__(self, problem: PlanningProblem, units: Sequence[_Unit], importance: Importance, data: Iterable[Any],
                 loss: Loss | None) -> None:
        self._criterion = criterion(importance)
        self._evidence = Evidence(problem.model, problem.inputs, *_data_for(self._criterion, data, loss),
                                  problem.evidence.seed, macs_per_channel(problem.coupling))
        self._criterion.check(self._evidence)
        groups = tuple(group for unit in units for group in unit.groups)
        self._scores = dict(zip(map(_key, groups), score(groups, self._criterion, self._evidence), strict=True))

    def __str__(self) -> str:
        return str(self._criterion.taken(self._evidence))

    def ranking(self) -> str:
        """A checksum of the order in which channels go."""
        digest = hashlib.sha256()
        for scores in self._scores.values():
            digest.update(np.argsort(scores, kind="stable").tobytes())
        return digest.hexdigest()

    def __call__(self, group: ChannelGroup) -> Scores:
        # Where rows turn out to be tied channel by channel, planning asks for groups that were not there before.
        key = _key(group)
        if key not in self._scores:
            (self._scores[key],) = score((group,), self._criterion, self._evidence)
        return self._scores[key]


def _data_for(wanted: Criterion, data: Iterable[Any], loss: Loss | None) -> tuple[Iterable[Any] | None, Loss | None]:
    """What a criterion looks at: batches without their labels, if it asks for none."""
    if wanted.needs == "labels":
        return data, loss
    if wanted.looks_at_data:
        return [batch[0] if is_labelled(batch) else batch for batch in data], None
    return None, None


def _key(group: ChannelGroup) -> tuple[Any, ...]:
    return tuple((member.name, member.dim, member.indices.tobytes()) for member in group.members)


# --- one measurement ----------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class _Scan:
    """What all measurements share; `macs` are the uncut network's."""

    problem: PlanningProblem
    options: dict[str, Any]
    metric: OutputMetric
    macs: int

    def measure_all(self, units: Sequence[_Unit], ratios: Sequence[float], saved: ScanCheckpoint,
                    progress: Callable[[Measured], None] | None) -> dict[str, list[dict[str, Any]]]:
        """By unit, an entry a ratio: from the checkpoint, or measured and put there."""
        entries: dict[str, list[dict[str, Any]]] = {unit.name: [] for unit in units}
        for index, (unit, ratio) in enumerate(product(units, ratios)):
            name, known = f"{unit.name} {ratio!r}", entries[unit.name]
            if name not in saved.entries:
                saved.put(name, self.measure(unit, ratio, known))
            entry = saved.entries[name]
            known.append(entry)
            if progress is not None:
                progress(Measured(unit.name, ratio, entry["kept"], unit.channels, entry["value"], index + 1,
                                  len(units) * len(ratios)))
        return entries

    def measure(self, unit: _Unit, ratio: float, known: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Channels kept, share of the MACs and the measure where one unit alone keeps a share of its channels."""
        patterns = [escape(layer) for layer in unit.layers]
        decided = decide(self.problem, PlanOptions(scope=dict.fromkeys(patterns, ratio), only=patterns,
                                                   **self.options))
        kept = unit.kept(decided)
        for entry in known:  # few channels: the next ratio may come to as many
            if entry["kept"] == kept:
                return entry
        value = self.metric.base if kept == unit.channels else self.metric(apply(self.problem.model, decided))
        return {"kept": kept, "macs": decided.predicted["macs"] / max(self.macs, 1), "value": value}
