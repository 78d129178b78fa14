"""Which of a model's outputs matter: an index, a key, several of them, or a function of the output."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from torchslim.errors import RequestError
from torchslim.utils.inputs import tensors_in

Outputs = int | str | Sequence[int | str] | Callable[[Any], Any] | None
"""None: all of them. An index of a tuple or list, a key of a mapping or an attribute, a sequence of these, or a
function that is given the output and returns the part that matters."""

_WANTED = ("wanted an index such as 0, a key such as 'out', a sequence of these, or a function of the output that "
           "returns a part of it")


def check_outputs(outputs: Outputs) -> None:
    """Refuse what selects no outputs.

    Raises:
        RequestError: it is none of the above.
    """
    parts = outputs if isinstance(outputs, list | tuple) else [outputs]
    if outputs is None or callable(outputs) or (parts and all(
            isinstance(part, int | str) and not isinstance(part, bool) for part in parts)):
        return
    raise RequestError(f"outputs: got {outputs!r}; {_WANTED}")


def ignored_outputs(output: Any, outputs: Outputs) -> frozenset[int]:
    """The places of the tensors that do not matter, among all in the output in their order.

    Args:
        output: what the model returned.
        outputs: which of it matters.

    Raises:
        RequestError: the output has no such part, or the part holds none of its tensors.
    """
    if outputs is None:
        return frozenset()
    wanted = {id(tensor) for tensor in tensors_in(_selected(output, outputs))}
    places = [(place, id(tensor) in wanted) for place, tensor in enumerate(tensors_in(output))]
    if not any(matters for _, matters in places):
        selection = "the function" if callable(outputs) else repr(outputs)
        raise RequestError(f"outputs: {selection} selects none of the {len(places)} tensors that the model returns; "
                           f"{_WANTED}")
    return frozenset(place for place, matters in places if not matters)


def structure(output: Any) -> Hashable:
    """The nest of containers around the tensors of an output: equal where the same tensors are at the same places."""
    if isinstance(output, Tensor):
        return "tensor"
    if isinstance(output, Mapping):
        return "mapping", tuple((key, structure(item)) for key, item in output.items())
    if isinstance(output, list | tuple):
        return "sequence", tuple(map(structure, output))
    return type(output).__name__, tuple(map(structure, tensors_in(output)))


def _selected(output: Any, outputs: Outputs) -> Any:
    if callable(outputs):
        try:
            return outputs(output)
        except Exception as error:
            raise RequestError(f"outputs: the function failed on the model's output, {_described(output)}: "
                               f"{type(error).__name__}: {error}") from error
    if isinstance(outputs, list | tuple):
        return [_selected(output, part) for part in outputs]
    try:
        if isinstance(outputs, str) and not isinstance(output, Mapping):
            return getattr(output, outputs)
        if not isinstance(output, Mapping | list | tuple):
            raise TypeError
        return output[outputs]  # type: ignore[index]
    except (LookupError, TypeError, AttributeError):
        raise RequestError(f"outputs: {outputs!r} is no part of the model's output, {_described(output)}; "
                           f"{_WANTED}") from None


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, output))}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    if is_dataclass(output):
        return f"a {type(output).__name__} with the fields {', '.join(field.name for field in fields(output))}"
    return f"a {type(output).__name__}"
