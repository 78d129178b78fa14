"""The front, what is picked from it, and what is stopped, on numbers made by hand and at random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslim.errors import RequestError
from torchslim.pipeline.sweep.front import Finished, best_within, cheapest_with, dominating, knee, pareto_front
from torchslim.pipeline.sweep.result import SweepResult, SweepTrial, check_best, pick

# Few values, so that equal scores and costs occur.
VALUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)
FRONT = [Finished(0, 0.5, 0.1), Finished(1, 0.9, 0.2), Finished(2, 0.95, 0.6), Finished(3, 0.96, 0.9)]


@given(VALUES)
def test_the_front_is_what_no_other_dominates(values: list[tuple[int, int]]) -> None:
    trials = [Finished(number, score, cost) for number, (score, cost) in enumerate(values)]
    front = pareto_front(trials)
    best = {(a, b) for a, b in values
            if not any(c >= a and d <= b and (c, d) != (a, b) for c, d in values)}
    assert {(trial.score, trial.cost) for trial in front} == best
    assert len(front) == len(best)
    assert [trial.cost for trial in front] == sorted(trial.cost for trial in front)


def test_picks() -> None:
    assert knee(FRONT).number == 1
    assert knee(FRONT[:2]).number == 1
    none_above = [Finished(0, 0.1, 0.1), Finished(1, 0.2, 0.5), Finished(2, 0.9, 0.6)]
    assert knee(none_above).number == 2
    assert cheapest_with(FRONT, 0.91) == FRONT[2]
    assert cheapest_with(FRONT, 0.97) is None
    assert best_within(FRONT, 0.6) == FRONT[2]
    assert best_within(FRONT, 0.05) is None


def test_what_is_behind_a_finished_trial_of_no_more_cost_is_stopped() -> None:
    finished = [Finished(4, 0.9, 0.5, ((0.0, 0.6), (0.5, 0.8), (1.0, 0.9)))]
    assert dominating(0.5, (0.0, 0.41), finished, 0.1) is None  # twice the margin after the cut
    assert dominating(0.5, (0.0, 0.39), finished, 0.1) == finished[0]
    assert dominating(0.49, (0.0, 0.0), finished, 0.1) is None  # it is cheaper
    assert dominating(0.5, (0.75, 0.69), finished, 0.1) is None  # compared with the last stage before
    assert dominating(0.5, (0.75, 0.67), finished, 0.1) == finished[0]
    worse = [Finished(4, 0.7, 0.5, finished[0].stages)]  # what its training has lost does not count
    assert dominating(0.5, (0.5, 0.58), worse, 0.1) is None
    assert dominating(0.5, (1.0, 0.5), [Finished(1, 0.9, 0.5)], 0.1) is None  # without stages it tells nothing


def test_what_can_be_asked_for() -> None:
    trials = tuple(SweepTrial(trial.number, "complete", {}, trial.score, trial.cost) for trial in FRONT)
    result = SweepResult("a", "b", "accuracy", "macs", 0.97, 1, 1, trials)
    assert [pick(result, text).number for text in ("knee", "accuracy:95%", "macs:0.3")] == [1, 2, 1]
    with pytest.raises(RequestError, match=r"accuracy:0.99: .*the highest accuracy is 0.96"):
        pick(result, "accuracy:0.99")
    with pytest.raises(RequestError, match=r"macs:0.01: .*the least MACs are 0.1"):
        pick(result, "macs:0.01")
    with pytest.raises(RequestError, match=r"wanted knee, accuracy:0.5 or macs:0.5"):
        check_best("mIoU:0.5", "accuracy", "macs")
