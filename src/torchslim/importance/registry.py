"""Criteria by name: "l2", or with options "l2:max"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.activations import Activation
from torchslim.importance.criterion import ByGroup, Criterion, Random
from torchslim.importance.loss_based import Hessian, Taylor
from torchslim.importance.obs.criterion import OBS
from torchslim.importance.weights import FPGM, L1, L2, LAMP, BNScale

Importance = str | Criterion | Callable[[ChannelGroup], object]
"""How `plan` is told what ranks the channels."""

CRITERIA: dict[str, type[Criterion]] = {
    kind.name: kind for kind in (Activation, BNScale, FPGM, Hessian, L1, L2, LAMP, OBS, Random, Taylor)}


def criterion(importance: Importance) -> Criterion:
    """The criterion that is meant: a name's, the instance itself, or a function's.

    Raises:
        RequestError: an unknown name or option, or something else altogether.
    """
    if isinstance(importance, Criterion):
        return importance
    if isinstance(importance, type) and issubclass(importance, Criterion):
        raise RequestError(f"importance: {importance.__name__} is a class; give an instance, {importance.__name__}()")
    if callable(importance):
        return ByGroup(importance)
    name, *words = str(importance).split(":")
    if not isinstance(importance, str) or name not in CRITERIA:
        raise RequestError(f"importance: unknown criterion {importance!r}; wanted one of "
                           f"{', '.join(sorted(CRITERIA))}, or a callable(group)")
    kind, options = CRITERIA[name], dict[str, Any]()
    for word in words:
        places = [field for field, known in kind.all_choices().items() if word in known and field not in options]
        if not places:
            known = [option for field, known in kind.all_choices().items() if field not in options for option in known]
            raise RequestError(f"importance: {importance!r}: unknown option {word!r}; after {name}: wanted "
                               f"{', '.join(known) or 'nothing more'}")
        options[places[0]] = word
    return kind(**options)
