"""Counts against published ones and torch's own counter, and a model that is left as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchslim
from helpers import Calls, Untouched, count, counted_macs, in_turn
from holding import Holding
from torchslim.errors import TraceError

# parameters and multiply-adds at 224 x 224, as published for torchvision's models
PUBLISHED = {
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mobilenet_v3_small": (2_542_856, 56_510_400),
    "mobilenet_v3_large": (5_483_032, 216_589_760),
    "shufflenet_v2_x0_5": (1_366_792, 40_476_448),
    "shufflenet_v2_x1_0": (2_278_604, 144_907_992),
    "shufflenet_v2_x1_5": (3_503_624, 295_759_392),
    "shufflenet_v2_x2_0": (7_393_996, 583_253_464),
    "squeezenet1_0": (1_248_424, 818_924_576),
    "squeezenet1_1": (1_235_496, 349_151_936),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    profile = torchslim.profile(torchslim.create_model(f"torchvision:{name}"), torch.randn(1, 3, 224, 224))
    assert (profile.params, profile.macs) == PUBLISHED[name]


@pytest.mark.parametrize("name", in_turn(
    ["resnet18", "vgg11", "densenet121", "inception_v3", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16",
     "regnet_x_400mf", "fcn_resnet50", "r3d_18"], ["resnet18", "efficientnet_b0", "swin_t", "fcn_resnet50"]))
def test_macs_equal_those_of_torchs_own_counter(name: str) -> None:
    model = torchslim.create_model(name)
    shape = (2, 3, 8, 64, 64) if name == "r3d_18" else (2, 3, 224, 224)
    inputs = torch.randn(shape)
    profile = torchslim.profile(model, inputs)
    assert profile.macs == counted_macs(model, inputs)
    assert profile.params == profile.trainable == count(model)
    assert profile.macs == sum(layer.macs for layer in profile.layers)
    assert profile.params == sum(layer.params for layer in profile.layers)
    assert profile.unknown == ()


class Odd(nn.Module):
    """Shared, functional, transposed, tied, frozen and dead parts."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.kernel = nn.Parameter(torch.randn(3, 2, 1, 1))
        self.twin = nn.Conv2d(4, 4, 3, padding=1)
        self.twin.weight = self.shared.weight
        self.dead = nn.Linear(7, 5)
        self.dead.weight.requires_grad_(False)

    def forward(self, x: Tensor, *, times: int = 3) -> Tensor:
        for _ in range(times):
            x = self.shared(x)
        return nn.functional.conv2d(self.up(self.twin(x)), self.kernel)


def test_shared_functional_transposed_tied_and_dead_parts() -> None:
    model = Odd()
    profile = torchslim.profile(model, torch.randn(2, 4, 6, 6))
    convolution = 2 * 36 * 4 * 4 * 9
    assert profile.macs == 4 * convolution + 2 * 36 * 4 * 2 * 4 + 2 * 144 * 2 * 3
    assert profile.macs == counted_macs(model, torch.randn(2, 4, 6, 6))
    assert profile.params == count(model)
    assert profile.trainable == count(model) - 35
    assert profile.dead_params == 40
    by_name = {layer.name: layer for layer in profile.layers}
    assert (by_name["shared"].calls, by_name["shared"].macs) == (3, 3 * convolution)
    assert by_name["twin"].params == 4  # its weight is counted where it first stands
    assert by_name["up"].out_shape == (2, 2, 12, 12)
    assert by_name[""].params == 6
    assert (by_name["dead"].calls, by_name["dead"].out_shape) == (0, ())


def test_inputs_come_in_four_forms() -> None:
    model = Odd()
    x = torch.randn(1, 4, 6, 6)
    once = torchslim.profile(model, {"x": x, "times": 1}).macs
    assert torchslim.profile(model, x).macs == torchslim.profile(model, (x,)).macs == once + 2 * 36 * 144
    total = nn.Module()
    total.forward = lambda images: sum(model(image[None]).sum() for image in images)  # type: ignore[method-assign]
    assert torchslim.profile(total, [x[0], x[0]]).macs == 2 * torchslim.profile(model, x).macs


def test_the_table_says_everything_and_the_data_is_json() -> None:
    profile = torchslim.profile(Odd(), torch.randn(1, 4, 6, 6))
    text = str(profile)
    assert "40 parameters are never used by the forward pass" in text
    assert "never run" in text
    assert f"{profile.macs:,}" in text
    assert json.loads(json.dumps(profile.to_dict()))["macs"] == profile.macs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_dtype(dtype: torch.dtype) -> None:
    model = torchslim.create_model("mobilenet_v3_small").to(dtype)
    assert torchslim.profile(model, torch.randn(1, 3, 224, 224, dtype=dtype)).macs == 56_510_400


