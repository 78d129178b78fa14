"""Distillation brings a cut network nearer to the original, and never leaves it farther away than it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchslim as ts
from helpers import Untouched, conv, random_statistics
from torchslim.errors import RequestError, TorchslimWarning, TrainingError
from torchslim.tracing.trace import trace
from torchslim.train.distillation import DistillationProgress
from torchslim.train.targets import feature_places

X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Network = nn.Module


def classifier(width: int = 12, norm: bool = True, outputs: int = 5) -> Network:
    torch.manual_seed(1)
    return random_statistics(nn.Sequential(
        conv(3, width), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU(), conv(width, 10), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, outputs))).eval()


def damaged(model: Network, share: float = 0.3) -> Network:
    """A copy with noise on its weights."""
    new = ts.apply(model, ts.plan(model, X[:1], channels=1.0))
    with torch.no_grad():
        for weight in new.parameters():
            weight += share * weight.std(correction=0) * torch.randn_like(weight)
    return new


def error(model: Network, other: Network, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).square().mean())


def same(one: Network, other: Network) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_damage_is_mended_on_pictures_never_seen_and_the_networks_given_are_as_they_were() -> None:
    model = classifier()
    slim, new = damaged(model), torch.randn(32, 3, 8, 8)
    model.train()[3].eval()
    slim.train()[0].weight.requires_grad_(False)
    untouched = Untouched(model), Untouched(slim)
    with torch.inference_mode():
        better: Any = ts.distill(model, slim, [X[:24], X[24:]], steps=60, lr=3e-3)
    for each in untouched:
        each.check()
    assert [module.training for module in better.modules()] == [module.training for module in slim.modules()]
    assert torch.equal(better[0].weight, slim[0].weight)
    assert [p.requires_grad for p in better.parameters()] == [p.requires_grad for p in slim.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(better.buffers(), slim.buffers(), strict=True))
    assert error(model.eval(), better.eval(), new) < 0.5 * error(model, slim.eval(), new)


def test_the_same_seed_gives_the_same_weights() -> None:
    model = classifier()
    slim = damaged(model)
    first, again, other = (ts.distill(model, slim, [X], steps=4, lr=1e-2, seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


@given(width=st.integers(6, 16), norm=st.booleans(), share=st.sampled_from([0.6, 0.8]),
       lr=st.sampled_from([1e-3, 0.1, 10.0]), seed=st.integers(0, 9))
@settings(max_examples=6)
def test_the_distance_on_what_is_held_back_never_grows(width: int, norm: bool, share: float, lr: float,
                                                       seed: int) -> None:
    model = classifier(width, norm)
    slim, _ = ts.prune(model, X[:1], channels=share)
    seen: list[DistillationProgress] = []
    try:
        new = ts.distill(model, slim, [X], steps=6, lr=lr, seed=seed, progress=seen.append)
    except TrainingError as failure:
        new = failure.best
    distances = [progress.distance for progress in seen]
    assert distances == sorted(distances, reverse=True)
    if seen:
        assert same(new, slim) == (distances[0] == distances[-1])


def test_the_distance_is_the_error_over_the_variance_of_features_and_of_answers() -> None:
    model, seen, pictures = classifier(), list[DistillationProgress](), list[Tensor]()
    slim = damaged(model)
    hook = slim.register_forward_pre_hook(lambda _, x: None if torch.is_grad_enabled() else pictures.append(x[0]))
    better = ts.distill(model, slim, [X], steps=11, lr=1e-3, progress=seen.append)
    hook.remove()
    fitted, held = pictures[0].detach(), pictures[-1].detach()
    assert sorted(torch.cat([fitted, held]).flatten().tolist()) == sorted(X.flatten().tolist())

    def distance(network: Any, original: Any) -> float:
        with torch.no_grad():
            features = (network[:5](held) - original[:5](held)).square().mean()
            answers = (network(held) - original(held)).square().mean()
            variance = original[:5](fitted).var((0, 2, 3), correction=0).mean()
            return float(features / variance + answers / original(fitted).var(0, correction=0).mean())

    assert distance(better, model) == pytest.approx(seen[-1].distance, rel=1e-4)
    assert distance(better, model) < distance(slim, model)
    assert distance(slim, model) == pytest.approx(seen[0].distance, rel=1e-4)


def test_training_that_only_harms_returns_the_given_weights() -> None:
    model = classifier()
    slim = damaged(model, 0.01)
    assert same(ts.distill(model, slim, [X], steps=3, lr=1.0), slim)
    assert same(ts.distill(model, ts.apply(model, ts.plan(model, X[:1], channels=1.0)), [X], steps=3), model)


class Several(nn.Module):
    """Two inputs, and several outputs of which one is an index."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rest = conv(3, 8), nn.Linear(4, 8)
        self.head, self.box = conv(8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu() + self.rest(y)[..., None, None]
        maps = self.head(hidden)
        return {"maps": maps, "box": self.box(hidden.mean((2, 3))), "best": maps.argmax(1)}


class Recurrent(nn.Module):
    """A recurrent layer before a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0][:, -1])  # type: ignore[no-any-return]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("model", "data", "warns"), [
    (Recurrent(), [random(24, 5, 6)], False),
    (nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)), [random(3, 8, 8), random(3, 9, 9), random(3, 7, 7)], False),
    (Several(), [{"x": random(12, 3, 6, 6), "y": random(12, 4)}, {"x": random(9, 3, 6, 6), "y": random(9, 4)}], True),
], ids=["recurrent", "without a batch", "several inputs and outputs"])
def test_models_of_other_kinds(model: Network, data: list[Any], warns: bool) -> None:
    slim, _ = ts.prune(random_statistics(model).eval(), data[0], channels=0.7)
    seen: list[DistillationProgress] = []

    def distil() -> Network:
        return ts.distill(model, slim, data, steps=20, lr=0.01, batch_size=8, progress=seen.append)

    if warns:
        with pytest.warns(TorchslimWarning, match="outputs 2 of the network are not compared"):
            distil()
    else:
        distil()
    assert seen[-1].distance < 0.95 * seen[0].distance


@pytest.mark.parametrize(("build", "places"), [
    (lambda: torchvision.models.resnet18(num_classes=4), ["layer4"]),
    (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2)), ["3"]),
    (classifier, ["4"])], ids=["resnet", "maps", "chain"])
def test_features_are_what_the_last_pooling_or_the_last_layer_reads(build: Any, places: list[str]) -> None:
    graph = trace(build().eval(), torch.zeros(1, 3, 32, 32), detect_width_reads=False)
    assert [place.module for place in feature_places(graph)] == places


@pytest.mark.parametrize(("change", "message"), [
    ({"steps": 0}, "steps=0 found, a whole number from 1"),
    ({"batch_size": True}, "batch_size=True found"),
    ({"lr": float("nan")}, "lr=nan found, a number above 0"),
    ({"data": []}, "no batch in it"),
    ({"data": X}, "wanted an iterable"),
    ({"data": [X[:1]]}, "one item"),
    ({"data": [(X, torch.zeros(40))]}, r"try data=\(x for x, \*_ in loader\)"),
    ({"data": [X * float("nan")]}, "not finite on the data"),
    ({"slim": classifier(outputs=3)}, r"outputs \(32x3\) can't be compared with the original's \(32x5\)"),
    ({"slim": classifier().half()}, "torch.float16, too coarse")])
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    request: dict[str, Any] = {"original": classifier(), "slim": classifier(), "data": [X], "batch_size": 64, **change}
    with pytest.raises(RequestError, match=message) as caught:
        ts.distill(**request)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_ends_with_the_best_network_before() -> None:
    model = classifier(norm=False)
    slim = damaged(model)
    with pytest.raises(TrainingError, match=r"step 2 of 40: the loss is .*; try a lower learning rate") as caught:
        ts.distill(model, slim, [X], steps=40, lr=1e30)
    assert same(caught.value.best, slim)


def test_nothing_can_be_trained_where_all_is_frozen() -> None:
    with pytest.raises(TrainingError, match="no parameter has requires_grad"):
        ts.distill(classifier(), classifier().requires_grad_(False), [X])
