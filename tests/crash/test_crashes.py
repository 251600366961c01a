"""The operator is stopped right after each single write of a history, and started again: the end is the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from world import Crash, World, container, files

STEPS = {"guardrails": [], "steps": [{"weight": 20, "pause": {"for": "10s"}}, {"weight": 60, "pause": {}}]}

WIDE = {"guardrails": [{"name": "errors", "errors": {"maxIncrease": "5%"}}]}

Scene = tuple[Callable[[World], None], int]
"""Something that happens, and the seconds that are left to react to it."""


def fails_at_weight(world: World) -> None:
    world.failing.add("v2")


def fails_now_and_then(world: World) -> None:
    world.errors["v2"] = 0.3


def three(strategy: str, **rollout: Any) -> dict[str, Any]:
    """A version and two challengers, of which one is by far the best."""
    challengers = [{"name": name, "model": container(v)["model"]} for name, v in (("deep", "v2"), ("wide", "v3"))]
    return container("v1", challengers=challengers, rollout={"strategy": strategy, **rollout})


def likes_the_second(world: World) -> None:
    world.rewards = {"v1": 0.5, "v2": 0.9, "v3": 0.1}


SCENARIOS: dict[str, list[Scene]] = {
    "first version": [(lambda w: w.submit(container("v1")), 60)],
    "first version on KServe": [(lambda w: w.submit(files("v1")), 60)],
    "approved rollout": [
        (lambda w: w.submit(container("v1", rollout=STEPS)), 30),
        (lambda w: w.submit(container("v2", rollout=STEPS)), 120),
        (lambda w: w.request("approve #1"), 200),
    ],
    "failing candidate": [
        (lambda w: w.submit(container("v1", rollout=STEPS)), 30),
        (lambda w: w.submit(container("v2", rollout=STEPS)), 120),
        (fails_at_weight, 60),
    ],
    "degraded candidate": [
        (lambda w: w.submit(container("v1")), 30),
        (fails_now_and_then, 0),
        (lambda w: w.submit(container("v2")), 200),
    ],
    "proven candidate": [
        (lambda w: w.submit(container("v1", rollout=WIDE)), 30),
        (lambda w: w.submit(container("v2", rollout=WIDE)), 500),
    ],
    "superseded candidate": [
        (lambda w: w.submit(container("v1", rollout=STEPS)), 30),
        (lambda w: w.submit(container("v2", rollout=STEPS)), 120),
        (lambda w: w.submit(container("v3", rollout={"strategy": "Immediate"})), 200),
    ],
    "abort": [
        (lambda w: w.submit(container("v1", rollout=STEPS)), 30),
        (lambda w: w.submit(container("v2", rollout=STEPS)), 120),
        (lambda w: w.request("abort #1"), 60),
    ],
    "undo": [
        (lambda w: w.submit(container("v1", rollout={"strategy": "Immediate"})), 30),
        (lambda w: w.submit(container("v2", rollout={"strategy": "Immediate"})), 150),
        (lambda w: w.request("undo #1"), 150),
    ],
    "three-arm test": [
        (likes_the_second, 0),
        (lambda w: w.submit(three("ABTest", promoteWinner=True)), 400),
        (lambda w: w.submit(container("v2")), 40),
    ],
    "bandit": [
        (likes_the_second, 0),
        (lambda w: w.submit(three("Bandit", bandit={"maxChange": 30})), 200),
        (lambda w: w.submit(container("v1")), 40),
    ],
    "degraded challenger": [
        (lambda w: w.submit(three("ABTest")), 60),
        (fails_now_and_then, 120),
        (lambda w: w.request("abort wide #1"), 60),
    ],
    "kept versions beyond their number": [
        (lambda w: w.submit(container("v1", rollout={"strategy": "Immediate", "keepVersions": 0})), 30),
        (lambda w: w.submit(container("v2", rollout={"strategy": "Immediate", "keepVersions": 0})), 200),
    ],
}


def play(scenes: list[Scene], crash_after: int | None = None) -> tuple[World, bool]:
    """The world at the end, and whether the operator was stopped on the way."""
    world = World(crash_after=crash_after)
    operator = world.operator()
    crashed = False
    for act, seconds in scenes:
        act(world)
        for _ in range(seconds // 10):
            try:
                world.step(operator, 10)
            except Crash:
                crashed = True
                operator = world.operator()
    world.react()
    return world, crashed


def outcome(world: World) -> dict:
    """Everything that is left at the end, without identities and times."""
    status = world.status
    return {
        "weights": world.weights(),
        "history": [weights for weights, _ in groupby(world.history)],
        "pods": world.pods(),
        "stable": status.stable,
        "kept": status.kept,
        "candidate": status.candidate,
        "rejected": status.rejected and (status.rejected.id, status.rejected.reason),
        "pinned": status.pinned,
        "step": status.rollout and (status.rollout.step, status.rollout.weight, status.rollout.approved),
        "experiment": status.experiment
        and [(arm.name, arm.version, arm.weight, arm.out) for arm in status.experiment.arms],
        "request": status.request and (status.request.value, status.request.accepted),
        "conditions": [(c.type, c.status, c.reason) for c in status.conditions],
        "children": {
            (kind, name): obj["spec"]
            for (kind, name), obj in world.objects.items()
            if kind in ("Configuration", "InferenceService", "Route", "ModelVersion")
        },
        "roles": {name: record["status"]["role"] for name, record in world.of("ModelVersion").items()},
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_crash_after_any_write_ends_the_same(scenario: str) -> None:
    scenes = SCENARIOS[scenario]
    whole, _ = play(scenes)
    assert whole.writes > 3
    expected = outcome(whole)
    for write in range(1, whole.writes + 1):
        world, crashed = play(scenes, write)
        assert crashed, write
        assert outcome(world) == expected, f"crashed after write {write}"


def test_crash_loses_no_write_and_repeats_no_change() -> None:
    """What changes objects is the same with and without a crash: nothing is done twice."""
    scenes = SCENARIOS["approved rollout"]
    whole, _ = play(scenes)
    for write in range(1, whole.writes + 1):
        world, _ = play(scenes, write)
        changes = {name: obj["metadata"]["generation"] for (_, name), obj in world.objects.items()}
        assert changes == {name: obj["metadata"]["generation"] for (_, name), obj in whole.objects.items()}, write
