"""Several arms on a goal: the best is found, with the error rate that was asked for, and gets the requests."""

from __future__ import annotations

import json
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.core.rollout.arms import Bandit, Contest, Duels, well
from tidegate.core.rollout.counts import Requests, Rewards

ARMS = ("a", "b", "c")


def coins(rng: np.random.Generator, counts: dict[str, int], means: dict[str, float]) -> dict[str, Rewards]:
    """Rewards of 0 and 1."""
    out = {}
    for arm, n in counts.items():
        won = int(rng.binomial(n, means[arm]))
        out[arm] = Rewards(n, float(won), float(won))
    return out


# --- the contest ------------------------------------------------------------------------------------------------------


def test_the_best_of_three_wins_and_each_loser_knows_to_whom_it_lost() -> None:
    rng = np.random.default_rng(1)
    contest = Contest(ARMS, 0.05)
    means = {"a": 0.5, "b": 0.62, "c": 0.45}
    for _ in range(1500):
        contest.observe(5.0, coins(rng, dict.fromkeys(ARMS, 10), means))
        if contest.winner:
            break
    assert contest.winner == "b"
    assert contest.alive == ("b",)
    a, b, c = contest.report()
    assert (a.out, b.out) == ("b", "")
    assert c.out in ("a", "b")
    assert b.count == a.count
    assert b.mean == pytest.approx(0.62, abs=0.03)


def test_equal_arms_stay_in_and_say_how_far_they_are() -> None:
    rng = np.random.default_rng(2)
    contest = Contest(ARMS, 0.05)
    for _ in range(300):
        contest.observe(5.0, coins(rng, dict.fromkeys(ARMS, 10), dict.fromkeys(ARMS, 0.5)))
    assert contest.winner is None
    assert contest.alive == ARMS
    assert all(arm.evidence < arm.needed == pytest.approx(np.log10(40)) for arm in contest.report())


def test_an_arm_without_rewards_is_neither_dropped_nor_does_it_hold_the_others_up() -> None:
    rng = np.random.default_rng(3)
    contest = Contest(ARMS, 0.05)
    for _ in range(400):
        contest.observe(5.0, coins(rng, {"a": 10, "b": 10}, {"a": 0.3, "b": 0.7}))
    assert contest.alive == ("b", "c")
    assert contest.winner is None
    assert contest.report()[2].mean is None


def test_a_guardrail_takes_an_arm_out_and_what_it_was_better_than_goes_on() -> None:
    contest = Contest(("a", "b"), 0.05)
    contest.stop("b", "errors: Degraded")
    rng = np.random.default_rng(4)
    for _ in range(400):
        contest.observe(5.0, coins(rng, {"a": 10, "b": 10}, {"a": 0.3, "b": 0.7}))
    assert contest.alive == ("a",)
    assert contest.winner == "a"
    assert contest.report()[1].out == "errors: Degraded"


def test_what_a_stopped_arm_has_dropped_is_in_again() -> None:
    """To be worse than what nobody may have is no reason to be out; to be worse than what is still in is."""
    rng = np.random.default_rng(8)
    contest = Contest(("a", "b", "c", "d"), 0.05)
    for _ in range(400):
        contest.observe(5.0, coins(rng, {"a": 10, "b": 10}, {"a": 0.3, "b": 0.7}))
    assert contest.report()[0].out == "b"
    contest.stop("b", "errors: Degraded")
    assert contest.alive == ("a", "c", "d")
    again = Contest(("a", "b", "c", "d"), 0.05, json.loads(json.dumps(contest.dump())))
    assert again.alive == contest.alive
    assert again.report() == contest.report()
    for _ in range(400):
        again.observe(5.0, coins(rng, {"a": 10, "c": 10}, {"a": 0.3, "c": 0.9}))
    assert again.alive == ("c", "d"), "and may lose to another"
    assert again.report()[0].out == "c"


def test_what_has_lost_to_an_arm_that_lost_stays_out_when_that_is_stopped() -> None:
    rng = np.random.default_rng(9)
    for stopped, alive in ((("b",), ("c",)), (("c", "b"), ("a",)), (("b", "c"), ("a",)), (("c",), ("b",))):
        contest = Contest(ARMS, 0.05)
        for _ in range(100):
            contest.observe(5.0, coins(rng, {"a": 10, "b": 10}, {"a": 0.1, "b": 0.9}))
        for _ in range(600):
            contest.observe(5.0, coins(rng, {"b": 10, "c": 10}, {"b": 0.3, "c": 0.9}))
        assert [arm.out for arm in contest.report()] == ["b", "c", ""]
        for arm in stopped:
            contest.stop(arm, "errors: Degraded")
        assert contest.alive == alive


