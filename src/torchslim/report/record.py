"""The record: the measurements of one run of the pipeline, as plain data.

The pipeline fills a `Record`, the page reads it. It is frozen, independent of torch, and survives a JSON round
trip, so the page can be made again from the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torchslim.errors import CheckpointError
from torchslim.surgery.plans import LeftAlone
from torchslim.utils.formatting import NOT_SHARES
from torchslim.utils.json_values import read_json, to_values

FORMAT = 1

_REMEDY = "give the text that Record.to_json wrote"


@dataclass(frozen=True)
class Timing:
    """The time of one forward pass in milliseconds: its median and its 10th and 90th percentile."""

    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True)
class NetworkMetrics:
    """Costs and metrics of a network.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulate operations of one forward pass.
        file_bytes: size of the saved network.
        latency: timings by backend, such as "eager" or "onnxruntime".
        metrics: of the task, on held-out data, the main one first: {"accuracy": 0.98}; empty if not measured.
    """

    params: int
    macs: int
    file_bytes: int
    latency: Mapping[str, Timing] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The main metric; None if not measured."""
        return next(iter(self.metrics.values()), None)


@dataclass(frozen=True)
class TrainingCurve:
    """Training, one value per epoch; `score`, the task's main metric, is empty if not measured."""

    phase: str
    loss: tuple[float, ...]
    score: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after the cut."""

    name: str
    kind: str
    channels_before: int
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class ScoreHistogram:
    """Numbers of kept and removed channels by score.

    Attributes:
        label: of the score ("L2 norm, scaled by layer").
        edges: of the bins, ascending, one more than bins.
        kept: channels kept, by bin.
        removed: channels removed, by bin.
        threshold: the score below which channels were removed; None if there is no single one.
    """

    label: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    threshold: float | None = None


@dataclass(frozen=True)
class Sample:
    """A held-out image (PNG, base64), its label, and the predictions before and after."""

    png: str
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Record:
    """Settings and results of one run.

    Attributes:
        title: of the page: model and data ("resnet18 on digits").
        command: the command line that runs it again.
        created: time, as ISO 8601.
        settings: of the run (JSON values only).
        environment: versions and machine.
        before: the original network.
        after: the slim network.
        proof_error: largest relative error of the cut against silencing the removed channels.
        onnx_error: largest relative error of the exported network against the eager one, if exported.
        onnx_problem: why the networks could not be exported; empty if they were, or were not to be.
        curves: training, by phase.
        layers: the layers, in call order.
        scores: histogram of the channels' scores, if comparable between groups.
        left_alone: channels that could not be cut, and why.
        notes: remarks for the reader.
        samples: held-out images with both predictions.
        problem: what keeps the result from being a success; empty if nothing does.
        useless: whether it makes the result useless.
    """

    title: str
    command: str
    created: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    before: NetworkMetrics
    after: NetworkMetrics
    proof_error: float
    onnx_error: float | None = None
    curves: tuple[TrainingCurve, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    scores: ScoreHistogram | None = None
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    problem: str = ""
    useless: bool = False
    onnx_problem: str = ""

    @property
    def metric(self) -> str:
        """The name of the task's main metric, such as "accuracy"."""
        return next(iter(self.before.metrics or self.after.metrics), "accuracy")

    @property
    def outcome(self) -> str:
        """The problem as a sentence, empty if there is none."""
        return f"{'No success' if self.useless else 'Warning'}: {self.problem}" if self.problem else ""

    def to_json(self) -> str:
        """The record as JSON text; `Record.from_json` gives an equal record back.

        Raises:
            CheckpointError: a value that JSON cannot hold, such as NaN.
        """
        return json.dumps({"format": FORMAT, **to_values(self, "record")})

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """The record that `to_json` wrote.

        Raises:
            CheckpointError: the text is not a record, one of a newer format, or a field is unknown, missing
                or of the wrong type.
        """
        record = read_json(cls, text, "record", _REMEDY, FORMAT)
        _check(record)
        return record


def _check(record: Record) -> None:
    """Reject values of the right type that are invalid."""
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        raise _misfit("record.created", record.created, "an ISO 8601 time") from None
    shares = [(f"record.{side}.metrics.{name}", value) for side in ("before", "after")
              for name, value in getattr(record, side).metrics.items() if name not in NOT_SHARES]
    shares += [(f"record.curves[{at}].score[{epoch}]", share) for at, curve in enumerate(record.curves)
               for epoch, share in enumerate(curve.score) if record.metric not in NOT_SHARES]
    for where, share in shares:
        if not 0 <= share <= 1:
            raise _misfit(where, share, "a share from 0 to 1")
    scores = record.scores
    if scores and not len(scores.edges) - 1 == len(scores.kept) == len(scores.removed):
        sizes = f"{len(scores.edges)} edges, {len(scores.kept)} and {len(scores.removed)} counts"
        raise CheckpointError(f"record.scores: {sizes} found, one edge more than counts wanted; {_REMEDY}")


def _misfit(where: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"{where}: {value!r} found, {wanted} wanted; {_REMEDY}")
