"""Every error the library raises on purpose.

    TorchslimError
    ├── RequestError            the request was wrong: an unknown name, a bad value, a missing file (exit status 2)
    │   ├── MissingExtra        an optional package is needed and not installed
    │   ├── UnsupportedModel    a model of a kind that is refused by name (scripted, quantised, ...)
    │   ├── TraceError          the model failed on the given inputs while it was being traced
    │   ├── ForeignFileError    a file that was given as a saved model is none (a CheckpointError, too)
    │   └── BudgetError         no cut meets a budget; it has the nearest that can be met (a PlanError, too)
    ├── PlanError               no plan meets the request, or a plan does not fit the model
    ├── ProofError              a cut network does not equal its silenced original
    ├── CheckpointError         a file is not what it should be (corrupt, cut short, made for another model), or
    │                           can't be written
    ├── ExportError             an exported model could not be written or disagrees with the eager one
    └── TrainingError           training went wrong: a loss that is not a number, no data

A message says where, what was found, what was wanted and what to try, in one line.
"""


from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TorchslimError(Exception):
    """Base of every error raised on purpose."""


class RequestError(TorchslimError, ValueError):
    """The request was wrong."""


class MissingExtra(RequestError, ImportError):
    """An optional package is needed for this and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}, which is not installed: "
                         f"pip install 'torchslim[{extra}]'")


class UnsupportedModel(RequestError, TypeError):
    """A model of a kind that torchslim refuses by name."""


class TraceError(RequestError, RuntimeError):
    """The model failed while it was traced; `ops` had run by then, and `failed_args` is what the next one was given."""

    ops: tuple[Any, ...] = ()
    failed_args: tuple[Any, ...] = ()


class PlanError(TorchslimError):
    """No plan meets the request, or a plan does not fit the model."""


class BudgetError(RequestError, PlanError):
    """No cut meets a budget; `nearest` has those that can be met.

    Attributes:
        nearest: by each resource that was asked for ("macs", ...) the share that `plan` can keep: as asked for where
            that can be met, else the least. `plan(model, inputs, **error.nearest)` meets them all at once.
        counts: the same as counts; times in nanoseconds.
    """

    def __init__(self, message: str, nearest: Mapping[str, float], counts: Mapping[str, int]) -> None:
        super().__init__(message)
        self.nearest, self.counts = dict(nearest), dict(counts)


class ProofError(TorchslimError, ArithmeticError):
    """A cut network does not equal its silenced original."""


class CheckpointError(TorchslimError):
    """A file is not what it should be, or can't be written."""


class ForeignFileError(RequestError, CheckpointError):
    """A file that was given as a saved model is none."""


class ExportError(TorchslimError):
    """An exported model could not be written or disagrees with the eager one."""


class TrainingError(TorchslimError, RuntimeError):
    """Training went wrong.

    Attributes:
        best: after `distill`, the best network before; else None.
    """

    best: Any = None


class TorchslimWarning(UserWarning):
    """Something the caller should know and that is no error."""
