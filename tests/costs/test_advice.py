"""Findings: each on a small network that has it, none on one that has not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchslim
from helpers import Calls, Untouched, conv, count
from torchslim.costs.advice import advise
from torchslim.costs.findings import Finding

X = torch.randn(1, 8, 16, 16)


def found(model: nn.Module, x: Any = X, **options: Any) -> dict[str, Finding]:
    return {finding.kind: finding for finding in advise(model.eval(), x, **options)}


def clean() -> nn.Sequential:
    return nn.Sequential(conv(8, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 8))


def test_a_clean_network_is_called_so() -> None:
    assert advise(clean(), X) == ()


def test_inputs_without_elements_are_refused() -> None:
    with pytest.raises(torchslim.errors.RequestError, match="computes nothing on these inputs"):
        advise(clean(), X[:0])


def test_the_model_is_left_as_it_was() -> None:
    model = torchslim.create_model("mobilenet_v3_small").train()
    x = torch.randn(1, 3, 64, 64)
    before = Untouched(model)
    advise(model, x)
    before.check()


def test_dead_parameters_are_counted_and_named() -> None:
    model = Calls(lambda s, x: s.body(x), body=clean(), left=nn.Sequential(conv(8, 8), conv(8, 8)))
    finding = found(model)["dead parameters"]
    dead = 2 * (8 * 8 * 9 + 8)
    assert finding.gain == dead / count(model)
    assert f"{dead:,} of {count(model):,} parameters" in finding.evidence
    assert set(finding.layers) == {"left.0", "left.1"}
    assert finding.remedy.endswith("`model.set_submodule('left', torch.nn.Identity())`")


class Partly(nn.Module):
    """Alternate layers of a list are used, one of two parameters, and a tensor of its own that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(8, 8) for _ in range(4))
        self.unused = nn.Parameter(torch.ones(3))
        self.shift = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[2](self.layers[0](x))
        return x * self.shift.bias[:, None, None]


def test_what_is_dead_can_be_taken_out_as_it_says() -> None:
    model = Partly().eval()
    before = model(X)
    finding = found(model)["dead parameters"]
    lines = finding.remedy.split("`")[1::2]
    assert len(lines) == 3
    assert finding.remedy.endswith("; and 1 more such lines")
    for line in lines:
        exec(line, {"torch": torch, "model": model})
    assert torch.equal(model(X), before)
    assert count(model) == 2 * 584 + 8 + 64


def test_unbalanced_pointwise_convolutions() -> None:
    """G1: 8 -> 128 on 16 x 16 accesses 256 x 136 + 1024 elements; 32 -> 32 has as many MACs and accesses 256 x 64."""
    finding = found(nn.Sequential(conv(8, 128, 1, bias=False)))["unbalanced 1x1 convolutions (G1)"]
    assert finding.gain == pytest.approx(256 * (136 - 64) / (256 * 136 + 1024))
    assert finding.evidence.startswith("1 convolution with up to 2.06 times")
    assert "unbalanced 1x1 convolutions (G1)" not in found(nn.Sequential(conv(8, 8, 1), conv(8, 8, 1)))


def test_the_wide_side_is_the_one_to_cut() -> None:
    wide_inside = nn.Sequential(conv(8, 256), nn.ReLU(), conv(256, 8, 1), conv(8, 8))
    assert "--only 0 " in found(wide_inside)["unbalanced 1x1 convolutions (G1)"].remedy
    assert "--only 0 " in found(nn.Sequential(conv(8, 256, 1), conv(256, 8)))["unbalanced 1x1 convolutions (G1)"].remedy


def test_heavy_grouping() -> None:
    """G2: with 4 groups the output is four times as large as an ungrouped one of the same MACs."""
    finding = found(nn.Sequential(conv(8, 16, groups=4, bias=False)))["heavy grouping (G2)"]
    written = 16 * 256
    assert finding.gain == pytest.approx(written * 3 / 4 / (8 * 256 + written + 16 * 2 * 9))
    assert not any("G2" in kind for kind in found(nn.Sequential(conv(8, 8, groups=8), conv(8, 8, groups=2))))