def test_the_model_is_left_as_it_was() -> None:
    model = torchslim.create_model("googlenet").train()
    model.conv1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    torchslim.profile(model, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert not model.conv1.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_column_by_hand() -> None:
    """A convolution of 3 -> 4 channels on 6 x 6, batch norm, and a linear layer on the flattened map."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    model[1].bias.requires_grad_(False)
    profile = torchslim.profile(model, torch.randn(2, 3, 6, 6))
    convolution, linear = 2 * 36 * 4 * 27, 2 * 144 * 5
    assert profile.macs == convolution + linear
    assert profile.flops == 2 * convolution + 2 * 2 * 144 + 2 * linear
    assert profile.params == (108 + 4) + 8 + (720 + 5)
    assert (profile.trainable, profile.frozen) == (profile.params - 4, 4)
    assert profile.activations == 2 * 144 + 2 * 5
    moved = [2 * 108 + 108 + 4 + 2 * 144, 2 * 144 + 4 * 4 + 2 * 144, 5 + 2 * 144 + 720 + 2 * 5]
    assert profile.memory_access == sum(moved)
    assert profile.memory_bytes == 4 * profile.memory_access
    assert profile.peak_memory == 4 * (2 * 144 + 2 * 144)
    assert profile.weight_bytes == 4 * (profile.params + 8) + 8  # running mean and variance, and an int64
    assert profile.intensity == profile.flops / profile.memory_bytes
    assert [tuple(vars(layer).values()) for layer in profile.layers] == [
        ("0", "Conv2d", 112, 112, 0, convolution, 2 * convolution, 288, moved[0], 4 * moved[0], 4 * (216 + 288),
         (2, 3, 6, 6), (2, 4, 6, 6), 1),
        ("1", "BatchNorm2d", 8, 4, 0, 0, 576, 0, moved[1], 4 * moved[1], 4 * 576, (2, 4, 6, 6), (2, 4, 6, 6), 1),
        ("2", "Flatten", 0, 0, 0, 0, 0, 0, 0, 0, 4 * 288, (2, 4, 6, 6), (2, 144), 1),
        ("3", "Linear", 725, 725, 0, linear, 2 * linear, 10, moved[2], 4 * moved[2], 4 * (288 + 10), (2, 144),
         (2, 5), 1)]
    assert str(profile).splitlines() == [
        "layer  kind         params   MACs  output",
        "0      Conv2d          112  7,776  2x4x6x6",
        "1      BatchNorm2d       8      0  2x4x6x6",
        "3      Linear          725  1,440  2x5",
        "total                  845  9,216",
        "19,008 FLOPs, 298 activations, memory: 2,231 elements accessed, 2,304 bytes at the peak",
        "4 parameters require no gradient"]


def flops_of(*layers: nn.Module, shape: tuple[int, ...] = (2, 6, 8, 8)) -> int:
    return torchslim.profile(nn.Sequential(*layers), torch.randn(shape)).flops


@pytest.mark.parametrize(("layer", "expected"), [
    (nn.ReLU(), 768), (nn.GELU(), 768), (nn.Hardswish(), 768), (nn.BatchNorm2d(6), 2 * 768),
    (nn.BatchNorm2d(6, track_running_stats=False), 6 * 768),
    (nn.GroupNorm(2, 6), 7 * 768), (nn.GroupNorm(2, 6, affine=False), 5 * 768), (nn.LayerNorm(8), 7 * 768),
    (nn.Softmax(1), 5 * 768), (nn.MaxPool2d(2), 768), (nn.MaxPool2d(3, 2, 1), 9 * 2 * 6 * 16),
    (nn.AvgPool2d((2, 4)), 768), (nn.AdaptiveAvgPool2d(1), 768), (nn.AdaptiveAvgPool2d(3), 12 * 10 * 10),
    (nn.Upsample(scale_factor=2), 0), (nn.Upsample(scale_factor=2, mode="bilinear"), 7 * 4 * 768),
    (nn.Upsample(scale_factor=2, mode="bicubic"), 31 * 4 * 768), (nn.Dropout(), 0), (nn.Flatten(), 0),
    (nn.PixelShuffle(1), 0), (nn.ChannelShuffle(2), 0), (nn.PReLU(), 768)], ids=str)
def test_operations_beside_the_multiply_adds(layer: nn.Module, expected: int) -> None:
    assert flops_of(layer) == expected


def test_functional_arithmetic_counts_and_moving_does_not() -> None:
    model = Calls(lambda s, x: torch.cat([x + 1, x * x.relu()], 1).mean((2, 3)).clone().transpose(0, 1))
    assert torchslim.profile(model, torch.randn(2, 6, 8, 8)).flops == 3 * 768 + 2 * 768


def test_vectors_complex_numbers_and_models_that_do_nothing() -> None:
    w = torch.randn(8)
    assert torchslim.profile(Calls(lambda s, x: x @ w), torch.randn(6, 8)).flops == 96
    assert torchslim.profile(Calls(lambda s, x: torch.dot(x, w)), torch.randn(8)).flops == 16
    waves = Calls(lambda s, x: torch.view_as_real(x * x + x))
    assert torchslim.profile(waves, torch.randn(8, dtype=torch.complex64)).flops == 16
    assert torchslim.profile(waves, torch.randn(8, dtype=torch.complex64)).unknown == ()
    nothing = Calls(lambda s, x: s.layer.weight, layer=nn.Linear(3, 3))
    assert torchslim.profile(nothing, torch.randn(2, 3)).peak_memory == 24
    assert torchslim.profile(nn.Identity(), torch.randn(2, 3)).peak_memory == 24


def test_what_the_forward_pass_freezes_is_learning_again() -> None:
    model = Calls(lambda s, x: s.layer.requires_grad_(False)(x), layer=nn.Linear(3, 3))
    assert torchslim.profile(model, torch.randn(2, 3)).trainable == 12
    assert model.layer.weight.requires_grad


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v3_small", "googlenet",
                                  "squeezenet1_1", "vgg11_bn", "regnet_y_400mf"])
def test_the_peak_is_that_of_a_real_runs_storages(name: str) -> None:
    model, x = torchslim.create_model(f"torchvision:{name}").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), Holding(model, x) as run:
        model(x)
    assert torchslim.profile(model, x).peak_memory == run.peak()


def test_in_place_operations_and_views_take_no_memory_of_their_own() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = x.view(2, -1).relu()
        y[:, :3] += 1
        y.mul_(2)
        return torch.cat([y.view(2, 6, 8, 8), x], 1)

    model, x = Calls(forward), torch.randn(2, 6, 8, 8)
    with torch.no_grad(), Holding(model, x) as run:
        model(x)
    assert torchslim.profile(model, x).peak_memory == run.peak() == 4 * 768 * 4


def test_modules_hold_the_sums_of_what_is_in_them() -> None:
    profile = torchslim.profile(torchslim.create_model("googlenet"), torch.randn(1, 3, 224, 224))
    by_name = {module.name: module for module in profile.modules}
    assert list(by_name)[:3] == ["", "conv1", "conv1.conv"]
    assert by_name[""].macs == profile.macs
    assert by_name[""].params == profile.params
    assert by_name[""].dead_params == profile.dead_params == by_name["aux1"].params + by_name["aux2"].params
    inception = by_name["inception3a"]
    parts = [layer for layer in profile.layers if layer.name == "inception3a" or layer.name.startswith("inception3a.")]
    for key in ("params", "macs", "flops", "activations", "memory_access", "memory_bytes"):
        assert getattr(inception, key) == sum(getattr(part, key) for part in parts) > 0
    assert inception.peak_memory == max(part.peak_memory for part in parts)
    assert (inception.in_shape, inception.out_shape) == ((1, 192, 28, 28), (1, 256, 28, 28))


@pytest.mark.parametrize("model", [
    nn.MultiheadAttention(8, 2, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
], ids=["attention", "encoder"])
def test_attention_is_counted(model: nn.Module) -> None:
    x = torch.randn(2, 5, 8)
    inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    assert torchslim.profile(model, inputs).macs == counted_macs(model, *inputs) > 0


class ReadsData(nn.Module):
    """Its control flow depends on what it sees; it counts its calls and moves its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.calls = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.norm.train()
        while x.abs().max().item() > 1:
            x = x / 2
        return self.norm(self.body(x)) + nn.functional.scaled_dot_product_attention(x, x, x)


def test_a_model_that_reads_data_is_counted_and_left_as_it_was() -> None:
    model, x = ReadsData(), torch.randn(2, 3, 8, 8)
    before = Untouched(model)
    profile = torchslim.profile(model, x)
    before.check()
    assert profile.macs == 2 * 64 * 81 + 2 * (2 * 3 * 8 * 8 * 8)
    assert profile.unknown == ()


def test_a_detector_is_counted_as_torch_counts_it() -> None:
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3).eval()
    picture = torch.rand(3, 64, 64)
    before = Untouched(model)
    profile = torchslim.profile(model, [picture])
    before.check()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([picture])
    assert profile.macs == counter.get_total_flops() // 2
    assert profile.dead_params == 0


