"""The evidence: the engine against the formulas as they stand on paper, and what single parts promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from math import exp, inf, log

import numpy as np
import pytest

import plain
from tidegate.core.rollout.binary import (
    DEGRADED_GRID,
    HEALTHY_GRID,
    BinaryTest,
    degraded_bets,
    healthy_bets,
)
from tidegate.core.rollout.counts import Requests
from tidegate.core.rollout.evidence import EProcess
from tidegate.core.rollout.guards import Guard, Settings
from tidegate.core.rollout.judge import Judge
from tidegate.core.rollout.latency import choose_edge
from tidegate.core.rollout.reward import RewardTest
from tidegate.core.rollout.split import SplitCheck
from tidegate.core.rollout.stable import StableModel

ALPHA, BETA = 0.005, 0.05


def rows(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


# --- against the formulas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "delta", "blocks"), [(1.5, 0.005, 3), (1.25, 0.01, 6), (0.0, 0.02, 3), (1.0, 0.0005, 3)]
)
def test_binary_evidence_is_that_of_the_formulas_whatever_happens(rho: float, delta: float, blocks: int) -> None:
    """Sixty-four rollouts side by side: all rates, bursts, incidents, dropped windows, weights that change, silence."""
    rng = np.random.default_rng(7)
    count, steps = 64, 150
    guard = Guard("g", "errors", rho, delta, blocks=blocks)
    engine = BinaryTest(guard, count, 1 / ALPHA, 1 / BETA)
    papers = [plain.Binary(rho, delta, blocks, ALPHA, BETA) for _ in range(count)]
    rate = rng.choice([0.02, 0.5, 10.0, 200.0], count)
    base = rng.choice([0.0, 0.001, 0.02, 0.3], count)
    worse = rng.choice([0.0, 1.0, 3.0, 30.0], count)
    share = rng.choice([0.01, 0.2, 0.5, 1.0], count)
    burst = rng.choice([1, 5], count)
    for _ in range(steps):
        dt = rng.choice([1.0, 5.0, 7.5, 61.0], count)
        on = rng.random(count) < 0.95
        moved = rng.random(count) < 0.02
        bad_now = np.where(rng.random(count) < 0.05, 0.5, base)
        n_c, n_s = rng.poisson(rate * dt * share), rng.poisson(rate * dt * (1 - share))
        a = np.minimum(rng.poisson(n_c * np.minimum(bad_now * worse, 1) / burst) * burst, n_c)
        b = np.minimum(rng.poisson(n_s * bad_now / burst) * burst, n_s)
        engine.weight_changed(moved)
        engine.observe(on, dt, *(values.astype(float) for values in (a, n_c, b, n_s)))
        for row, paper in enumerate(papers):
            if moved[row]:
                paper.weight_changed()
            if on[row]:
                paper.observe(dt[row], a[row], n_c[row], b[row], n_s[row])
    assert engine.bad.log_e() == pytest.approx([paper.bad.log_e() for paper in papers], rel=1e-9, abs=1e-9)
    assert engine.ok.log_e() == pytest.approx([paper.ok.log_e() for paper in papers], rel=1e-9, abs=1e-9)
    assert engine.stable.rate() == pytest.approx([paper.stable.p for paper in papers])
    assert engine.stable.dispersion() == pytest.approx([paper.stable.phi for paper in papers])
    for flag in ("degraded", "healthy", "healthy_here", "incident"):
        assert getattr(engine, flag).tolist() == [getattr(paper, flag) for paper in papers], flag
    # or it would have compared nothing
    assert 0 < engine.degraded.sum() < count
    assert 0 < engine.healthy.sum() < count
    assert (engine.stable.dispersion() > 1.5).any()


def test_evidence_of_rewards_and_of_the_split_is_that_of_the_formulas() -> None:
    rng = np.random.default_rng(8)
    count, steps = 24, 80
    engine = RewardTest(Guard.reward(), count, 1 / ALPHA, 1 / BETA)
    split = SplitCheck(count)
    papers, splits = [plain.Reward(0.03, ALPHA, BETA) for _ in range(count)], [plain.Split() for _ in range(count)]
    lower = rng.choice([-0.1, 0.03, 0.3], count)
    wrong = rng.choice([1.0, 1.5], count)
    for _ in range(steps):
        dt, on, moved = rng.choice([2.0, 5.0, 30.0], count), rng.random(count) < 0.9, rng.random(count) < 0.02
        counts = rng.poisson(rng.choice([0.5, 20.0], (2, count)))
        sums, squares = np.zeros((2, count)), np.zeros((2, count))
        for version, row in product(range(2), range(count)):
            values = np.clip(rng.normal(0.6 - lower[row] * version, 0.1, counts[version, row]), 0, 1)
            sums[version, row], squares[version, row] = values.sum(), (values**2).sum()
        s, c = ((counts[i].astype(float), sums[i], squares[i]) for i in (0, 1))
        total = rng.poisson(100, count).astype(float)
        n = rng.binomial(total.astype(int), np.minimum(0.2 * wrong, 1)).astype(float)
        engine.weight_changed(moved)
        engine.observe(on, dt, c, s)
        split.observe(on, np.full(count, 0.2), n, total)
        for row, paper in enumerate(papers):
            if moved[row]:
                paper.weight_changed()
            if on[row]:
                paper.observe(dt[row], [values[row] for values in c], [values[row] for values in s])
                if not splits[row].mismatch:  # from then on the engine asks whether it is mended
                    splits[row].observe(0.2, n[row], total[row])
    assert engine.bad.log_e() == pytest.approx([paper.bad.log_e() for paper in papers], rel=1e-9, abs=1e-9)
    assert engine.ok.log_e() == pytest.approx([paper.ok.log_e() for paper in papers], rel=1e-9, abs=1e-9)
    right = [row for row, paper in enumerate(splits) if not paper.mismatch]
    assert 0 < len(right) < count
    expected = [splits[row].process.log_e() for row in right]
    assert split.process.log_e()[right] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert split.mismatch.tolist() == [paper.mismatch for paper in splits]
    assert engine.degraded.tolist() == [paper.degraded for paper in papers]
    assert engine.healthy_here.tolist() == [paper.healthy_here for paper in papers]
    assert split.mismatch.tolist() == [paper.mismatch for paper in splits]
    assert engine.degraded.any()
    assert engine.healthy.any()
    assert split.mismatch.tolist() == (wrong > 1).tolist()


# --- validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", [0.0, 0.001, 0.02, 0.3])
@pytest.mark.parametrize(("n_c", "n_s"), [(50, 950), (500, 500), (3, 20), (100, 1)])
def test_the_expectation_under_the_null_is_at_most_one_whatever_was_guessed(stable: float, n_c: int, n_s: int) -> None:
    """Exactly, of independent responses: E x^a = (1 + p (x - 1))^n. At the margin, which is the worst of the null."""
    rho, delta = 1.5, 0.005
    allowed = rho * stable + delta
    for guess in (0.0, 1e-4, 0.01, 0.2, 1.0):
        share, c, s = (np.array([[float(value)]]) for value in (guess, n_c, n_s))
        usual = rho * guess + delta
        x, y = degraded_bets(rho, delta, share, c, s, np.minimum(usual * DEGRADED_GRID[None, :], 0.95))
        assert (x >= 1).all()
        assert (y > 0).all()
        assert (expectation(x, y, allowed, stable, n_c, n_s, delta) <= 1 + 1e-12).all()
        rates = np.concatenate([np.minimum(share, usual), usual * HEALTHY_GRID[None, :]], axis=1)
        x, y = healthy_bets(rho, delta, share, c, s, rates)
        assert (x > 0).all()
        assert (x <= 1).all()
        assert (expectation(x, y, allowed, stable, n_c, n_s, delta) <= 1 + 1e-12).all()


def expectation(x, y, p_c: float, p_s: float, n_c: int, n_s: int, delta: float):  # type: ignore[no-untyped-def]
    return (1 + p_c * (x - 1)) ** n_c * (1 + p_s * (y - 1)) ** n_s * np.exp(-delta * n_c * (x - 1))


def test_an_absolute_limit_needs_no_stable_version() -> None:
    engine = BinaryTest(Guard.errors(rho=0.0, delta=0.01), 2, 100.0, 20.0)
    for _ in range(40):
        engine.observe(np.ones(2, bool), rows(60, 60), rows(10, 0), rows(100, 100), rows(0, 0), rows(0, 0))
    assert engine.degraded.tolist() == [True, False]
    assert engine.healthy.tolist() == [False, True]


def test_without_the_stable_version_nothing_is_proven_against_it() -> None:
    engine = BinaryTest(Guard.errors(), 1, 100.0, 20.0)
    for _ in range(100):
        engine.observe(np.ones(1, bool), rows(60), rows(100), rows(100), rows(0), rows(0))
    assert engine.bad.count[0] == 100
    assert not engine.degraded[0]


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "closed"),
    [
        ([(5, 10, 10)], 1),
        ([(4.9, 10, 10)], 0),
        ([(5, 10, 9)], 0),
        ([(5, 0, 100)], 0),
        ([(5, 100, 0)], 0),
        ([(60, 1, 0)], 1),
        ([(59, 1, 1)], 0),
        ([(30, 1, 0), (30, 0, 0)], 1),
        ([(300, 0, 100), (300, 0, 100), (5, 10, 10)], 1),
        ([(5, 0, 0)] * 1000, 0),
    ],
)
def test_a_block_ends_by_time_and_requests_alone(windows: list[tuple[float, float, float]], closed: int) -> None:
    for bad in (0.0, 1.0):
        engine = BinaryTest(Guard.errors(), 1, 100.0, 20.0)
        for dt, n_c, n_s in windows:
            engine.observe(np.ones(1, bool), rows(dt), rows(bad * n_c), rows(n_c), rows(bad * n_s), rows(n_s))
        assert engine.bad.count[0] == closed


def test_a_block_that_nobody_asked_the_candidate_in_is_thrown_away() -> None:
    engine = BinaryTest(Guard.errors(), 1, 100.0, 20.0)
    for _ in range(2):
        engine.observe(np.ones(1, bool), rows(300), rows(0), rows(0), rows(0), rows(100))
    assert engine.dt[0] == engine.ns[0] == 0


def test_an_incident_of_the_stable_version_stops_healthy_and_wakes_degraded() -> None:
    engine = BinaryTest(Guard.errors(), 1, 100.0, 20.0)

    def block(a: float, b: float) -> None:
        engine.observe(np.ones(1, bool), rows(5), rows(a), rows(100), rows(b), rows(100))

    block(0, 0)
    before = engine.ok.log_e()[0]
    block(30, 30)
    assert engine.incident[0]
    assert engine.ok.log_e()[0] == before
    assert (engine.bad.count[0], engine.ok.count[0]) == (2, 1)
    reserve = engine.bad.reserve[0]
    block(0, 0)
    assert not engine.incident[0]
    assert engine.bad.reserve[0] == pytest.approx(0.75 * reserve), "a quarter is staked on what comes after"


def test_weights_that_change_begin_healthy_anew_and_nothing_else() -> None:
    engine = BinaryTest(Guard.errors(), 1, 100.0, 20.0)
    for _ in range(40):
        engine.observe(np.ones(1, bool), rows(5), rows(0), rows(100), rows(0), rows(100))
    assert engine.healthy_here[0]
    bad = engine.bad.log_e()[0]
    engine.observe(np.ones(1, bool), rows(1), rows(1), rows(1), rows(0), rows(1))
    engine.weight_changed(np.ones(1, bool))
    assert not engine.healthy_here[0]
    assert engine.healthy[0], "what was proven once stays known"
    assert engine.ok.log_e()[0] == engine.dt[0] == engine.a[0] == 0
    assert engine.bad.log_e()[0] == bad
    assert engine.bad.boost[0]


def test_a_bandits_changes_leave_enough_in_reserve_for_what_goes_wrong_late() -> None:
    """Ten hours of a change a minute, and then every fifth request fails."""

    def minutes(changed: Callable[[Judge], None], limit: int) -> int:
        rng = np.random.default_rng(14)
        judge = Judge(Settings((Guard.errors(),), alpha=0.01, beta=0.05, canaries=2))
        for minute in range(600 + limit):
            share = 0.01 if minute < 600 else 0.2
            both = (Requests(300, int(rng.binomial(300, 0.01))), Requests(100, int(rng.binomial(100, share))))
            judge.observe(60.0, both, None)
            if judge.report().verdict == "Degraded":
                return minute - 599
            changed(judge)
        return limit

    assert 0 < minutes(Judge.reweighted, 60) <= 10
    assert minutes(Judge.weight_changed, 60) == 60, "not found in an hour"


def test_a_block_that_opens_cold_is_not_judged_and_a_start_within_one_is_left_out() -> None:
    engine = BinaryTest(Guard.latency(edge=100.0), 2, 100.0, 20.0)

    def window(cold: bool, slow: float) -> None:
        one, cold_rows = np.ones(2, bool), np.array([cold, False])
        engine.observe(one, rows(3, 3), rows(slow, slow), rows(50, 50), rows(0, 0), rows(50, 50), cold_rows)

    window(True, 50)
    window(False, 50)
    assert engine.bad.count.tolist() == [0, 1]
    window(False, 0)
    window(True, 50)
    assert engine.bad.count.tolist() == [0, 2], "the cold window is no part of the block"
    window(False, 0)
    assert engine.bad.count.tolist() == [1, 2]
    assert engine.bad.log_e()[0] < engine.bad.log_e()[1]


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_no_fewer_blocks_than_asked_prove_anything(blocks: int) -> None:
    process = EProcess(1, [0.5, 0.5], 100.0, blocks)
    for done in range(1, 3 * blocks):
        process.update(np.array([0]), np.full((1, 2), 1e6))
        if process.reached()[0]:
            assert done >= blocks
            return
    pytest.fail("overwhelming evidence was never enough")


def test_what_begins_late_is_found_nearly_as_soon() -> None:
    def needed(quiet: int) -> int:
        process = EProcess(1, [1.0], 100.0, 3)
        for _ in range(quiet):
            process.update(np.array([0]), np.full((1, 1), -1.0))
        done = 0
        while not process.reached()[0]:
            process.update(np.array([0]), np.full((1, 1), 1.0))
            done += 1
        return done

    assert needed(0) <= 8
    assert needed(2000) <= 20


def test_a_process_goes_on_bit_by_bit_from_its_state() -> None:
    rng = np.random.default_rng(3)
    process, other = EProcess(1, [0.5, 0.5], 20.0, 3), EProcess(1, [0.5, 0.5], 20.0, 3)
    for i in range(50):
        process.boost[0] = i % 7 == 0
        process.update(np.array([0]), rng.normal(size=(1, 2)))
        other.load(0, json.loads(json.dumps(process.dump(0), allow_nan=False)))
        assert other.log_e()[0] == process.log_e()[0]
        assert other.dump(0) == process.dump(0)


# --- the stable version -----------------------------------------------------------------------------------------------


def test_dispersion_is_one_for_independent_errors_and_grows_with_bursts_not_with_shifts() -> None:
    rng = np.random.default_rng(11)
    count = 200
    alone, bursts, shift = (StableModel(count, 0.005) for _ in range(3))
    on, dt, n = np.ones(count, bool), np.full(count, 5.0), np.full(count, 1000.0)
    for i in range(240):
        alone.add(on, dt, rng.poisson(20.0, count).astype(float), n)
        bursts.add(on, dt, rng.poisson(2.0, count) * 10.0, n)
        shift.add(on, dt, rng.poisson(20.0 if i % 80 < 40 else 100.0, count).astype(float), n)
    assert np.median(alone.dispersion()) < 1.3
    assert np.median(bursts.dispersion()) > 5
    assert np.median(shift.dispersion()) < 1.5
    assert alone.rate() == pytest.approx(0.02, rel=0.15)


def test_an_incident_hardly_moves_what_is_usual() -> None:
    model = StableModel(1, 0.005)
    for b in [5.0] * 100 + [500.0] * 3:
        model.add(np.ones(1, bool), rows(5), rows(b), rows(1000))
    assert model.rate()[0] < 0.008


# --- the edge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("histogram", "edge"),
    [
        ({5.0: 100, 50.0: 285, 100.0: 290, inf: 299}, None),
        ({5.0: 100, 50.0: 700, 100.0: 960, 250.0: 999, inf: 1000}, 100.0),
        ({5.0: 0, 50.0: 0, 100.0: 1000, 250.0: 1000, inf: 1000}, 100.0),  # else none could be worse than allowed
        ({5.0: 1000, 50.0: 1000, inf: 1000}, 5.0),
        ({5.0: 0, 50.0: 0, inf: 1000}, 50.0),
        ({inf: 1000}, None),
    ],
)
def test_the_edge_is_where_about_a_twentieth_is_slow(histogram: dict[float, float], edge: float | None) -> None:
    assert choose_edge(histogram, 1.25, 0.01) == edge


def test_each_guardrail_on_latency_chooses_its_edge_once_and_judges_what_comes_after() -> None:
    judge = Judge(Settings((Guard.latency("a"), Guard.latency("b", delta=0.05), Guard.latency("c", edge=70.0))))
    one = Requests(100, 0, {50.0: 50, 100.0: 95, 250.0: 99, inf: 100})
    for _ in range(4):
        judge.observe(5.0, (one, one), None)
        judge = Judge(judge.settings, judge.dump())
    assert [(guard.edge, guard.candidate_total) for guard in judge.report().guards] == [
        (100.0, 100),
        (100.0, 100),
        (100.0, 400),
    ]


def test_what_is_slower_than_the_histogram_can_tell_is_never_judged() -> None:
    judge = Judge(Settings((Guard.latency(edge=300.0),)))
    one = Requests(100, 0, {50.0: 50, 250.0: 99, inf: 100})
    for _ in range(100):
        judge.observe(5.0, (one, one), None)
    (guard,) = judge.report().guards
    assert (guard.verdict, guard.edge, guard.candidate_total) == ("Undecided", None, 0)
    assert "300 ms" in guard.why


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Guard.errors(delta=0.0), "delta must be more than 0"),
        (lambda: Guard.errors(rho=-1.0), "at least 0"),
        (lambda: Guard.errors(rho=inf), "finite"),
        (lambda: Guard.errors(blocks=0), "at least 1"),
        (lambda: Guard.latency(edge=0.0), "milliseconds"),
        (lambda: Guard.reward(drop=1.0), r"\[0, 1\)"),
        (lambda: Settings((Guard.errors(), Guard.errors())), "same name"),
        (lambda: Settings((), alpha=0.0), "between 0 and 1"),
        (lambda: Settings((), beta=1.0), "between 0 and 1"),
        (lambda: Settings((), canaries=0), "at least 1"),
    ],
)
def test_settings_that_nothing_could_be_judged_by_are_refused(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        make()


def test_settings_are_told_apart_by_a_short_digest() -> None:
    one, two = Settings((Guard.errors(),)), Settings((Guard.errors(delta=0.01),))
    assert one.digest() == Settings((Guard.errors(),)).digest() != two.digest()
    assert len(one.digest()) == 8


def test_the_split_is_found_wrong_by_what_was_asked_not_by_chance() -> None:
    rng = np.random.default_rng(5)
    check = SplitCheck(500)
    on = np.ones(500, bool)
    for _ in range(200):
        total = rng.poisson(100, 500).astype(float)
        check.observe(on, np.full(500, 0.1), rng.binomial(total.astype(int), 0.1).astype(float), total)
    assert check.mismatch.sum() <= 3
    assert exp(check.process.log_e().max()) < 1e4
    assert log(1000.0) == pytest.approx(check.process.needed[0])
