"""The ladder of U-Nets: one definition, from plain to light in six rungs, and what each costs and takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from torchslim.errors import RequestError
from torchslim.latency import measure
from torchslim.profiler import profile
from torchslim.zoo.unet import RUNGS, unet

CHANGES = (
    "plain 3x3 convolutions",
    "encoder: 3x3 as wide as its input, 1x1, 3x3",
    "decoder: 1x1, 3x3, 3x3",
    "4 groups where a width stays",
    "1x3 and 3x1 for each 3x3 but the head's",
    "depthwise for each grouped 1x3 and 3x1",
)
"""What each rung changes of the one before."""


@dataclass(frozen=True)
class Rung:
    """One network of the ladder.

    Attributes:
        rung: its number; 0 is the plain network.
        change: what it changes of the one before.
        params: parameters, those that the forward pass never reads among them.
        dead_params: these.
        macs: multiply-adds on the ladder's input.
        peak_memory: bytes of activations that are alive at once, at most.
        ms: measured milliseconds of a call; None where nothing was measured.
    """

    rung: int
    change: str
    params: int
    dead_params: int
    macs: int
    peak_memory: int
    ms: float | None


def climb(size: int = 256, *, rounds: int = 3, threads: int | None = None, in_channels: int = 3,
          num_classes: int = 2) -> tuple[Rung, ...]:
    """All rungs, counted, and measured in turns.

    Args:
        size: height and width of the input, at least 125.
        rounds: how often each network is timed; 0 measures nothing.
        threads: CPU threads; None leaves them.
        in_channels, num_classes: of the U-Nets.

    Raises:
        RequestError: a picture that is too small for unpadded convolutions, or a negative number of rounds.
    """
    if size < 125 or rounds < 0:
        raise RequestError(f"ladder: size {size} and {rounds} rounds found; wanted at least 125 pixels, since unpadded "
                           "convolutions eat up smaller maps, and no fewer than 0 rounds")
    inputs = torch.rand(1, in_channels, size, size)
    models = {str(rung): unet(num_classes, in_channels=in_channels, rung=rung) for rung in RUNGS}
    times = _times(models, inputs, rounds, threads)
    rungs = []
    for rung in RUNGS:
        found = profile(models[str(rung)], inputs)
        rungs.append(Rung(rung, CHANGES[rung], found.params, found.dead_params, found.macs, found.peak_memory,
                          times[str(rung)]))
    return tuple(rungs)


def _times(models: Mapping[str, torch.nn.Module], inputs: Tensor, rounds: int,
           threads: int | None) -> dict[str, float | None]:
    """Milliseconds of each, measured in turns; None where there are no rounds."""
    if not rounds:
        return dict.fromkeys(models)
    taken = measure(models, inputs, rounds=rounds, warmup=1, threads=threads)
    return {name: latency.median_ms for name, latency in taken.items()}


def slower(rungs: Sequence[Rung]) -> list[int]:
    """The rungs with fewer parameters than the one before that are no faster all the same."""
    return [after.rung for before, after in pairwise(rungs)
            if before.ms is not None and after.ms is not None and after.params < before.params
            and after.ms >= before.ms]
