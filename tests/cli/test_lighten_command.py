"""`torchslim lighten`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import torchslim
from helpers import Call
from torchslim.rewriting import lighten_with_report
from torchslim.store.saving import read_header

ARGUMENTS = ("lighten", "timm:test_resnet?num_classes=10", "--input", "1x3x32x32", "--rules")


def test_it_prints_the_report(call: Call) -> None:
    status, out, err = call(*ARGUMENTS, "separable,grouped:2", "--min-channels", "16")
    assert (status, err) == (0, "")
    model = torchslim.create_model("timm:test_resnet", num_classes=10)
    found = lighten_with_report(model, ["separable", "grouped:2"], torch.rand(1, 3, 32, 32), min_channels=16)
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[2:2 + len(found.layers)]] == [[r.layer, r.rule] for r in found.layers]
    assert f"{found.params[0]:,} -> {found.params[1]:,}" in out
    assert all(remark in lines for remark in found.remarks())
    spaced = call(*ARGUMENTS, " separable, grouped:2", "--min-channels", "16")[1]
    assert spaced.splitlines()[-4:] == lines[-4:]


def test_json_has_everything(call: Call) -> None:
    status, out, _ = call(*ARGUMENTS, "separable", "--kernels", "3", "--ends", "--fresh", "--json",
                          "--exclude", "layer1*", "--min-share", "0.01", "--only", "layer*", "--only", "conv1.0")
    assert status == 0
    data = json.loads(out)
    assert {row["layer"].partition(".")[0] for row in data["layers"]} == {"conv1", "layer2", "layer3", "layer4"}
    assert all(row["error"] is None and row["macs"][1] < row["macs"][0] for row in data["layers"])
    assert data["params"][1] < data["params"][0]


def test_a_wrong_rule_is_one_line(call: Call) -> None:
    status, out, err = call(*ARGUMENTS, "sep")
    assert (status, out) == (2, "")
    assert err.startswith("error: lighten: unknown rule 'sep'")
    assert err.count("\n") == 1


def test_the_result_is_saved_and_goes_on(call: Call, tmp_path: Path) -> None:
    light, slim = tmp_path / "light.safetensors", tmp_path / "slim.safetensors"
    status, out, err = call(*ARGUMENTS, "separable,lowrank:0.5", "--out", str(light))
    assert (status, out.splitlines()[-1]) == (0, f"saved: {light}")
    assert "has random weights" in err
    status, out, _ = call("prune", str(light), "--macs", "0.5", "--out", str(slim), "--input", "1x3x32x32", "--json")
    assert status == 0
    assert json.loads(out)["error"] < 1e-9
    x = torch.rand(1, 3, 32, 32)
    assert torchslim.profile(torchslim.load(slim), x).macs <= 0.5 * torchslim.profile(torchslim.load(light), x).macs


def test_it_fits_to_pictures(call: Call) -> None:
    errors = []
    for more in ((), ("--data", "digits", "--pictures", "64")):
        status, out, _ = call(*ARGUMENTS, "lowrank:0.5", "--only", "layer4.*", "--json", *more)
        assert status == 0
        errors.append([row["error"] for row in json.loads(out)["layers"]])
    assert len(errors[0]) == len(errors[1]) > 1
    assert errors[0] != errors[1]


def test_what_can_not_be_saved_or_read_is_one_line_before_any_work(call: Call, tmp_path: Path) -> None:
    for more, wanted in ((("--out", str(tmp_path)), "is a folder"),
                         (("--out", str(tmp_path / "no" / "light.safetensors")), "does not exist"),
                         (("--out", str(tmp_path / "light.txt")), f"try {tmp_path / 'light.safetensors'}"),
                         (("--pictures", "8"), "--pictures 8: of no data; give --data"),
                         (("--data", "nothing"), "names no data"),
                         (("--data", "digits", "--input", "3x32x32"), "digits are square and have 1 or 3")):
        status, out, err = call(*ARGUMENTS, "separable", *more)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert wanted in err
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_those_of_the_seed(call: Call, tmp_path: Path) -> None:
    reports = [call(*ARGUMENTS, "lowrank:0.5", "--json", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert reports[0] == reports[1] != reports[2]
    digests = []
    for place, seed in enumerate(("1", "1", "2")):
        path = tmp_path / f"{place}.safetensors"
        status, _, err = call("prune", ARGUMENTS[1], "--macs", "0.5", "--input", "1x3x32x32", "--seed", seed,
                              "--out", str(path))
        assert status == 0, err
        digests.append(read_header(path).digest)
    assert digests[0] == digests[1] != digests[2]


def test_prune_too_refuses_a_name_that_no_saved_model_has(call: Call, tmp_path: Path) -> None:
    status, out, err = call("prune", ARGUMENTS[1], "--macs", "0.5", "--out", str(tmp_path / "a.txt"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "models are saved as .safetensors" in err
