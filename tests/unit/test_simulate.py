"""Simulated rollouts: the requests, the rules of others as their sources have them, and what is made of it all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tidegate.core.rollout import weights
from tidegate.core.rollout.counts import Requests
from tidegate.core.rollout.guards import Guard, Settings
from tidegate.core.rollout.judge import Judge
from tidegate.core.rollout.weights import STEADY
from tidegate.simulate.command import simulate
from tidegate.simulate.rules import Argo, Check, Flagger, Method, NaiveZ, Tidegate
from tidegate.simulate.run import CHUNK, PROMOTED, ROLLED_BACK, UNDECIDED, run, summary
from tidegate.simulate.streams import Counts, Streams, Traffic

EVEN = Traffic(rate=20.0, base=0.02, candidate=0.1)


def windows(traffic: Traffic, weight: int, runs: int = 200, count: int = 20, seed: int = 3) -> list[Counts]:
    streams = Streams(traffic, runs, seed)
    return [streams.window().at(np.full(runs, weight)) for _ in range(count)]


def total(found: Sequence[Counts], name: str) -> int:
    return sum(int(getattr(counts, name).sum()) for counts in found)


# --- the requests -----------------------------------------------------------------------------------------------------


def test_requests_come_at_the_rate_and_fail_as_often_as_asked() -> None:
    found = windows(EVEN, 25)
    assert total(found, "candidate") == pytest.approx(200 * 20 * 100 * 0.25, rel=0.01)
    assert total(found, "stable") == pytest.approx(200 * 20 * 100 * 0.75, rel=0.01)
    assert total(found, "candidate_bad") / total(found, "candidate") == pytest.approx(0.1, rel=0.02)
    assert total(found, "stable_bad") / total(found, "stable") == pytest.approx(0.02, rel=0.04)
    assert total(found, "excess") / total(found, "candidate") == pytest.approx(0.08, rel=0.03)


def test_whatever_the_weights_the_requests_are_the_same() -> None:
    low, high = windows(EVEN, 10), windows(EVEN, 40)
    for few, many in zip(low, high, strict=True):
        assert (few.candidate + few.stable == many.candidate + many.stable).all()
        assert (few.candidate_bad <= many.candidate_bad).all()
        # what is not the candidate's own fault fails whoever serves it
        alike = [counts.candidate_bad - counts.excess + counts.stable_bad for counts in (few, many)]
        assert (alike[0] == alike[1]).all()


def test_a_better_candidate_has_less_than_no_excess() -> None:
    found = windows(replace(EVEN, candidate=0.005), 50)
    assert total(found, "excess") / total(found, "candidate") == pytest.approx(-0.015, rel=0.05)


@pytest.mark.parametrize(
    "traffic", [replace(EVEN, above=25.0), replace(EVEN, after=1000.0), replace(EVEN, candidate=0.02)]
)
def test_a_fault_that_does_not_show_is_none(traffic: Traffic) -> None:
    found = windows(traffic, 25)
    assert total(found, "excess") == 0
    assert total(found, "candidate_bad") > 0


def test_a_fault_under_load_shows_above_its_weight() -> None:
    assert total(windows(replace(EVEN, above=25.0), 26), "excess") > 0


def test_bursts_scatter_as_much_as_they_are_long_and_stay_within_the_responses() -> None:
    def scatter(traffic: Traffic) -> float:
        bad = np.array([counts.stable_bad for counts in windows(traffic, 0, runs=400)])
        return float(bad.var() / bad.mean())

    assert scatter(EVEN) == pytest.approx(1.0, abs=0.1)
    assert scatter(replace(EVEN, rate=2000.0, burst=20)) == pytest.approx(20, rel=0.1)
    tight = windows(replace(EVEN, rate=1.0, burst=50), 10)
    assert all((counts.candidate_bad <= counts.candidate).all() for counts in tight)
    assert all((counts.stable_bad <= counts.stable).all() for counts in tight)


def test_an_incident_is_shared_and_passes() -> None:
    rough = replace(EVEN, candidate=0.02, incident=0.5, incident_every=100.0, incident_length=50.0)
    found = windows(rough, 50, count=100)
    both = np.array([[counts.candidate_bad, counts.stable_bad] for counts in found])
    assert np.corrcoef(both[:, 0].ravel(), both[:, 1].ravel())[0, 1] > 0.9
    during = (both[:, 1] > 10).mean()
    assert during == pytest.approx(50 / 150, abs=0.05)


def test_slow_responses_are_counted_where_they_are_asked_for() -> None:
    found = windows(replace(EVEN, slow=0.05, slow_candidate=0.2), 50)
    assert total(found, "candidate_slow") / total(found, "candidate") == pytest.approx(0.2, rel=0.02)
    assert total(found, "stable_slow") / total(found, "stable") == pytest.approx(0.05, rel=0.03)
    assert total(windows(EVEN, 50), "stable_slow") == 0


@pytest.mark.parametrize(
    "wrong", [{"base": 1.1}, {"rate": 0.0}, {"burst": 0}, {"diurnal": -0.1}, {"slow": 2.0}, {"incident_every": 0.0}]
)
def test_traffic_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(EVEN, **wrong)  # type: ignore[arg-type]


# --- rules ------------------------------------------------------------------------------------------------------------


def follow(
    method: Method, counts: Callable[[float, int], tuple[int, int]], seconds: int = 1200
) -> tuple[str, int, int]:
    """What a rule does with the candidate's (requests, bad ones) at a time and weight, when, and at which weight."""
    rule, on = method.begin(1, 20.0), np.ones(1, bool)
    for t in range(5, seconds + 1, 5):
        weight = int(rule.weight[0])
        requests, bad = counts(t, weight)
        zero = np.zeros(1, np.int64)
        window = Counts(zero + requests, zero + bad, zero + 100 - weight, zero, zero, zero, zero)
        promoted, rolled_back = rule.observe(window, 5.0, on)
        if rolled_back[0] or promoted[0]:
            return ("rolled back" if rolled_back[0] else "promoted", t, weight)
    return "undecided", seconds, int(rule.weight[0])


