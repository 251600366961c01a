"""A/B/n tests and bandits, from apply to traffic. Each name says what must be true."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml

from tidegate.api.base import seconds
from tidegate.api.experiment import ArmStatus, ExperimentStatus
from tidegate.api.modeldeployment import ModelDeploymentStatus
from tidegate.cli import _experiment
from tidegate.core.rollout.comparison import State
from tidegate.runtime.reconcile import Reconciler
from world import World, container, crashed, files

BOTH = {"deep": "v2", "wide": "v3"}
DEEP_IS_BEST = {"v1": 0.5, "v2": 0.6, "v3": 0.4}
EQUAL = {"v1": 0.5, "v2": 0.5, "v3": 0.5}


def spec(
    strategy: str = "ABTest",
    *,
    model: str = "v1",
    challengers: Mapping[str, str] = BOTH,
    weights: Mapping[str, int] | None = None,
    scaling: Mapping[str, Any] | None = None,
    make: Callable[..., dict[str, Any]] = container,
    **rollout: Any,
) -> dict[str, Any]:
    """A deployment with challengers: their versions, and perhaps weights, by name."""
    listed = [
        {"name": name, "model": make(version)["model"]} | ({"weight": weights[name]} if name in (weights or {}) else {})
        for name, version in challengers.items()
    ]
    return make(model, challengers=listed, scaling=dict(scaling or {}), rollout={"strategy": strategy, **rollout})


def running(*args: Any, rewards: Mapping[str, float] = EQUAL, seconds: int = 60, **kwargs: Any) -> Any:
    """A world with an experiment on its way, and its operator."""
    world = World(rewards=dict(rewards))
    world.submit(spec(*args, **kwargs))
    operator = world.run(min(seconds, 60))
    later(world, operator, seconds - 60)
    return world, operator


def later(world: World, operator: Reconciler, seconds: int) -> None:
    """Passes for a long time, one every half minute."""
    world.run(seconds, operator, every=30)


def arms(world: World) -> dict[str, ArmStatus]:
    assert world.status.experiment is not None
    return {arm.name: arm for arm in world.status.experiment.arms}


def experiment(world: World) -> ExperimentStatus:
    assert world.status.experiment is not None
    return world.status.experiment


def until(world: World, operator: Reconciler, what: Callable[[], object], seconds: int = 3600, every: int = 5) -> None:
    """Passes until something is so."""
    for _ in range(seconds // every):
        if what():
            return
        world.step(operator, every)
    raise AssertionError(f"not within {seconds} s: {world.reason('Progressing')}, {world.weights()}")


def told(world: World, condition: str = "Progressing") -> str:
    found = world.status.condition(condition)
    assert found is not None
    return found.message


def reasons(world: World) -> list[str]:
    return [event.reason for event in world.events]


def silent(world: World, operator: Reconciler, seconds: int = 600) -> bool:
    """Whether nothing at all is written for a while."""
    writes = world.writes
    world.run(seconds, operator, every=10)
    return world.writes == writes


# --- how it begins ----------------------------------------------------------------------------------------------------


def test_challengers_get_requests_once_all_are_ready_and_the_counters_are_read() -> None:
    world = World(slow={"v3"}, rewards=dict(EQUAL))
    world.submit(spec())
    operator = world.run(600)
    assert world.weights() == {"v1": 100}, "one is slow to start: nobody begins without it"
    assert world.reason("Progressing") == "True/CandidateNotReady"
    assert told(world).startswith("wide: ")
    assert world.reason("Ready") == "True/Experimenting"
    world.slow.clear()
    world.source_trouble = "the gateway does not answer"
    world.run(600, operator)
    assert world.weights() == {"v1": 100}, "nor is anything begun that could not be counted"
    assert world.reason("Progressing") == "False/NoCounts"
    assert experiment(world).began is None
    world.source_trouble = ""
    world.run(60, operator)
    assert world.weights() == {"v1": 34, "v2": 33, "v3": 33}
    assert "ExperimentStarted" in reasons(world)


def test_nothing_is_begun_while_the_rewards_cannot_be_read() -> None:
    world = World(feedback_trouble="no feedback service answers")
    world.submit(spec())
    operator = world.run(300)
    assert world.weights() == {"v1": 100}
    assert world.reason("Progressing") == "False/NoCounts"
    assert "no feedback service" in told(world)
    assert silent(world, operator)


def test_challengers_have_their_share_of_the_replicas_before_their_requests() -> None:
    world = World(rewards=dict(EQUAL))
    scaling = {"min": 6, "max": 9}
    world.submit(container("v1", scaling=scaling))
    operator = world.run(120)
    assert world.pods() == {"v1": 6}
    world.submit(spec(scaling=scaling))
    until(world, operator, lambda: len(world.weights()) == 3)
    assert world.pods()["v1"] == 6
    assert min(world.pods()["v2"], world.pods()["v3"]) >= 2


def test_control_keeps_its_replicas_for_as_long_as_a_test_may_send_everything_back_to_it() -> None:
    world = World(rewards=dict(EQUAL))
    world.submit(container("v1", scaling={"min": 4, "max": 9}))
    operator = world.run(120)
    world.submit(spec(scaling={"min": 4, "max": 9}))
    until(world, operator, lambda: len(world.weights()) == 3)
    world.submit(spec(scaling={"min": 1, "max": 9}))
    world.run(600, operator)
    assert world.pods() == {"v1": 4, "v2": 1, "v3": 1}
    world.request("abort #1")
    world.run(60, operator)
    assert world.weights() == {"v1": 100}


# --- the goal ---------------------------------------------------------------------------------------------------------

GUARDS = [
    {"name": "errors", "errors": {"maxIncrease": "20%"}},
    {"name": "tail", "latency": {"slowerThan": "200ms", "maxIncrease": "50%"}},
]


@pytest.mark.parametrize("goal", ["reward", "errors", "tail"])
def test_goals(goal: str) -> None:
    """Versions are compared by what the spec says, and by that alone: the best by one goal is the worst by the others.

    The best by one has the shares that the two others have by the others.
    """
    world = World(delays={"v1": 0.10, "v2": 0.10, "v3": 0.10}, rewards={"v1": 0.5, "v2": 0.45, "v3": 0.45})
    world.errors = {"v1": 0.08, "v2": 0.08, "v3": 0.08}
    best = {"reward": "v3", "errors": "v2", "tail": "v1"}[goal]
    world.rewards["v3"], world.errors["v2"], world.delays["v1"] = 0.8, 0.0, 0.0
    world.rate = 200.0
    world.submit(spec(goal=goal, guardrails=GUARDS))
    operator = world.run(60)
    until(world, operator, lambda: experiment(world).winner)
    assert {"v1": "control", "v2": "deep", "v3": "wide"}[best] == experiment(world).winner
    counted = arms(world)[experiment(world).winner].goal
    assert counted.count > 100
    if goal == "reward":
        assert (counted.bad, counted.rate) == (None, pytest.approx(0.8, abs=0.01))
    else:
        assert (counted.bad, counted.rate) == (0, 0.0)
    losers = [arm for name, arm in arms(world).items() if name != experiment(world).winner]
    assert all(arm.worse_than for arm in losers)
    assert all(arm.out == "Worse" for arm in losers if arm.name != "control")
    if goal != "reward":
        assert all(arm.goal.bad for arm in losers)


def test_a_goal_that_is_counted_by_no_edge_says_so() -> None:
    guards = [GUARDS[0], {"name": "tail", "latency": {"slowerThan": "20s"}}]
    world = World(delays={"v1": 0.1})
    world.submit(spec(goal="tail", guardrails=guards))
    operator = world.run(300)
    assert world.reason("Progressing") == "False/NoCounts"
    assert "no edge of 20s" in told(world)
    assert world.weights() == {"v1": 100}
    world.rate = 0.0
    later(world, operator, 900)
    assert silent(world, operator)


def test_equal_versions_are_never_decided() -> None:
    world, _ = running(seconds=4 * 3600)
    assert experiment(world).winner is None
    assert all(arm.out is None and arm.worse_than is None for arm in arms(world).values())
    assert world.reason("Progressing") == "True/Comparing"
    assert world.weights() == {"v1": 34, "v2": 33, "v3": 33}


@pytest.mark.parametrize("on_deadline", ["Hold", "Rollback"])
def test_what_is_not_decided_in_time_says_so_or_is_put_out(on_deadline: str) -> None:
    world, operator = running(deadline="10m", onDeadline=on_deadline, seconds=500)
    assert world.reason("Progressing") == "True/Comparing"
    world.run(300, operator)
    if on_deadline == "Hold":
        assert world.reason("Progressing") == "False/DeadlineExceeded"
        assert "no version is proven best after 10m" in told(world)
        assert len(world.weights()) == 3
        world.rewards["v2"] = 0.7
        until(world, operator, lambda: experiment(world).winner == "deep")
    else:
        assert world.weights() == {"v1": 100}
        assert world.reason("Progressing") == "False/NoChallenger"
        assert {arm.out for arm in arms(world).values()} == {None, "DeadlineExceeded"}
        assert "no version was proven best within 10m" in told(world)
        assert reasons(world).count("ChallengerDeadlineExceeded") == 2
        world.rate = 0.0
        world.run(900, operator)
        assert silent(world, operator)


def test_a_deadline_holds_without_requests_too_and_a_late_one_puts_no_winner_out() -> None:
    world, operator = running(deadline="10m", onDeadline="Rollback", seconds=60)
    world.rate = 0.0
    world.run(900, operator)
    assert world.weights() == {"v1": 100}
    world, operator = running(rewards=DEEP_IS_BEST, deadline="10m", onDeadline="Rollback", seconds=3600)
    assert experiment(world).winner == "deep"
    assert "v2" in world.weights()


# --- the winner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
def test_the_winner_is_promoted_if_asked(asked: bool) -> None:
    world, operator = running(rewards=DEEP_IS_BEST, promoteWinner=asked)
    until(world, operator, lambda: experiment(world).winner)
    assert experiment(world).winner == "deep"
    assert world.reason("Progressing") == "False/WinnerFound"
    assert arms(world)["deep"].verdict != "Healthy", "its guardrails have yet to be proven"
    assert world.weights().keys() == {"v1", "v2"}
    assert ("promoted once its guardrails are Healthy (errors)" if asked else "promote --arm deep") in told(world)
    later(world, operator, 1200)
    assert arms(world)["deep"].verdict == "Healthy"
    if not asked:
        assert world.weights().keys() == {"v1", "v2"}
        assert world.reason("Ready") == "True/Experimenting"
        assert world.status.stable.startswith("v1-")
        assert world.status.pinned is None
        return
    assert world.weights() == {"v2": 100}
    assert world.status.stable.startswith("v2-")
    assert world.status.pinned.won
    assert world.reason("Ready") == "True/Serving"
    assert world.reason("Progressing") == "False/WinnerServing"
    assert reasons(world).count("WinnerFound") == 1
    assert silent(world, operator)

    world.history.clear()
    world.submit(container("v2"))
    world.run(300, operator)
    assert world.weights() == {"v2": 100}
    assert all(split == {"v2": 100} for split in world.history), "not one request goes elsewhere"
    assert world.reason("Ready") == "True/Serving"
    assert world.reason("Progressing") == "False/AtRest"
    assert (world.status.experiment, world.status.pinned, world.status.rollout) == (None, None, None)


def test_a_winner_that_is_never_proven_healthy_is_never_promoted() -> None:
    guards = [{"name": "errors", "errors": {"maxIncrease": "1%"}}]
    world = World(rewards=dict(DEEP_IS_BEST), errors={"v1": 0.02, "v2": 0.04, "v3": 0.02})  # at the limit
    world.submit(spec(promoteWinner=True, guardrails=guards))
    operator = world.run(60)
    later(world, operator, 4 * 3600)
    assert experiment(world).winner == "deep"
    assert arms(world)["deep"].verdict == "Undecided"
    assert world.status.stable.startswith("v1-")


def test_nobody_is_promoted_while_control_is_in_an_incident() -> None:
    """Beside what fails more than it ever did anything looks healthy."""
    world, operator = running(rewards=DEEP_IS_BEST, seconds=1200)
    assert arms(world)["deep"].proven
    world.errors["v1"] = 0.3
    world.submit(spec(promoteWinner=True))
    world.run(60, operator)
    assert (arms(world)["deep"].verdict, arms(world)["deep"].proven) == ("Healthy", False)
    assert world.status.pinned is None
    world.errors.clear()
    until(world, operator, lambda: world.weights() == {"v2": 100}, 900)


def test_where_control_wins_it_says_so_and_has_everything() -> None:
    world, operator = running(rewards={"v1": 0.6, "v2": 0.5, "v3": 0.4}, promoteWinner=True, seconds=1800)
    assert world.weights() == {"v1": 100}
    assert experiment(world).winner == "control"
    assert world.status.pinned is None
    assert world.reason("Progressing") == "False/WinnerFound"
    assert "control is proven best" in told(world)
    assert world.reason("Ready") == "True/Experimenting"
    world.rate = 0.0
    world.run(900, operator)
    assert silent(world, operator)
    assert world.pods() in ({}, {"v1": 1})


def test_the_winner_among_files_on_kserve() -> None:
    world, _ = running(rewards=DEEP_IS_BEST, promoteWinner=True, make=files, seconds=1200)
    assert world.weights() == {"v2": 100}


def test_the_winner_goes_on_from_its_share_and_takes_the_rest_once_it_has_the_replicas() -> None:
    world = World(rewards=dict(DEEP_IS_BEST))
    scaling = {"min": 4, "max": 9}
    world.submit(container("v1", scaling=scaling))
    operator = world.run(120)
    world.submit(spec(promoteWinner=True, scaling=scaling))
    until(world, operator, lambda: world.weights() == {"v2": 100})
    assert world.pods()["v2"] >= 4
    splits = [split for split in world.history if "v2" in split]
    shares = [split["v2"] for split in splits]
    assert shares == sorted(shares), "its share never falls on the way"


def test_what_a_guardrail_stops_has_beaten_nobody() -> None:
    """The best by the goal drops control, and is then found to fail: what it has beaten is in again.

    Else the third one would be the last, and the winner, though control is better.
    """
    rewards = {"v1": 0.5, "v2": 0.7, "v3": 0.4}
    world, operator = running(rewards=rewards, weights={"deep": 49, "wide": 1}, promoteWinner=True, seconds=30)
    until(world, operator, lambda: arms(world)["control"].worse_than == "deep")
    assert arms(world)["wide"].out is None, "little is known of it"
    assert arms(world)["deep"].out is None
    world.errors["v2"] = 0.5
    until(world, operator, lambda: arms(world)["deep"].out == "Degraded")
    world.run(60, operator)
    assert arms(world)["control"].worse_than is None
    assert experiment(world).winner is None
    later(world, operator, 7200)
    assert experiment(world).winner == "control"
    assert world.weights() == {"v1": 100}


@pytest.mark.parametrize("when", ["before it has all", "with all", "while it warms up"])
def test_a_winner_that_fails_while_it_takes_over_is_given_up_and_not_tried_again(when: str) -> None:
    world, operator = running(rewards=DEEP_IS_BEST, promoteWinner=True, scaling={"max": 9})
    until(world, operator, lambda: world.status.pinned is not None)
    if when == "while it warms up":
        world.gateway_behind = True
        world.step(operator)
        assert world.status.rollout.step == 0
    elif when == "with all":
        until(world, operator, lambda: world.weights() == {"v2": 100})
    world.failing.add("v2")
    world.gateway_behind = False
    world.run(120, operator)
    assert world.weights() == {"v1": 100}
    assert arms(world)["deep"].out == "Failed"
    assert world.status.stable.startswith("v1-")
    world.failing.clear()
    world.history.clear()
    later(world, operator, 3600)
    assert world.weights() == {"v1": 100}
    assert world.history == [], "it does not begin again"
    assert world.status.pinned is None
    assert "ChallengerFailed" in reasons(world)
    world.rate = 0.0
    world.run(900, operator)
    assert silent(world, operator)


# --- weights that the spec gives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "split"),
    [
        ({}, {"v1": 34, "v2": 33, "v3": 33}),
        ({"deep": 10}, {"v1": 45, "v2": 10, "v3": 45}),
        ({"deep": 10, "wide": 20}, {"v1": 70, "v2": 10, "v3": 20}),
        ({"deep": 98}, {"v1": 1, "v2": 98, "v3": 1}),
        ({"wide": 1}, {"v1": 50, "v2": 49, "v3": 1}),
    ],
)
def test_fixed_weights(weights: dict[str, int], split: dict[str, int]) -> None:
    """Those of the spec, the others share what is left; they are obeyed when they change, and evidence is kept."""
    world, operator = running(weights=weights)
    assert world.weights() == split
    assert {arm.name: arm.weight for arm in arms(world).values()} == dict(
        zip(("control", "deep", "wide"), split.values(), strict=True)
    )
    before = arms(world)["control"].goal.count
    world.submit(spec(weights={"deep": 40, "wide": 50}))
    world.run(30, operator)
    assert world.weights() == {"v1": 10, "v2": 40, "v3": 50}
    assert arms(world)["control"].goal.count > before
    assert experiment(world).began < world.now
    assert reasons(world).count("ExperimentStarted") == 1
    world.request("abort wide")
    world.run(60, operator)
    assert world.weights() == {"v1": 20, "v2": 80}, "the others grow in proportion"


def test_a_larger_weight_waits_for_its_replicas_and_control_keeps_its_own() -> None:
    world = World(rewards=dict(EQUAL))
    world.submit(container("v1", scaling={"min": 6, "max": 9}))
    operator = world.run(120)
    scaling = {"min": 1, "max": 9}
    world.submit(spec(weights={"deep": 10, "wide": 10}, scaling={"min": 6, "max": 9}))
    until(world, operator, lambda: len(world.weights()) == 3)
    world.submit(spec(weights={"deep": 10, "wide": 10}, scaling=scaling))
    world.run(300, operator)
    assert world.pods() == {"v1": 6, "v2": 1, "v3": 1}
    world.submit(spec(weights={"deep": 60, "wide": 10}, scaling=scaling))
    before = {"v1": 80, "v2": 10, "v3": 10}
    seen = [before]
    for _ in range(12):
        world.step(operator)
        seen.append(world.weights())
        assert world.weights() == before or world.pods()["v2"] >= 4, "six replicas' worth of requests, and 60% of them"
        assert world.pods()["v1"] == 6
    assert seen[-1] == {"v1": 30, "v2": 60, "v3": 10}
    assert seen[1] == before, "the replicas come first"


@pytest.mark.parametrize("state", ["late", "won"])
def test_weights_of_the_spec_are_obeyed_after_the_deadline_and_after_a_win(state: str) -> None:
    rewards = DEEP_IS_BEST if state == "won" else EQUAL
    world, operator = running(rewards=rewards, deadline="10m", seconds=1200)
    assert world.reason("Progressing") == ("False/WinnerFound" if state == "won" else "False/DeadlineExceeded")
    world.submit(spec(weights={"deep": 20, "wide": 20}, deadline="10m"))
    world.run(30, operator)
    assert world.weights() == ({"v1": 75, "v2": 25} if state == "won" else {"v1": 60, "v2": 20, "v3": 20})


def test_paused_keeps_the_weights_and_decides_nothing_but_stops_what_fails() -> None:
    world, operator = running(rewards=DEEP_IS_BEST, paused=True, seconds=600)
    assert world.weights() == {"v1": 100}, "paused from the beginning: it does not begin"
    world.submit(spec())
    until(world, operator, lambda: len(world.weights()) == 3)
    world.submit(spec(paused=True, weights={"deep": 90}, promoteWinner=True))
    later(world, operator, 1200)
    assert world.weights() == {"v1": 34, "v2": 33, "v3": 33}
    assert world.reason("Progressing") == "False/Paused"
    world.errors["v3"] = 0.9
    world.run(300, operator)
    assert world.weights() == {"v1": 67, "v2": 33}, "control takes what the stopped one had"
    assert arms(world)["wide"].out == "Degraded"


def test_a_challenger_that_becomes_the_specs_version_goes_on_from_its_share() -> None:
    world, operator = running(rewards=DEEP_IS_BEST)
    until(world, operator, lambda: experiment(world).winner)
    before = world.weights()["v2"]
    assert before > 40
    since = len(world.history)
    world.submit(container("v2"))
    later(world, operator, 1200)
    assert world.weights() == {"v2": 100}
    assert world.reason("Ready") == "True/Serving"
    assert world.status.experiment is None
    assert all(split["v2"] >= before for split in world.history[since:]), "it never had less than before"
    assert "Healthy" in {event.reason for event in world.events}, "and had to prove itself for the rest"


def test_a_challenger_that_becomes_the_specs_version_and_fails_then_is_rolled_back() -> None:
    world, operator = running(rewards=DEEP_IS_BEST)
    until(world, operator, lambda: experiment(world).winner)
    world.errors["v2"] = 0.5
    world.submit(container("v2"))
    later(world, operator, 300)
    assert world.weights() == {"v1": 100}
    assert world.reason("Ready") == "False/Degraded"


# --- bandits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "most", "every"), [(5, 10, "1m"), (10, 3, "30s"), (1, 100, "2m"), (16, 1, "10s")])
def test_a_bandit_keeps_to_its_limits(floor: int, most: int, every: str) -> None:
    """Whole percents that sum to 100, none below the floor; small steps, and no two soon after each other."""
    world = World(rewards=dict(DEEP_IS_BEST))
    world.submit(spec("Bandit", bandit={"floor": floor, "maxChange": most, "every": every}))
    operator = world.operator()
    last, changed, seen = None, None, set()
    for _ in range(120):
        world.step(operator, 10)
        tested = world.status.experiment
        if tested is None or tested.began is None:
            continue
        weights = {arm.name: arm.weight for arm in tested.arms}
        assert sum(weights.values()) == 100
        assert min(weights.values()) >= floor
        if last and weights != last:
            assert max(abs(weights[name] - last[name]) for name in weights) <= most
            assert (world.now - changed).total_seconds() >= seconds(every)
            changed = world.now
        elif last is None:
            changed = world.now
        last = weights
        seen.add(tuple(weights.values()))
    assert len(seen) >= 2
    assert last == {"control": floor, "deep": 100 - 2 * floor, "wide": floor}
    assert world.weights()["v2"] == 100 - 2 * floor
    assert experiment(world).winner is None, "a bandit has no end"
    assert arms(world)["deep"].best == 1.0
    world.rate = 0.0
    world.run(900, operator)
    assert silent(world, operator), "without requests nothing is written"


def test_a_bandit_follows_what_changes() -> None:
    """The best version changes. Who remembers for less long follows sooner."""

    def takes(half_life: str) -> float:
        world, operator = running("Bandit", rewards=DEEP_IS_BEST, bandit={"halfLife": half_life}, seconds=3600)
        assert world.weights() == {"v1": 5, "v2": 90, "v3": 5}
        world.rewards.update(v2=0.4, v3=0.6)
        since = world.now
        until(world, operator, lambda: world.weights().get("v3") == 90, 12 * 3600, 30)
        assert world.weights() == {"v1": 5, "v2": 5, "v3": 90}
        return (world.now - since).total_seconds()

    assert takes("5m") < 3600 < takes("12h")


def test_a_bandit_promotes_nobody_and_puts_nobody_out_for_its_goal() -> None:
    world, _ = running("Bandit", rewards=DEEP_IS_BEST, seconds=7200, deadline="10m", onDeadline="Rollback")
    assert all(arm.out is None for arm in arms(world).values())
    assert arms(world)["wide"].worse_than is not None, "it is told all the same"
    assert world.status.stable.startswith("v1-")
    assert world.reason("Progressing") == "True/Comparing"


def test_a_bandits_degraded_version_is_found_though_the_weights_keep_moving() -> None:
    world, operator = running("Bandit", rewards=DEEP_IS_BEST, seconds=2400, bandit={"every": "10s"})
    assert world.weights()["v2"] == 90
    world.errors["v2"] = 0.2
    since = world.now
    until(world, operator, lambda: arms(world)["deep"].out == "Degraded", 600)
    assert (world.now - since).total_seconds() <= 120
    world.run(60, operator)
    assert "v2" not in world.weights()
    assert sum(world.weights().values()) == 100


# --- what is stopped --------------------------------------------------------------------------------------------------


def test_a_degraded_challenger_is_stopped_at_once_with_its_numbers_and_the_others_go_on() -> None:
    world, operator = running()
    world.errors["v2"] = 0.3
    since = world.now
    until(world, operator, lambda: arms(world)["deep"].out)
    assert (world.now - since).total_seconds() <= 60
    deep = arms(world)["deep"]
    assert deep.out == "Degraded"
    assert "responses failed" in deep.why
    assert deep.guardrails[0].verdict == "Degraded"
    world.run(10, operator)
    assert world.weights() == {"v1": 51, "v3": 49}
    assert "v2" not in world.pods()
    served = world.counted[deep.version].requests
    later(world, operator, 1200)
    assert world.weights() == {"v1": 51, "v3": 49}
    assert world.counted[deep.version].requests == served
    assert world.reason("Progressing") == "True/Comparing"
    assert reasons(world).count("ChallengerDegraded") == 1
    event = next(event for event in world.events if event.reason == "ChallengerDegraded")
    assert (event.type, event.message) == ("Warning", f"deep ({deep.version}): {deep.why}")
    assert arms(world)["wide"].goal.count > deep.goal.count


@pytest.mark.parametrize("how", ["Revision", "crash"])
def test_a_challenger_that_fails_is_out_and_what_is_left_of_it_goes(how: str) -> None:
    world, operator = running()
    if how == "crash":
        crashed(world, "v3", world.now)
    else:
        world.failing.add("v3")
    world.run(15, operator)
    assert world.weights() == {"v1": 51, "v2": 49}
    assert arms(world)["wide"].out == "Failed"
    assert arms(world)["wide"].why
    world.run(60, operator)
    assert not any("-v3-" in name for name in world.of("Configuration"))
    assert world.reason("VersionsReady") == "True/VersionsReady"
    assert "ChallengerFailed" in reasons(world)


def test_a_challenger_that_fails_before_the_beginning_is_waited_for() -> None:
    world = World(failing={"v2"}, rewards=dict(EQUAL))
    world.submit(spec())
    operator = world.run(300)
    assert world.weights() == {"v1": 100}
    assert world.reason("Progressing") == "False/CandidateNotReady"
    assert world.reason("VersionsReady") == "False/VersionFailed"
    assert world.reason("Ready") == "True/Experimenting"
    assert silent(world, operator)
    world.failing.clear()
    world.run(60, operator)
    assert len(world.weights()) == 3


def test_control_that_fails_for_a_moment_leaves_its_requests_to_the_others() -> None:
    """What it could not answer the others did: that is no wrong split, and when it is back the comparison goes on."""
    world, operator = running(weights={"deep": 10, "wide": 10})
    world.failing.add("v1")
    world.run(120, operator)
    assert world.weights() == {"v2": 50, "v3": 50}
    assert world.reason("Ready") == "False/VersionFailed"
    world.failing.clear()
    world.rewards.update(DEEP_IS_BEST)
    world.run(300, operator)
    assert experiment(world).doubt == ""
    assert "v1" in world.weights()
    until(world, operator, lambda: experiment(world).winner == "deep")


def test_a_challenger_that_is_not_ready_for_a_moment_is_no_wrong_split() -> None:
    world, operator = running(weights={"deep": 30, "wide": 30})
    world.slow.add("v2")
    world.run(120, operator)
    assert world.weights() == {"v1": 57, "v3": 43}
    world.slow.clear()
    world.run(60, operator)
    assert world.weights() == {"v1": 40, "v2": 30, "v3": 30}
    assert experiment(world).doubt == ""
    assert arms(world)["deep"].out is None


# --- what cannot be counted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ABTest", "Bandit"])
@pytest.mark.parametrize("case", ["no source", "no rewards", "no traffic"])
def test_without_counts_nothing_is_decided_and_at_rest_nothing_written(strategy: str, case: str) -> None:
    world, operator = running(strategy, rewards=EQUAL)
    split = world.weights()
    world.rewards.update(DEEP_IS_BEST)
    if case == "no source":
        world.source_trouble = "the gateway does not answer"
    elif case == "no rewards":
        world.feedback_trouble = "the feedback service does not answer"
    else:
        world.rate = 0.0
    later(world, operator, 1200)
    if case != "no rewards":  # then requests are counted all the same, for the guardrails
        assert silent(world, operator)
    if strategy == "ABTest" or case != "no traffic":
        assert world.weights() == split
    assert experiment(world).winner is None
    assert all(arm.out is None for arm in arms(world).values())
    said = world.reason("Progressing")
    assert said == ("True/Comparing" if case == "no traffic" else "False/NoCounts")
    world.source_trouble, world.feedback_trouble, world.rate = "", "", 20.0
    later(world, operator, 2400)
    if strategy == "ABTest":
        assert experiment(world).winner == "deep", "decided once there is something to go by"
    else:
        assert world.weights()["v2"] == 90


def test_requests_that_are_not_split_as_asked_decide_nothing_until_it_is_tried_anew() -> None:
    world, operator = running(rewards=DEEP_IS_BEST, weights={"deep": 10, "wide": 10})
    world.submit(spec(weights={"deep": 10, "wide": 10}, paused=True))  # so that it is not decided at once
    world.astray["v2"] = 3.0  # clients that stay with a version
    world.run(600, operator)
    world.submit(spec(weights={"deep": 10, "wide": 10}))
    later(world, operator, 1200)
    assert world.reason("Progressing") == "False/NoCounts"
    assert "not split as asked (deep)" in told(world)
    assert "tidegate retry" in told(world)
    assert experiment(world).winner is None
    assert all(arm.out is None for arm in arms(world).values())
    assert "NoCounts" in reasons(world)
    world.rate = 0.0
    later(world, operator, 900)
    assert silent(world, operator)
    world.rate = 20.0
    world.astray.clear()
    world.request("retry #1")
    until(world, operator, lambda: experiment(world).winner == "deep")


# --- what people ask for ----------------------------------------------------------------------------------------------


def asked(world: World) -> tuple[bool, str]:
    request = world.status.request
    assert request is not None
    return request.accepted, request.message


def test_abort_takes_all_challengers_out_and_retry_begins_anew() -> None:
    world, operator = running(rewards=EQUAL, seconds=300)
    world.request("abort #1")
    world.run(15, operator)
    assert world.weights() == {"v1": 100}
    assert asked(world)[0]
    assert world.reason("Progressing") == "False/NoChallenger"
    assert "aborted on request" in told(world)
    assert reasons(world).count("ChallengerAborted") == 2
    world.run(600, operator)
    assert world.weights() == {"v1": 100}, "nor do they come back by themselves"
    assert set(world.pods()) == {"v1"}
    before = experiment(world).began
    world.request("retry #2")
    world.run(60, operator)
    assert len(world.weights()) == 3
    assert experiment(world).began > before
    assert arms(world)["deep"].goal.count < 1000


@pytest.mark.parametrize("subject", ["deep", "v2", "its id"])
def test_abort_of_one_challenger_leaves_the_others(subject: str) -> None:
    world, operator = running()
    identity = arms(world)["deep"].version
    world.request(f"abort {identity if subject == 'its id' else subject} #1")
    world.run(15, operator)
    assert world.weights() == {"v1": 51, "v3": 49}
    assert arms(world)["deep"].out == "Aborted"
    world.request("abort deep #2")
    world.run(15, operator)
    assert asked(world) == (False, "no challenger deep is in the experiment; there are: wide")


@pytest.mark.parametrize("subject", ["", "deep"])
def test_abort_before_the_beginning_leaves_the_others_or_nobody(subject: str) -> None:
    """Of a challenger that does not get ready, say."""
    world = World(failing={"v2"}, rewards=dict(EQUAL))
    world.submit(spec(scaling={"min": 2}))
    operator = world.run(60)
    assert world.reason("Progressing") == "False/CandidateNotReady"
    world.request(f"abort {subject} #1")
    world.run(60, operator)
    assert asked(world)[0]
    if subject:
        assert world.weights() == {"v1": 51, "v3": 49}
        assert world.reason("Progressing") == "True/Comparing"
        return
    assert world.weights() == {"v1": 100}
    assert world.reason("Progressing") == "False/NoChallenger"
    world.submit(spec(scaling={"min": 0}))
    world.rate = 0.0
    world.run(300, operator)
    floors = [r["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] for r in world.of("Revision").values()]
    assert floors == ["0"], "nothing keeps replicas for an experiment that will not be"
    assert silent(world, operator)


def test_promote_gives_a_challenger_everything_and_undo_takes_it_back() -> None:
    world, operator = running()
    for vague in ("promote #1", "promote nobody #2"):
        world.request(vague)
        world.run(10, operator)
        assert asked(world) == (False, "say which challenger is to get all requests; there are: deep, wide")
    world.request("approve #3")
    world.run(10, operator)
    assert not asked(world)[0]
    world.request("promote deep #4")
    world.run(15, operator)
    assert asked(world)[0]
    world.run(300, operator)
    assert world.weights() == {"v2": 100}
    assert world.status.stable.startswith("v2-")
    assert world.reason("Progressing") == "False/WinnerServing"
    assert silent(world, operator)
    world.request("undo #5")
    world.run(300, operator)
    assert asked(world)[0]
    assert world.status.stable.startswith("v1-")
    assert arms(world)["deep"].out == "Aborted"
    assert world.weights() == {"v1": 51, "v3": 49}, "the other one goes on against control"


def test_undo_of_a_winner_needs_no_kept_version() -> None:
    """The spec still asks for control: to take the winner back needs nothing from the past."""
    world, operator = running(keepVersions=0)
    world.request("promote deep #1")
    world.run(300, operator)
    assert world.weights() == {"v2": 100}
    world.request("undo #2")
    world.run(900, operator)
    assert asked(world)[0], asked(world)
    assert world.status.stable.startswith("v1-")


def test_a_winner_on_its_way_can_be_aborted() -> None:
    world, operator = running(scaling={"max": 9})
    world.request("promote deep #1")
    until(world, operator, lambda: world.status.rollout)
    world.request("abort #2")
    world.run(120, operator)
    assert asked(world)[0]
    assert world.weights() == {"v1": 51, "v3": 49}
    assert arms(world)["deep"].out == "Aborted"


def test_undo_to_an_earlier_version_ends_the_experiment() -> None:
    world = World(rewards=dict(EQUAL))
    world.submit(container("v0", rollout={"strategy": "Immediate"}))
    operator = world.run(60)
    world.submit(container("v1", rollout={"strategy": "Immediate"}))
    world.run(300, operator)
    world.submit(spec())
    world.run(60, operator)
    assert len(world.weights()) == 3
    world.request("undo #1")
    world.run(300, operator)
    assert world.weights() == {"v0": 100}
    assert world.status.experiment is None
    world.request("retry #2")
    world.run(900, operator)
    assert len(world.weights()) == 3


def test_retry_of_an_experiment_that_is_on_begins_it_anew() -> None:
    world, operator = running(seconds=600)
    before = experiment(world).began
    world.request("retry #1")
    world.run(60, operator)
    assert asked(world)[0]
    assert experiment(world).began > before


# --- what the spec changes --------------------------------------------------------------------------------------------


def test_another_model_supersedes_the_experiment_and_then_begins_one_of_its_own() -> None:
    world, operator = running(seconds=300)
    first = experiment(world).id
    world.history.clear()
    world.submit(spec(model="v4", pace="Eager"))
    world.run(30, operator)
    assert not {"v2", "v3"} & world.weights().keys()
    assert world.reason("Ready") == "Unknown/RollingOut"
    world.run(1800, operator)
    assert world.status.stable.startswith("v4-")
    assert experiment(world).id != first
    assert world.weights() == {"v4": 34, "v2": 33, "v3": 33}
    assert arms(world)["control"].version == world.status.stable
    mixed = [split for split in world.history if "v1" in split and {"v2", "v3"} & split.keys()]
    assert mixed == [], "first the new model, then its challengers"


def test_another_challenger_begins_another_experiment() -> None:
    world, operator = running(rewards=EQUAL | {"v4": 0.5}, seconds=300)
    world.submit(spec(challengers={**BOTH, "tall": "v4"}))
    world.run(120, operator)
    assert world.weights() == {"v1": 25, "v2": 25, "v3": 25, "v4": 25}
    assert reasons(world).count("ExperimentStarted") == 2
    world.submit(spec(challengers={"tall": "v4"}))
    world.run(120, operator)
    assert world.weights() == {"v1": 50, "v4": 50}
    assert set(world.pods()) == {"v1", "v4"}
    world.submit(container("v1"))
    world.run(120, operator)
    assert world.weights() == {"v1": 100}
    assert world.status.experiment is None
    assert world.reason("Progressing") == "False/AtRest"


def test_the_order_of_the_challengers_does_not_matter() -> None:
    world, operator = running(seconds=300)
    before = experiment(world)
    world.submit(spec(challengers=dict(reversed(BOTH.items()))))
    world.run(60, operator)
    assert experiment(world).began == before.began
    assert [arm.name for arm in experiment(world).arms] == ["control", "deep", "wide"]
    assert arms(world)["deep"].goal.count > 0


def test_another_strategy_keeps_the_evidence() -> None:
    world, operator = running(rewards=DEEP_IS_BEST, seconds=1200)
    assert experiment(world).winner == "deep"
    before = arms(world)["deep"].goal.count
    world.submit(spec("Bandit"))
    world.run(900, operator)
    assert arms(world)["deep"].goal.count > before
    assert experiment(world).winner is None, "a bandit has none"
    assert world.weights() == {"v1": 5, "v2": 95}
    assert reasons(world).count("ExperimentStarted") == 1
    assert arms(world)["wide"].out == "Worse", "what has been proven stays so"
    world.submit(spec())
    world.run(60, operator)
    assert experiment(world).winner == "deep", "all is known already"
    assert world.weights() == {"v1": 51, "v2": 49}


def test_risk_that_changes_begins_the_comparison_anew() -> None:
    world, operator = running(rewards=DEEP_IS_BEST, seconds=30)
    world.submit(spec(risk={"falsePromotion": 0.001}))
    world.run(900, operator)
    assert experiment(world).winner == "deep"
    assert arms(world)["deep"].worse_at == pytest.approx(3.3, abs=0.01)


def test_the_same_version_twice_is_refused_and_nothing_stops() -> None:
    world, operator = running(seconds=120)
    for challengers, who in (({"deep": "v1"}, "spec.model"), ({"deep": "v2", "wide": "v2"}, "challenger deep")):
        world.submit(spec(challengers=challengers))
        world.run(60, operator)
        assert world.reason("Ready") == "False/SameVersion"
        assert f"is the same version as {who}" in told(world, "Ready")
        assert world.weights() == {"v1": 100}
    world.submit(spec())
    world.run(60, operator)
    assert len(world.weights()) == 3


def test_a_challenger_without_a_runtime_is_told_of_and_spec_model_is_served() -> None:
    world = World(rewards=dict(EQUAL))
    wrong = spec(make=files)
    wrong["challengers"][1]["model"]["format"] = "abacus"
    world.submit(files("v1"))
    operator = world.run(60)
    world.submit(wrong)
    world.run(60, operator)
    assert world.reason("Ready") == "False/NoRuntime"
    assert world.weights() == {"v1": 100}
    assert silent(world, operator)
    world.submit(spec(make=files))
    world.run(120, operator)
    assert len(world.weights()) == 3


# --- what is remembered and told --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ABTest", "Bandit"])
def test_a_restart_at_any_time_changes_nothing(strategy: str) -> None:
    more = {"promoteWinner": True} if strategy == "ABTest" else {}
    calm, operator = running(strategy, rewards=DEEP_IS_BEST, seconds=5, **more)
    calm.run(600, operator)
    restless, _ = running(strategy, rewards=DEEP_IS_BEST, seconds=5, **more)
    for _ in range(600 // 5):
        restless.run(5)
    assert restless.history == calm.history
    assert restless.counted == calm.counted
    assert experiment(restless) == experiment(calm)


def test_status_and_state_survive_a_round_trip() -> None:
    world, _ = running("Bandit", rewards=DEEP_IS_BEST, seconds=600, guardrails=GUARDS)
    raw = world.deployment["status"]
    status = ModelDeploymentStatus.model_validate(json.loads(json.dumps(raw)))
    assert status.experiment == experiment(world)
    state = State.load(experiment(world).state)
    assert State.load(state.dump()).dump() == state.dump() == experiment(world).state
    assert yaml.safe_load(yaml.safe_dump(raw)) == raw


def test_an_experiment_of_a_later_release_is_begun_anew_and_nothing_else_forgotten() -> None:
    world, operator = running(seconds=300)
    stable = world.status.stable
    world.deployment["status"]["experiment"]["arms"][1]["out"] = "Retired"
    world.run(60, operator)
    assert world.status.stable == stable
    assert reasons(world).count("Promoted") == 1
    assert arms(world)["deep"].out is None
    assert len(world.weights()) == 3


def test_a_bandits_weights_make_no_events() -> None:
    world, _ = running("Bandit", rewards=DEEP_IS_BEST, seconds=1800)
    assert len(world.history) > 5
    assert reasons(world) == ["Promoted", "ExperimentStarted"]


def test_status_of_a_running_experiment_is_written_seldom() -> None:
    world, operator = running(seconds=300)
    writes = world.writes
    world.run(600, operator)
    assert world.writes - writes <= 130, "once a block of evidence at most"


def test_what_tidegate_get_says() -> None:
    world, operator = running(rewards=DEEP_IS_BEST, seconds=45)
    world.errors["v3"] = 0.5
    until(world, operator, lambda: arms(world)["wide"].out)
    lines = list(_experiment(world.deployment["status"]["experiment"]))
    text = "\n".join(lines)
    assert lines[0].split()[0] == "ARM"
    assert [line.split()[0] for line in lines[1:4]] == ["control", "deep", "wide"]
    assert arms(world)["deep"].version in text
    assert f"wide: {arms(world)['wide'].why}" in lines
    assert any(word in lines[3] for word in ("Degraded", "Worse"))
    assert "20 requests/s" in text
    assert list(_experiment(None)) == []
