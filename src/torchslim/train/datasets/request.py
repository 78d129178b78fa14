"""What is asked of a kind of data."""

from __future__ import annotations

from dataclasses import dataclass

from torchslim.errors import RequestError


@dataclass(frozen=True)
class DataRequest:
    """A specification, and what `load_data` was given with it.

    Attributes:
        spec: the whole specification, for messages.
        rest: what stands behind the kind and a colon.
        size: height and width in pixels; None for the kind's own.
        seed: of the split.
        held_out: share that is held out where the data has no split.
        channels: 1, 3 or None; anything for a factory.
        task: what must be predicted; None for what the data says.
        skip_broken: share of the pictures that may be left out as they can't be read.
    """

    spec: str
    rest: str
    size: int | None
    seed: int
    held_out: float
    channels: int | None
    task: str | None
    skip_broken: float = 0.0

    def error(self, problem: str) -> RequestError:
        """A message that begins with the specification."""
        return RequestError(f"{self.spec}: {problem}")

    @property
    def colours(self) -> int:
        """1 for grey, 3 for colour.

        Raises:
            RequestError: another number was asked for.
        """
        if self.channels not in (None, 1, 3):
            raise self.error(f"has no pictures of {self.channels} channels, 1 (grey) or 3 (colour) wanted; for others "
                             "write a function that returns two datasets and give file.py:function")
        return self.channels or 3

    def check_task(self, *found: str) -> str:
        """The task: the first that the data allows, or the one asked for.

        Raises:
            RequestError: the data is of another task.
        """
        if self.task is not None and self.task not in found:
            raise self.error(f"is data for {' or '.join(found)}, task={self.task!r} asked for; leave task out, or give "
                             f"data for {self.task}")
        return self.task or found[0]