def test_a_restart_at_any_point_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    straight, stopped = Contest(ARMS, 0.05), Contest(ARMS, 0.05)
    for i in range(200):
        new = coins(rng, dict.fromkeys(ARMS, 6), {"a": 0.3, "b": 0.5, "c": 0.7})
        for contest in (straight, stopped):
            contest.observe(3.0, new)
            if i % 50 == 49:
                contest.weight_changed()
        stopped = Contest(ARMS, 0.05, json.loads(json.dumps(stopped.dump(), allow_nan=False)))
        assert stopped.dump() == straight.dump()
    assert stopped.report() == straight.report()
    assert straight.alive == ("c",)
    assert Contest(("a", "c"), 0.05, straight.dump()).alive == ("a", "c"), "other arms: another contest"


def test_the_best_arm_is_dropped_no_more_often_than_asked_whatever_the_weights_do() -> None:
    """Four thousand contests of two equally good arms; the share of requests runs after the better mean so far.

    Both are the best, so that a drop of the first is a false one of 5%, and one of the second another.
    """
    rng = np.random.default_rng(6)
    runs = 4000
    duels = Duels(runs, 1 / 0.05)
    sums, counts = np.ones((2, runs)), np.full((2, runs), 2.0)
    first, second = np.zeros(runs, bool), np.zeros(runs, bool)
    for _ in range(150):
        drift = 0.5 + 0.2 * np.sin(rng.uniform(0, 6))  # that both arms share
        share = np.where(sums[0] / counts[0] > sums[1] / counts[1], 0.9, 0.1)
        n = rng.binomial(20, share)
        columns = []
        for i, number in enumerate((n, 20 - n)):
            won = rng.binomial(number, drift).astype(np.float64)
            sums[i] += won
            counts[i] += number
            columns.append((number.astype(np.float64), won, won))
        duels.observe(np.ones(runs, bool), np.full(runs, 5.0), columns[0], columns[1])
        duels.weight_changed()
        first |= duels.first_worse.reached()
        second |= duels.second_worse.reached()
    means = sums / counts
    assert means.mean() < sums.sum() / counts.sum() - 4 * means.std() / runs**0.5, (
        "plain means are biased; the tests not"
    )
    for dropped in (first, second):
        assert dropped.mean() <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="two arms"):
        Contest(("a",))
    with pytest.raises(ValueError, match="own name"):
        Contest(("a", "a"))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Contest(ARMS, 1.0)
    contest = Contest(ARMS)
    with pytest.raises(ValueError, match="none of the arms a, b, c"):
        contest.observe(5.0, {"d": Rewards()})
    with pytest.raises(ValueError, match="between 0 and 1"):
        contest.observe(5.0, {"a": Rewards(1, 5.0, 25.0)})
    with pytest.raises(ValueError, match="none of the arms"):
        contest.stop("d", "because")


def test_a_share_of_bad_responses_is_a_goal_as_well() -> None:
    counts = Requests(10, 3, {50.0: 4, 100.0: 9, inf: 10})
    assert well(counts) == Rewards(10, 7.0, 7.0)
    assert well(counts, 100.0) == Rewards(10, 9.0, 9.0)
    with pytest.raises(ValueError, match="not counted by 70 ms"):
        well(counts, 70.0)


# --- the bandit -------------------------------------------------------------------------------------------------------


def run(
    bandit: Bandit, rng: np.random.Generator, means: dict[str, float], weights: dict[str, int], ticks: int
) -> dict[str, int]:
    for _ in range(ticks):
        counts = {arm: int(rng.poisson(6.0 * share)) for arm, share in weights.items()}
        bandit.observe(60.0, coins(rng, counts, means))
        weights = bandit.weights(weights)
    return weights


