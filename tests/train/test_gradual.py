"""Gradual pruning: the schedule, cuts while training goes on, momenta that go on, interruption."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchslim as ts
from helpers import count, counted_macs
from torchslim.errors import CheckpointError, RequestError
from torchslim.planning.schedules import CURVES, shares
from torchslim.train import GradualResult, Progress, fit, fit_gradually
from torchslim.train.sparsity import Slimming

X = torch.zeros(1, 3, 8, 8)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(16, 3))


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(12) % 3
    return [(torch.randn(12, 3, 8, 8, generator=generator) * 0.5 + targets[:, None, None, None] - 1, targets)
            for _ in range(count)]


def train(model: nn.Module | None = None, **options: Any) -> GradualResult:
    return fit_gradually(net() if model is None else model, batches(), X, **{
        "macs": 0.4, "epochs": 6, "lr": 0.02, "steps": 3, "every": 1, "begin": 1, **options})


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- the schedule -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("curve", "wanted"), [
    # final + (1 - final) (1 - k / 4)^3, by hand
    ("cubic", [0.2 + 0.8 * 0.421875, 0.2 + 0.8 * 0.125, 0.2 + 0.8 * 0.015625, 0.2]),
    ("linear", [0.8, 0.6, 0.4, 0.2]),
    ("geometric", [0.668740304976422, 0.4472135954999579, 0.29906975624424414, 0.2]),
])
def test_shares_by_hand(curve: str, wanted: list[float]) -> None:
    assert shares(4, 0.2, curve) == pytest.approx(wanted, rel=1e-12)


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.sampled_from(sorted(CURVES)))
def test_shares_fall_to_the_final_one(steps: int, final: float, curve: str) -> None:
    found = shares(steps, final, curve)
    assert len(found) == steps
    assert found[-1] == final
    assert all(before >= after - 1e-12 for before, after in pairwise([1.0, *found]))
    if curve == "geometric":
        ratios = [after / before for before, after in pairwise([1.0, *found])]
        assert ratios == pytest.approx([ratios[0]] * steps, rel=1e-9)


@pytest.mark.parametrize(("options", "message"), [
    ((0, 0.5), "steps: got 0, wanted an int"), ((1.5, 0.5), r"steps: got 1\.5"), ((True, 0.5), "steps: got True"),
    ((3, 0.0), r"final: got 0\.0, wanted the share"), ((3, 1.5), r"final: got 1\.5"),
    ((3, 0.5, "steep"), "curve: got 'steep', wanted one of cubic, linear, geometric")])
def test_schedules_that_make_no_sense(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        shares(*options)


# --- cuts while training goes on --------------------------------------------------------------------------------------

@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"params": 0.3}, {"channels": 0.5}, {"macs": 30_000},
                                    {"macs": 0.5, "params": 0.4}])
@pytest.mark.parametrize("curve", ["cubic", "linear"])
def test_each_step_meets_its_share_of_the_original(budget: dict[str, Any], curve: str) -> None:
    model = net()
    found = train(model, **{"macs": None, **budget}, curve=curve)
    totals = {"macs": counted_macs(model, X), "params": count(model), "channels": 12 + 16 + 3}
    slim: nn.Module = model
    assert len(found.plans) == 3
    for step, plan in enumerate(found.plans):
        slim = ts.apply(slim, plan)
        has = {"macs": counted_macs(slim, X), "params": count(slim),
               "channels": slim[0].out_channels + slim[3].out_channels + 3}
        for name, asked in budget.items():
            final = asked if isinstance(asked, int) else int(totals[name] * asked)
            share = final / totals[name]
            wanted = totals[name] * shares(3, share, curve)[step]
            assert has[name] <= max(wanted, final) + 1
            if step == 0 and len(budget) == 1:
                assert has[name] > final  # not all at once
    assert [tensor.shape for tensor in slim.state_dict().values()] == [
        tensor.shape for tensor in found.model.state_dict().values()]
    assert len(found.history.loss) == 6


def test_it_learns_while_it_is_cut() -> None:
    found = train(epochs=12, lr=0.1, steps=4, every=2, held_out=batches())
    assert found.history.accuracy[-1] == 1.0
    assert counted_macs(found.model, X) <= 0.4 * counted_macs(net(), X)


def test_the_momenta_of_what_stays_go_on_as_by_hand() -> None:
    """A loop of one's own: SGD with momentum, whose buffers are cut by the plan's indices."""
    model, data = net().train(), batches()
    found = fit_gradually(net(), data, X, macs=0.5, steps=2, begin=1, every=2, epochs=5, lr=0.05, milestones=(0.5,),
                          weight_decay=1e-3)
    buffers = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for epoch in range(5):
        if epoch in (1, 3):
            plan = found.plans[epoch // 2]
            slim = ts.apply(model, plan)
            for name, dims in plan.kept.items():
                for dim, index in dims.items():
                    if name in buffers:
                        buffers[name] = buffers[name].index_select(dim, torch.tensor(index))
            model = slim.train()
        for step, (x, y) in enumerate(data):
            lr = 0.05 if epoch + (step + 0.5) / 3 < 2.5 else 0.005
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            with torch.no_grad():
                for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
                    gradient = gradient + (1e-3 * p if p.ndim > 1 else 0)
                    buffers[name].mul_(0.9).add_(gradient)
                    p -= lr * (gradient + 0.9 * buffers[name])
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, found.model.state_dict()[name], atol=1e-6), name


def test_the_model_is_left_as_it_was_and_modes_are_its() -> None:
    model = net().eval()
    model[1].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = train(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    modes = [module.training for module in model.modules()]
    assert modes == [module.training for module in found.model.modules()]
    assert modes.count(True) == 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in found.model.parameters())


def test_sparsity_goes_on_with_the_scales_that_stay() -> None:
    pressed, plain = train(sparsity=0.05, cutting={"importance": "l1"}), train(cutting={"importance": "l1"})
    assert pressed.model[1].weight.abs().sum() < plain.model[1].weight.abs().sum()


def test_options_of_the_plans_and_criteria_that_ask_for_labels() -> None:
    told = {"importance": "taylor", "data": batches(), "loss": F.cross_entropy, "round_to": 4, "exclude": ["0"]}
    found = train(cutting=told, macs=0.6)
    assert all(plan.settings["importance"] == "taylor" for plan in found.plans)
    assert found.model[0].out_channels == 12
    assert found.model[3].out_channels % 4 == 0


def test_shares_by_pattern_are_those_of_the_original() -> None:
    """Each step takes its part of what is left, not the whole share anew."""
    found = train(macs=None, cutting={"scope": {"0": 0.5, "3": 0.25}})
    widths, model = [], net()
    for plan in found.plans:
        model = ts.apply(model, plan)
        widths.append((model[0].out_channels, model[3].out_channels))
    # 12 and 16 times final + (1 - final) (1 - k / 3)^3, rounded up
    assert widths == [(8, 8), (7, 5), (6, 4)]
    both = train(macs=0.3, cutting={"scope": {"0": 0.75}})
    assert both.model[0].out_channels == 9
    assert counted_macs(both.model, X) <= 0.3 * counted_macs(net(), X)


def test_its_steps_are_saved_with_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), "
        "nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(16, 3))\n")
    found = train()
    path = ts.save(found.model, tmp_path / "slim.safetensors", plan=found.plans, source=f"{tmp_path / 'net.py'}:net")
    again = ts.load(path, trust_source=True)
    assert same(again, found.model)


# --- interruption -----------------------------------------------------------------------------------------------------

class Stop(BaseException):
    """Stands for a process that is killed."""


def stop_at(epoch: int, step: int) -> Any:
    def watch(at: Progress) -> None:
        if (at.epoch, at.step) == (epoch, step):
            raise Stop
    return watch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("begin", [0, 1])
def test_interrupted_anywhere_it_ends_with_the_same_bits(tmp_path: Path, optimizer: str, begin: int) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "begin": begin, "every": 2, "sparsity": 1e-3,
                               "held_out": batches()}
    whole = train(**options)
    path = tmp_path / "c"
    for epoch in range(1, 7):  # killed in the middle of each epoch, and again: from the start, before and after cuts
        with pytest.raises(Stop):
            train(checkpoint=path, progress=stop_at(epoch, 2), **options)
    seen: list[Progress] = []
    found = train(checkpoint=path, progress=seen.append, **options)
    assert seen[0].epoch == 6
    assert found.plans == whole.plans
    assert found.history == whole.history
    assert same(found.model, whole.model)
    again = train(checkpoint=path, **options)  # finished: nothing is trained anew
    assert same(again.model, whole.model)
    assert again.plans == whole.plans


@pytest.mark.parametrize(("change", "said"), [
    ({"macs": 0.5}, "gradual="), ({"steps": 2}, "gradual="), ({"curve": "linear"}, "gradual="),
    ({"begin": 2}, "gradual="), ({"cutting": {"importance": "l1"}}, "gradual="),
    ({"lr": 0.1}, r"lr=0\.02 \(now 0\.1\)")])
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "c"
    with pytest.raises(Stop):
        train(checkpoint=path, progress=stop_at(3, 1))
    with pytest.raises(CheckpointError, match=said):
        train(checkpoint=path, **change)
    with pytest.raises(CheckpointError, match="gradual="):
        fit(net(), batches(), epochs=6, lr=0.02, checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="no checkpoint of this training"):
        train(checkpoint=path)


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(Stop):
        train(checkpoint=path, progress=stop_at(4, 1))
    with pytest.raises(CheckpointError, match=r"c: made by a training of another model: `0\.weight`"):
        train(nn.Sequential(net()), checkpoint=path)


# --- what makes no sense ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "message"), [
    ({"macs": None}, "nothing was asked"),
    ({"cutting": {"macs": 0.3}}, "a budget in cutting="),
    ({"cutting": {"original": net()}}, "'original' found in cutting=, options of torchslim.plan wanted: latency, "),
    ({"cutting": {"round": 8}}, "'round' found in cutting="),
    ({"cutting": 8}, "cutting=8 found, a dict of options of torchslim.plan wanted"),
    ({"checkpoint": "absent/training"}, "absent/training: lies in a folder that does not exist; give a file such as"),
    ({"checkpoint": "."}, ".: is a folder; give a file such as"),
    ({"macs": 1.5}, r"macs=1\.5: wanted a float in \(0, 1\]"),
    ({"steps": 0}, "steps: got 0"),
    ({"curve": "steep"}, "curve: got 'steep'"),
    ({"begin": -1}, "begin=-1 found, an int of at least 0"),
    ({"every": 0}, "every=0 found, an int of at least 1"),
    ({"steps": 6}, "the last of 6 cuts is due after 6 epochs, and there are 6; give epochs=7 or more"),
    ({"sparsity": Slimming(net())}, "a penalty of a network that is about to be cut"),
    ({"milestones": (0.5, 0.5)}, "milestones=.* wanted rising shares"),
])
def test_requests_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        train(**options)
    assert "\n" not in str(caught.value)


# --- steps of the learning rate ---------------------------------------------------------------------------------------

def test_rates_fall_to_a_tenth_at_milestones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    fit(net(), batches(2), epochs=4, lr=0.4, milestones=(0.5, 0.75))
    assert seen == pytest.approx([0.4] * 4 + [0.04] * 2 + [0.004] * 2)
    seen.clear()
    fit(net(), batches(2), epochs=2, lr=0.4, milestones=[0.5], warmup=0.5)
    assert seen == pytest.approx([0.1, 0.3, 0.04, 0.04])
