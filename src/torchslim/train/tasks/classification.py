"""Classification: one class an image, or any number of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torchslim.train.losses import answer, cross_entropy, distillation, over_heads
from torchslim.train.tasks.task import Task
from torchslim.utils.data import describe
from torchslim.utils.text import format_shape


@dataclass(frozen=True)
class Classification(Task):
    """One class an item, by cross entropy; targets are class indices.

    Attributes:
        label_smoothing: of the cross entropy.
        class_weights: of the cross entropy; empty for 1 each.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"

    def losses(self, output: Any, targets: Any) -> Tensor:
        """See `Task`; each of weight 1."""
        return over_heads(partial(F.cross_entropy, label_smoothing=self.label_smoothing, reduction="none"), output,
                          targets)

    def loss(self, output: Any, targets: Any) -> Tensor:
        """See `Task`; with weights the weighted mean, as in torch."""
        return cross_entropy(self.label_smoothing, self.class_weights)(output, targets)

    def distillation(self, output: Any, teacher_output: Any, temperature: float) -> Tensor:
        """See `Task`."""
        return distillation(output, teacher_output, temperature)

    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """See `Task`."""
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        return {"accuracy": MulticlassAccuracy(outputs, average="micro"), "F1": MulticlassF1Score(outputs)}

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """See `Task`; of soft labels, the likeliest class."""
        return answer(output), targets.argmax(1) if targets.is_floating_point() else targets

    def constant_score(self, targets: Sequence[Any]) -> float:
        """See `Task`: the share of the most frequent class."""
        return Counter(int(target) for target in targets).most_common(1)[0][1] / len(targets)

    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        try:
            index = int(target)
        except (TypeError, ValueError):
            return f"has the target {describe(target)}, wanted a class index"
        if not 0 <= index < len(self.classes):
            return f"is of class {index}, wanted 0 to {len(self.classes) - 1}; number the classes from 0"
        return ""

    def output_fault(self, output: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        return scores_fault(answer(output), len(self.classes), "classes")


@dataclass(frozen=True)
class Multilabel(Task):
    """Any number of classes an item, by binary cross entropy; targets are vectors of 0 and 1."""

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[str] = "F1"

    def losses(self, output: Any, targets: Any) -> Tensor:
        """See `Task`."""
        return over_heads(lambda scores, labels: F.binary_cross_entropy_with_logits(
            scores, labels, reduction="none").mean(dim=1), output, targets)

    def distillation(self, output: Any, teacher_output: Any, temperature: float) -> Tensor:
        """See `Task`: binary cross entropy toward the teacher's softened probabilities."""
        teacher = torch.sigmoid(answer(teacher_output) / temperature)
        return temperature**2 * F.binary_cross_entropy_with_logits(answer(output) / temperature, teacher)

    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """See `Task`."""
        from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

        return {"F1": MultilabelF1Score(outputs), "accuracy": MultilabelAccuracy(outputs, average="micro")}

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """See `Task`."""
        return torch.sigmoid(answer(output)), targets.long()

    def constant_score(self, targets: Sequence[Any]) -> float:
        """See `Task`: naming every class gives 2 p / (1 + p) for a class with the share p of items."""
        shares = torch.stack([torch.as_tensor(target).double() for target in targets]).mean(dim=0)
        return float((2 * shares / (1 + shares)).mean())

    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        if not isinstance(target, Tensor) or target.shape != (len(self.classes),) or not target.is_floating_point():
            return f"has the target {describe(target)}, wanted a float tensor of {len(self.classes)}, one a class"
        if not bool(((target == 0) | (target == 1)).all()):
            return f"has a target with {float(target[(target != 0) & (target != 1)][0]):g}, wanted 0 and 1 only"
        return ""

    def output_fault(self, output: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        return scores_fault(answer(output), len(self.classes), "classes", exactly=True)


def scores_fault(scores: Tensor, wanted: int, what: str, exactly: bool = False) -> str:
    """What is wrong with the scores of one item, which should be (1, wanted); empty if nothing is."""
    fits = scores.ndim == 2 and (scores.shape[1] == wanted if exactly else scores.shape[1] >= wanted)
    return "" if fits else (f"gives scores of shape {format_shape(scores.shape)} for a picture, {{data}} has {wanted} "
                            f"{what}; give a model of as many")
