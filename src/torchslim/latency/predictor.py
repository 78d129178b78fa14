"""Predicted time of a network as a function of the kept channels.

The sum of the times of its layers (measured at some widths and interpolated) and of a remainder: the uncut network's
time beyond its layers, distributed by bytes over the activations that the other operations read and write. The sum is
calibrated on the measured times of the uncut network and of a cut one (`correction`: measured over predicted saving).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torchslim.costs.cost_models import CostModel, KeptShare, Shares
from torchslim.costs.memory import accessed, size
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.labeled_graph import Index, LabeledGraph
from torchslim.latency.interpolation import BLOCK, LayerLatency, sampled_workloads, width_penalties
from torchslim.latency.workloads import LabeledWorkload, Workload, classes_along, layer_workloads
from torchslim.rules.tracks import Tracks


class LatencyPredictor(CostModel):
    """Nanoseconds of a call, as a function of the kept channels.

    Args:
        coupling: the network's.
        times: of every workload in `required_workloads(coupling)`.
        baseline_ns: measured time of the uncut network.
        correction: measured saving of a cut network, as a share of the predicted one.

    As a `CostModel` it is the uncalibrated sum of layers and remainder; calling it gives calibrated nanoseconds.

    Attributes:
        full_cost: the sum without any cut.
    """

    def __init__(self, coupling: Coupling, times: Mapping[Workload, float], baseline_ns: float,
                 correction: float = 1.0) -> None:
        super().__init__()
        self.baseline_ns, self.correction = baseline_ns, correction
        labeled = coupling.labeled_graphs[0]
        layers = dict(layer_workloads(labeled, coupling.options.whole_groups))
        penalties = width_penalties(layers.values(), times)
        equal: dict[tuple[Workload, bytes, bytes], list[LabeledWorkload]] = {}
        for layer in layers.values():
            key = layer.workload, layer.in_classes.tobytes(), layer.out_classes.tobytes()
            equal.setdefault(key, []).append(layer)
        for first, *others in equal.values():
            self.add(1 + len(others), (first.in_classes, first.out_classes),
                     LayerLatency(first, times, penalties))
        self._add_remainder(labeled, {op.index for op in layers})
        self.full_cost = self.at_widths(self.full_widths())

    def _add_remainder(self, labeled: LabeledGraph, timed: set[int]) -> None:
        """Add the network's time beyond its layers, by the bytes of its other operations."""
        moved: dict[tuple[bytes, ...], tuple[float, list[Index]]] = {}
        for op in labeled.graph.ops:
            for value in accessed(op) if op.index not in timed else ():
                if not value.static:
                    along = _dimensions(labeled.tracks.get(value.id, ()))
                    key = tuple(labels.tobytes() for labels in along)
                    moved[key] = moved.get(key, (0.0, along))[0] + size(value), along
        remainder = self.baseline_ns - self.at_widths(self.full_widths())
        total = sum(count for count, _ in moved.values())
        if remainder > 0 and total:
            for count, along in moved.values():
                # Memory accesses are in blocks as well: part of a block costs as much as all of it.
                self.add(remainder * count / total, along, KeptShare(tuple(len(labels) for labels in along), BLOCK))

    def to_nanoseconds(self, cost: float) -> float:
        """Calibrated nanoseconds by the sum of the parts."""
        # If the layers' sum exceeds the network's time, all are scaled.
        return self.baseline_ns * (1 - self.correction * (1 - cost / self.full_cost))

    def to_cost(self, nanoseconds: float) -> float:
        """The sum of the parts for calibrated nanoseconds."""
        return self.full_cost * (1 - (1 - nanoseconds / self.baseline_ns) / self.correction)

    @property
    def total(self) -> int:
        """Nanoseconds of the uncut network."""
        return round(self.baseline_ns)

    def __call__(self, shares: Shares) -> int:
        """Nanoseconds for the kept share of each channel class."""
        return round(self.to_nanoseconds(self.at_shares(shares)))


def required_workloads(coupling: Coupling) -> Iterable[Workload]:
    """The workloads whose times a `LatencyPredictor` needs."""
    return [workload for _, layer in layer_workloads(coupling.labeled_graphs[0], coupling.options.whole_groups)
            for workload in sampled_workloads(layer)]


def _dimensions(tracks: Tracks) -> list[Index]:
    """Channel classes along each prunable dimension of a value."""
    by_dim: dict[int, Index] = {}
    for track in tracks:
        dim = next((dim for dim in range(track.ndim) if track.shape[dim] > 1 and dim not in by_dim), None)
        if dim is not None:
            by_dim[dim] = classes_along(track, dim)
    return list(by_dim.values())
