"""What holds of the judge whatever is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.core.rollout.binary import BinaryTest
from tidegate.core.rollout.counts import Requests, Rewards
from tidegate.core.rollout.guards import Guard, Settings
from tidegate.core.rollout.judge import Judge
from tidegate.core.rollout.reward import RewardTest

ALL = Settings((Guard.errors(), Guard.latency(), Guard.reward()))
ERRORS = Settings((Guard.errors(),))


@st.composite
def requests(draw: st.DrawFn, least: int = 0, most: int = 400) -> Requests:
    n = draw(st.integers(least, most))
    errors = draw(st.integers(0, n))
    fast = draw(st.integers(0, n))
    return Requests(n, errors, {50.0: fast // 2, 100.0: fast, inf: n})


@st.composite
def rewards(draw: st.DrawFn) -> Rewards:
    values = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30))
    return Rewards(len(values), sum(values), sum(value * value for value in values))


@st.composite
def windows(draw: st.DrawFn) -> tuple[float, tuple[Requests, Requests] | None, tuple[Rewards, Rewards] | None, float]:
    both = draw(st.none() | st.tuples(requests(), requests()))
    marks = draw(st.none() | st.tuples(rewards(), rewards()))
    return draw(st.sampled_from([1.0, 5.0, 30.0, 700.0])), both, marks, draw(st.sampled_from([0.0, 5.0, 50.0]))


Window = tuple[float, tuple[Requests, Requests] | None, tuple[Rewards, Rewards] | None, float]


def take(judge: Judge, window: Window) -> None:
    dt, both, marks, weight = window
    judge.observe(dt, both, marks, weight=weight)


@settings(max_examples=60, deadline=None)
@given(st.lists(windows(), min_size=1, max_size=25), st.data())
def test_a_restart_at_any_point_changes_nothing(given: list[Window], data: st.DataObject) -> None:
    straight, stopped = Judge(ALL), Judge(ALL)
    changes = data.draw(st.sets(st.integers(0, len(given))))
    for i, window in enumerate(given):
        for judge in (straight, stopped):
            if i in changes:
                judge.weight_changed()
            take(judge, window)
        stopped = Judge(ALL, json.loads(json.dumps(stopped.dump(), allow_nan=False)))
        assert stopped.dump() == straight.dump()
    assert stopped.report() == straight.report()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1.0, 5.0, 60.0, 1000.0]), requests(), rewards()), max_size=30))
def test_without_requests_of_the_candidate_there_is_no_verdict(given: list[tuple[float, Requests, Rewards]]) -> None:
    judge = Judge(ALL)
    for dt, stable, marks in given:
        judge.observe(dt, (stable, stable.nothing()), (marks, Rewards()))
    report = judge.report()
    assert report.verdict == "Undecided"
    assert all(guard.e_degraded == guard.e_healthy == 0 for guard in report.guards)
    assert all(guard.why for guard in report.guards)
    assert report.excess == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.tuples(requests(1), requests(1)), max_size=60))
def test_sources_that_fail_in_any_pattern_prove_nothing_that_was_not_counted(
    given: list[tuple[Requests, Requests] | None],
) -> None:
    """A proof takes as many requests, blocks and bad responses as it takes, however the windows are dropped."""
    judge = Judge(ERRORS)
    for both in given:
        judge.observe(5.0, both, None)
    counted = [both for both in given if both]
    guard = judge.report().guards[0]
    assert guard.candidate_total == sum(candidate.requests for _, candidate in counted)
    assert guard.candidate_bad == sum(candidate.errors for _, candidate in counted)
    if guard.verdict == "Degraded":
        assert sum(candidate.errors > 0 for _, candidate in counted) >= 3
    if guard.healthy_here:
        assert len(counted) >= 12
        if not guard.stable_bad:  # then each request of the candidate is worth delta at most
            assert 0.005 * guard.candidate_total >= log(20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(requests(10), requests(10)), min_size=1, max_size=20), st.data())
def test_windows_may_be_split_in_any_way_within_a_block(
    given: list[tuple[Requests, Requests]], data: st.DataObject
) -> None:
    whole, parts = Judge(ALL), Judge(ALL)
    for both in given:
        whole.observe(5.0, both, None)
        cuts = sorted(data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.5, 4.0]), unique=True, max_size=3)))
        left, before = both, 0.0
        for cut in cuts:
            some = tuple(share_of(data.draw(st.floats(0, 1)), version) for version in left)
            parts.observe(cut - before, some, None)  # type: ignore[arg-type]
            left = tuple(version.since(part) for version, part in zip(left, some, strict=True))  # type: ignore[assignment]
            before = cut
        parts.observe(5.0 - before, left, None)
    one, other = whole.report().guards[0], parts.report().guards[0]  # an edge is chosen between windows: errors alone
    assert one == other


def share_of(share: float, counts: Requests) -> Requests:
    return Requests(
        int(counts.requests * share),
        int(counts.errors * share),
        {edge: int(count * share) for edge, count in counts.latency.items()},
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(requests(10), requests(10)), min_size=1, max_size=20), st.data())
def test_one_more_bad_response_of_the_candidate_never_speaks_for_it(
    given: list[tuple[Requests, Requests]], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(given) - 1))
    stable, candidate = given[at]
    worse = replace(candidate, errors=data.draw(st.integers(candidate.errors, candidate.requests)))
    reports = []
    for course in (given, [*given[:at], (stable, worse), *given[at + 1 :]]):
        judge = Judge(ERRORS)
        for both in course:
            judge.observe(5.0, both, None)
        reports.append(judge.report())
    before, after = (report.guards[0] for report in reports)
    assert after.e_degraded >= before.e_degraded - 1e-9
    assert after.e_healthy <= before.e_healthy + 1e-9
    assert reports[1].excess >= reports[0].excess


@pytest.mark.parametrize("base", [0.001, 0.02, 0.2])
@pytest.mark.parametrize("side", ["bad", "ok"])
def test_evidence_against_what_is_true_is_worth_no_more_than_it_cost(base: float, side: str) -> None:
    """The mean of the e-value at the very margin, where it is largest, over 20,000 rollouts at each of 20 looks.

    It may be below one (a cap only takes away), and exceeds it by what chance explains at most.
    """
    rng = np.random.default_rng(17)
    runs, looks = 20_000, 20
    test = BinaryTest(Guard.errors(), runs, 100.0, 20.0)
    test.stable.pb[:], test.stable.pn[:] = 0.5 * base * 500, 500.0  # a wrong guess of the stable version's share
    for look in range(looks):
        drift = 1 + 0.5 * np.sin(look)  # that both versions share
        n_c, n_s = rng.poisson(30.0, runs), rng.poisson(90.0, runs)
        a = rng.binomial(n_c, 1.5 * base * drift + 0.005)
        b = rng.binomial(n_s, base * drift)
        values = (column.astype(np.float64) for column in (a, n_c, b, n_s))
        test.observe(np.ones(runs, bool), np.full(runs, 5.0), *values)
        e = np.exp(getattr(test, side).log_e())
        assert e.mean() <= 1 + 4 * e.std() / runs**0.5
    assert (getattr(test, "degraded" if side == "bad" else "healthy").mean()) <= (0.01 if side == "bad" else 0.05)


def test_evidence_on_equal_rewards_is_worth_no_more_than_it_cost() -> None:
    rng = np.random.default_rng(18)
    runs = 20_000
    test = RewardTest(Guard.reward(drop=0.03), runs, 100.0, 20.0)
    for _ in range(15):
        n = np.full(runs, 20.0)
        stable, candidate = (rng.binomial(20, mean, runs).astype(np.float64) for mean in (0.6, 0.57))
        test.observe(np.ones(runs, bool), np.full(runs, 5.0), (n, candidate, candidate), (n, stable, stable))
        for side in (test.bad, test.ok):
            e = np.exp(side.log_e())
            assert e.mean() <= 1 + 4 * e.std() / runs**0.5
    assert test.degraded.mean() <= 0.01
    assert test.healthy.mean() <= 0.05


def test_the_state_of_a_judge_is_small() -> None:
    rng = np.random.default_rng(19)
    judge = Judge(ALL)
    for _ in range(200):
        both = tuple(
            Requests(n, int(rng.binomial(n, 0.01)), {50.0: n // 2, 100.0: int(n * 0.95), inf: n}) for n in (900, 100)
        )
        values = [rng.random(20) for _ in both]
        marks = tuple(Rewards(20, float(v.sum()), float((v * v).sum())) for v in values)
        judge.observe(5.0, both, marks, weight=10.0)  # type: ignore[arg-type]
    assert len(json.dumps(judge.dump(), separators=(",", ":"))) < 4096
