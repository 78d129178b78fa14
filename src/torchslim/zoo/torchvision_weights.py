"""State dicts of torchvision's networks, converted to the tensor names here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from torch import Tensor, nn

from torchslim.errors import RequestError


def from_torchvision(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of torchvision's network of the same layers, for `model.load_state_dict`.

    Both have their tensors in call order, and branches in order of concatenation: the n-th tensors correspond. Each
    pair is checked for equal role (weight, bias, running_mean, ...) and shape.

    Args:
        model: one of the zoo's networks, such as `mobilenet_v2()`; not changed.
        state: the state dict of torchvision's counterpart.

    Returns:
        The same tensors under the model's names.

    Raises:
        RequestError: not a state dict, or another network's; the message names the first tensor that differs.
    """
    if not isinstance(state, Mapping):
        raise RequestError(f"{type(model).__name__}: a {type(state).__name__} found, the state dict of torchvision's "
                           "network wanted; give theirs.state_dict()")
    own_state = model.state_dict()
    for ours, theirs in zip_longest(own_state, state):
        if ours is None or theirs is None or _role_and_shape(ours, own_state) != _role_and_shape(theirs, state):
            raise RequestError(f"{type(model).__name__}: {_describe(theirs, state)} found for "
                               f"{_describe(ours, own_state)}, the state of torchvision's network of the same layers "
                               "wanted; check width and num_classes")
    return dict(zip(own_state, state.values(), strict=True))


def _role_and_shape(name: str, state: Mapping[str, Tensor]) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(state[name].shape)


def _describe(name: str | None, state: Mapping[str, Tensor]) -> str:
    return "nothing" if name is None else f"{name} {'x'.join(map(str, state[name].shape)) or 'of no dimension'}"