def test_fragmentation() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return torch.cat([s.a(x), s.b(x), s.c(x)], 1)

    branches = {name: conv(8, 8) for name in "abc"}
    assert "1 tensor with up to 3 convolutions side by side, which hold 100.0% of the MACs" in found(
        Calls(forward, **branches))["fragmentation (G3)"].evidence
    timed = found(Calls(lambda s, x: s.last(forward(s, x)), last=conv(24, 8), **branches),
                  ms={"a": 2.0, "b": 2.0, "c": 2.0, "last": 2.0})
    assert timed["fragmentation (G3)"].gain == pytest.approx(0.75 - 0.5)
    assert "75.0% of the time" in timed["fragmentation (G3)"].evidence
    assert "fragmentation (G3)" not in found(Calls(lambda s, x: s.a(x) + s.b(x), a=conv(8, 8), b=conv(8, 8)))


def test_element_wise_operations() -> None:
    model = Calls(lambda s, x: ((s.a(x) + 1) * 2).sigmoid(), a=conv(8, 8))
    finding = found(model)["element-wise operations (G4)"]
    size = 8 * 256
    assert finding.evidence.startswith(f"3 operations with {600 * size / (8 * size + 584):.1f}% of the memory access")
    assert finding.gain == pytest.approx(6 * size / (8 * size + 584))


def test_a_bias_before_batch_norm_and_a_norm_that_could_be_folded() -> None:
    model = nn.Sequential(conv(8, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16, bias=False), nn.BatchNorm2d(16))
    several = found(model)
    assert several["convolution bias before batch norm"].gain == 16 / count(model)
    assert several["convolution bias before batch norm"].layers == ("0",)
    assert several["unfused batch norm at inference"].layers == ("1", "4")
    read_twice = Calls(lambda s, x: s.norm(y := s.a(x)) + y, a=conv(8, 8), norm=nn.BatchNorm2d(8))
    own_statistics = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8, track_running_stats=False))
    called_twice = Calls(lambda s, x: s.norm(s.a(x)) + s.a(x), a=conv(8, 8), norm=nn.BatchNorm2d(8))
    for other in (read_twice, own_statistics, called_twice):
        assert not {"convolution bias before batch norm", "unfused batch norm at inference"} & found(other).keys()


def test_widths_that_leave_blocks_half_empty() -> None:
    finding = found(nn.Sequential(conv(8, 12, bias=False), conv(12, 12, bias=False), conv(12, 8, bias=False)))[
        "channels that are no multiple of 8"]
    assert finding.gain == pytest.approx(1 - (8 * 12 + 12 * 12 + 12 * 8) / (8 * 12 + 16 * 16 + 12 * 8), abs=0.06)
    assert finding.layers[0] == "1 (12)"


def test_large_kernels() -> None:
    finding = found(nn.Sequential(conv(8, 8, 7), conv(8, 8, 3)))["large kernels that factorise"]
    assert finding.gain == pytest.approx(49 / 58 * (1 - 14 / 49))
    assert finding.layers == ("0 (7x7)",)


def test_the_pair_of_a_large_kernel_costs_what_it_says() -> None:
    one = nn.Conv2d(16, 16, 7, 2, 3)
    pair = nn.Sequential(nn.Conv2d(16, 16, (1, 7), (1, 2), (0, 3)), nn.Conv2d(16, 16, (7, 1), (2, 1), (3, 0)))
    x = torch.randn(1, 16, 16, 16)
    costs = [torchslim.profile(nn.Sequential(layer, conv(16, 8)), x).macs for layer in (one, pair)]
    model = nn.Sequential(one, conv(16, 8))
    finding = found(model, x)["large kernels that factorise"]
    assert finding.gain == pytest.approx(1 - costs[1] / costs[0])
    made = eval(finding.remedy.split("`")[3], {"torchslim": torchslim, "model": model, "inputs": x})
    assert torchslim.profile(made, x).macs == costs[1]