def test_operations_without_a_rule_are_named() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(x @ x)

    profile = torchslim.profile(Unknown(), torch.randn(3, 4, 4))
    assert profile.macs == 3 * 64
    assert profile.unknown == ("aten.linalg_matrix_exp",)
    assert str(profile).endswith("not counted, no rule for: aten.linalg_matrix_exp")


def test_parameters_in_lists_count_for_the_module_that_holds_the_list() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))])
            self.free = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scales[0] + self.free.sum()

    profile = torchslim.profile(Listed(), torch.randn(2, 3))
    assert (profile.params, profile.dead_params) == (9, 4)
    assert {layer.name: layer.params for layer in profile.layers} == {"": 2, "scales": 7}


def test_wrapped_and_weightless_models() -> None:
    x = torch.randn(1, 3, 32, 32)
    model = torchslim.create_model("shufflenet_v2_x0_5", num_classes=5)
    expected = torchslim.profile(model, x)
    assert torchslim.profile(nn.DataParallel(model), x) == expected
    assert torchslim.profile(torch.compile(model), x) == expected
    assert torchslim.profile(model.to("meta"), x) == expected
    with pytest.raises(TraceError, match="failed while the model was run"):
        torchslim.profile(model, torch.randn(1, 4, 32, 32))
    assert torchslim.profile(nn.ReLU(), x).macs == 0
