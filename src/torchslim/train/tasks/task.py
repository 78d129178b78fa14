"""What a task asks of training: how items become a batch, the loss, the metrics, and what a constant answer reaches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import default_collate

from torchslim.train.losses import answer


@dataclass(frozen=True)
class Task(ABC):
    """A task. The targets of its items are described in `torchslim.utils.data.Data`.

    Attributes:
        classes: names of the classes, or of the predicted values; empty where they are not known.
        name: of the task.
        metric: the name of its main metric; higher is better.
        lr: highest learning rate of a training from scratch with `fit`'s defaults.
        returns_losses: whether the model is called with inputs and targets in train mode, and gives its losses.
    """

    classes: tuple[str, ...] = ()
    name: ClassVar[str]
    metric: ClassVar[str]
    lr: ClassVar[float] = 0.05
    returns_losses: ClassVar[bool] = False

    @property
    def model_options(self) -> dict[str, int]:
        """What a builder of models is given: as many outputs as the task needs."""
        return {"num_classes": len(self.classes)}

    def collate(self, items: Sequence[Any]) -> tuple[Any, Any]:
        """Items `(input, target)` as one batch `(inputs, targets)`."""
        inputs, targets = default_collate(list(items))
        return inputs, targets

    def losses(self, output: Any, targets: Any) -> Tensor:
        """The loss of each item, shape (batch,), with gradient.

        Args:
            output: what the model gives.
            targets: of the batch.
        """
        raise NotImplementedError(f"{self.name}: the model gives the losses")

    def loss(self, output: Any, targets: Any) -> Tensor:
        """The loss of a batch, a scalar: by default the mean over items, of all heads."""
        return self.losses(output, targets).mean()

    def distillation(self, output: Any, teacher_output: Any, temperature: float) -> Tensor:
        """Distance of a model's output from its teacher's, a scalar at the scale of the loss."""
        return (answer(output) - answer(teacher_output)).square().mean()

    @abstractmethod
    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """Fresh metrics of torchmetrics by their names, the main one first.

        Args:
            outputs: the number of classes or values that the model gives.
        """

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """Predictions and targets as the metrics take them."""
        return answer(output), targets

    def values(self, name: str, value: Any) -> dict[str, float]:
        """The values that the result of one of them gives, by name."""
        return {name: float(value)}

    @abstractmethod
    def constant_score(self, targets: Sequence[Any]) -> float:
        """The main metric of the best answer that is the same for all inputs."""

    @abstractmethod
    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """What is wrong with an item's target: "found, wanted; remedy"; empty if nothing is.

        Args:
            target: of an item.
            shape: of its input.
        """

    @abstractmethod
    def output_fault(self, output: Any, shape: Sequence[int]) -> str:
        """What is wrong with a model's output for one input, likewise.

        Args:
            output: what the model gives.
            shape: of the input, without the batch.
        """

    def model_fault(self, model: Any) -> str:
        """What is wrong with a model, whatever it gives, likewise."""
        return ""

    def example(self, shape: Sequence[int], generator: torch.Generator) -> Any:
        """A random input of the model, a batch of one."""
        return torch.randn(1, *shape, generator=generator)
