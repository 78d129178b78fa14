"""`kill -9` in the middle of a job costs nothing: two kills of each task here, more by `benchmarks/kills.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

import kills


@pytest.mark.nightly
@pytest.mark.parametrize("task", kills.TASKS)
def test_two_kills(task: str, tmp_path: Path) -> None:
    found = kills.killed(task, 2, 1, tmp_path)
    assert found.problems == ()
    assert (found.kills, sum(found.during.values())) == (2, 2)
    assert found.runs >= 1
