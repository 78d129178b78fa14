"""Batch norms with the statistics of given batches.

Many channels that are active on other images are inactive on a few, and would seem unimportant. In the recalibrated
copy every channel has the mean and variance after its norm that it has in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.compensation.layerwise import call_counts, has_running_statistics, visit_in_order
from torchslim.compensation.moments import ChannelStatistics
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import Inputs


@torch.no_grad()
def recalibrated(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """A copy whose batch norms have the statistics of these batches, set in call order.

    A norm that runs several times, or not at all, is not changed.

    Raises:
        RequestError: the model fails on a batch.
        TraceError: it runs different norms on different ones.
    """
    copy = copy_model(model)
    norms = [name for name, module in copy.named_modules() if has_running_statistics(module)]
    calls = call_counts(copy, norms, batches[0])

    def set_statistics(name: str, inputs: list[Tensor]) -> None:
        norm: Any = copy.get_submodule(name)
        statistics = ChannelStatistics()
        for x in inputs:
            statistics.add(x)
        if statistics.count > 1:
            mean, var = statistics.moments
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)

    visit_in_order([copy], [name for name, count in calls.items() if count == 1], batches, set_statistics)
    return copy
