"""`prune --show`: the tree of layers, their widths, and who is cut with whom."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import torchslim
from torchslim import cli
from torchslim.cli.group_tree import _ranges

Call = Callable[..., tuple[int, str, str]]

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.body = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24),
                                  nn.Conv2d(24, 16, 1))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.body(x))

def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORY)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchslim", "prune", "net.py:net", "--input", "1x3x8x8",
                                          *map(str, arguments)])
        status = cli.main()
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_without_a_budget_it_shows_what_belongs_together(call: Call) -> None:
    assert call("--show") == (0, "\n".join([
        "net.py:net",
        "├── stem",
        "│   └── 0  16  group 1",
        "├── body",
        "│   ├── 0  24  group 2",
        "│   ├── 2  24  group 2",
        "│   └── 3  16  group 1",
        "└── head    5  stays: the network's output", ""]), "")


def test_with_a_budget_it_shows_widths_before_and_after(call: Call, tmp_path: Path) -> None:
    status, out, err = call("--show", "--macs", "0.5")
    assert (status, err) == (0, "")
    widths = {name: (int(before), int(after)) for name, before, after in re.findall(
        r"── (\w+) +(\d+) → (\d+)", out)}
    assert widths["0"] == widths["2"]
    assert widths["0"][0] == 24 > widths["0"][1]
    assert "└── head    5       stays: the network's output" in out
    assert re.search(r"^macs +[\d,]+ +[\d,]+ +\d\d\.\d%$", out, re.MULTILINE)
    assert {path.name for path in tmp_path.iterdir()} <= {"net.py", "__pycache__"}  # nothing is saved


def test_with_a_file_it_cuts_as_well(call: Call) -> None:
    status, out, _ = call("--show", "--macs", "0.5", "--out", "slim.safetensors", "--no-shortcuts")
    assert status == 0
    assert out.startswith("net.py:net\n├── stem\n│   └── 0  16       stays: on a shortcut, and shortcuts=False\n")
    assert out.endswith("saved: slim.safetensors\n")
    slim = torchslim.load("slim.safetensors", trust_source=True)
    assert f"│   ├── 0  24 → {slim.body[0].out_channels}" in out


def test_as_data(call: Call) -> None:
    data = json.loads(call("--show", "--macs", "0.5", "--json")[1])
    shown = {layer["name"]: layer for layer in data["layers"]}
    assert list(shown) == ["stem.0", "body.0", "body.2", "body.3", "head"]
    assert data["groups"][0] == {"group": 1, "name": "stem.0", "channels": 16, "shortcut": True, "frozen": "",
                                 "layers": ["stem.0", "body.3"]}
    assert shown["body.0"]["groups"] == shown["body.2"]["groups"] == [2]
    assert shown["body.0"]["after"] == shown["body.2"]["after"] < 24
    assert shown["head"] == {"name": "head", "before": 5, "after": 5, "groups": [3], "stays": "the network's output"}
    assert {"left_alone", "notes"} < set(data)
    assert set(json.loads(call("--show", "--json")[1])) == {"model", "layers", "groups"}


def test_the_tree_agrees_with_the_slim_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                             tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    monkeypatch.setattr(sys, "argv", ["torchslim", "prune", "torchvision:shufflenet_v2_x0_5", "--input", "1x3x64x64",
                                      "--show", "--macs", "0.5", "--json", "--out", str(path)])
    assert cli.main() == 0
    data, slim = json.loads(capsys.readouterr().out), torchslim.load(path)
    filters = [name for name, module in slim.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [layer["name"] for layer in data["layers"]] == filters
    for layer in data["layers"]:
        assert slim.get_submodule(layer["name"]).weight.shape[0] == layer["after"]


def test_reasons_fold_to_the_width_of_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = call("--show")
    assert max(map(len, out.splitlines())) <= 40
    assert "stays: the network's" in out
    assert "\x1b[" not in out


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_gets_colours(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    ours, theirs = pty.openpty()
    code = ("import sys; from torchslim import cli; "
            "sys.argv = ['torchslim', 'prune', 'net.py:net', '--input', '1x3x8x8', '--show']; sys.exit(cli.main())")
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, cwd=tmp_path, timeout=120, check=True,
                          env={**environment, "TERM": "xterm"})
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "\x1b[36m  group 1\x1b[0m" in text


@pytest.mark.parametrize(("arguments", "message"), [
    (("--macs", "0.5"), "error: prune: nowhere to save the slim model; give --out slim.safetensors, or --show to see"),
    (("--show", "--out", "slim.safetensors"), "error: prune: no budget; give --macs 0.5"),
    (("--show", "--macs", "0.5", "--out", "absent/s.safetensors"), "error: --out absent/s.safetensors: lies in"),
    (("--show", "--exclude", "body.0"), "error: --exclude: says where a budget may cut, and there is no budget; give "),
    (("--show", "--macs", "0.5", "--only", "tail.*"), "error: --only 'tail.*': no layer that makes channels "),
    (("--show", "--macs", "0.5", "--preset", "inner"), "error: --preset inner: no presets for 'net.py:net'; there "),
])
def test_what_cannot_end_well_is_refused(call: Call, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)


def cut(shown: str) -> set[str]:
    """The layers that go narrower, as `--json` names them."""
    return {layer["name"] for layer in json.loads(shown)["layers"] if layer["after"] < layer["before"]}


def test_a_share_of_channels(call: Call) -> None:
    status, out, _ = call("--show", "--channels", "50%", "--json")
    layers = json.loads(out)["layers"]
    assert status == 0
    assert sum(layer["after"] for layer in layers) <= sum(layer["before"] for layer in layers) / 2
    assert re.search(r"^channels +\d+ +\d+ +\d\d\.\d%$", call("--show", "--channels", "50%")[1], re.MULTILINE)


@pytest.mark.parametrize(("options", "names"), [
    ((), {"stem.0", "body.0", "body.2", "body.3"}),
    (("--only", "body.0"), {"body.0", "body.2"}),
    (("--only", "stem.*", "--only", "body.3"), {"stem.0", "body.3"}),
    (("--only", "stem.*", "--only", "body.*", "--exclude", "body.3"), {"body.0", "body.2"}),
    (("--exclude", "body.0", "--exclude", "head"), {"stem.0", "body.3"}),
], ids=["all", "only", "only twice", "only and exclude", "exclude twice"])
def test_patterns_say_what_is_cut(call: Call, options: tuple[str, ...], names: set[str]) -> None:
    status, out, _ = call("--show", "--macs", "0.1", "--nearest", "--json", *options)
    assert (status, cut(out)) == (0, names)


def test_a_preset_is_that_of_the_network_and_of_what_became_of_it(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def prune(model: object, *options: object) -> set[str]:
        monkeypatch.setattr(sys, "argv", ["torchslim", "prune", str(model), "--input", "1x3x32x32", "--show", "--json",
                                          "--nearest", *map(str, options)])
        assert cli.main() == 0
        return cut(capsys.readouterr().out)

    inner = {f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2)}
    slim, network = tmp_path / "slim.safetensors", "torchvision:resnet18?num_classes=3"
    assert prune(network, "--channels", "0.9", "--preset", "inner", "--out", slim) <= inner
    assert prune(slim, "--channels", "0.1", "--preset", "inner") == inner  # a slim model has its original's
    assert prune(network, "--channels", "0.1", "--preset", "all") > inner


def test_layers_with_weights_of_other_names(call: Call, tmp_path: Path) -> None:
    """A parameter that is no `weight` goes by its own name, and a halved layer by its several groups."""
    (tmp_path / "net.py").write_text("""
