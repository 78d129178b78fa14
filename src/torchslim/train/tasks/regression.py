"""Regression: some numbers an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from torchslim.train.losses import answer, over_heads
from torchslim.train.tasks.classification import scores_fault
from torchslim.train.tasks.task import Task
from torchslim.utils.data import describe


@dataclass(frozen=True)
class Regression(Task):
    """Some values an item, by squared errors; `classes` are their names.

    The main metric is the coefficient of determination: 1 for a faultless model, 0 for the means of the values.
    """

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "R2"
    lr: ClassVar[float] = 0.02

    def losses(self, output: Any, targets: Any) -> Tensor:
        """See `Task`."""
        return over_heads(lambda values, wanted: (values.flatten(1) - wanted.flatten(1)).square().mean(dim=1), output,
                          targets)

    def build_metrics(self, outputs: int) -> Mapping[str, Any]:
        """See `Task`."""
        from torchmetrics import MeanAbsoluteError, R2Score

        return {"R2": R2Score(), "MAE": MeanAbsoluteError()}

    def prepared(self, output: Any, targets: Any) -> tuple[Any, Any]:
        """See `Task`."""
        values, wanted = answer(output).flatten(1), targets.flatten(1)
        return values.squeeze(1).contiguous(), wanted.squeeze(1).contiguous()

    def constant_score(self, targets: Sequence[Any]) -> float:
        """See `Task`: that of the means, 0."""
        return 0.0

    def target_fault(self, target: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        if not isinstance(target, Tensor) or target.numel() != len(self.classes) or not target.is_floating_point():
            return f"has the target {describe(target)}, wanted a float tensor of {len(self.classes)}, one a value"
        return "" if bool(target.isfinite().all()) else "has a target that is not finite, wanted numbers"

    def output_fault(self, output: Any, shape: Sequence[int]) -> str:
        """See `Task`."""
        return scores_fault(answer(output).flatten(1), len(self.classes), "values", exactly=True)
