"""What counting costs, and whether it is right: torchslim beside torch's own counter and four others, in one run.

Process time, one thread, batch 1, in plain forward passes of the same network on the same input; the least of several
interleaved repetitions, after one that is not counted. What torch's FlopCounterMode counts is taken for right: closed
forms and hand counts agree with it in the tests. A peer that is off by less than 0.01% is right; else its deviation is
shown. A star marks one that leaves something behind on the model: hooks, buffers, attributes or another mode.
Networks are torchvision's (and a U-Net); each runs in a process of its own.

    python benchmarks/profilers.py [NAME[@SIDE] ...] [--table FILE]      needs fvcore, ptflops, thop and torchinfo
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import platform
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pages import into

CASES = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
         "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf",
         "densenet121", "densenet201", "googlenet", "inception_v3@299", "convnext_tiny", "fcn_resnet50", "unet",
         "resnet18@640", "resnet50@640", "mobilenet_v3_small@640", "shufflenet_v2_x1_0@640", "efficientnet_b0@640",
         "densenet201@640", "resnet50@1024", "fcn_resnet50@640", "unet@640")
REPETITIONS = 5
PEERS = ("FlopCounterMode", "fvcore", "ptflops", "thop", "torchinfo")
RIGHT = 1e-4


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("cases", nargs="*", metavar="NAME[@SIDE]", help="torchvision names or unet; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="put them into this page, between its markers")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    print(_line("network", "forward", ["torchslim", *PEERS]))
    for case in options.cases or CASES:
        with context.Pool(1) as pool:
            row = pool.apply(measure, (case,))
        rows.append(row)
        cells = [_cell(row, who) for who in ("torchslim", *PEERS)]
        print(_line(case, f"{row['forward'] * 1e3:.0f} ms", cells), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.table is not None:
        into(options.table, _page(rows))


def _line(name: str, forward: str, cells: list[str]) -> str:
    return f"{name:26}{forward:>9}" + "".join(f"{cell:>18}" for cell in cells)


def _cell(row: dict[str, Any], who: str) -> str:
    """Its cost in forward passes; how far it is off; a star if it leaves something behind."""
    found = row[who]
    if "error" in found:
        return str(found["error"])
    off = found["macs"] / row["macs"] - 1
    says = "" if abs(off) < RIGHT else f" ({100 * off:+.3g}%)"
    return f"{found['cost']:.2f}{says}{'*' if found['left_behind'] else ''}"


def _page(rows: list[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", *PEERS[1:]))
    text = " ".join(" ".join((__doc__ or "").split("\n\n")[1].split()).split())
    lines = ["## What counting costs, and whether it is right", "", text, "",
             f"{versions}, Python {platform.python_version()}; written by `python benchmarks/profilers.py --table "
             "docs/benchmarks.md`.", "", f"| network | forward pass, ms | torchslim | {' | '.join(PEERS)} |",
             f"|---|{'--:|' * (2 + len(PEERS))}"]
    lines += [f"| {row['case']} | {row['forward'] * 1e3:.0f} | "
              + " | ".join(_cell(row, who) for who in ("torchslim", *PEERS)) + " |" for row in rows]
    return "\n".join([*lines, ""])


def measure(case: str) -> dict[str, Any]:
    """One network's row: seconds of a forward pass; each counter's cost in passes, its count, what it leaves."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, _, side = case.partition("@")
    model = _built(name)
    inputs = torch.randn(1, 3, int(side or 224), int(side or 224))

    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    counters = _counters()
    row: dict[str, Any] = {"case": case}
    seconds: dict[str, list[float]] = {"forward": []}
    for who, counter in counters.items():
        before = _state(model)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                counted = counter(model, inputs)
        except ImportError:
            row[who] = {"error": "not installed"}
            continue
        except Exception:
            row[who] = {"error": "fails"}
            model = _built(name)
            continue
        row[who] = {"macs": counted, "left_behind": _state(model) != before}
        seconds[who] = []
        if row[who]["left_behind"]:
            model = _built(name)
    row["macs"] = row["FlopCounterMode"]["macs"]
    forward()
    for _ in range(REPETITIONS):
        seconds["forward"].append(_process_time(forward))
        for who in seconds.keys() - {"forward"}:
            fresh = _built(name) if row[who]["left_behind"] else model
            with contextlib.redirect_stdout(io.StringIO()):
                seconds[who].append(_process_time(lambda who=who, fresh=fresh: counters[who](fresh, inputs)))
    row["forward"] = min(seconds["forward"])
    for who in seconds.keys() - {"forward"}:
        row[who]["cost"] = min(seconds[who]) / row["forward"]
    return row


def _built(name: str) -> Any:
    import torch

    import torchslim

    if name != "unet":
        return torchslim.create_model(f"torchvision:{name}").eval()
    from torch import nn

    def pair(cin: int, cout: int) -> nn.Sequential:
        return nn.Sequential(*(layer for i, o in ((cin, cout), (cout, cout)) for layer in (
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (32, 64, 128, 256)
            self.down = nn.ModuleList(pair(i, o) for i, o in zip((3, *widths), widths, strict=False))
            self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in widths[-2::-1])
            self.join = nn.ModuleList(pair(2 * c, c) for c in widths[-2::-1])
            self.head = nn.Conv2d(widths[0], 2, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for place, block in enumerate(self.down):
                x = block(x if not place else nn.functional.max_pool2d(x, 2))
                skips.append(x)
            for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
                x = join(torch.cat([skip, up(x)], 1))
            return self.head(x)

    return UNet().eval()


def _counters() -> dict[str, Callable[[Any, Any], int]]:
    """Each counter's shortest way from a model to its multiply-adds."""
    def torchslim(model: Any, inputs: Any) -> int:
        from torchslim import profile

        return profile(model, inputs).macs

    def flop_counter_mode(model: Any, inputs: Any) -> int:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(inputs)
        return counter.get_total_flops() // 2

    def fvcore(model: Any, inputs: Any) -> int:
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())

    def ptflops(model: Any, inputs: Any) -> int:
        from ptflops import get_model_complexity_info

        return int(get_model_complexity_info(model, tuple(inputs.shape[1:]), as_strings=False, verbose=False,
                                             print_per_layer_stat=False)[0])

    def thop(model: Any, inputs: Any) -> int:
        from thop import profile

        return int(profile(model, (inputs,), verbose=False)[0])

    def torchinfo(model: Any, inputs: Any) -> int:
        from torchinfo import summary

        return int(summary(model, input_data=inputs, verbose=0).total_mult_adds)

    return {"torchslim": torchslim, "FlopCounterMode": flop_counter_mode, "fvcore": fvcore, "ptflops": ptflops,
            "thop": thop, "torchinfo": torchinfo}


def _state(model: Any) -> list[Any]:
    """What a counter may change of a model: names of attributes and buffers, hooks, modes, bound methods."""
    return [(name, module.training, sorted(module.__dict__), sorted(module._buffers), len(module._forward_hooks),
             len(module._forward_pre_hooks), "forward" in module.__dict__) for name, module in model.named_modules()]


def _process_time(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    main()
