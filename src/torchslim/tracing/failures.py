"""What is said when a run gives no graph."""

from __future__ import annotations

import re

from torch import nn

from torchslim.errors import TraceError, UnsupportedModel
from torchslim.utils.inputs import wrapped_network

_HIGHER_ORDER = re.compile(r"(?:HigherOrderOperator|HOP) (\w+)")


def trace_failure(error: Exception | None, module: str, needs_data: str, model: nn.Module) -> TraceError:
    """Why a run gave no graph.

    Args:
        error: what ended the run; None if it reached its end.
        module: the qualified name of the module that was running.
        needs_data: what can't be done on shapes alone, if the run was made on these.
        model: the network that was run.

    Raises:
        UnsupportedModel: `error` itself, if it is one: no other run would do better.
    """
    if isinstance(error, UnsupportedModel):
        raise error
    failure = TraceError(f"`{module or 'model'}` {_reason(error, module, needs_data, model)}")
    failure.__cause__ = error
    return failure


def _reason(error: Exception | None, module: str, needs_data: str, model: nn.Module) -> str:
    if needs_data:
        return (f"can't be run on shapes alone: {needs_data}; give a model and inputs with data, on another device "
                "than meta")
    operator = _HIGHER_ORDER.search(str(error)) if isinstance(error, NotImplementedError) else None
    if operator:
        return (f"calls the higher-order operator `{operator[1]}`, whose branches no run shows; give a model with "
                "plain Python control flow in its place (`if`, `for`)")
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    inner = "" if module else wrapped_network(model)
    return (f"failed while the model was run on the given inputs: {type(error).__name__}: {message}; check the inputs' "
            "shapes, dtype and device with a plain call of the model"
            f"{f', or give its `.{inner}` if it wraps a network' if inner else ''}")
