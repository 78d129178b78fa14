"""Criteria by name: "l2", or with one option "l2:max"."""

from __future__ import annotations

from collections.abc import Callable

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.activations import Activation
from torchslim.importance.automatic import Automatic
from torchslim.importance.criterion import ByGroup, Criterion, Random
from torchslim.importance.loss_based import Hessian, Taylor
from torchslim.importance.obs.criterion import OBS
from torchslim.importance.weights import FPGM, L1, L2, LAMP, BNScale
from torchslim.utils.text import did_you_mean

Importance = str | Criterion | Callable[[ChannelGroup], object]
"""Types of `plan`'s `importance`."""

CRITERIA: dict[str, type[Criterion]] = {
    kind.name: kind for kind in (Activation, Automatic, BNScale, FPGM, Hessian, L1, L2, LAMP, OBS, Random, Taylor)}


def criterion(importance: Importance) -> Criterion:
    """The criterion of a name, an instance or a function.

    Raises:
        RequestError: an unknown name or option, or another type.
    """
    if isinstance(importance, Criterion):
        return importance
    if isinstance(importance, type) and issubclass(importance, Criterion):
        raise RequestError(f"importance: {importance.__name__} is a class; give an instance, {importance.__name__}()")
    if callable(importance):
        return ByGroup(importance)
    name, colon, word = str(importance).partition(":")
    if not isinstance(importance, str) or name not in CRITERIA:
        hint = did_you_mean(name, CRITERIA, f"wanted one of {', '.join(sorted(CRITERIA))}, or a callable(group)")
        raise RequestError(f"importance: unknown criterion {importance!r}; {hint}")
    kind = CRITERIA[name]
    options = {option: field for field, known in kind.all_choices().items() for option in known}
    if colon and word not in options:
        raise RequestError(f"importance: {importance!r}: unknown option {word!r}; after {name}: wanted "
                           + (f"one of {', '.join(options)}; for several give an instance, "
                              f"torchslim.importance.{kind.__name__}()" if options else "none"))
    return kind(**({options[word]: word} if colon else {}))  # type: ignore[arg-type]
