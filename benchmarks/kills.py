"""Does `kill -9` cost anything? `torchslim slim`, killed again and again, beside the same run left alone.

A small network is trained on scikit-learn's digits, and a small SSDLite on drawn shapes, both in bfloat16 with an
average of the weights: baseline, cut, refit, fine-tuning, save, report, and of the first ONNX files. One run is left
alone. In another folder the same command is killed at a moment drawn by the seed, and given again, until the kills are
used up; a run that comes to its end before that is compared, and begun anew. Half of the kills fall at such a moment
whatever happens there, the others as soon as the process then writes a file. After each, every file with a final name
must load. In the end weights, plan and scores must equal those of the run left alone, to the bit.

    python benchmarks/kills.py [--task classification detection] [--kills 20] [--seed 0] [--out FOLDER]

One core; about five minutes a task.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Subset

from torchslim.surgery.plans import Plan
from torchslim.train import load_data
from torchslim.utils.data import Data

HERE = Path(__file__).resolve()
TASKS = {
    "classification": ("small_classifier", f"{HERE}:few_digits", 16, ()),
    "detection": ("small_detector", f"{HERE}:few_boxes", 64, ("--no-export", "--importance", "l2")),
}
"""By task: the network, DATA, the size of pictures, further options."""
COMMON = ("--macs", "0.5", "--epochs", "4", "--batch-size", "32", "--precision", "bf16", "--ema", "0.9",
          "--round-to", "2", "--threads", "1", "--seed", "1")
EXACT = ("baseline.safetensors", "slim.safetensors", "plan.json")
DONE = (0, 1)
"""Exit statuses of a finished run; 1 where so short a training taught nothing, which is said."""
STATE_OF_RUN, PATIENCE = Path("work", "state.json"), 5.0


# --- what is trained --------------------------------------------------------------------------------------------------

def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6())


def small_classifier(num_classes: int) -> nn.Module:
    """Five convolutions."""
    return nn.Sequential(_block(3, 16), _block(16, 32, 2), _block(32, 32), _block(32, 64, 2), _block(64, 64),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, num_classes))


class _Features(nn.Module):
    """Two maps of features, of 8x8 and 4x4 for 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Sequential(_block(3, 16, 2), _block(16, 24, 2), _block(24, 32, 2)), _block(32, 32, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        near = self.near(x)
        return OrderedDict(near=near, far=self.far(near))


def small_detector(num_classes: int) -> nn.Module:
    """torchvision's SSD with the heads of SSDLite on two maps of features."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    anchors = DefaultBoxGenerator([[2], [2]], min_ratio=0.2, max_ratio=0.9)
    head = SSDLiteHead([32, 32], anchors.num_anchors_per_location(), num_classes, nn.BatchNorm2d)
    return SSD(_Features(), anchors, (64, 64), num_classes, head=head, detections_per_img=100)


def few_digits(size: int, seed: int) -> Data:
    """A part of the digits."""
    return _some(load_data("digits", size=size, seed=seed), 320, 100)


def few_boxes(size: int, seed: int) -> Data:
    """A part of the drawn shapes."""
    return _some(load_data("shapes:detection", size=size, seed=seed), 120, 24)


def _some(data: Data, train: int, test: int) -> Data:
    return replace(data, train=Subset(data.train, range(train)), test=Subset(data.test, range(test)))


# --- one task ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Found:
    """What came of one task.

    Attributes:
        kills: made.
        during: how many of them in each phase.
        writing: how many while a file was being written.
        runs: that came to their end, and were compared with the one left alone.
        loaded: files that were loaded after kills.
        problems: what was not as it must be; empty.
        seconds: of the run that was left alone.
    """

    kills: int
    during: dict[str, int]
    writing: int
    runs: int
    loaded: int
    problems: tuple[str, ...]
    seconds: float


def command(task: str, out: Path) -> list[str]:
    """The command line of a run."""
    network, data, size, options = TASKS[task]
    return [sys.executable, "-m", "torchslim", "slim", f"{HERE}:{network}", "--data", data, "--size", str(size),
            *COMMON, *options, "--out", str(out)]


def killed(task: str, kills: int, seed: int, folder: Path) -> Found:
    """Run a task once undisturbed and then with so many kills, in new folders inside `folder`."""
    alone, chances = folder / "alone", random.Random(seed)
    start = time.monotonic()
    _finish(task, alone)
    seconds = time.monotonic() - start
    problems: list[str] = []
    during: Counter[str] = Counter()
    writing = loaded = runs = 0
    out = folder / "killed-1"
    for number in range(kills):
        while True:
            process, in_draft = _start_and_kill(task, out, seconds * chances.uniform(0.1, 0.6), bool(number % 2))
            if process.returncode not in DONE:
                break
            runs += 1  # it came to its end before that
            problems += _differences(alone, out)
            out = folder / f"killed-{runs + 1}"
        if process.returncode != -9:
            problems.append(f"kill {number + 1}: the process had ended with {process.returncode}")
        writing += in_draft
        during[_phase(out)] += 1
        checked = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
        problems += [f"kill {number + 1}: {path.relative_to(out)}: {why}" for path in checked if (why := _wrong(path))]
        loaded += len(checked)
    _finish(task, out)
    problems += _differences(alone, out)
    return Found(kills, dict(during), writing, runs + 1, loaded, tuple(problems), seconds)


def _start(task: str, out: Path) -> subprocess.Popen[bytes]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command(task, out), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _finish(task: str, out: Path) -> None:
    process = _start(task, out)
    if process.wait() not in DONE:
        raise SystemExit(f"{shlex.join(command(task, out))}: status {process.returncode}; see {out}.log")


def _start_and_kill(task: str, out: Path, delay: float, wait_for_draft: bool) -> tuple[subprocess.Popen[bytes], bool]:
    """Start a process and kill it after so many seconds, or once it writes a file then; and whether it did.

    A process that ends before that has its own status.
    """
    before = _drafts(out)
    process = _start(task, out)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    writes, until = False, time.monotonic() + PATIENCE
    while wait_for_draft and process.poll() is None and not writes and time.monotonic() < until:
        writes = bool(_drafts(out) - before)
    process.kill()
    process.wait()
    return process, writes


def _drafts(out: Path) -> set[tuple[str, int]]:
    """Files that have no final name yet, with their times."""
    found = set()
    for folder in (out, out / "work"):
        for path in folder.glob(".*"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
    return found


def _phase(out: Path) -> str:
    """The phase in which a run was: that after the last one that is done."""
    path = out / STATE_OF_RUN
    if not path.exists():
        return "start"
    done = list(json.loads(path.read_bytes())["found"])
    return f"after {done[-1]}" if done else "baseline"


# --- checks -----------------------------------------------------------------------------------------------------------

def _wrong(path: Path) -> str:
    """Why a file does not load; empty if it does."""
    try:
        if path.suffix in (".safetensors", ".checkpoint"):
            _tensors(path)
        elif path.name == "plan.json":
            Plan.from_json(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".onnx":
            import onnx

            onnx.checker.check_model(str(path))
        elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
            return "no whole page"
    except Exception as error:  # whatever the reader of the format raises
        return f"{type(error).__name__}: {error}"
    return ""


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _differences(alone: Path, killed: Path) -> list[str]:
    """What is not as in the run that was left alone."""
    found = []
    for name in EXACT:
        if name.endswith(".json"):
            same = (alone / name).read_bytes() == (killed / name).read_bytes()
        else:
            first, second = _tensors(alone / name), _tensors(killed / name)
            same = first.keys() == second.keys() and all(
                torch.equal(value.view(torch.uint8) if value.ndim else value, second[key].view(torch.uint8)
                            if value.ndim else second[key]) for key, value in first.items())
        if not same:
            found.append(f"{killed.name}: {name} differs")
    if _scores(alone) != _scores(killed):
        found.append(f"{killed.name}: the scores differ")
    return found + [f"{killed.name}: {path.relative_to(killed)}: {why}" for path in killed.rglob("*")
                    if path.is_file() and (why := "left behind" if path.name.endswith(".tmp") else _wrong(path))]


def _scores(out: Path) -> Any:
    record = json.loads((out / "record.json").read_bytes())
    return [record[side]["metrics"] for side in ("before", "after")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the runs there")
    options = parser.parse_args()
    problems = 0
    for task in options.task:
        folder = Path(tempfile.mkdtemp()) if options.out is None else options.out / task
        found = killed(task, options.kills, options.seed, folder)
        phases = ", ".join(f"{name} {count}" for name, count in found.during.items())
        print(f"{task}: {found.kills} kills in {found.runs} runs of {found.seconds:.0f} s ({phases}), {found.writing} "
              f"of them while a file was written; {found.loaded} files loaded; {len(found.problems)} problems",
              flush=True)
        for problem in found.problems:
            print(f"  {problem}")
        problems += len(found.problems)
        if options.out is None:
            shutil.rmtree(folder)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
