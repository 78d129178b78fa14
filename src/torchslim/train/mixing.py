"""Mixed pictures: MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019), for classification."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchslim.errors import RequestError
from torchslim.train.checking import check_fields
from torchslim.utils.data import describe

Mix = Callable[[Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Mixing:
    """Pictures of a batch mixed with each other, and their classes likewise; by torchvision's transforms.

    Attributes:
        mixup: parameter of the Beta distribution of the shares of two pictures; 0 for none.
        cutmix: that of the areas that are exchanged; 0 for none. With both, each batch gets one of them by chance.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, {name: (0 <= getattr(self, name) < math.inf, "0 or more; try 0.2")
                            for name in ("mixup", "cutmix")})

    def build(self, classes: int) -> Mix | None:
        """What mixes a batch `(inputs, targets)` by torch's random generator; None where nothing is mixed."""
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        transforms = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        if not transforms:
            return None
        chosen = v2.RandomChoice(transforms)

        def mix(inputs: Any, targets: Any) -> tuple[Any, Any]:
            tensors = isinstance(inputs, Tensor) and isinstance(targets, Tensor)
            if not tensors or inputs.ndim != 4 or targets.ndim != 1 or targets.is_floating_point():
                raise RequestError(f"fit: mixup and cutmix need a tensor of pictures and one of class indices, a batch "
                                   f"is {describe(inputs)} and {describe(targets)}; leave them out")
            mixed: tuple[Any, Any] = chosen(inputs, targets)
            return mixed

        return mix