@pytest.mark.parametrize("layer", [conv(8, 64, 7), conv(8, 8, 7, groups=8)], ids=str)
def test_kernels_whose_pair_would_cost_more_are_left(layer: nn.Module) -> None:
    assert "large kernels that factorise" not in found(nn.Sequential(layer, nn.ReLU()))


def test_heavy_first_and_last_layers() -> None:
    heavy = nn.Sequential(conv(8, 32), nn.MaxPool2d(4), conv(32, 32), conv(32, 8))
    first = found(heavy)["a first layer that dominates"]
    assert first.layers == ("0",)
    model = nn.Sequential(conv(8, 8), nn.Flatten(), nn.Linear(2048, 10))
    last = found(model)["a classifier that dominates"]
    assert last.gain == pytest.approx(20490 / count(model) / 2, rel=1e-3)
    assert last.layers == ("2",)
    transformer = torchslim.create_model("timm:test_vit")
    assert "a classifier that dominates" not in found(transformer, torch.randn(1, 3, 160, 160))


def test_padding_that_ignores_dilation() -> None:
    kind = '"same" padding that ignores dilation'
    finding = found(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, dilation=2)))[kind]
    assert f"shrink by up to {100 * (1 - 14**2 / 16**2):.1f}%" in finding.evidence
    for right in (nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 3, dilation=2),
                  nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.Conv2d(8, 8, 3, 2, padding=1, dilation=2)):
        assert kind not in found(nn.Sequential(right))


@pytest.mark.parametrize(("name", "wanted"), [
    ("shufflenet_v2_x1_0", {"channels that are no multiple of 8", "unfused batch norm at inference"}),
    ("googlenet", {"dead parameters", "fragmentation (G3)"}),
    ("vgg11", {"a classifier that dominates"}),
    ("mobilenet_v2", {"unbalanced 1x1 convolutions (G1)", "unfused batch norm at inference"}),
    ("resnext50_32x4d", {"heavy grouping (G2)"})])
def test_well_known_networks_have_their_well_known_weaknesses(name: str, wanted: set[str]) -> None:
    source = f"torchvision:{name}"
    findings = advise(torchslim.create_model(source), torch.randn(1, 3, 224, 224), name=source)
    assert wanted <= {finding.kind for finding in findings}
    assert [f.gain for f in findings] == sorted((f.gain for f in findings), reverse=True)
    assert all(0 <= finding.gain < 1 and finding.layers for finding in findings)


class Pair(nn.Sequential):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(nn.Conv2d(cin, cout, 3), nn.BatchNorm2d(cout), nn.ReLU(),
                         nn.Conv2d(cout, cout, 3), nn.BatchNorm2d(cout), nn.ReLU())


class UNet(nn.Module):
    """A U-Net as teaching material has it: unpadded, with a fourth decoder pair that its forward pass never calls."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.encoder = nn.ModuleList(Pair(i, o) for i, o in zip((3, *widths), widths, strict=False))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in widths[-2::-1])
        self.decoder = nn.ModuleList(Pair(2 * c, c) for c in widths[-2::-1])
        self.head = nn.Sequential(Pair(128, 64), nn.Conv2d(64, 2, 3))
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for place, block in enumerate(self.encoder):
            x = block(x if not place else self.pool(x))
            skips.append(x)
        for place, skip in enumerate(skips[-2::-1]):
            x = self.ups[place](x)
            height, width = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = torch.cat([skip, nn.functional.pad(x, (width // 2, width - width // 2, height // 2,
                                                       height - height // 2))], 1)
            x = self.decoder[place](x) if place < 3 else self.head(x)
        return x


def test_the_u_net_whose_last_decoder_is_never_called() -> None:
    model, x = UNet(), torch.randn(1, 3, 256, 256)
    profile = torchslim.profile(model, x)
    assert (profile.params, profile.macs, profile.dead_params) == (31_155_586, 35_625_950_464, 110_976)
    finding = found(model, x)["dead parameters"]
    assert finding.evidence.startswith("110,976 of 31,155,586 parameters")
    assert "model.set_submodule('decoder.3', torch.nn.Identity())" in finding.remedy
