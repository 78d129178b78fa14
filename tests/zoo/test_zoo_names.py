"""The networks by their names: listed, found, built on the command line, saved and rebuilt."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch

import torchslim as ts
from torchslim import cli, zoo
from torchslim.store.loading import build, default_input
from torchslim.store.saving import read_header
from torchslim.zoo.sources import Source, resolve


def test_bare_names_are_ours_first() -> None:
    shared = {"mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "squeezenet1_0", "squeezenet1_1"}
    for name in zoo.NETWORKS:
        assert resolve(name) == resolve(f"torchslim:{name}") == Source("torchslim", name)
    assert ts.list_models("shufflenet_v?") == ["shufflenet_v1", "shufflenet_v2"]
    assert set(ts.list_models("shuffle*")) >= {"shufflenet_v1", "shufflenet_v1_cifar", "shufflenet_v2_x1_0"}
    assert {name for name in ts.list_models() if name.startswith("torchvision:")} == {
        f"torchvision:{name}" for name in shared}
    assert ts.list_models("torchslim:*") == sorted(f"torchslim:{name}" for name in zoo.NETWORKS)
    assert ts.list_models("torchvision:resnet1?") == ["torchvision:resnet18"]
    assert all(resolve(f"torchvision:{name}").kind == "torchvision" for name in shared)


def test_options_make_the_network() -> None:
    network = ts.create_model("mobilenet_v1", num_classes=1000, width=0.5)
    assert sum(p.numel() for p in network.parameters()) == 1_331_592
    source = resolve("mobilenet_v1?width=0.5")
    assert str(source.with_defaults(num_classes=4)) == "torchslim:mobilenet_v1?width=0.5&num_classes=4"
    assert default_input("squeezenet_cifar?in_channels=1") == (1, 32, 32)


@pytest.mark.parametrize("source", ["torchslim:mobilenet_v1_cifar?width=0.25&num_classes=4",
                                    "shufflenet_v1_cifar?groups=8"])
def test_a_slim_network_is_rebuilt_from_its_source(source: str, tmp_path: Path) -> None:
    network, x = build(source).eval(), torch.randn(1, 3, 32, 32)
    slim, plan = ts.prune(network, x, macs=0.5)
    ts.save(slim, tmp_path / "slim.safetensors", plan=plan, source=source)
    assert torch.equal(ts.load(tmp_path / "slim.safetensors")(x), slim.eval()(x))


def test_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                             tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["torchslim", *arguments])
        with contextlib.suppress(SystemExit):
            cli.main()
        out, err = capsys.readouterr()
        assert "error" not in err
        return out

    assert run("models", "mobilenet_v1*").split() == ["mobilenet_v1", "mobilenet_v1_cifar"]
    assert run("models", "*:squeezenet*").split() == ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"]
    assert "12213248" in run("profile", "torchslim:mobilenet_v1_cifar?width=0.5", "--json")
    slim = str(tmp_path / "slim.safetensors")
    run("prune", "torchslim:shufflenet_v2_cifar?width=0.5", "--macs", "0.5", "--out", slim)
    for name in ("mobilenet_v2", "torchvision:mobilenet_v2"):
        shown = run("prune", f"{name}?num_classes=5", "--input", "1x3x64x64", "--macs", "0.8", "--preset", "inner",
                    "--json", "--out", slim)
        assert '"error"' in shown
        assert read_header(slim).source == f"{resolve(name)}?num_classes=5"
        assert '"macs": ' in run("profile", slim, "--json")
