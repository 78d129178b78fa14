"""What `apply` keeps besides the channels: dtypes, layouts, hooks, buffers, wrappers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

import torchslim
from helpers import random_statistics
from surgery.small import INPUTS, Small, small
from torchslim.surgery.plans import Plan


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_each_tensor_keeps_its_own_dtype(dtype: torch.dtype) -> None:
    """Mixed models too: half-precision convolutions between norms in float32."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval()
    model[0].to(dtype)
    plan = Plan(kept={"0.weight": {0: (1, 3)}, "0.bias": {0: (1, 3)}, **{
        f"1.{name}": {0: (1, 3)} for name in ("weight", "bias", "running_mean", "running_var")},
        "2.weight": {1: (1, 3)}}, readers=(("2.weight", 1),))
    slim = torchslim.apply(model, plan)
    assert {name: t.dtype for name, t in slim.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()}
    assert torch.equal(slim[0].weight, model[0].weight[[1, 3]])


@pytest.mark.parametrize(("layer", "layout"), [
    (nn.Conv2d(3, 8, 3), torch.channels_last), (nn.Conv3d(3, 8, 3), torch.channels_last_3d)], ids=["4d", "5d"])
def test_each_weight_keeps_its_own_memory_format(layer: nn.Module, layout: torch.memory_format) -> None:
    other = type(layer)(8, 4, 3)
    model = nn.Sequential(layer.to(memory_format=layout), nn.ReLU(), other)
    x = torch.randn(1, 3, *(8,) * (layer.weight.dim() - 2))
    slim = torchslim.apply(model, torchslim.plan(model, x, channels=0.5))
    assert slim[0].weight.is_contiguous(memory_format=layout)
    assert not slim[0].weight.is_contiguous()
    assert slim[2].weight.is_contiguous()


def test_pre_hooks_and_full_backward_hooks_fire_on_the_copy() -> None:
    model = small()
    called: list[tuple[str, nn.Module]] = []
    model.bn.register_forward_pre_hook(lambda module, _: called.append(("before", module)))
    model.bn.register_forward_hook(lambda module, *_: called.append(("after", module)))
    model.bn.register_forward_pre_hook(lambda module, _a, kwargs: called.append(("keywords", module)),
                                       with_kwargs=True, prepend=True)
    model.bn.register_full_backward_hook(lambda module, *_: called.append(("backward", module)))
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    called.clear()
    slim(INPUTS).sum().backward()
    assert [name for name, _ in called] == ["keywords", "before", "after", "backward"]
    assert {id(module) for _, module in called} == {id(slim.bn)}


class Watching(Small):
    """Hooks that are methods of the model: those of the copy belong to the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.bn.register_forward_hook(self.see)

    def see(self, *_: object) -> None:
        self.seen += 1


def test_hooks_that_are_methods_are_bound_to_the_copy() -> None:
    model = random_statistics(Watching()).eval()
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    model.seen = slim.seen = 0
    slim(INPUTS)
    assert (model.seen, slim.seen) == (0, 1)


def test_hooks_of_the_state_dict_are_kept() -> None:
    model = small()
    model.bn.register_state_dict_post_hook(lambda module, state, prefix, _: state.update({f"{prefix}note": len(state)}))
    model.bn.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: state.pop(f"{prefix}note"))
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    state = slim.state_dict()
    assert "bn.note" in state
    slim.load_state_dict(state)
    assert "bn.note" in slim.state_dict()


class Special(nn.Parameter):
    """A parameter of a kind of its own."""


def test_what_was_set_on_a_parameter_itself_is_not_carried_over() -> None:
    model, fired = small(), []
    model.stem.weight, model.head.bias = Special(model.stem.weight.data), Special(model.head.bias.data)
    for parameter in model.parameters():
        parameter.note = "ours"
        parameter.register_hook(lambda _: fired.append("hook"))
    model(INPUTS).sum().backward()
    slim = torchslim.apply(model, torchslim.plan(model, INPUTS, macs=0.5))
    assert all(p.grad is None and not hasattr(p, "note") for p in slim.parameters())
    assert type(slim.stem.weight) is nn.Parameter  # cut
    assert type(slim.head.bias) is Special  # whole
    fired.clear()
    slim(INPUTS).sum().backward()
    assert fired == []


class Buffered(Small):
    """A buffer by channel and one of its own size, neither of which is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.linspace(0.5, 1.5, 16).view(16, 1, 1), persistent=False)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.bn(self.stem(x)).relu() * self.gain).relu()) + self.table.sum()


def test_buffers_that_are_not_saved_are_cut_and_stay_so() -> None:
    model = random_statistics(Buffered()).eval()
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    slim = torchslim.apply(model, plan)
    assert plan.kept["gain"] == {0: plan.kept["stem.weight"][0]}
    assert torch.equal(slim.gain, model.gain[list(plan.kept["gain"][0])])
    assert torch.equal(slim.table, model.table)
    assert slim.table is not model.table
    assert slim.state_dict().keys() == model.state_dict().keys()
    assert slim._non_persistent_buffers_set == {"gain", "table"}
    assert torchslim.verify(model, slim, plan, INPUTS) < 1e-12


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_distributed_data_parallel_is_looked_through(tmp_path: Path) -> None:
    model = small()
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert torchslim.plan(wrapped, INPUTS, macs=0.5) == plan
        slim = torchslim.apply(wrapped, plan)
        assert type(slim) is Small
        assert torchslim.verify(wrapped, slim, plan, INPUTS) < 1e-12
        nn.parallel.DistributedDataParallel(slim)(INPUTS).sum().backward()
        assert all(p.grad is not None for p in slim.parameters())
    finally:
        distributed.destroy_process_group()


def test_parametrized_weights_keep_working() -> None:
    model = small()
    nn.utils.parametrizations.weight_norm(model.head)
    plan = torchslim.plan(model, INPUTS, macs=0.5)
    slim = torchslim.apply(model, plan)
    assert nn.utils.parametrize.is_parametrized(slim.head)
    assert torchslim.verify(model, slim, plan, INPUTS) < 1e-12
