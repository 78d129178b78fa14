"""Made-up records: an ordinary one, and the extremes."""

import base64
import struct
import zlib
from dataclasses import replace

import pytest

from torchslim.report.record import LayerChange, NetworkMetrics, Record, Sample, ScoreHistogram, Timing, TrainingCurve
from torchslim.surgery.plans import LeftAlone


def png(size: int = 8, seed: int = 1) -> str:
    """A grey picture as base64 text."""
    rows = b"".join(b"\0" + bytes((x * y * seed) % 256 for x in range(size)) for y in range(size))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def layers(count: int, prefix: str = "layer") -> tuple[LayerChange, ...]:
    return tuple(LayerChange(f"{prefix}{at // 2}.conv{at % 2}", "conv2d", 64 + at, 32 + at, 36_864 + at,
                             9_216 + at, 10_000_000 + 1000 * at, 2_500_000 + 1000 * at)
                 for at in range(count))


@pytest.fixture
def record() -> Record:
    return Record(
        title="resnet18 on digits",
        command="torchslim slim 'torchvision:resnet18?num_classes=10' --data digits --macs 0.4",
        created="2025-11-21T22:24:00+00:00",
        settings={"macs": 0.4, "importance": "l2", "epochs": {"train": 12}, "only": [], "latency": None},
        environment={"torch": "2.15.0", "cpu": "four cores"},
        before=NetworkMetrics(11_181_642, 1_814_073_344, 44_780_000,
                        {"eager": Timing(31.4, 30.6, 33.9), "onnxruntime": Timing(18.2, 17.9, 19.6)},
                              {"accuracy": 0.986}),
        after=NetworkMetrics(3_532_666, 725_629_337, 14_180_000,
                       {"eager": Timing(22.3, 21.6, 24.1), "onnxruntime": Timing(8.61, 8.4, 9.9)},
                             {"accuracy": 0.983}),
        proof_error=3.1e-15,
        onnx_error=2.4e-7,
        curves=(TrainingCurve("train", (2.0, 1.0, 0.5), (0.4, 0.8, 0.98)),
                TrainingCurve("fine-tune", (0.6, 0.3), (0.9, 0.983))),
        layers=layers(21),
        scores=ScoreHistogram("L2 norm", (0.0, 0.5, 1.0, 1.5), (0, 30, 20), (12, 5, 0), 0.6),
        left_alone=(LeftAlone("fc", 10, "its outputs are the model's"),
                    LeftAlone("stem", 3, "its inputs are the model's"),
                    LeftAlone("head", 4, "its outputs are the model's")),
        notes=("200 runs after 20 to warm up",),
        samples=tuple(Sample(png(seed=at), str(at), str(at), "7" if at == 2 else str(at)) for at in range(4)),
    )


HOSTILE = "</title></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


@pytest.fixture(params=["empty", "nan", "one", "many", "hostile", "grown"])
def extreme(request: pytest.FixtureRequest, record: Record) -> Record:
    nan, inf = float("nan"), float("inf")
    one = LayerChange(HOSTILE, HOSTILE, 4, 2, 4, 2, 4, 2)
    return {
        "empty": Record("", "", "", {}, {}, NetworkMetrics(0, 0, 0), NetworkMetrics(0, 0, 0), 0.0),
        "nan": replace(record, proof_error=nan, onnx_error=inf,
                       curves=(TrainingCurve("a", (nan, 1.0, inf), (nan, 0.5)),),
                       before=replace(record.before, metrics={"accuracy": nan},
                                      latency={"eager": Timing(nan, inf, 0.0)}),
                       scores=ScoreHistogram("x", (nan, 1.0, inf), (1, 2), (3, 4), nan)),
        "one": replace(record, layers=layers(1), curves=(TrainingCurve("only", (0.3,), (0.98,)),), samples=(),
                       notes=(), scores=ScoreHistogram("x", (0.0, 0.0), (5,), (0,)), left_alone=(),
                       after=replace(record.after, metrics={}, latency={})),
        "many": replace(record, layers=layers(250, "features.stage.block"), samples=record.samples * 30,
                        curves=tuple(TrainingCurve(f"phase {at}", (0.5,) * 500, (0.5,) * 500) for at in range(6)),
                        left_alone=tuple(LeftAlone(f"block{at}.attention", 64, "mixes channels")
                                         for at in range(60))),
        "hostile": replace(record, title=HOSTILE, command=HOSTILE, created=HOSTILE,
                           settings={HOSTILE: [HOSTILE]}, environment={HOSTILE: HOSTILE}, notes=(HOSTILE,),
                           curves=(TrainingCurve(HOSTILE, (1.0,), (0.5,)),), layers=(one, one, one),
                           left_alone=(LeftAlone(HOSTILE, 1, HOSTILE),),
                           scores=ScoreHistogram(HOSTILE, (0.0, 1.0), (1,), (1,), 0.5),
                           samples=(Sample(HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
                           before=replace(record.before, latency={HOSTILE: Timing(2, 2, 2)}),
                           after=replace(record.after, latency={HOSTILE: Timing(1, 1, 1)})),
        "grown": replace(record, before=record.after, after=record.before, proof_error=2e-3,
                         layers=(replace(layers(1)[0], channels_after=99, macs_after=10**9), *layers(3))),
    }[request.param]
