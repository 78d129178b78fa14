"""State dicts of torchvision's networks fit ours, and give the same outputs."""

from __future__ import annotations

import pytest
import torch
import torchvision

import torchslim as ts
from helpers import random_statistics
from torchslim import zoo
from torchslim.errors import RequestError, TorchslimError
from torchslim.store.loading import build

TWINS = [(name, width, theirs) for name, entry in zoo.NETWORKS.items() for width, theirs in entry.torchvision.items()]


@pytest.mark.parametrize(("name", "width", "theirs"), TWINS)
def test_the_same_weights_give_the_same_outputs(name: str, width: float, theirs: str) -> None:
    other = random_statistics(ts.create_model(f"torchvision:{theirs}", num_classes=10)).double()
    ours = ts.create_model(f"torchslim:{name}", num_classes=10, **({} if width == 1 else {"width": width})).double()
    ours.load_state_dict(zoo.from_torchvision(ours, other.state_dict()))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, found = other.eval()(x), ours.eval()(x)
        assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()
        # what norms remember of a step in training, too
        torch.manual_seed(1)
        other.train()(x)
        torch.manual_seed(1)
        ours.train()(x)
    for mine, their in zip(ours.buffers(), other.buffers(), strict=True):
        assert torch.allclose(mine, their, rtol=1e-9)


def test_every_network_of_torchvisions_has_its_twin() -> None:
    assert {theirs for *_, theirs in TWINS} == {
        "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
        "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1"}


@pytest.mark.parametrize(("theirs", "options", "message"), [
    ("mobilenet_v3_large", {}, "features.0.0.weight 16x3x3x3 found for features.0.0.weight 32x3x3x3"),
    ("mobilenet_v2", {"num_classes": 10}, "classifier.1.weight 10x1280 found for head.3.weight 1000x1280"),
    ("mobilenet_v2", {"width_mult": 0.5}, "features.0.0.weight 16x3x3x3 found for features.0.0.weight 32x3x3x3"),
])
def test_another_networks_state_is_refused(theirs: str, options: dict[str, float], message: str) -> None:
    with torch.device("meta"):
        state = ts.create_model(f"torchvision:{theirs}", **options).state_dict()
        ours = zoo.mobilenet_v2()
    with pytest.raises(RequestError) as caught:
        zoo.from_torchvision(ours, state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=r"nothing found for features\.0\.0\.weight"):
        zoo.from_torchvision(ours, {})
    with pytest.raises(RequestError, match=r"a Network found, the state dict .* wanted; give theirs\.state_dict"):
        zoo.from_torchvision(ours, ours)


@pytest.mark.parametrize(("spec", "theirs", "weights"), [
    ("squeezenet1_1", "squeezenet1_1", "DEFAULT"), ("shufflenet_v2?width=0.5", "shufflenet_v2_x0_5", "DEFAULT"),
    ("mobilenet_v2", "mobilenet_v2", "IMAGENET1K_V1"), ("mobilenet_v3_small", "mobilenet_v3_small", "DEFAULT")])
def test_trained_weights_are_torchvisions(spec: str, theirs: str, weights: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    other = random_statistics(ts.create_model(f"torchvision:{theirs}")).eval()
    asked = []

    def serve(weights: object, **_options: object) -> dict[str, torch.Tensor]:
        asked.append(str(weights))
        return other.state_dict()

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", serve)
    x = torch.randn(1, 3, 64, 64)
    ours = build(spec, weights=weights).eval()
    assert type(ours).__module__ == "torchslim.zoo.common"
    assert torch.allclose(ours(x), other(x), atol=1e-5, rtol=1e-4)
    default = torchvision.models.get_model_weights(theirs).DEFAULT.name
    assert [text.rpartition(".")[2] for text in asked] == [default if weights == "DEFAULT" else weights]
    # with other classes the last layer alone is a fresh one, as in torchvision's network
    few, their = (build(each, weights=weights, num_classes=3).eval() for each in (
        spec, f"torchvision:{theirs}"))
    assert few(x).shape == their(x).shape == (1, 3)
    trained, mine = ours.state_dict(), few.state_dict()
    fresh = {name for name in mine if not torch.equal(mine[name], trained[name])}
    last = list(mine)[-1].rpartition(".")[0]
    assert fresh == {f"{last}.weight", f"{last}.bias"}
    for (name, tensor), twin in zip(mine.items(), their.state_dict().values(), strict=True):
        assert tensor.shape == twin.shape
        assert name in fresh or torch.equal(tensor, twin)


@pytest.mark.parametrize(("spec", "message"), [
    ("mobilenet_v1", "torchslim:mobilenet_v1: there are no trained weights for it, only for mobilenet_v2, "),
    ("mobilenet_v2?width=0.5", "width=0.5, in_channels=3 found, trained weights are for width=1, in_channels=3"),
    ("shufflenet_v2?in_channels=1", "trained weights are for width=0.5 or 1 or 1.5 or 2, in_channels=3"),
])
def test_where_there_are_no_trained_weights(spec: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        build(f"torchslim:{spec}", weights="DEFAULT")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "mobilenet_v2", "torchvision:resnet18"])
def test_weights_of_an_unknown_name(name: str) -> None:
    twin = name.removeprefix("torchvision:")
    for options in ({}, {"num_classes": 5}):
        with pytest.raises(RequestError, match=rf"^torchvision:{twin}: weights='IMAGENET' found, one of DEFAULT, "):
            ts.create_model(name, weights="IMAGENET", **options)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)
    with pytest.raises(TorchslimError, match=r"^torchslim:mobilenet_v2: the weights could not be fetched: OSError"):
        ts.create_model("mobilenet_v2", weights="DEFAULT")


@pytest.mark.parametrize(("name", "options", "said"), [
    ("mobilenet_v2", {"width_mult": 0.5, "num_classes": 10, "norm_layer": None},
     "width_mult=0.5, norm_layer=None; its options are num_classes, width, in_channels, weights; "
     "torchvision:mobilenet_v2 has the same layers and torchvision's options"),
    ("squeezenet1_0", {"dropout": 0.1}, "dropout=0.1; its options are num_classes, in_channels, weights; "
     "torchvision:squeezenet1_0 has the same layers and torchvision's options"),
    ("shufflenet_v2", {"dropout": 0.1}, "dropout=0.1; its options are num_classes, width, in_channels, weights"),
    ("mobilenet_v1", {"dropout": 0.1}, "dropout=0.1; its options are num_classes, width, in_channels"),
])
def test_options_that_ours_lack_are_named_with_those_they_have(name: str, options: dict[str, object],
                                                                said: str) -> None:
    with pytest.raises(RequestError) as caught:
        ts.create_model(name, **options)
    assert str(caught.value) == f"torchslim:{name}: the builder refused {said}"
    if "torchvision:" in said:
        assert ts.create_model(f"torchvision:{name}", **options)(torch.randn(2, 3, 64, 64)).dim() == 2
