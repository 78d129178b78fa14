"""The detectors that Ultralytics describes in the yaml files that it ships, by the names of these files.

A file of somebody else's is not read here: Ultralytics evaluates entries of it as code, and its `.pt` files hold code.
"""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from torchslim.errors import MissingExtra, RequestError
from torchslim.utils.text import quoted
from torchslim.zoo.misplaced_files import WEIGHTS

SIDE = 640
"""Height and width for which the networks are made."""
_FACTORY = ("name a function of yours that loads it, such as mine.py:net with `def net(num_classes): return "
            "torchslim.integrations.ultralytics.detector(YOLO(PATH), num_classes)`")
_DETECTS = re.compile(r"\b(v10)?Detect, \[")
_SCALES = re.compile(r"^  ([nsmblx]): \[", re.MULTILINE)
_SCALED = re.compile(r"yolov?\d+[nsmblx]\b")


def names() -> list[str]:
    """The names of all detectors, one for each scale; none where Ultralytics is not installed."""
    return sorted(_files()) if find_spec("ultralytics") else []


def has(name: str) -> bool:
    """Whether there is a detector of that name.

    Raises:
        MissingExtra: Ultralytics is not installed.
        RequestError: it is a file of another kind, or a network that finds no boxes.
    """
    path = Path(name)
    if path.suffix in WEIGHTS:
        raise RequestError(f"ultralytics:{name}: a file of Ultralytics' holds code, which is not run; {_FACTORY}")
    if find_spec("ultralytics") is None:
        raise MissingExtra("ultralytics", "ultralytics", "a model of Ultralytics'")
    if name in _files():
        return True
    if path.suffix in (".yaml", ".yml") and (path.parent != Path() or path.exists()):
        raise RequestError(f"ultralytics:{quoted(name)}: a description of your own, entries of which Ultralytics would "
                           f"run as code; {_FACTORY}")
    if name in _files(detectors=False):
        raise RequestError(f"ultralytics:{name}: finds no boxes; cut it by torchslim.integrations.ultralytics."
                           f"prune(YOLO({name!r}), ...), and train it by its own trainer")
    return False


def build(name: str, weights: str | None, options: dict[str, Any]) -> nn.Module:
    """The detector of that name with random weights.

    Raises:
        RequestError: weights were asked for, or other options than `num_classes`.
    """
    if weights is not None:
        raise RequestError(f"ultralytics:{name}: weights={weights!r} found, and Ultralytics' files of weights hold "
                           f"code, which is not run; {_FACTORY}")
    with redirect_stdout(sys.stderr):  # on which Ultralytics tells of its settings when it is first imported
        from ultralytics.nn.tasks import yaml_model_load

        from torchslim.zoo.ultralytics_detector import build as build_detector

        return build_detector({**yaml_model_load(_files()[name]), "yaml_file": name}, **options)


@cache
def _files(detectors: bool = True) -> dict[str, Path]:
    """The path that Ultralytics takes for each name: of the scale n of a file yolo11.yaml, yolo11n.yaml beside it."""
    spec = find_spec("ultralytics")
    folder = Path(spec.origin or "").parent / "cfg" / "models" if spec else Path()
    found = {}
    for path in sorted(folder.glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        if bool(_DETECTS.search(text)) is detectors:
            scales = [] if _SCALED.match(path.name) else _SCALES.findall(text)
            scaled = [re.sub(r"(\d+)", rf"\g<1>{scale}", path.name, count=1) for scale in scales]
            found.update({name: path.with_name(name) for name in scaled or [path.name]})
    return found
