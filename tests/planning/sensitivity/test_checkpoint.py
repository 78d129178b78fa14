"""A scan that is stopped goes on, and ends with what an undisturbed one found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchslim as ts
from helpers import Call, random_statistics
from torchslim.errors import CheckpointError, RequestError
from torchslim.planning.sensitivity import Measured, Sensitivity

NET = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Conv2d(12, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(6, num_classes))
"""


class Stop(BaseException):
    """Stands for a process that ends here."""


def network(seed: int = 0) -> nn.Module:
    space: dict[str, object] = {}
    exec(NET, space)
    return random_statistics(space["net"](4), seed).eval()  # type: ignore[operator]


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(40, 3, 8, 8, generator=generator), torch.randint(0, 4, (40,), generator=generator))]


def scan(path: Path | None, stop: int | None = None, model: nn.Module | None = None, data: object = None,
         **options: object) -> tuple[Sensitivity, list[Measured]]:
    seen: list[Measured] = []

    def watch(at: Measured) -> None:
        seen.append(at)
        if len(seen) == stop:
            raise Stop

    return ts.sensitivity(network() if model is None else model, torch.randn(1, 3, 8, 8), data or batches(),
                          **{"ratios": (0.75, 0.5, 0.25), "checkpoint": path, "progress": watch, **options}), seen


def test_stopped_after_each_measurement_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = scan(tmp_path / "whole.json")
    assert whole == scan(None)[0]
    assert [at.done for at in seen] == list(range(1, 10))
    assert {at.total for at in seen} == {9}
    path = tmp_path / "part.json"
    runs: list[int] = []
    from torchslim.planning.sensitivity import scan as module

    monkeypatch.setattr(module, "apply", lambda model, plan: runs.append(1) or ts.apply(model, plan))
    for stop in range(1, 9):
        runs.clear()
        with pytest.raises(Stop):
            scan(path, stop)
        assert len(runs) == 1  # the ones before are not measured again
    assert scan(path)[0] == whole
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    runs.clear()
    assert scan(path)[0] == whole
    assert not runs


@pytest.mark.parametrize(("change", "said"), [
    ({"model": network(3)}, "another model"),
    ({"data": batches(2)}, "another data"),
    ({"data": [(x, (y + 1) % 4) for x, y in batches()]}, "another data"),
    ({"importance": "l1"}, r"importance='obs' \(now 'l1'\), another ranking"),
    ({"importance": "random"}, r"importance='obs' \(now 'random'\)"),
    ({"measure": "agreement"}, r"measure='accuracy' \(now 'agreement'\)"),
    ({"shortcuts": False}, r"shortcuts=True \(now False\)"),
])
def test_measurements_of_something_else_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "scan.json"
    with pytest.raises(Stop):
        scan(path, 1)
    before = path.read_bytes()
    with pytest.raises(RequestError, match=rf"scan\.json: holds measurements of {said}.*delete it to start anew"):
        scan(path, **change)  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_other_ratios_take_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "scan.json"
    scan(path)
    found, _ = scan(path, ratios=(0.9, 0.5))
    assert found == scan(None, ratios=(0.9, 0.5))[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "other"}', '{"kind": "torchslim.sensitivity", "format": 1}'])
def test_a_file_of_another_kind_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scan.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"scan\.json: .*choose another file"):
        scan(path)
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder; give a file"):
        scan(tmp_path)
    with pytest.raises(RequestError, match="lies in a folder that does not exist"):
        scan(tmp_path / "none" / "scan.json")


# --- the command line -------------------------------------------------------------------------------------------------

@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "net.py").write_text(NET)
    return ["sensitivity", f"{tmp_path / 'net.py'}:net", "--data", "digits", "--input", "1x3x8x8", "--pictures", "100",
            "--ratios", "0.5,0.25"]


def test_killed_it_goes_on_and_leaves_the_same_files(arguments: list[str], tmp_path: Path, call: Call) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert call(*arguments, "--out", whole)[0] == 0
    assert sorted(path.name for path in whole.iterdir()) == [
        "measured.json", "sensitivity.json", "sensitivity.svg", "shares.json"]
    code = "import sys; from torchslim.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", code, *arguments, "--out", str(part)],
                          stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not (part / "measured.json").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert (part / "measured.json").exists()
    assert not (part / "sensitivity.json").exists()
    status, printed, said = call(*arguments, "--out", part)
    assert status == 0
    assert "6/6 6: 2 of 6 channels" in said
    assert "needs" in printed
    for path in whole.iterdir():
        assert (part / path.name).read_bytes() == path.read_bytes()
    assert not [path for path in part.iterdir() if path.name.startswith(".")]


