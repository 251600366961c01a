"""Rollouts that go by evidence, from apply to traffic."""

from __future__ import annotations

from typing import Any

import pytest

from world import World, container


def rolling(**rollout: Any) -> tuple[World, Any]:
    """A world with v1 serving, and v2 on its way."""
    world = World()
    world.submit(container("v1", rollout=rollout))
    operator = world.run(30)
    assert world.weights() == {"v1": 100}
    world.submit(container("v2", rollout=rollout))
    return world, operator


def test_a_healthy_version_rises_and_is_promoted_by_evidence() -> None:
    world, operator = rolling()
    world.run(1800, operator)
    assert world.status.stable.startswith("v2-")
    weights = [split.get("v2", 0) for split in world.history]
    assert weights == sorted(weights), "monotone"
    assert any(0 < weight < 100 for weight in weights)
    assert world.reason("Ready") == "True/Serving"
    assert {"RolloutStarted", "Healthy", "Promoted"} <= {event.reason for event in world.events}


def test_a_degraded_version_is_rolled_back_with_its_numbers() -> None:
    world, operator = rolling()
    world.errors["v2"] = 0.2
    world.run(300, operator)
    assert world.weights() == {"v1": 100}
    assert world.reason("Ready") == "False/Degraded"
    status = world.status
    assert status.verdict == "Degraded"
    assert status.rejected.guardrails[0].verdict == "Degraded"
    assert "responses failed" in status.rejected.message
    assert [event.reason for event in world.events].count("Degraded") >= 1
    served = world.counted[status.rejected.id]
    assert 0 < served.errors < 40
    world.errors.clear()
    world.run(3600, operator, every=60)
    assert world.weights() == {"v1": 100}, "not tried again by itself"


@pytest.mark.parametrize("trouble", ["", "the gateway does not answer"])
def test_without_counts_nothing_is_promoted_and_nothing_rolled_back(trouble: str) -> None:
    """No requests at all, or no way to count them: neither is a verdict."""
    world, operator = rolling()
    world.errors["v2"] = 1.0
    world.rate = 20.0 if trouble else 0.0
    world.source_trouble = trouble
    world.run(3600, operator)
    assert world.status.stable.startswith("v1-")
    assert world.status.rejected is None
    assert world.reason("Progressing") == ("False/NoCounts" if trouble else "True/Judging")
    world.rate, world.source_trouble = 20.0, ""
    world.run(600, operator)
    assert world.reason("Ready") == "False/Degraded", "decided once there is something to go by"


def test_traffic_that_comes_later_decides() -> None:
    world, operator = rolling()
    world.rate = 0.0
    world.run(1800, operator)
    assert world.status.verdict == "Undecided"
    world.rate = 20.0
    world.run(1800, operator)
    assert world.status.stable.startswith("v2-")


@pytest.mark.parametrize(
    ("on_deadline", "reason"), [("Hold", "Unknown/RollingOut"), ("Rollback", "False/DeadlineExceeded")]
)
def test_on_deadline(on_deadline: str, reason: str) -> None:
    world, operator = rolling(deadline="10m", onDeadline=on_deadline)
    world.rate = 0.0
    world.run(500, operator)
    assert world.status.rollout is not None
    world.run(300, operator)
    assert world.reason("Ready") == reason
    if on_deadline == "Hold":
        assert world.reason("Progressing") == "False/DeadlineExceeded"
        world.request("promote #now")
        world.run(200, operator)
        assert world.status.stable.startswith("v2-"), "a person may"
    else:
        assert world.weights() == {"v1": 100}


def test_steps_are_obeyed_and_proof_comes_before_everything() -> None:
    steps = [{"weight": 5, "pause": {"for": "30s"}}, {"weight": 40, "pause": {}}]
    world, operator = rolling(steps=steps)
    world.run(900, operator)
    assert world.reason("Progressing") == "False/AwaitingApproval"
    assert world.weights() == {"v1": 60, "v2": 40}
    world.rate = 0.0
    world.request("approve #1")
    world.run(60, operator)
    assert world.status.rollout.approved == 2


