"""The record of a run, from the results of its phases."""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import torchslim
from torchslim.coupling.coupling import couple
from torchslim.importance import Criterion, Evidence, score
from torchslim.latency.timing import processor
from torchslim.pipeline.context import RunContext
from torchslim.pipeline.outcome import judge
from torchslim.planning.candidates import macs_per_channel
from torchslim.report.record import LayerChange, NetworkMetrics, Record, Sample, ScoreHistogram, Timing, TrainingCurve
from torchslim.surgery.plans import Plan
from torchslim.tracing.runs import trace_modes
from torchslim.train.losses import answer
from torchslim.utils.data import Data
from torchslim.utils.formatting import format_metric

Values = NDArray[np.float64]

_BINS = 40
_TINY = 1e-12  # a score of zero, on a logarithmic scale
_SAMPLES = 20
_PHASES = {"baseline": "Baseline", "sparsify": "Sparsify", "compensate": "Compensate", "finetune": "Fine-tune"}
_LABELS = {"bn_scale": "Batch-norm scale, mean over the layers that share a channel"}


def record_of(run: RunContext) -> Record:
    """The report's contents, from the run's folder."""
    results, settings = run.folder.found, run.settings
    before, after = run.model("baseline.safetensors"), run.model("slim.safetensors")
    plan = run.plan()
    problem, useless = judge(results)
    return Record(
        title=f"{run.source.name} on {settings.data}",
        command=settings.command(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings={**settings.to_dict(), "threads": run.threads, "size": list(run.data.shape)},
        environment=environment(run.threads),
        before=_network_metrics(run, before, "before", "baseline.safetensors", results["baseline"]["metrics"]),
        after=_network_metrics(run, after, "after", "slim.safetensors", results["save"]["metrics"]),
        proof_error=results["cut"]["error"],
        onnx_error=results.get("export", {}).get("error"),
        onnx_problem=results.get("export", {}).get("problem", ""),
        curves=tuple(TrainingCurve(title, *(tuple(results[phase]["curve"][key]) for key in ("loss", "score")))
                     for phase, title in _PHASES.items() if results.get(phase, {}).get("curve", {}).get("loss")),
        layers=layer_changes(before, after, run.inputs),
        scores=_histogram(results["plan"]["scores"]),
        left_alone=plan.left_alone,
        notes=_notes(run),
        problem=problem,
        useless=useless,
        samples=samples(run.data, before, after),
    )


def environment(threads: int) -> dict[str, str]:
    """Versions and machine."""
    packages = {name: _version(name) for name in ("torch", "torchvision", "accelerate", "onnxruntime")}
    return {"torchslim": torchslim.__version__, **{name: text for name, text in packages.items() if text},
            "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(), "cores": str(os.cpu_count()), "threads": str(threads)}


def histogram(criterion: Criterion, evidence: Evidence, plan: Plan) -> dict[str, Any] | None:
    """Histogram of the scores of kept and of removed channels; None if nothing could be scored.

    Channels that can't be cut are not counted.
    """
    kept: list[Any] = []
    gone: list[Any] = []
    coupling = couple(trace_modes(evidence.model, evidence.inputs))
    evidence.gains = macs_per_channel(coupling)
    free = [group for group in coupling.groups if not group.frozen]
    for group, scores in zip(free, score(free, criterion, evidence), strict=True):
        maker = next((m for m in group.members if m.role == "makes"), group.members[0])
        stays = plan.kept.get(maker.name, {}).get(maker.dim)
        here = np.ones(group.channels, bool) if stays is None else np.isin(maker.indices[:, 0], stays)
        kept += scores[here].tolist()
        gone += scores[~here].tolist()
    return _binned(np.array(kept), np.array(gone), _LABELS.get(str(criterion), f"Importance {criterion}"))


def _binned(kept: Values, gone: Values, label: str) -> dict[str, Any] | None:
    every = np.concatenate([kept, gone])
    if not len(every):
        return None
    if every.max() > 100 * np.median(every) >= 0:  # penalised scales span many powers of ten
        kept, gone, every = (np.log10(np.maximum(values, _TINY)) for values in (kept, gone, every))
        label += ", log10"
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    # Groups keep a minimum of channels, even below the threshold; where many are, no threshold is shown.
    threshold = float(gone.max()) if len(gone) else None
    if threshold is not None and (kept < threshold).mean() > 0.05:
        threshold = None
    return {"label": label, "edges": edges.tolist(), "kept": np.histogram(kept, edges)[0].tolist(),
            "removed": np.histogram(gone, edges)[0].tolist(), "threshold": threshold}


def layer_changes(before: nn.Module, after: nn.Module, inputs: Any) -> tuple[LayerChange, ...]:
    """Layers with multiply-adds, in call order, before and after."""
    slim = {layer.name: layer for layer in torchslim.profile(after, inputs).layers}
    changes = []
    for layer in torchslim.profile(before, inputs).layers:
        new = slim.get(layer.name)
        if new is None or not layer.macs or len(layer.out_shape) < 2 or len(new.out_shape) < 2:
            continue
        changes.append(LayerChange(layer.name or "(model)", layer.kind, layer.out_shape[1], new.out_shape[1],
                                   layer.params, new.params, layer.macs, new.macs))
    return tuple(changes)


def samples(data: Data, before: nn.Module, after: nn.Module) -> tuple[Sample, ...]:
    """Held-out images with both predictions: first where they differ, then where both are wrong, then the rest."""
    if not data.mean or data.task != "classification":
        return ()
    count = min(len(data.test), 400)  # type: ignore[arg-type]
    items = [data.test[at] for at in range(count)]
    pictures = torch.stack([picture for picture, _ in items])
    with torch.inference_mode():
        old, new = (torch.cat([answer(model.eval()(part)).argmax(1) for part in torch.split(pictures, 64)]).tolist()
                    for model in (before, after))
    truth = [int(target) for _, target in items]
    order = sorted(range(count), key=lambda at: (old[at] == new[at], new[at] == truth[at], at * 7919 % count))
    name = _namer(data)
    return tuple(Sample(_png(data, pictures[at]), name(truth[at]), name(old[at]), name(new[at]))
                 for at in order[:_SAMPLES])


def _namer(data: Data) -> Callable[[int], str]:
    return lambda number: data.classes[number] if number < len(data.classes) else str(number)


def _png(data: Data, picture: Tensor) -> str:
    from PIL import Image

    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    colours = ((picture * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    image = Image.fromarray(colours.permute(1, 2, 0).numpy())
    image.thumbnail((64, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _network_metrics(run: RunContext, model: nn.Module, side: str, name: str,
                     values: dict[str, float]) -> NetworkMetrics:
    results = run.folder.found
    profile = torchslim.profile(model, run.inputs)
    latency = {"eager": Timing(**results["measure"][side])}
    if side in results.get("export", {}):
        latency["onnxruntime"] = Timing(**results["export"][side])
    return NetworkMetrics(profile.params, profile.macs, run.folder.file(name).stat().st_size, latency, values)


def _histogram(raw: dict[str, Any] | None) -> ScoreHistogram | None:
    if raw is None:
        return None
    return ScoreHistogram(raw["label"], tuple(raw["edges"]), tuple(raw["kept"]), tuple(raw["removed"]),
                          raw["threshold"])


def _notes(run: RunContext) -> tuple[str, ...]:
    results = run.folder.found
    remarks = (f"{title}: {results[phase]['remark']}." for phase, title in _PHASES.items()
               if "remark" in results.get(phase, {}))
    few = () if run.held_out.are_enough else ("The held-out pictures are too few to tell an accuracy from chance.",)
    metric = run.held_out.metric
    cut = results["cut"]["metrics"][metric]
    return (
        f"Latency is that of one picture, {run.data.shape[1]} by {run.data.shape[2]} pixels, on {run.threads} "
        "threads of the processor; both networks took turns.",
        f"Right after the cut, before fine-tuning, the {metric} was {format_metric(metric, cut)}.",
        f"The {metric} is measured on {len(run.data.test)} pictures that were held out; "  # type: ignore[arg-type]
        f"{len(run.data.train)} were trained on.",  # type: ignore[arg-type]
        *few,
        *remarks,
        *run.plan().notes,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


