"""Runs that wait for each other: where they meet, and what happens when one does not come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchslim.compensation.lockstep import Arrive, OutOfStep, lockstep


def visiting(own: int, places: str, seen: list[str]) -> Callable[[Arrive], None]:
    def run(arrive: Arrive) -> None:
        for place in places:
            seen.append(f"{own}{place}")
            arrive(place, own)
    return run


def test_all_meet_at_each_place_before_any_goes_on() -> None:
    seen: list[str] = []
    lockstep([visiting(own, "abc", seen) for own in range(4)],
             lambda place, brought: seen.append(f"{place}{brought}"))
    for step, place in enumerate("abc"):
        part = seen[5 * step:5 * step + 5]
        assert sorted(part[:4]) == [f"{own}{place}" for own in range(4)]
        assert part[4] == f"{place}[0, 1, 2, 3]"


def test_one_works_at_a_time_and_without_gradients() -> None:
    working: list[int] = []
    most: list[int] = []
    gradients: list[bool] = []

    def run(arrive: Arrive) -> None:
        for _ in range(20):
            working.append(1)
            most.append(len(working))
            gradients.append(torch.is_grad_enabled())
            torch.ones(50, 50) @ torch.ones(50, 50)
            working.pop()
            arrive("here", None)

    with torch.enable_grad():
        lockstep([run] * 3, lambda *_: gradients.append(torch.is_grad_enabled()))
        assert torch.is_grad_enabled()
    assert set(most) == {1}
    assert set(gradients) == {False}


@pytest.mark.parametrize(("first", "second"), [("ab", "ac"), ("ab", "a"), ("", "a")])
def test_runs_that_part_are_an_error_and_leave_no_thread(first: str, second: str) -> None:
    before = threading.active_count()
    with pytest.raises(OutOfStep, match="at once"):
        lockstep([visiting(0, first, []), visiting(1, second, []), visiting(2, first, [])], lambda *_: None)
    assert threading.active_count() == before


def test_what_a_run_or_a_meeting_raises_is_raised() -> None:
    def fails(arrive: Arrive) -> None:
        arrive("a", None)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lockstep([visiting(0, "ab", []), fails], lambda *_: None)

    def meet(place: str, _: list[Any]) -> None:
        if place == "b":
            raise KeyError(place)

    with pytest.raises(KeyError, match="b"):
        lockstep([visiting(own, "abc", []) for own in range(3)], meet)
