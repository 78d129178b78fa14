"""The ladder: exact counts, and a chart of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torchslim as ts
from helpers import Call, count, counted_macs, oracle_error, random_statistics
from torchslim.errors import RequestError
from torchslim.pipeline import unet_ladder as ladder
from torchslim.pipeline.unet_ladder import Rung, measure_ladder, mismatched_rungs
from torchslim.zoo import unet

PARAMS = (31_155_586, 28_719_900, 26_285_660, 11_635_292, 9_035_594, 5_919_434, 6_123_686, 6_027_686, 1_530_086)
DEAD = (110_976, 110_976, 82_496, 21_056, 15_296, 3_776, 14_976, 14_976, 4_416)
MACS = (35_625_950_464, 34_135_523_908, 30_221_124_164, 15_342_322_244, 13_296_976_748, 10_207_360_364, 11_379_343_596,
        5_375_406_828, 1_431_659_436)


def test_every_rung_has_its_exact_counts(call: Call) -> None:
    status, out, err = call("ladder", "--rounds", "0", "--json")
    assert (status, err) == (0, "")
    rungs = json.loads(out)
    assert [rung["rung"] for rung in rungs] == list(range(10))
    assert tuple(rung["params"] for rung in rungs[:9]) == PARAMS
    assert tuple(rung["dead_params"] for rung in rungs[:9]) == DEAD
    assert tuple(rung["macs"] for rung in rungs[:9]) == MACS
    assert {rung["ms"] for rung in rungs} == {None}
    assert all(rung["peak_memory"] > 2**20 for rung in rungs)
    assert 0.5 < rungs[9]["macs"] / MACS[8] < 0.62  # a quarter of the channels at either end of most layers


@pytest.mark.parametrize("rung", range(8))
def test_rules_make_each_rung_of_the_plain_network(rung: int) -> None:
    with torch.device("meta"):
        plain, x = unet(), torch.empty(1, 3, 256, 256)
    light = ts.lighten(plain, ladder.rewrites(rung), ends=True) if rung else plain
    assert count(light) == PARAMS[rung]
    assert counted_macs(light, x) == MACS[rung]
    assert ts.profile(light, x).dead_params == DEAD[rung]


def test_no_rules_make_a_narrower_rung() -> None:
    for rung in (8, -1, "separable", 5.0):
        with pytest.raises(RequestError, match="wanted one of 0 to 7"):
            ladder.rewrites(rung)  # type: ignore[arg-type]


def test_the_last_rung_is_an_exact_cut_of_the_one_before() -> None:
    x = torch.randn(1, 3, 125, 125)
    before = random_statistics(ladder.build_rung(ladder.RUNG_SPECS[8], x))
    plan = ts.plan(before, x, channels=0.75, scope="uniform")
    after = ts.apply(before, plan)
    assert oracle_error(before, after, plan, x) < 1e-9
    last = ladder.build_rung(ladder.RUNG_SPECS[9], x)
    assert [p.shape for p in after.parameters()] == [p.shape for p in last.parameters()]


def test_the_table_and_the_chart(call: Call, tmp_path: Path) -> None:
    status, out, err = call("ladder", "--size", "125", "--rounds", "1", "--plot", tmp_path / "ladder.svg")
    assert (status, err) == (0, f"drawn: {tmp_path / 'ladder.svg'}\n")
    lines = out.splitlines()[2:12]
    assert [line.split()[0] for line in lines] == list("0123456789")
    bars = [line.split()[1].count("\N{FULL BLOCK}") for line in lines]
    assert bars[:6] == sorted(bars[:6], reverse=True)
    assert bars[0] == 16
    chart = (tmp_path / "ladder.svg").read_text(encoding="utf-8")
    for text in ("31.2 M (100.0%)", "5.92 M (19.0%)", "time, ms", "5: depthwise for each grouped"):
        assert text in chart


def test_where_parameters_and_time_part_it_says_so(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ((9, 3.0), (8, 3.5), (7, 2.0), (8, 1.0), (7, 0.5))
    rungs = tuple(Rung(place, "", params, 0, 1, 1, ms) for place, (params, ms) in enumerate(figures))
    assert mismatched_rungs(rungs) == {1: "fewer parameters than rung 0, and no less time",
                             3: "more parameters than rung 2, and less time"}
    assert mismatched_rungs([Rung(place, "", 9 - place, 0, 1, 1, None) for place in range(3)]) == {}
    monkeypatch.setattr(ladder, "measure_ladder", lambda *_, **__: rungs)
    status, out, _ = call("ladder", "--plot", tmp_path / "ladder.svg")
    assert status == 0
    assert out.splitlines()[-2:] == ["rung 1: fewer parameters than rung 0, and no less time",
                                     "rung 3: more parameters than rung 2, and less time"]
    chart = (tmp_path / "ladder.svg").read_text(encoding="utf-8")
    assert [mark in chart for mark in (">3 !<", ">4 !<", ">2 !<", ">1 !<", ">0 !<")] == [False, True, False, True,
                                                                                          False]


def test_pictures_that_are_too_small_are_refused() -> None:
    for wrong in (124, 125.5, "256", None, (256, 256)):
        with pytest.raises(RequestError, match="wanted whole numbers: at least 125 pixels"):
            measure_ladder(wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"1\.5 rounds found"):
        measure_ladder(125, rounds=1.5)  # type: ignore[arg-type]
