"""Where a model is."""

import torch
from torch import nn

from torchslim.utils.modules import device_of


def test_a_model_is_where_its_first_tensor_is() -> None:
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    buffered = nn.Module()
    buffered.register_buffer("mean", torch.empty(2, device="meta"))
    assert device_of(buffered).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"