def test_most_requests_go_to_the_best_arm_and_follow_when_another_becomes_it() -> None:
    rng = np.random.default_rng(7)
    bandit = Bandit(ARMS, half_life=1800.0)
    weights = run(bandit, rng, {"a": 0.5, "b": 0.6, "c": 0.5}, {"a": 34, "b": 33, "c": 33}, 60)
    assert weights["b"] >= 80
    weights = run(bandit, rng, {"a": 0.5, "b": 0.4, "c": 0.5}, weights, 240)
    assert weights["b"] <= 20


def test_the_same_state_gives_the_same_weights() -> None:
    bandit = Bandit(ARMS)
    bandit.observe(60.0, {"a": Rewards(40, 20.0, 20.0), "b": Rewards(40, 22.0, 22.0)})
    now = {"a": 40, "b": 30, "c": 30}
    again = Bandit(ARMS, state=json.loads(json.dumps(bandit.dump())))
    assert bandit.weights(now) == bandit.weights(now) == again.weights(now)
    assert bandit.best() == again.best()
    assert sum(bandit.best().values()) == pytest.approx(1)


def test_chances_are_those_of_the_distributions() -> None:
    """Held against draws, for few and many rewards side by side; equal arms have equal chances to the last digit."""
    rng = np.random.default_rng(10)
    bandit = Bandit(ARMS)
    assert list(bandit.best().values()) == pytest.approx([1 / 3] * 3, abs=1e-12)
    for counts in (
        {"a": (90, 50), "b": (90, 56), "c": (80, 40)},
        {"a": (0, 0), "b": (10**6, 5 * 10**5), "c": (3, 3)},
        {"a": (10**7, 5 * 10**6), "b": (10**7, 5 * 10**6 + 1000), "c": (100, 0)},
        {"a": (1000, 0), "b": (1000, 1), "c": (5000, 0)},
    ):
        bandit = Bandit(ARMS)
        bandit.observe(0.0, {arm: Rewards(n, float(s), float(s)) for arm, (n, s) in counts.items()})
        draws = np.column_stack([rng.beta(1 + s, 1 + n - s, 100_000) for n, s in counts.values()])
        drawn = np.bincount(draws.argmax(axis=1), minlength=3) / 100_000
        assert list(bandit.best().values()) == pytest.approx(list(drawn), abs=0.008)


def test_an_arm_that_is_out_gets_nothing_at_once_and_the_others_what_it_had() -> None:
    bandit = Bandit(ARMS)
    assert bandit.weights({"a": 20, "b": 20, "c": 60}, out=("c",))["c"] == 0
    assert bandit.weights({"a": 0, "b": 0, "c": 100}, out=("b", "c")) == {"a": 100, "b": 0, "c": 0}
    with pytest.raises(ValueError, match="no arm is left"):
        bandit.weights({"a": 100}, out=ARMS)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weights_are_whole_sum_to_a_hundred_and_keep_their_limits(data: st.DataObject) -> None:
    arms = [f"v{i}" for i in range(data.draw(st.integers(2, 8)))]
    floor, most = data.draw(st.integers(0, 100 // len(arms))), data.draw(st.integers(1, 100))
    bandit = Bandit(arms, floor=floor, most=most)
    cuts = sorted(data.draw(st.lists(st.integers(0, 100), min_size=len(arms) - 1, max_size=len(arms) - 1)))
    weights = {arm: high - low for arm, low, high in zip(arms, [0, *cuts], [*cuts, 100], strict=True)}
    for _ in range(data.draw(st.integers(1, 3))):
        rewards = {}
        for arm in arms:
            n = data.draw(st.integers(0, 500))
            total = float(data.draw(st.integers(0, n)))
            rewards[arm] = Rewards(n, total, total)
        bandit.observe(60.0, rewards)
        after = bandit.weights(weights)
        assert sum(after.values()) == 100
        assert all(isinstance(share, int) and share >= 0 for share in after.values())
        for arm in arms:
            assert after[arm] <= weights[arm] + most
            assert after[arm] >= min(floor, weights[arm] + most)
            if all(share >= floor for share in weights.values()):
                assert after[arm] >= weights[arm] - most
        weights = after


def test_limits_that_cannot_be_kept_are_refused() -> None:
    for wrong in ({"floor": 40}, {"floor": -1}, {"most": 0}, {"half_life": 0.0}):
        with pytest.raises(ValueError, match="3 arms with a floor"):
            Bandit(ARMS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two arms"):
        Bandit(("a",))