def test_the_operator_may_be_restarted_at_any_time_without_losing_evidence() -> None:
    calm, operator = rolling()
    calm.run(1200, operator)
    restless, _ = rolling()
    for _ in range(1200 // 5):
        restless.run(5)  # a fresh operator each time
    assert restless.history == calm.history
    assert restless.counted == calm.counted


def test_an_idle_deployment_is_not_written_to_and_a_judged_one_seldom() -> None:
    world, operator = rolling()
    world.run(60, operator)
    before = world.deployment["metadata"]["resourceVersion"]
    writes = 0
    for _ in range(12):
        world.step(operator)
        writes += world.deployment["metadata"]["resourceVersion"] != before
        before = world.deployment["metadata"]["resourceVersion"]
    assert writes <= 13
    world.run(1800, operator)
    assert world.status.rollout is None
    changes = world.changes
    world.run(600, operator)
    assert world.changes == changes


def names_and_weights(world: World) -> dict[str, int]:
    """Percent of requests by role, as the status has it."""
    return {version.role: version.weight for version in world.status.versions}


def test_a_baseline_is_what_the_candidate_is_compared_with() -> None:
    world, operator = rolling(baseline=True)
    world.run(60, operator)
    found = names_and_weights(world)
    assert found["Baseline"] == found["Candidate"] > 0
    assert sum(found.values()) == 100
    rollout = world.status.rollout
    counts = {version: world.counted[version].requests for version in (rollout.baseline, rollout.candidate)}
    (told,) = rollout.guardrails
    assert told.stable.count <= counts[rollout.baseline], "the stable version's own requests are not among them"
    assert told.stable.count == told.candidate.count
    copied = world.objects["Configuration", f"churn-{rollout.baseline}"]["spec"]["template"]["spec"]
    stable = world.objects["Configuration", f"churn-{rollout.stable}"]["spec"]["template"]["spec"]
    own = {"name": "TIDEGATE_VERSION", "value": rollout.baseline}
    assert own in copied["containers"][0]["env"]
    for pod in (copied, stable):
        pod["containers"][0]["env"] = [e for e in pod["containers"][0]["env"] if e["name"] != "TIDEGATE_VERSION"]
    assert copied == stable
    world.run(1800, operator)
    assert world.weights() == {"v2": 100}
    assert world.reason("Ready") == "True/Serving"
    assert rollout.baseline not in {
        w["metadata"]["labels"]["tidegate.dev/version"] for w in world.of("Configuration").values()
    }
    assert rollout.baseline not in {m["spec"]["id"] for m in world.of("ModelVersion").values()}
    assert all(split.get("v2", 0) <= 35 or split == {"v2": 100} for split in world.history)


def test_what_ails_old_pods_alone_is_not_held_against_a_candidate_with_a_baseline() -> None:
    """The stable version's old pods answer without a fault, every young pod fails now and then."""
    world, operator = rolling(baseline=True)
    world.run(15, operator)
    baseline = world.status.rollout.baseline
    world.errors["v2"] = world.errors[baseline] = 0.04
    world.run(1800, operator)
    assert world.status.stable.startswith("v2-"), "no worse than a fresh copy of the stable version"
    alone, operator = rolling()
    alone.errors["v2"] = 0.04
    alone.run(1800, operator)
    assert alone.reason("Ready") == "False/Degraded"


def test_a_baseline_may_be_asked_for_and_done_without_under_way() -> None:
    world, operator = rolling()
    world.run(40, operator)
    assert world.status.rollout.guardrails[0].candidate.count
    spec = world.deployment["spec"]
    world.submit({**spec, "rollout": {"baseline": True}})
    world.run(10, operator)
    assert world.status.rollout.baseline
    assert not any(g.candidate.count for g in world.status.rollout.guardrails), "another comparison"
    world.submit({**spec, "rollout": {}})
    world.run(1800, operator)
    assert world.status.stable.startswith("v2-")
    assert {w["metadata"]["labels"]["tidegate.dev/version"][:2] for w in world.of("Configuration").values()} == {
        "v1",
        "v2",
    }
