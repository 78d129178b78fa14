"""Constants of removed channels go into the biases of what reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchslim.planning.dead.liveness import Fold
from torchslim.utils.copying import copy_model
from torchslim.utils.modules import tensors_of


def folded(model: nn.Module, folds: Sequence[Fold]) -> nn.Module:
    """A copy of a model whose biases have taken what the removed channels contribute."""
    copy = copy_model(model)
    state = tensors_of(copy)
    with torch.no_grad():
        for fold in folds:
            tensor = state[fold.name]
            tensor.copy_(tensor.double() + torch.from_numpy(fold.added).to(tensor.device))
    return copy
