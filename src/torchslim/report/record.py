"""The record: what one run of the pipeline measured, as plain data.

Whoever runs the work fills a `Record`; the page only reads it. It is frozen, knows nothing of torch, and is
the same after a trip through JSON, so that a page can be drawn again, years later, from the file alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torchslim.errors import CheckpointError
from torchslim.surgery.plans import LeftAlone

FORMAT = 1

_REMEDY = "give the text that Record.to_json wrote"


@dataclass(frozen=True)
class Timing:
    """The time of one forward pass in milliseconds: its median and its 10th and 90th percentile."""

    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Measured:
    """What a network costs and how well it does.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulate operations of one forward pass.
        file_bytes: size of the saved network.
        latency: timings by backend, such as "eager" or "onnxruntime".
        accuracy: share of held-out data that is right, 0 to 1; None where there was nothing to score.
    """

    params: int
    macs: int
    file_bytes: int
    latency: Mapping[str, Timing] = field(default_factory=dict)
    accuracy: float | None = None


@dataclass(frozen=True)
class Curve:
    """Training, one value an epoch; `accuracy` (0 to 1) may be empty where it was not measured."""

    phase: str
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] = ()


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
    """How many channels of each score stayed and went.

    Attributes:
        label: what the score is ("L2 norm, scaled by layer").
        edges: limits of the bins, rising, one more than there are bins.
        kept: channels kept, by bin.
        removed: channels removed, by bin.
        threshold: the score below which channels went; None where there was no single one.
    """

    label: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    threshold: float | None = None


@dataclass(frozen=True)
class Sample:
    """A held-out picture (PNG, base64), what it shows, and what the network said before and after."""

    png: str
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Record:
    """What one run did, from the request to the result.

    Attributes:
        title: what was made light, for the head of the page ("resnet18 on digits").
        command: the command line that runs it again.
        created: when, as ISO 8601.
        settings: how the run was asked for (JSON values only).
        environment: versions and machine.
        before: the original network.
        after: the slim network.
        proof_error: largest relative error of the cut against silencing the removed channels.
        onnx_error: largest relative error of the exported network against the eager one, if exported.
        curves: training, by phase.
        layers: the layers, in the order they run.
        scores: the scores by which channels were chosen, where there is one scale for all of them.
        left_alone: channels that could not be cut, and why.
        notes: remarks for the reader.
        samples: held-out pictures with both predictions.
    """

    title: str
    command: str
    created: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    before: Measured
    after: Measured
    proof_error: float
    onnx_error: float | None = None
    curves: tuple[Curve, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    scores: ScoreHistogram | None = None
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()

    def to_json(self) -> str:
        """The record as JSON text; `Record.from_json` gives an equal record back.

        Raises:
            CheckpointError: a value that JSON cannot hold, such as NaN.
        """
        return json.dumps({"format": FORMAT, **_plain(self, "record")}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that `to_json` wrote.

        Raises:
            CheckpointError: the text is not a record, one of a newer format, or a field is unknown, missing
                or of the wrong type.
        """
        try:
            raw = json.loads(text, parse_constant=_no_constant)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"record: not JSON ({error}); {_REMEDY}") from error
        if not isinstance(raw, dict) or "format" not in raw:
            raise CheckpointError(f"record: no field 'format' found; {_REMEDY}")
        found = raw.pop("format")
        if type(found) is not int or found != FORMAT:
            raise CheckpointError(f"record: format {found!r} found, {FORMAT} wanted; "
                                  "install a matching torchslim")
        try:
            record: Record = _read(raw, cls, "record")
        except RecursionError as error:
            raise CheckpointError(f"record: nested too deeply; {_REMEDY}") from error
        _check(record)
        return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _plain(value: Any, where: str) -> Any:
    """The value as JSON holds it: dataclasses and mappings become dicts, tuples lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"{where}: key {key!r} found, a string wanted; convert it first")
        return {key: _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry, f"{where}[{at}]") for at, entry in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{where}: {value} found, a finite number wanted; leave it out or give None")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{where}: {type(value).__name__} found, a JSON value wanted; convert it first")


def _read(raw: Any, kind: Any, where: str) -> Any:
    """`raw` as a value of the annotated type `kind`; strict, with the place named where it does not fit."""
    if kind is Any:
        return _plain(raw, where)  # for its check alone: "1e999" is good JSON and infinite
    if get_origin(kind) is UnionType:
        if raw is None and NoneType in get_args(kind):
            return None
        [kind] = [part for part in get_args(kind) if part is not NoneType]
    if is_dataclass(kind):
        return _read_fields(raw, kind, where)
    if get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise _misfit(raw, "a list", where)
        return tuple(_read(entry, get_args(kind)[0], f"{where}[{at}]") for at, entry in enumerate(raw))
    if get_origin(kind) is Mapping:
        if not isinstance(raw, dict):
            raise _misfit(raw, "an object", where)
        return {key: _read(entry, get_args(kind)[1], f"{where}.{key}") for key, entry in raw.items()}
    # A Boolean is an int to Python, and a whole float may stand as an int: hence no plain isinstance.
    if kind is float and type(raw) in (int, float):
        try:
            number = float(raw)
        except OverflowError:
            raise _misfit(raw, "a float", where) from None
        if not math.isfinite(number):
            raise _misfit(raw, "a finite number", where)
        return number
    if type(raw) is kind:
        return raw
    raise _misfit(raw, {str: "a string", int: "a whole number", float: "a number"}[kind], where)


def _read_fields(raw: Any, kind: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise _misfit(raw, "an object", where)
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    if unknown := sorted(set(raw) - names):
        raise CheckpointError(f"{where}: unknown fields {unknown}; install a matching torchslim")
    if missing := sorted(names - set(raw)):
        raise CheckpointError(f"{where}: fields {missing} are missing; {_REMEDY}")
    return kind(**{name: _read(raw[name], hints[name], f"{where}.{name}") for name in raw})


def _misfit(raw: Any, wanted: str, where: str) -> CheckpointError:
    found = f"{type(raw).__name__} {raw!r}"
    if len(found) > 60:
        found = found[:57] + "..."
    return CheckpointError(f"{where}: {found} found, {wanted} wanted; {_REMEDY}")


def _check(record: Record) -> None:
    """Refuse what has the right type and still makes no sense."""
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        raise _misfit(record.created, "an ISO 8601 time", "record.created") from None
    shares = [("record.before.accuracy", record.before.accuracy)]
    shares += [("record.after.accuracy", record.after.accuracy)]
    shares += [(f"record.curves[{at}].accuracy[{epoch}]", share)
               for at, curve in enumerate(record.curves) for epoch, share in enumerate(curve.accuracy)]
    for where, share in shares:
        if share is not None and not 0 <= share <= 1:
            raise _misfit(share, "a share from 0 to 1", where)
    scores = record.scores
    if scores and not len(scores.edges) - 1 == len(scores.kept) == len(scores.removed):
        sizes = f"{len(scores.edges)} edges, {len(scores.kept)} and {len(scores.removed)} counts"
        raise CheckpointError(f"record.scores: {sizes} found, one edge more than counts wanted; {_REMEDY}")