import torch
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 1, 1))
        self.side, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        left, right = functional.conv2d(x, self.kernel).chunk(2, 1)
        return self.head(torch.cat([left, self.side(right)], 1))

net = Net
""")
    assert call("--show")[1].splitlines() == [
        "net.py:net",
        "├── kernel  8  groups 1-2",
        "├── side    4  group 3",
        "└── head    2  stays: the network's output"]


def test_ranges() -> None:
    assert _ranges([1]) == "1"
    assert _ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def test_an_empty_network_has_an_empty_tree() -> None:
    from torchslim.cli import group_tree as tree

    model = nn.Sequential(nn.ReLU())
    groups = tree.groups_with_layers(model, torchslim.groups(model, torch.rand(1, 3, 4, 4)))
    assert tree.tree_layers(model, groups, None) == []
    tree.draw("nothing", [], planned=False)


GROUPED = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=8), nn.LayerNorm((32, 4, 4)),
                         nn.Conv2d(32, 5, 1))
"""


def test_whole_groups_go_where_asked(call: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GROUPED.replace("nn.LayerNorm((32, 4, 4))", "nn.ReLU()"))
    status, out, _ = call("--macs", "50%", "--whole-groups", "--out", "slim.safetensors", "--json")
    assert status == 0
    assert json.loads(out)["error"] < 1e-12
    slim = torchslim.load(tmp_path / "slim.safetensors", trust_source=True)
    assert slim[1].groups < 8
    assert slim[1].weight.shape[1] == 4


def test_mixed_channels_go_where_asked(call: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GROUPED)
    exact, approximate = (json.loads(call("--macs", "50%", "--show", "--json", *more)[1])
                          for more in ((), ("--approximate",)))
    assert any("mixed by" in entry["reason"] for entry in exact["left_alone"])
    assert not any("mixed by" in entry["reason"] for entry in approximate["left_alone"])
    assert any(note.startswith("approximate:") for note in approximate["notes"])
