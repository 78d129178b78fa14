"""What distillation without labels adds to compensation, on a network trained on ImageNet.

EfficientNet-Lite0 is cut to shares of its multiply-adds by `obs` and compensated on three quarters of the photographs,
and then distilled on the same ones. The others are asked about: how often the first answer is still the original's,
and the Kullback-Leibler divergence from its answers. Without a folder the photographs are crops of those of
scikit-image and scikit-learn, and other photographs are asked about.

    python benchmarks/distillation.py [--photographs FOLDER] [--shares S ...] [--side N] [--steps N] [--lr X]

needs `pip install 'torchslim[photographs]'`. Compensated networks are kept in runs/distillation, so that a second run
distils them at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import torchslim as ts
from photographs import CALIBRATION, SIDE, TEST, crops, folder, pretrained
from torchslim.train.distillation import LR

KEPT = Path(__file__).resolve().parents[1] / "runs" / "distillation"
BATCH = 25


def photographs(path: Path | None, side: int) -> tuple[list[Tensor], Tensor]:
    """Batches to fit to, and those that are asked about."""
    if path is None:
        fitted, asked = crops(CALIBRATION, 150), crops(TEST, 150, 100)
        return list(F.interpolate(fitted, side).split(BATCH)), F.interpolate(asked, side)
    pictures = folder(path, side)
    count = len(pictures) * 3 // 4
    return list(pictures[:count].split(BATCH)), pictures[count:]


def compensated(model: nn.Module, share: float, data: list[Tensor], name: str) -> nn.Module:
    """The network cut to a share of its multiply-adds, refitted; from a file if there is one."""
    path = KEPT / f"{name}-{share}.safetensors"
    if path.exists():
        return ts.load(path, model=pretrained())
    plan = ts.plan(model, data[0][:1], macs=share, importance="obs", data=data)
    slim = ts.compensate(model, ts.apply(model, plan), plan, data)
    KEPT.mkdir(parents=True, exist_ok=True)
    ts.save(slim, path, plan=plan)
    return slim


@torch.no_grad()
def kept(model: nn.Module, slim: nn.Module, asked: Tensor) -> str:
    """Share of first answers that are the original's, and the divergence."""
    wanted, found = (torch.cat([network(batch) for batch in asked.split(BATCH)]) for network in (model, slim))
    share = (wanted.argmax(1) == found.argmax(1)).float().mean()
    divergence = F.kl_div(found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    return f"{share:.1%} of {len(asked)} answers kept, divergence {divergence:.3f}"


def main() -> None:
    """Print both figures before and after, for each share."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="of some hundred photographs")
    parser.add_argument("--shares", nargs="+", type=float, default=(0.9, 0.5), metavar="S")
    parser.add_argument("--side", type=int, default=SIDE, metavar="N", help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--lr", type=float, default=LR, metavar="X")
    options = parser.parse_args()
    model = pretrained()
    data, asked = photographs(options.photographs, options.side)
    name = f"{'samples' if options.photographs is None else options.photographs.name}-{options.side}"
    for share in options.shares:
        slim = compensated(model, share, data, name)
        print(f"{share:.0%} of the MACs, compensated: {kept(model, slim, asked)}", flush=True)
        begun = time.perf_counter()
        better = ts.distill(model, slim, data, steps=options.steps, lr=options.lr)
        print(f"{share:.0%} of the MACs, distilled:   {kept(model, better, asked)}, "
              f"{time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
