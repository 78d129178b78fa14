"""Pictures and targets by specification: the table of kinds, and `load_data`.

Augmentation uses torch's global generator only. `fit` seeds it for every item from the seed, the epoch and the item's
index, so augmentation is the same in a resumed run and with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from torchslim.errors import RequestError
from torchslim.train.dataset import HELD_OUT
from torchslim.train.datasets import (
    coco,
    csv_table,
    digits,
    factory,
    folder,
    hugging_face,
    masks,
    shapes,
    torchvision_datasets,
    yolo,
)
from torchslim.train.datasets.request import DataRequest
from torchslim.train.tasks import TASKS
from torchslim.utils.data import Data
from torchslim.utils.text import did_you_mean


@dataclass(frozen=True)
class _Kind:
    """A kind of data: how it is written, and what loads it."""

    form: str
    load: Callable[[DataRequest], Data]
    named_alone: bool = False


KINDS = {
    "digits": _Kind("digits", digits.load, named_alone=True),
    "folder": _Kind("folder:PATH", folder.load),
    "masks": _Kind("masks:PATH", masks.load),
    "coco": _Kind("coco:IMAGES@FILE.json", coco.load),
    "yolo": _Kind("yolo:FILE.yaml", yolo.load),
    "csv": _Kind("csv:FILE", csv_table.load),
    "hf": _Kind("hf:NAME", hugging_face.load),
    "shapes": _Kind("shapes:TASK", shapes.load, named_alone=True),
    "torchvision": _Kind("torchvision:NAME@ROOT", torchvision_datasets.load),
}
FORMS = f"{', '.join(kind.form for kind in KINDS.values())}, package.module:factory or file.py:factory"


def load_data(spec: str, *, size: int | None = None, seed: int = 0, held_out: float = HELD_OUT,
              channels: int | None = None, task: str | None = None, skip_broken: float = 0.0) -> Data:
    """The data that a specification names. Nothing is downloaded. `docs/data.md` has the forms and their rules.

    Args:
        spec: `digits` (scikit-learn's 1,797), `folder:PATH` (a folder per class), `masks:PATH` (`images/` and
            `masks/`), `coco:IMAGES@FILE.json`, `yolo:FILE.yaml`, `csv:FILE`, `hf:NAME` (Hugging Face's `datasets`),
            `shapes` or `shapes:TASK` (drawn), `torchvision:NAME@ROOT`, or `package.module:factory` or
            `file.py:factory`, a function that returns `Data` or a training and a test dataset of pairs (tensor,
            target); it gets `size`, `seed`, `channels` and `task` if it has these parameters.
        size: height and width in pixels; by default 32 for digits, 64 for shapes, 320 with boxes, 224 for others, the
            images' own for small ones of torchvision.
        seed: of the split, and of drawings.
        held_out: share that is held out if the data has no split: of each class, or of all.
        channels: 3 for colour, 1 for grey, whatever the pictures have themselves; None for 3, and for a function's own.
        task: what is predicted (see `Data`), where the data leaves that open; else it must be what the data is for.
        skip_broken: share of the pictures, such as 0.02, that may be left out, with their labels, masks or boxes, as
            they can't be read; a warning names the first. By default any is refused. All are read whole first then.

    Raises:
        RequestError: an unknown form or task, a missing folder or file, a class without images, fewer than two classes,
            unreadable annotations, another task, a number of channels other than 1 and 3; images that can't be read,
            if there are more than `skip_broken` allows, or if nothing is left of a class or of a part.
        MissingExtra: a package that the form needs is not installed.
    """
    if size is not None and size < 8:
        raise RequestError(f"{spec}: size {size} found, at least 8 pixels wanted; try 32")
    if not 0 < held_out < 1:
        raise RequestError(f"{spec}: held_out {held_out} found, a share between 0 and 1 wanted; "
                           f"try {HELD_OUT}")
    if not 0 <= skip_broken < 1:
        raise RequestError(f"{spec}: skip_broken={skip_broken} found, a share from 0 to below 1 wanted; try 0.02")
    if task is not None and task not in TASKS:
        raise RequestError(f"{spec}: no task {task!r}; {did_you_mean(task, TASKS)}")
    kind, colon, rest = spec.partition(":")
    request = DataRequest(spec, rest, size, seed, held_out, channels, task, skip_broken)
    found = KINDS.get(kind)
    if found is not None and (rest or (found.named_alone and not colon)):
        return found.load(request)
    if found is None and ":" in spec and spec.rpartition(":")[2].isidentifier() and not _is_misspelt(kind):
        return factory.load(request)
    hint = did_you_mean(kind, KINDS, " ")
    raise RequestError(f"{spec}: names no data; give {FORMS}{f' ({hint})' if hint.strip() and not found else ''}")


def _is_misspelt(kind: str) -> bool:
    """Whether it is nearly the name of a kind, and of no module."""
    if not kind.isidentifier() or not did_you_mean(kind, KINDS, " ").strip():
        return False
    try:
        return find_spec(kind) is None
    except (ImportError, ValueError):
        return True
