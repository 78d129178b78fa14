"""What a training tells: its curves, and where it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class History:
    """A training's curves.

    Attributes:
        loss: the mean loss of each epoch, without the penalty on scales.
        score: the task's main metric on held-out data after each epoch, such as the accuracy, 0 to 1; empty without
            held-out data.
        metric: its name.
    """

    loss: tuple[float, ...] = ()
    score: tuple[float, ...] = ()
    metric: str = ""

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The scores where they are accuracies; empty otherwise."""
        return self.score if self.metric == "accuracy" else ()


@dataclass(frozen=True)
class Progress:
    """Progress of a training: sent after every step, and once more at the end of an epoch.

    Attributes:
        epoch: the epoch, from 1.
        epochs: number of epochs.
        step: steps done in this epoch.
        steps: steps of this epoch; None for data of unknown length.
        loss: mean loss of the epoch so far, without the penalty on scales.
        score: the main metric on held-out data; None before the end of the epoch, and without held-out data.
        metric: its name, such as "accuracy".
        finished: whether the epoch is done and its checkpoint, if any, written.
    """

    epoch: int
    epochs: int
    step: int
    steps: int | None
    loss: float
    score: float | None = None
    metric: str = ""
    finished: bool = False
