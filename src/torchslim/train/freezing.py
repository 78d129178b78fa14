"""Parts of a model that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.errors import RequestError
from torchslim.utils.modules import named_modules
from torchslim.utils.patterns import all_match
from torchslim.utils.text import quoted


@contextmanager
def frozen(model: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Parameters whose names match have no gradient inside.

    Raises:
        RequestError: a pattern that no parameter's name matches.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        if not any(all_match([name], [pattern]) for name, _ in named):
            first = named[0][0].partition(".")[0] if named else "backbone"
            raise RequestError(f"fit: freeze: {quoted(pattern)} matches no parameter; wanted a pattern of their names, "
                               f"such as '{first}.*'")
    changed = [tensor for name, tensor in named if tensor.requires_grad and all_match([name], patterns)]
    try:
        for tensor in changed:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor in changed:
            tensor.requires_grad_(True)


def freeze_statistics(model: nn.Module, patterns: Sequence[str]) -> None:
    """Put batch norms into eval mode whose names, or those of all of their parameters, match."""
    for name, module in named_modules(model) if patterns else ():
        if isinstance(module, _BatchNorm):
            own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
            if all_match([name], patterns) or (own and all_match(own, patterns)):
                module.training = False
