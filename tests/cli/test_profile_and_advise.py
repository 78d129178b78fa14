"""`profile`, `compare` and `advise` on the command line."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import torchslim
from helpers import Call
from torchslim import cli
from torchslim.cli.tables import Column, fitting_columns

SMALL, SIZE = "timm:test_resnet?num_classes=10", ("--input", "1x3x32x32")
VGG, SQUEEZENET = "torchvision:vgg11?num_classes=10", "torchvision:squeezenet1_1?num_classes=10"


def small() -> torchslim.Profile:
    return torchslim.profile(torchslim.create_model("timm:test_resnet", num_classes=10), torch.rand(1, 3, 32, 32))


def numbers(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_profile_prints_every_layer_and_the_total(call: Call) -> None:
    status, out, err = call("profile", SMALL, *SIZE)
    assert (status, err) == (0, "")
    expected = small()
    lines = out.splitlines()
    layers = [layer for layer in expected.layers if layer.params or layer.macs]
    assert [line.split()[0] for line in lines[2:2 + len(layers)]] == [layer.name for layer in layers]
    assert lines[2 + len(layers)].startswith("total")
    assert f"{expected.macs:,}" in lines[2 + len(layers)]
    assert " ".join(lines[3 + len(layers):]) == " ".join(expected.remarks())


def test_depth_sort_and_top(call: Call) -> None:
    expected = small()
    rows = numbers(call("profile", SMALL, *SIZE, "--depth", 1, "--sort", "macs", "--csv")[1])
    assert rows[0]["name"] == "(model)"
    assert int(rows[0]["macs"]) == expected.macs == sum(int(row["macs"]) for row in rows[1:])
    assert [int(row["macs"]) for row in rows] == sorted((int(row["macs"]) for row in rows), reverse=True)
    assert all("." not in row["name"] for row in rows)
    top = numbers(call("profile", SMALL, *SIZE, "--top", 3, "--csv")[1])
    assert len(top) == 3
    assert int(top[0]["macs"]) == max(layer.macs for layer in expected.layers)
    assert numbers(call("profile", SMALL, *SIZE, "--depth", 0, "--csv")[1])[0]["params"] == str(expected.params)


def test_json_has_everything(call: Call) -> None:
    data = json.loads(call("profile", SMALL, *SIZE, "--json")[1])
    expected = json.loads(json.dumps(small().to_dict()))
    assert data == {"model": SMALL, **expected}


def test_times_come_as_a_column(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.profile, "_times", lambda model, inputs, found: {m.name: 1.5 for m in found.modules})
    rows = numbers(call("profile", SMALL, *SIZE, "--time", "--csv")[1])
    assert {row["time"] for row in rows} == {"1.5"}
    assert "ms" in call("profile", SMALL, *SIZE, "--time")[1].splitlines()[0].split()
    assert json.loads(call("profile", SMALL, *SIZE, "--time", "--json")[1])["ms"][""] == 1.5


def test_a_modules_time_is_that_of_all_in_it() -> None:
    model, x = torchslim.create_model("timm:test_resnet", num_classes=10), torch.rand(1, 3, 32, 32)
    times = cli.profile._times(model, x, torchslim.profile(model, x))
    assert times[""] >= times["layer1"] > 0
    inside = {name: ms for name, ms in times.items() if name.count(".") == 0 and name}
    assert times[""] >= sum(inside.values()) * 0.999


def test_compare_sets_models_side_by_side(call: Call) -> None:
    status, out, err = call("compare", SMALL, SQUEEZENET, *SIZE, "--csv")
    assert (status, err) == (0, "")
    first, second = numbers(out)
    assert (first["name"], first["of first macs"]) == (SMALL, "1.0")
    assert float(second["of first params"]) == pytest.approx(int(second["params"]) / int(first["params"]))
    data = json.loads(call("compare", SMALL, SQUEEZENET, *SIZE, "--json", "--sort", "params")[1])
    assert [row["model"] for row in data] == [SQUEEZENET, SMALL]
    assert len(json.loads(call("compare", SMALL, SQUEEZENET, *SIZE, "--json", "--top", "1")[1])) == 1
    assert "of first" in call("compare", SMALL, SQUEEZENET, *SIZE)[1]
    timed = json.loads(call("compare", SMALL, SQUEEZENET, *SIZE, "--json", "--time")[1])
    assert all(row["time"] > 0 for row in timed)


def test_compare_module_by_module(call: Call) -> None:
    rows = numbers(call("compare", SMALL, SQUEEZENET, *SIZE, "--depth", "1", "--csv", "--sort", "macs")[1])
    assert rows[0]["name"] == "(model)"
    assert {"layer1", "features"} <= {row["name"] for row in rows}
    assert next(row for row in rows if row["name"] == "features")[f"macs {SMALL}"] == "0"
    out = call("compare", SMALL, SQUEEZENET, *SIZE, "--depth", "1")[1]
    assert out.splitlines()[:2] == [f"1: {SMALL}", f"2: {SQUEEZENET}"]
    data = json.loads(call("compare", SMALL, SQUEEZENET, *SIZE, "--depth", "1", "--json")[1])
    assert data["models"] == [SMALL, SQUEEZENET]


def test_charts(call: Call, tmp_path: Path) -> None:
    status, _, err = call("profile", SMALL, *SIZE, "--plot", tmp_path / "bars.svg")
    assert (status, err) == (0, f"drawn: {tmp_path / 'bars.svg'}\n")
    texts = ["".join(node.itertext()) for node in ElementTree.parse(tmp_path / "bars.svg").iter()
             if node.tag.endswith("}text")]
    assert {"parameters", "MACs", "time, ms"} <= set(texts)
    assert any(text.startswith("layer1") for text in texts)
    assert call("compare", SMALL, VGG, *SIZE, "--plot", tmp_path / "bars.png")[0] == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["bars.png", "bars.svg"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["profile", SMALL, "--sort", "weight"], "error: --sort weight: no such column; wanted one of name, kind, params"),
    (["profile", SMALL, "--json", "--csv"], "error: --json and --csv both print on stdout; give one of them"),
    (["profile", SMALL, "--plot", "bars.pdf"], "error: bars.pdf: .pdf is no format of charts; wanted .svg or .png"),
    (["profile", SMALL, "--plot", "no/bars.svg"], "error: no/bars.svg: the folder no does not exist"),
    (["profile", SMALL, "--sort", "time"], "error: --sort time: no such column without --time; wanted one of name"),
    (["profile", SMALL, "--plot", f"{Path(__file__).parent}/rules"], "error: "),
    (["compare", SMALL, "--depth", "1", "--time"], "error: compare: --depth sets modules side by side, without --time"),
    (["bench", SMALL, "--backend", "all,nope"], "error: "),
    (["bench", "missing.onnx", "--input", "1x3x32x32"], "error: missing.onnx: no such file"),
    (["compare", SMALL, "--sort", "weight"], "error: --sort weight: no such column"),
    (["compare", "resnet81"], "error: resnet81: no model of that name"),
    (["advise", "resnet81"], "error: resnet81: no model of that name"),
    (["compare"], "error: MODEL...: is missing; wanted MODEL...")])
def test_wrong_requests(call: Call, arguments: list[str], message: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_advise(call: Call) -> None:
    status, out, err = call("advise", VGG, *SIZE, "--no-time")
    assert (status, err) == (0, "")
    assert out.startswith("1. a classifier that dominates: could save about 4")
    assert f"`torchslim prune '{VGG}' --input 1x3x32x32 --params 0.5" in out
    findings = json.loads(call("advise", VGG, *SIZE, "--no-time", "--json")[1])["findings"]
    assert findings[0]["layers"][0] == "classifier.0"
    assert "of the time" in call("advise", "torchvision:alexnet", "--input", "1x3x64x64")[1]


def test_advise_says_so_where_there_is_nothing(call: Call, tmp_path: Path) -> None:
    source = tmp_path / "plain.py"
    source.write_text("from torch import nn\ndef net():\n"
                      "    return nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))\n")
    status, out, _ = call("advise", f"{source}:net", "--input", "1x8x16x16")
    assert status == 0
    assert out.endswith("plain.py:net: nothing found; it is about as light as its architecture allows\n")


def test_a_network_without_parameters_has_its_total(call: Call, tmp_path: Path) -> None:
    source = tmp_path / "plain.py"
    source.write_text("from torch import nn\ndef net():\n    return nn.ReLU()\n")
    status, out, _ = call("profile", f"{source}:net", "--input", "1x8x16x16")
    assert status == 0
    assert out.splitlines()[2].startswith("total")
    assert "2,048 FLOPs" in out
    same = json.loads(call("compare", f"{source}:net", f"{source}:net", "--input", "1x8x16x16", "--json")[1])
    assert [row["macs"] for row in same] == [0, 0]


def test_columns_that_do_not_fit_go_by_their_rank() -> None:
    columns = [Column("a", "aaaa", str), Column("b", "bbbb", str, rank=1), Column("c", "cccc", str, rank=2)]
    wide, middle, narrow = (fitting_columns(["x"], columns, width) for width in (16, 15, 1))
    assert ["".join(column.key for column in some) for some in (wide, middle, narrow)] == ["abc", "ab", "a"]
    assert fitting_columns([], columns, None) == columns
