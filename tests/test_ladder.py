"""The ladder: exact counts, and a chart of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import Call
from torchslim.errors import RequestError
from torchslim.ladder import Rung, climb, slower

PARAMS = (31_155_586, 28_719_900, 26_285_660, 11_635_292, 9_035_594, 5_919_434)
DEAD = (110_976, 110_976, 82_496, 21_056, 15_296, 3_776)
MACS = (35_625_950_464, 34_135_523_908, 30_221_124_164, 15_342_322_244, 13_296_976_748, 10_207_360_364)



def test_every_rung_has_its_exact_counts(call: Call) -> None:
    status, out, err = call("ladder", "--rounds", "0", "--json")
    assert (status, err) == (0, "")
    rungs = json.loads(out)
    assert [rung["rung"] for rung in rungs] == list(range(6))
    assert tuple(rung["params"] for rung in rungs) == PARAMS
    assert tuple(rung["dead_params"] for rung in rungs) == DEAD
    assert tuple(rung["macs"] for rung in rungs) == MACS
    assert {rung["ms"] for rung in rungs} == {None}
    assert all(rung["peak_memory"] > 2**20 for rung in rungs)


def test_the_table_and_the_chart(call: Call, tmp_path: Path) -> None:
    status, out, err = call("ladder", "--size", "125", "--rounds", "1", "--plot", tmp_path / "ladder.svg")
    assert (status, err) == (0, f"drawn: {tmp_path / 'ladder.svg'}\n")
    lines = out.splitlines()[2:8]
    assert [line.split()[0] for line in lines] == list("012345")
    bars = [line.count("\N{FULL BLOCK}") for line in lines]
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == 24
    chart = (tmp_path / "ladder.svg").read_text(encoding="utf-8")
    for text in ("31.2 M (100.0%)", "5.92 M (19.0%)", "time, ms", "5: depthwise for each grouped"):
        assert text in chart


def test_where_fewer_parameters_take_no_less_time_it_says_so() -> None:
    rungs = [Rung(place, "", params, 0, 1, 1, ms) for place, (params, ms) in enumerate(((9, 3.0), (8, 3.5), (7, 2.0)))]
    assert slower(rungs) == [1]
    assert slower([Rung(place, "", 9 - place, 0, 1, 1, None) for place in range(3)]) == []


def test_pictures_that_are_too_small_are_refused() -> None:
    with pytest.raises(RequestError, match="wanted at least 125 pixels"):
        climb(124)
