"""U-Nets from standard to light in steps ("rungs"), each with its costs and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from torchslim.costs.profiler import profile
from torchslim.errors import RequestError
from torchslim.latency.timing import measure
from torchslim.planning.pruning import plan
from torchslim.surgery.cutting import apply
from torchslim.zoo.unet import unet

Rules = tuple[tuple[str, tuple[str, ...]], ...]

# Convolutions by the names of the modules that hold them; the head is the last part of the decoder.
ENCODER = "encoder.*"
DECODER = ("decoder.[0-2].*", "dead.*")
HEAD = "decoder.3.[01].0"


@dataclass(frozen=True)
class RungSpec:
    """How to build a rung: a U-Net of `torchslim.zoo`, and optionally a cut.

    Attributes:
        change: difference from the rung before.
        rung, width: of `torchslim.zoo.unet`.
        rules: of `torchslim.lighten`, from the rung before to this one; see `rewrites`.
        from_plain: whether these rules start from the plain network.
        keep: share of the channels of each group that a cut keeps; 1 for no cut.
    """

    change: str
    rung: int | str
    width: float = 1.0
    rules: Rules = ()
    from_plain: bool = False
    keep: float = 1.0


RUNG_SPECS = (
    RungSpec("plain 3x3 convolutions", 0),
    RungSpec("encoder: 3x3 as wide as its input, 1x1, 3x3", 1,
         rules=(("pointwise-after:norm", ("encoder.*.0.0",)),)),
    RungSpec("decoder: 1x1, 3x3, 3x3", 2,
         rules=(("pointwise-before:norm", ("decoder.[0-2].0.0", "dead.0.0")),)),
    RungSpec("4 groups: encoder's last 3x3, decoder", 3,
         rules=(("grouped:4", ("encoder.*.1.0", *DECODER)),)),
    RungSpec("1x3 and 3x1 for each 3x3 but the head's", 4,
         rules=(("asymmetric:norm", (ENCODER, *DECODER)),)),
    RungSpec("depthwise for each grouped 1x3 and 3x1", 5,
         rules=(("depthwise", ("encoder.*.1.0", *DECODER)),)),
    RungSpec("separable pairs instead: depthwise 3x3, 1x1", "separable",
         rules=(("separable:norm", (ENCODER, *DECODER)),), from_plain=True),
    RungSpec("the head's 3x3 separable, too", "separable-head",
         rules=(("separable:norm", (HEAD,)),)),
    RungSpec("half as wide", "separable-head", 0.5),
    RungSpec("a quarter of all channels cut", "separable-head", 0.5, keep=0.75),
)
LAST_REWRITTEN_RUNG = 7
"""The last rung that rules make of plain U-Net."""


@dataclass(frozen=True)
class Rung:
    """One network of the ladder.

    Attributes:
        rung: its number; 0 is the plain network.
        change: difference from the rung before.
        params: parameters, including those that the forward pass never uses.
        dead_params: the latter.
        macs: multiply-adds on the ladder's input.
        peak_memory: maximum bytes of activations held at once.
        ms: measured milliseconds of a call; None if not measured.
    """

    rung: int
    change: str
    params: int
    dead_params: int
    macs: int
    peak_memory: int
    ms: float | None


def measure_ladder(size: int = 256, *, rounds: int = 3, threads: int | None = None, in_channels: int = 3,
          num_classes: int = 2) -> tuple[Rung, ...]:
    """All rungs with their costs, and times measured in turns.

    Args:
        size: height and width of the input, at least 125.
        rounds: how often each network is timed; 0 for no timing.
        threads: CPU threads; None leaves them.
        in_channels, num_classes: of the U-Nets.

    Raises:
        RequestError: an image too small for unpadded convolutions, a negative number of rounds, or non-integers.
    """
    if not isinstance(size, int) or not isinstance(rounds, int) or size < 125 or rounds < 0:
        raise RequestError(f"ladder: size {size!r} and {rounds!r} rounds found; wanted whole numbers: at least 125 "
                           "pixels, since unpadded convolutions eat up smaller maps, and no fewer than 0 rounds")
    inputs = torch.rand(1, in_channels, size, size)
    models = {str(index): build_rung(spec, inputs, num_classes) for index, spec in enumerate(RUNG_SPECS)}
    times = _times(models, inputs, rounds, threads)
    rungs = []
    for index, spec in enumerate(RUNG_SPECS):
        costs = profile(models[str(index)], inputs)
        rungs.append(Rung(index, spec.change, costs.params, costs.dead_params, costs.macs, costs.peak_memory,
                          times[str(index)]))
    return tuple(rungs)


def rewrites(rung: int) -> Rules:
    """The rules from the plain network to a rung: `lighten(unet(), rewrites(5), ends=True)`.

    Raises:
        RequestError: a rung without rules.
    """
    if not isinstance(rung, int) or rung not in range(LAST_REWRITTEN_RUNG + 1):
        raise RequestError(f"ladder: rung {rung!r} found, wanted one of 0 to {LAST_REWRITTEN_RUNG}, which rules make "
                           "of the plain network")
    start = max(index for index, spec in enumerate(RUNG_SPECS[:rung + 1]) if spec.from_plain or not index)
    return tuple(rule for spec in RUNG_SPECS[start:rung + 1] for rule in spec.rules)


def build_rung(spec: RungSpec, inputs: Tensor, num_classes: int = 2) -> nn.Module:
    """The network of a rung, in eval mode, for inputs of this shape.

    A cut removes the same share of every channel group, so its counts do not depend on the weights.
    """
    model = unet(num_classes, in_channels=inputs.shape[1], rung=spec.rung, width=spec.width).eval()
    if spec.keep == 1:
        return model
    return apply(model, plan(model, inputs, channels=spec.keep, scope="uniform", importance="l2"))


def _times(models: Mapping[str, nn.Module], inputs: Tensor, rounds: int,
           threads: int | None) -> dict[str, float | None]:
    """Milliseconds of each, measured in turns; None without rounds."""
    if not rounds:
        return dict.fromkeys(models)
    latencies = measure(models, inputs, rounds=rounds, warmup=1, threads=threads)
    return {name: latency.median_ms for name, latency in latencies.items()}


def mismatched_rungs(rungs: Sequence[Rung]) -> dict[int, str]:
    """Rungs with fewer parameters than the rung before but not less time, or the reverse; with the reason."""
    mismatches = {}
    for before, after in pairwise(rungs):
        if before.ms is None or after.ms is None:
            continue
        if after.params < before.params and after.ms >= before.ms:
            mismatches[after.rung] = f"fewer parameters than rung {before.rung}, and no less time"
        elif after.params > before.params and after.ms < before.ms:
            mismatches[after.rung] = f"more parameters than rung {before.rung}, and less time"
    return mismatches
