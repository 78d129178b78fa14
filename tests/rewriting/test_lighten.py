"""`lighten` on networks: what is rewritten, what is left alone and why, what survives, what the report says."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torchslim as ts
from helpers import Calls, Untouched, conv, count, counted_macs, in_turn
from torchslim.errors import RequestError
from torchslim.rewriting import lighten_with_report

X = torch.randn(2, 3, 16, 16)


def network() -> nn.Sequential:
    return nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 32, 5, stride=2),
                         nn.ReLU(), conv(32, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8),
                         nn.Linear(8, 4))


def names(model: nn.Module, rules: Any, inputs: Any = X, **options: Any) -> list[str]:
    return [row.layer for row in lighten_with_report(model, rules, inputs, **options).layers]


@pytest.mark.parametrize("inputs", [None, X])
def test_the_first_and_the_last_layer_are_left_alone(inputs: Tensor | None) -> None:
    model = network()
    assert names(model, "separable", inputs) == ["3", "5"]
    assert names(model, "separable", inputs, ends=True) == ["0", "3", "5"]
    assert names(model, "separable", inputs, only=["0", "3"]) == ["0", "3"]
    assert names(model, "lowrank:0.5", inputs) == ["3", "5", "7", "10"]
    assert names(model, "lowrank:0.5", inputs, ends=True)[-1] == "11"


def test_layers_are_chosen_by_name_kernel_width_and_share() -> None:
    model = network()
    assert names(model, "lowrank:0.5", only=["3", "7"]) == ["3", "7"]
    assert names(model, "lowrank:0.5", exclude=["1*"]) == ["3", "5", "7"]
    assert names(model, "lowrank:0.5", kernels=[5]) == names(model, "lowrank:0.5", kernels=numpy.array([5])) == ["5"]
    assert names(model, "lowrank:0.5", only=None, exclude=None) == names(model, "lowrank:0.5", kernels=None)
    assert names(model, "lowrank:0.5", kernels=[1]) == ["7", "10"]
    assert names(model, "lowrank:0.5", min_channels=9) == ["3", "5", "7"]
    assert names(model, "lowrank:0.5", min_share=0.3) == ["3", "5"]
    assert names(model, [("separable", ["3"]), ("lowrank:0.5", ["5"])]) == ["3", "5"]


def test_a_part_answers_to_the_name_of_the_layer_it_is_of() -> None:
    assert names(network(), ["separable", "grouped:4"], only=["3"]) == ["3", "3.pointwise"]
    assert names(network(), ["separable", ("grouped:4", ["3.p*"])]) == ["3", "5", "3.pointwise"]


def test_a_network_with_several_outputs_has_several_last_layers() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.body((x - 0.5) * 2).relu()
        return self.boxes(x).sigmoid() + 1, {"scores": self.scores(x).flatten(1).softmax(1)}

    model = Calls(forward, boxes=conv(8, 8), stem=conv(8, 8), scores=conv(8, 8), body=nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 8)))
    assert names(model, "separable") == ["stem", "body.2"]  # `stem` is never called


def test_what_cannot_be_rewritten_is_left_alone_with_its_reason() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean())

    def forward(self: Any, x: Tensor) -> Tensor:
        for name in ("first", "own", "normed", "one", "other", "hooked", "dense", "last"):
            x = getattr(self, name)(x)
        return torch.conv2d(x, self.read.weight, padding=1)

    model = Calls(forward, first=conv(3, 8), own=Standardised(8, 8, 3), normed=parametrizations.weight_norm(conv(8, 8)),
                  one=conv(8, 8), other=conv(8, 8), hooked=conv(8, 8), read=conv(8, 8), dense=conv(8, 8, 1),
                  last=conv(8, 8))
    model.one.weight = model.other.weight  # type: ignore[union-attr, assignment]
    model.hooked.register_forward_hook(lambda *_: None)
    found = lighten_with_report(model, "separable", X)
    assert [row.layer for row in found.layers] == ["last"]
    reasons = dict(found.left_alone)
    assert reasons["own"] == "separable: Standardised is no plain layer of torch's"
    assert "ParametrizedConv2d" in reasons["normed"]
    assert reasons["one"] == reasons["other"] == "separable: its weight or bias is tied to another layer's"
    assert reasons["hooked"] == "separable: it has hooks"
    assert reasons["read"] == "separable: `the model` reads its weight, too"
    assert "kernel is 1" in reasons["dense"]
    assert set(reasons) == {"own", "normed", "one", "other", "hooked", "read", "dense"}
    assert found.model(X).shape == model(X).shape
    with pytest.raises(RequestError, match="no plain layer"):
        ts.lighten(model, "separable", X, only=["normed"])


class Named(nn.Conv2d):
    def told(self) -> str:
        return "the same"


class Padded(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x.abs(), weight, bias)


class Owning(nn.Conv2d):
    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("gain", torch.ones(()))


def patched() -> nn.Module:
    layer = conv(8, 8)
    layer.forward = lambda x: x * 2  # type: ignore[method-assign, assignment]
    return layer


@pytest.mark.parametrize(("layer", "taken"), [
    (lambda: Named(8, 8, 3, padding=1), True), (lambda: Padded(8, 8, 3, padding=1), False),
    (lambda: Owning(8, 8, 3, padding=1), False), (patched, False)])
def test_subclasses_are_taken_that_compute_as_torchs_own(layer: Any, taken: bool) -> None:
    model = nn.Sequential(conv(3, 8), layer(), conv(8, 8), conv(8, 4))
    for inputs in (None, X):
        assert names(model, "separable", inputs) == (["1", "2"] if taken else ["2"])
    light = ts.lighten(model, "lowrank:1.0", X)
    torch.testing.assert_close(light(X), model(X), rtol=1e-3, atol=1e-4)


def test_a_video_network_of_subclasses_is_rewritten() -> None:
    with torch.device("meta"):
        model, x = torchvision.models.video.r3d_18(num_classes=5), torch.empty(1, 3, 4, 32, 32)
    assert len(names(model, "separable", x)) == 16


def test_attention_keeps_the_layer_whose_weight_it_reads() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with pytest.raises(RequestError, match="MultiheadAttention reads its weight"):
        ts.lighten(model, "lowrank:2")


def test_what_several_rules_do_not_fit_is_said_for_each() -> None:
    found = lighten_with_report(network(), ["grouped:5", "separable"], X, only=["3", "7"])
    assert found.left_alone == (
        ("3", "grouped:5: 16 and 16 channels cannot be split into 5 groups"),
        ("7", "grouped:5: 32 and 16 channels cannot be split into 5 groups"),
        ("7", "separable: light already: its kernel is 1"))
    assert found.to_dict()["left_alone"]["7"] == (
        "grouped:5: 32 and 16 channels cannot be split into 5 groups; separable: light already: its kernel is 1")
    assert sum("left alone" in remark for remark in found.remarks()) == 3


def test_layers_that_become_heavier_are_named() -> None:
    found = lighten_with_report(network(), [("lowrank:1.0", ["3", "5"]), ("lowrank:0.5", ["7"])], X)
    assert found.remarks() == ["more parameters than before: 3 (lowrank:1.0), 5 (lowrank:1.0)",
                               "more MACs than before: 3 (lowrank:1.0), 5 (lowrank:1.0)"]
    assert lighten_with_report(network(), "separable").remarks()[0].startswith("left alone")


@pytest.mark.parametrize("hook", ["register_forward_pre_hook", "register_full_backward_hook",
                                  "register_full_backward_pre_hook"])
def test_layers_with_hooks_of_any_kind_are_left_alone(hook: str) -> None:
    model: Any = network()
    getattr(model[3], hook)(lambda *_: None)
    assert dict(lighten_with_report(model, "separable", X).left_alone)["3"] == "separable: it has hooks"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["separable", "lowrank:0.5", "ghost"])
def test_weights_that_are_no_numbers_are_left_alone(rule: str, value: float) -> None:
    model: Any = network()
    model[3].weight.data[0, 0, 0, 0] = value
    found = lighten_with_report(model, rule, X)
    assert dict(found.left_alone)["3"] == f"{rule}: its weight has infinite values, or values that are no numbers"
    assert found.layers


def test_an_encoder_of_torchs_own_still_takes_its_short_cut() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4, batch_first=True),
                          nn.Linear(32, 4))
    found = lighten_with_report(model, "lowrank:4", torch.randn(2, 5, 8))
    assert [row.layer for row in found.layers] == ["1"]
    assert "short cut" in dict(found.left_alone)["2.linear1"]
    with torch.no_grad():
        assert found.model.eval()(torch.randn(2, 5, 8)).shape == (2, 5, 4)


def test_a_module_in_two_places_stays_one() -> None:
    shared = conv(8, 8)
    model = nn.Sequential(conv(3, 8), shared, nn.ReLU(), nn.Sequential(shared), conv(8, 8))
    light: Any = ts.lighten(model, "lowrank:1.0", X)
    assert light[1] is light[3][0]
    assert isinstance(light[1], nn.Sequential)
    torch.testing.assert_close(light(X), model(X), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["separable", "ghost", "fire:4", "asymmetric:norm", "grouped:4:shuffle"])
def test_dtype_memory_format_mode_and_requires_grad_survive(rule: str) -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8)).to(torch.bfloat16, memory_format=torch.channels_last)
    model[1].eval().weight.requires_grad_(False)  # type: ignore[union-attr]
    part = ts.lighten(model, rule).get_submodule("1")
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    weights = [p for p in part.parameters() if p.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert not any(w.requires_grad for w in weights)
    assert not any(module.training for module in part.modules())
    biases = [m.bias for m in part.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert all(bias.requires_grad for bias in biases)


def test_a_network_on_the_meta_device_is_rewritten_there() -> None:
    light = ts.lighten(network().to("meta"), ["separable", "lowrank:0.5"])
    assert {p.device.type for p in light.parameters()} == {"meta"}


@pytest.mark.parametrize("options", [{}, {"fresh": True}, {"data": [X]}])
def test_the_model_and_the_random_state_are_left_as_they_were(options: dict[str, Any]) -> None:
    model = network()
    model[3].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = Untouched(model)
    ts.lighten(model, ["separable", "lowrank:0.5"], X, **options)
    before.check()


def test_fresh_weights_come_from_the_seed() -> None:
    def weight(seed: int) -> Tensor:
        return ts.lighten(network(), "ghost", fresh=True, seed=seed).get_parameter("3.primary.weight")

    torch.testing.assert_close(weight(1), weight(1), rtol=0, atol=0)
    assert not torch.equal(weight(1), weight(2))


def test_the_report_counts_and_prints() -> None:
    model = network()
    found = lighten_with_report(model, "separable", X)
    assert found.params == (count(model), count(found.model))
    assert found.macs == (counted_macs(model, X), counted_macs(found.model, X))
    row = found.layers[0]
    assert (row.layer, row.before, row.after) == ("3", "Conv2d 16-16 3x3", "Conv2d 16-16-16 3x3 1x1 g16")
    assert row.params == (16 * 16 * 9 + 16, 16 * 9 + 16 * 16 + 16)
    assert row.macs == (2 * 256 * 16 * 16 * 9, 2 * 256 * (16 * 9 + 16 * 16))
    assert row.error is not None
    assert 0 < row.error < 1
    lines = str(found).splitlines()
    assert lines[1].split()[:2] == ["3", "separable"]
    assert lines[3].startswith("total")
    assert "of the MACs" in lines[4]
    assert lines[5] == "left alone: separable: light already: its kernel is 1: 7"
    assert lines[6] == "left alone: separable: a linear layer has no kernel: 10"
    assert found.to_dict()["layers"][0]["error"] == row.error
    assert "-" in str(lighten_with_report(model, "separable", fresh=True)).splitlines()[1].split()


def outputs(model: nn.Module, layer: str, batches: list[Tensor]) -> Tensor:
    """What a layer gives while the network runs in eval mode."""
    seen: list[Tensor] = []
    handle = model.eval().get_submodule(layer).register_forward_hook(lambda _, x, y: seen.append(y.detach().clone()))
    for batch in batches:
        model(batch)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("rule", in_turn(
    ["separable", "grouped:4", "asymmetric:8", "lowrank:0.5", "ghost", "fire:4"], ["separable", "ghost"]))
def test_the_fit_to_outputs_brings_each_layer_nearer(rule: str) -> None:
    model, data = network(), [torch.randn(16, 3, 16, 16) for _ in range(3)]
    plain, fitted, fresh = (lighten_with_report(model, rule, **way) for way in ({}, {"data": data}, {"fresh": True}))
    for row in fitted.layers:
        old = outputs(model, row.layer, data[2:])  # kept back, and what the report is of
        errors = [float((outputs(found.model, row.layer, data[2:]) - old).square().mean().sqrt() / old.std())
                  for found in (fitted, plain, fresh)]
        assert errors[0] < errors[1] < errors[2], row.layer
        assert errors[0] == pytest.approx(row.error, rel=0.05)


def test_layers_in_half_precision_and_fresh_ones_are_fitted_too() -> None:
    model, data = network().bfloat16(), [X.bfloat16()]
    model.train()
    errors = [[row.error for row in lighten_with_report(model, "separable", **way).layers]
              for way in ({"data": data}, {"data": data, "fresh": True})]
    assert all(error is not None and 0 < error < 0.9 for found in errors for error in found)
    light = ts.lighten(model, "separable", data=data)
    assert {p.dtype for p in light.parameters()} == {torch.bfloat16}
    assert all(p.grad is None and p.requires_grad for p in light.parameters())
    assert all(module.training for module in light.modules())


def test_layers_that_never_run_have_no_error_on_data() -> None:
    model = Calls(lambda self, x: self.b(self.a(x)), a=conv(3, 8), dead=conv(8, 8), b=conv(8, 3))
    (row,) = lighten_with_report(model, "separable", X, data=[X]).layers
    assert row.layer == "dead"
    assert row.error is None
    assert row.macs == (0, 0)


def test_a_perfect_start_is_not_spoilt() -> None:
    model = network().double()
    light = ts.lighten(model, "lowrank:1.0", data=[X.double()])
    model.eval(), light.eval()
    torch.testing.assert_close(light(X.double()), model(X.double()), rtol=0, atol=1e-10)


def test_in_place_activations_and_keywords_do_not_disturb_the_fit() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.b(input=self.a(x))
        return self.c(y.relu_())

    model = Calls(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 3)).double()
    found = lighten_with_report(model, "lowrank:1.0", data=[X.double()])
    assert found.layers[0].error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("rules", "options", "wanted"), [
    ("nonsense", {}, "unknown rule 'nonsense'"),
    ([], {}, "no rule"), (["separable", "width:0.5"], {}, "scope={'*': 0.5}"),
    ("separable", {"min_share": 0.1, "inputs": None}, "needs inputs="),
    ("separable", {"min_share": "0.1"}, "min_share='0.1' is no share"),
    ("separable", {"min_channels": "8"}, "min_channels='8' is no number"),
    ("separable", {"min_share": 2}, "no share"), ("separable", {"only": "3"}, "only='3'"),
    ("separable", {"exclude": ["layer1.*"]}, "matches 'layer1.*'; they are named like 0, 3, 5"),
    ("separable", {"kernels": [7]}, "no layer fits"), ("separable", {"kernels": ["3"]}, "sizes such as"),
    ("separable", {"only": ["7"]}, "`7`: separable: light already"), ("separable", {"data": []}, "no batch"),
    ("separable", {"kernels": 3}, "kernels=3: wanted sizes"), ("separable", {"kernels": "3"}, "sizes such as"),
    ("separable", {"only": 3}, "only=3 is no list"), ("separable", {"exclude": [3]}, "exclude=(3,) is no list"),
    (None, {}, "None is no rule"), (5, {}, "5 is no rule"), ([5], {}, "5 is no rule"),
    (("separable", ["3"]), {}, "is one pair; wanted a list of pairs: [('separable', ['3'])]"),
    (("separable", ("3",)), {}, "is one pair; wanted a list"),
    ([("separable", ["3"], 1)], {}, "is no rule; wanted such as"), ([("separable", [3])], {}, "is no list"),
    ("separable", {"seed": "a"}, "seed='a' is no seed"), ("separable", {"seed": 2**64}, "is no seed"),
    ("widthy:0.5", {}, "unknown rule 'widthy:0.5'")])
def test_a_wrong_request_is_refused_in_one_line(rules: Any, options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RequestError) as caught:
        ts.lighten(network(), rules, **{"inputs": X, **options})
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
