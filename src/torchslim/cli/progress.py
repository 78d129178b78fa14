"""Progress of `slim` on stderr: lines for files and pipes, bars for terminals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchslim.cli.output import say

if TYPE_CHECKING:
    from torchslim.pipeline.runner import PhaseEvent


class ProgressLines:
    """A line when a phase begins or ends, and one for each epoch."""

    def __init__(self) -> None:
        self._start = 0.0

    def __call__(self, event: PhaseEvent) -> None:
        """Print an event."""
        head = f"[{event.number}/{event.phases}] {event.phase.name}"
        if event.kind == "begin":
            self._start = time.monotonic()
            say(f"{head}: {event.phase.title}")
        elif event.kind == "skip":
            say(f"{head}: done before")
        elif event.kind == "epoch":
            say(f"{head}: {event.text}{self._remaining(event.done)}")
        elif event.kind == "end":
            seconds = f"{time.monotonic() - self._start:.1f} s"
            say(f"{head}: {', '.join(filter(None, (event.text, seconds)))}")

    def _remaining(self, done: float) -> str:
        if not 0 < done < 1:
            return ""
        return f", {(time.monotonic() - self._start) * (1 - done) / done:.0f} s left"


class ProgressBars:
    """A bar for each phase, with the time that remains."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:<12}"), BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[text]}", markup=False), console=Console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[PhaseEvent], None]:
        self._progress.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _update(self, event: PhaseEvent) -> None:
        name = event.phase.name
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{event.number}/{event.phases} {name}", total=1.0, text="")
        text = "done before" if event.kind == "skip" else event.text or event.phase.title
        self._progress.update(self._tasks[name], completed=event.done, text=text)