def always_good(t: float, weight: int) -> tuple[int, int]:
    return weight, 0


def always_bad(t: float, weight: int) -> tuple[int, int]:
    return weight, weight


def bad_minutes(*minutes: int) -> Callable[[float, int], tuple[int, int]]:
    """Every response fails in these minutes, counted from 1."""
    return lambda t, weight: (weight, weight if -(-t // 60) in minutes else 0)


def nothing(t: float, weight: int) -> tuple[int, int]:
    return 0, 0


@pytest.mark.parametrize(
    ("method", "counts", "expected"),
    [
        (Flagger(), always_good, ("promoted", 300, 50)),
        (Flagger(), always_bad, ("rolled back", 360, 10)),  # five failed checks; the next tick rolls back
        (Flagger(), nothing, ("rolled back", 360, 10)),
        (Flagger(), bad_minutes(2, 4), ("promoted", 420, 50)),  # a failed check holds the weight
        (Flagger(), bad_minutes(2, 4, 6, 7, 9), ("rolled back", 600, 50)),  # and is never forgotten
        (Flagger(threshold=6), always_bad, ("rolled back", 420, 10)),
        (Argo(), always_good, ("promoted", 300, 50)),
        (Argo(), always_bad, ("rolled back", 240, 40)),  # at the fourth failure; weights rise all the same
        (Argo(), nothing, ("rolled back", 240, 40)),
        (Argo(), bad_minutes(1, 3, 4), ("promoted", 300, 50)),
        (Argo(), bad_minutes(1, 2, 3, 5), ("rolled back", 300, 50)),
        (Argo(limit=0), bad_minutes(2), ("rolled back", 120, 20)),
        (NaiveZ(), always_good, ("promoted", 300, 50)),
        (NaiveZ(), always_bad, ("rolled back", 5, 10)),
        (NaiveZ(), nothing, ("promoted", 300, 50)),
        (Tidegate(), nothing, ("undecided", 1200, 10)),
        (Tidegate(ramp=STEADY), nothing, ("undecided", 1200, 10)),  # what the budget allows without knowing anything
    ],
)
def test_what_a_rule_does(
    method: Method, counts: Callable[[float, int], tuple[int, int]], expected: tuple[str, int, int]
) -> None:
    assert follow(method, counts) == expected


def test_a_check_of_latency_fails_where_too_many_are_slow() -> None:
    rule, on = Flagger(Check(slow=0.1)).begin(2, 20.0), np.ones(2, bool)
    hundred, zero = np.full(2, 100), np.zeros(2, np.int64)
    for _ in range(12):
        rule.observe(Counts(hundred, zero, hundred, zero, zero, np.array([10, 11]), zero), 5.0, on)
    assert rule.weight.tolist() == [20, 10]


def test_tidegate_promotes_what_is_healthy_and_finds_what_is_not() -> None:
    good = run(Traffic(100.0, 0.001, 0.001), [Tidegate()], runs=20, seed=1, history=60)[0]
    bad = run(Traffic(100.0, 0.001, 0.2), [Tidegate()], runs=20, seed=1, history=60)[0]
    assert set(good.outcome) == {PROMOTED}
    assert set(bad.outcome) == {ROLLED_BACK}
    assert summary(bad).excess[2] < 30


def test_a_slow_candidate_is_found_by_the_guardrail_on_latency() -> None:
    slow = Traffic(100.0, 0.001, 0.001, slow=0.05, slow_candidate=0.5)
    both = Tidegate(guards=(Guard.errors(), Guard.latency(edge=100.0)))
    assert set(run(slow, [both], runs=10, history=60)[0].outcome) == {ROLLED_BACK}


@pytest.mark.parametrize(("rate", "candidate"), [(200.0, 0.005), (200.0, 0.05), (20.0, 0.2)])
def test_the_operators_judge_comes_to_the_same_at_the_same_time(rate: float, candidate: float) -> None:
    traffic = Traffic(rate, 0.005, candidate)
    simulated = run(traffic, [Tidegate()], runs=1, seed=6, history=60)[0]

    streams = Streams(traffic, 1, np.random.SeedSequence(6).spawn(1)[0], weights.EAGER.last)
    judge = Judge(Settings((Guard.errors(),)))
    fade, responses, over = 0.5 ** (5 / 30), rate * 30, 30.0
    for counts in streams.history(60):
        judge.feed_stable(5.0, Requests(int(counts.stable[0]), int(counts.stable_bad[0])))
        responses, over = responses * fade + int(counts.stable[0]), over * fade + 5
    weight, held, t, bad = 10 if rate == 20 else 1, 0.0, 0.0, 0
    while True:
        counts = streams.window().at(np.array([weight]))
        both = [
            Requests(int(all_of[0]), int(errors[0]))
            for all_of, errors in ((counts.stable, counts.stable_bad), (counts.candidate, counts.candidate_bad))
        ]
        judge.observe(5.0, (both[0], both[1]), None)
        t, held, bad = t + 5, held + 5, bad + both[1].errors
        responses, over = responses * fade + both[0].requests + both[1].requests, over * fade + 5
        found = judge.report()
        here = found.guards[0].healthy_here
        if found.verdict == "Degraded":
            outcome = ROLLED_BACK
            break
        if weights.promotable(weights.EAGER, weight, held=held, healthy=here, incident=found.incident):
            outcome = PROMOTED
            break
        after = weights.allowed(
            weight, excess=found.excess, rate=responses / over, held=held, healthy=here, incident=found.incident
        )
        if after != weight:
            weight, held = after, 0.0
            judge.weight_changed()
    assert (outcome, t, bad) == (simulated.outcome[0], simulated.time[0], simulated.bad[0])


# --- many runs --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_whoever_else_is_looking() -> None:
    alone = run(EVEN, [Flagger()], runs=30, seed=4, history=0)[0]
    again = run(EVEN, [Flagger()], runs=30, seed=4, history=0)[0]
    other = run(EVEN, [Flagger()], runs=30, seed=5, history=0)[0]
    assert alone.bad.tolist() == again.bad.tolist() != other.bad.tolist()


def test_more_runs_than_fit_at_once_are_independent() -> None:
    told: list[float] = []
    found = run(EVEN, [NaiveZ()], runs=CHUNK + 500, history=0, max_time=60, progress=told.append)[0]
    assert len(found.outcome) == CHUNK + 500
    assert found.bad[:500].tolist() != found.bad[CHUNK:].tolist()
    assert told == sorted(told)
    assert told[-1] > CHUNK / (CHUNK + 500)


def test_a_run_is_counted_until_its_decision_and_no_longer() -> None:
    found = run(replace(EVEN, candidate=1.0), [NaiveZ(), Flagger()], runs=20, seed=2, history=0, max_time=600)
    naive, flagger = found
    assert (naive.time <= 10).all()
    assert (naive.bad < 50).all()
    assert set(flagger.time) == {360.0}
    assert flagger.bad.mean() == pytest.approx(360 * 2, rel=0.05)


def test_what_is_not_decided_in_time_is_neither() -> None:
    found = run(EVEN, [Tidegate(), Flagger()], runs=10, history=0, max_time=10)
    assert {outcome for result in found for outcome in result.outcome} == {UNDECIDED}
    told = summary(found[0])
    assert (told.undecided, told.promotion, told.rollback) == (1.0, None, None)


def test_what_was_promoted_before_the_fault_was_no_mistake() -> None:
    late = replace(EVEN, base=0.001, candidate=0.5, after=400.0)
    told = summary(run(late, [Argo(), Flagger(threshold=1)], runs=10, history=0, max_time=900)[0], late.after)
    assert (told.promoted_before, told.promoted) == (1.0, 0.0)


# --- the command ------------------------------------------------------------------------------------------------------


def ask(*words: str) -> Result:
    return CliRunner().invoke(simulate, ["--runs", "20", "--max-time", "10m", "--history", "1m", *words])


def test_the_table_has_every_rule_for_both_candidates() -> None:
    shown = ask("--rate", "100/s", "--regression", "total")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].startswith("20 rollouts each at 100 requests/s, for at most 600s, seed 0")
    rules = [line.split("  ")[1] for line in lines if line.startswith("  ") and "rule" not in line]
    assert rules == ["Tidegate", "Flagger", "Argo Rollouts", "naive z-test"] * 2
    bad = lines[lines.index("Bad candidate, 100% errors instead of 0.5%") + 1 :]
    assert re.split(r"  +", bad[1])[1:5] == ["Tidegate", "0", "100%", "0"]
    assert "360s / 360s" in bad[2]
    assert len({len(line) for line in bad[:5]}) == 1


def test_json_has_all_that_was_found() -> None:
    found = json.loads(ask("--output", "json", "--regression", "20%", "--seed", "7", "--steps", "5,20").output)
    assert found["seed"] == 7
    assert found["tidegate"]["ramp"]["steps"] == [5, 20]
    assert found["cases"]["bad"]["traffic"]["candidate"] == 0.2
    for case in found["cases"].values():
        for told in case["rules"]:
            assert told["promoted"] + told["promoted_before"] + told["rolled_back"] + told[
                "undecided"
            ] == pytest.approx(1)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    shown = ask("--html", str(path), "--base-slow", "5%", "--slow-regression", "2x")
    assert shown.exit_code == 0, shown.output
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url)\s*[=(]|@import|https?:", text)
    assert "prefers-color-scheme: dark" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert pictures
    for picture in pictures:
        tree = ElementTree.fromstring(picture)  # noqa: S314 (our own)
        assert tree.get("aria-label")
        assert "nan" not in picture


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    shown = ask("--html", str(tmp_path / "no" / "page.html"))
    assert shown.exit_code == 1
    assert "give --html another file" in shown.output


def test_a_candidate_that_the_settings_allow_is_pointed_out() -> None:
    assert "the limit is 1.25% errors" in ask("--regression", "2x").output
    assert "the limit is" not in ask("--regression", "3x").output


def test_a_rate_at_which_one_percent_is_too_much_says_so() -> None:
    shown = ask("--rate", "300/s", "--regression", "20%", "--runs", "5").output
    assert "even 1% may cost more than half of --bad-responses" in shown
    assert "even 1%" not in ask("--rate", "300/s", "--bad-responses", "200", "--runs", "5").output


def test_a_fault_that_comes_late_says_who_had_promoted_before() -> None:
    assert "promoted before: Tidegate 0, Flagger 100%" in ask("--after", "8m", "--rate", "2").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rate", "0/s"], "not a rate such as 20/s"),
        (["--rate", "many"], "not a rate such as 20/s"),
        (["--rate", "1.2.3/s"], "not a rate such as 20/s"),
        (["--base-error", "120%"], "not between 0% and 100%"),
        (["--base-error", "few"], "not a share such as 0.5%"),
        (["--regression", "worse"], "not a share such as 0.5%"),
        (["--max-time", "2 hours"], "not a duration such as 30s"),
        (["--steps", "10,5"], "weights rise"),
        (["--steps", "10,100"], "between 1 and 99"),
        (["--steps", "ten"], "not a list of weights"),
        (["--max-increase", "0%"], "delta must be more than 0"),
    ],
)
def test_what_cannot_be_understood_is_refused(words: list[str], told: str) -> None:
    shown = ask(*words)
    assert shown.exit_code == 2
    assert told in shown.output
