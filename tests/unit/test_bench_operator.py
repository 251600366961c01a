"""The benchmark of the operator, on a small scale: the budget of status writes, and that it is held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hack.bench.operator import MOST_WRITES, Found, faults, measure, most_within, page


@pytest.fixture(scope="module")
def found() -> Found:
    return measure(judged=3, resting=3, minutes=3.0)


def test_a_judged_rollout_is_written_to_within_its_budget_and_one_at_rest_never(found: Found) -> None:
    assert found.judging == 3, "the whole time"
    assert 0 < found.most_writes <= MOST_WRITES
    assert found.writes > 3 * 3, "evidence is kept"
    assert found.resting_writes == 0
    assert not faults(found)


def test_what_it_measures_is_there(found: Found) -> None:
    assert len(found.rounds) >= 35
    assert all(spent > 0 for spent in found.rounds)
    assert 0 < found.share < 1
    assert 1000 < found.status_bytes < 20_000


def test_the_same_seed_gives_the_same_history() -> None:
    runs = [measure(judged=1, resting=0, minutes=1.0) for _ in range(2)]
    assert len({(run.writes, run.most_writes, run.status_bytes) for run in runs}) == 1


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"most_writes": 14}, "14 times within a minute"),
        ({"resting_writes": 1}, "at rest"),
        ({"judging": 1.0}, "too few"),
    ],
)
def test_a_broken_promise_is_a_fault(found: Found, worse: dict[str, float], said: str) -> None:
    (fault,) = faults(replace(found, **worse))
    assert said in fault


def test_a_minute_is_any_minute_and_its_end_is_the_next_one() -> None:
    assert most_within([]) == 0
    assert most_within([0, 5, 59.9, 60]) == 3
    assert most_within([58, 59, 61, 62]) == 4
    assert most_within([0, 60, 120]) == 1


def test_the_page_has_a_row_for_each_run(found: Found) -> None:
    rest = replace(found, judged=0, resting=6, rounds=(0.0,))
    text = page(rest, [found, replace(found, judged=6, resting=6, made=2 * found.made)])
    assert "| 3 |" in text
    assert "| 6 |" in text
    assert f"{found.status_bytes} bytes" in text