def test_the_shares_go_into_prune(arguments: list[str], tmp_path: Path, call: Call) -> None:
    out = tmp_path / "scan"
    assert call(*arguments, "--out", out, "--drop", "1")[0] == 0
    shares = json.loads((out / "shares.json").read_text())
    assert shares == {"0": 0.25, "3": 0.25, "6": 0.25}
    status, printed, _ = call("prune", arguments[1], "--scope", out / "shares.json", "--input", "1x3x8x8", "--show",
                              "--json")
    assert status == 0
    assert [layer["after"] for layer in json.loads(printed)["layers"]] == [2, 3, 2, 10]


def test_json_is_the_result_and_the_shares(arguments: list[str], call: Call) -> None:
    status, printed, _ = call(*arguments, "--json")
    raw = json.loads(printed)
    assert (status, raw["measure"], raw["ratios"], raw["items"]) == (0, "accuracy", [0.5, 0.25], 100)
    assert [group["name"] for group in raw["groups"]] == ["0", "3", "6"]
    assert set(raw["shares"]) == {"0", "3", "6"}


@pytest.mark.parametrize(("more", "said"), [
    (["--ratios", "half"], "--ratios half: wanted shares of channels kept, such as 0.9,0.5,0.1"),
    (["--ratios", "2"], "--ratios 2: wanted shares of channels kept, such as 0.9,0.5,0.1 or 90%,50%,10%"),
    (["--ratios", "0,50%"], "--ratios 0,50%: wanted shares"),
    (["--data", "nothing"], "nothing: names no data"),
    (["--input", "8x8"], "--input 8x8: the pictures of --data digits are square and have 1 or 3 channels"),
    (["--measure", "speed"], "--measure speed: wanted one of accuracy, agreement, error"),
    (["--drop", "-1"], "--drop -1: wanted a number, 0 or more"),
    (["--drop", "nan"], "--drop nan: wanted a number, 0 or more"),
    (["--measure", "error", "--ratios", ""], "--ratios '': is empty"),
])
def test_requests_that_make_no_sense(arguments: list[str], more: list[str], said: str, call: Call) -> None:
    status, printed, err = call(*arguments, *more)
    assert (status, printed) == (2, "")
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_a_model_of_other_classes_is_asked_for_agreement(arguments: list[str], tmp_path: Path, call: Call) -> None:
    arguments[1] += "?num_classes=7"
    status, _, said = call(*arguments)
    assert status == 2
    assert "gives scores of shape 1x7 for a picture, digits has 10 classes" in said
    status, printed, _ = call(*arguments, "--measure", "agreement", "--json")
    assert (status, json.loads(printed)["base"]) == (0, 1.0)


def test_a_model_that_fails_on_these_pictures(tmp_path: Path, call: Call) -> None:
    (tmp_path / "flat.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), "
                                      "nn.Flatten(), nn.Linear(8, 10))\n")
    status, printed, said = call("sensitivity", f"{tmp_path / 'flat.py'}:net", "--data", "digits", "--input", "1x3x8x8")
    assert (status, printed) == (2, "")
    assert "fails on a picture of 1x3x8x8: RuntimeError" in said


def test_restart_throws_away_what_was_measured(arguments: list[str], tmp_path: Path, call: Call) -> None:
    assert call(*arguments, "--out", tmp_path / "scan")[0] == 0
    status, _, said = call(*arguments, "--out", tmp_path / "scan", "--importance", "l1")
    assert status == 2, said
    assert "holds measurements of --importance 'obs' (now 'l1')" in said
    assert call(*arguments, "--out", tmp_path / "scan", "--importance", "l1", "--restart")[0] == 0
    assert json.loads((tmp_path / "scan" / "sensitivity.json").read_text())["importance"] == "l1"


@pytest.mark.parametrize("text", ["{", "[1]", '{"0": "half"}', '{"0": 2}', None])
def test_a_scope_that_is_none(arguments: list[str], tmp_path: Path, text: str | None, call: Call) -> None:
    path = tmp_path / "shares.json"
    if text is not None:
        path.write_text(text)
    status, _, said = call("prune", arguments[1], "--scope", path, "--input", "1x3x8x8", "--show")
    assert status == 2
    assert said.startswith("error: ")
    assert "shares.json: " in said or "is no share" in said
