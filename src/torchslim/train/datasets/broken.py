"""Pictures that can't be read: refused by name at the start, or left out up to a share of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchslim.errors import RequestError
from torchslim.train.datasets.files import warn_once
from torchslim.train.datasets.items import Sample, split
from torchslim.train.datasets.pictures import Size, UnreadablePicture, as_channels, check_picture, read_with
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.text import first_names

_CHECK_AT_ONCE = 50_000  # headers of up to so many pictures are checked first: a few seconds
_NAMED = 3  # pictures of a message
_PARTS = ("train", "test")

Stored = tuple[Path, bytes | None]
"""A file and None, or what stands for one in messages and its bytes."""
Look = Callable[[Sample], object]
"""Reads what a sample names, and raises `UnreadablePicture` if it can't be read."""


def usable(request: DataRequest, task: str, train: Sequence[Sample], test: Sequence[Sample] | None, look: Look, *,
           classes: Sequence[str] = (), labels: Callable[[Any], Iterable[int]] | None = None,
           ) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on and to test on, held out if there are none, without broken ones if these may be left out.

    Which samples are held out does not depend on which are broken: of data that is mended the same ones are.

    Args:
        request: of the data.
        task: what is predicted.
        train, test: all samples.
        look: at a sample; it reads a picture whole if `request.skip_broken` is above 0, else its header.
        classes: their names.
        labels: the indices of a target's classes; by default those of a classification and of several labels.

    Raises:
        RequestError: pictures can't be read, more of them than may be left out, or all of a class or of a part.
    """
    if test is None:
        train, test = split(request, task, train)
    count = len(train) + len(test)
    if count > _CHECK_AT_ONCE and not request.skip_broken:
        return list(train), list(test)
    parts = [_look_at(part, look) for part in (train, test)]
    broken = [error for part in parts for error in part.broken]
    if not broken:
        return list(train), list(test)
    if len(broken) > request.skip_broken * count:
        raise _refusal(request, broken, count)
    for name, part in zip(_PARTS, parts, strict=True):
        _check_left(request, name, part, classes, labels or (lambda target: _labels(task, target)))
    warn_once(f"{request.spec}: {len(broken)} of {count} pictures ({_percent(len(broken), count)}) left out, as they "
              f"can't be read: {_named(request, broken)}", Path(request.rest))
    return parts[0].kept, parts[1].kept


def picture_look(request: DataRequest, files: Callable[[Sample], Iterable[Stored]] = lambda sample: [(sample[0], None)],
                 check_sizes: Callable[[Sample, list[Size]], object] = lambda sample, sizes: None) -> Look:
    """What looks at the picture files of a sample.

    Args:
        request: of the data.
        files: of a sample; by default its first part alone.
        check_sizes: of a sample by the widths and heights of its files, upright.
    """
    def size(path: Path, content: bytes | None) -> Size:
        if request.skip_broken:
            return read_with(path, lambda picture: as_channels(picture, request.colours).size, content)
        return check_picture(path, content)

    def look(sample: Sample) -> None:
        check_sizes(sample, [size(path, content) for path, content in files(sample)])

    return look


def picture_sizes(paths: Sequence[Path]) -> list[Size | None]:
    """Widths and heights of pictures, upright; None for broken ones, and for all of too many to look at first."""
    return [None] * len(paths) if len(paths) > _CHECK_AT_ONCE else [_size(path) for path in paths]


def _size(path: Path) -> Size | None:
    try:
        return check_picture(path)
    except UnreadablePicture:
        return None


@dataclass(frozen=True)
class _Part:
    kept: list[Sample]
    lost: list[Sample]
    broken: list[UnreadablePicture]


def _look_at(samples: Sequence[Sample], look: Look) -> _Part:
    part = _Part([], [], [])
    for sample in samples:
        try:
            look(sample)
        except UnreadablePicture as error:
            part.lost.append(sample)
            part.broken.append(error)
        else:
            part.kept.append(sample)
    return part


def _labels(task: str, target: Any) -> Iterable[int]:
    if task == "classification" and target is not None:
        return (target,)
    return target.nonzero().flatten().tolist() if task == "multilabel" else ()


def _check_left(request: DataRequest, name: str, part: _Part, classes: Sequence[str],
                labels: Callable[[Any], Iterable[int]]) -> None:
    """Refuse a part, or a class of it, of which nothing is left."""
    if part.lost and not part.kept:
        raise request.error(f"all {len(part.lost)} pictures to {name} on can't be read: "
                            f"{_named(request, part.broken)}; replace them")
    left = {label for _, target in part.kept for label in labels(target)}
    gone = {label: error for (_, target), error in zip(part.lost, part.broken, strict=True) for label in labels(target)
            if label not in left}
    if gone:
        names = [classes[label] if label < len(classes) else str(label) for label in sorted(gone)]
        raise request.error(f"no picture to {name} on is left of {first_names(names)}: "
                            f"{_named(request, list(dict.fromkeys(gone.values())))}; replace them, or take the class "
                            "away")


# --- words ----------------------------------------------------------------------------------------------------------

def _refusal(request: DataRequest, broken: list[UnreadablePicture], count: int) -> RequestError:
    if request.skip_broken:
        return request.error(f"{len(broken)} of {count} pictures ({_percent(len(broken), count)}) can't be read, more "
                             f"than skip_broken={request.skip_broken:g} allows: {_named(request, broken)}; "
                             "replace them, take them away, or allow more")
    if len(broken) == 1:
        return RequestError(f"{broken[0]}, or leave it out with skip_broken=0.01")
    return RequestError(f"{len(broken)} of {count} pictures can't be read: {_named(request, broken)}; replace them "
                        "or take them away, or leave them out up to a share with skip_broken=0.01")


def _named(request: DataRequest, broken: Sequence[UnreadablePicture]) -> str:
    told = (f"{error.where.removeprefix(f'{request.spec}, ')} ({error.reason})" for error in broken)
    return first_names(list(told), _NAMED)


def _percent(part: int, count: int) -> str:
    return f"{100 * part / count:.2g}%"
