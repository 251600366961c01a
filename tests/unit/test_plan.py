"""From spec.rollout to the steps that a candidate goes through."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api.rollout import RolloutSpec
from tidegate.core.rollout.plan import Planned, plan

WINDOW = "90s"
CARRY = (100, 90, False)
"""The last step: everything for one window of the autoscaler."""

Steps = list[tuple[int, float, bool]]
"""Weight, seconds, approval."""


def planned(rollout: dict[str, Any], *, known: bool = False) -> Steps:
    steps = plan(RolloutSpec.model_validate(rollout), WINDOW, known=known)
    return [(step.weight, step.wait.total_seconds(), step.approval) for step in steps]


def step(weight: int | None = None, wait: str | None = None, *, approval: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {} if weight is None else {"weight": weight}
    return out | ({"pause": {}} if approval else {"pause": {"for": wait}} if wait else {})


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        # no steps given
        ({}, [(35, 0, False), CARRY]),
        ({"strategy": "Progressive", "pace": "Steady"}, [(50, 0, False), CARRY]),
        ({"strategy": "BlueGreen"}, [(100, 300, False)]),
        ({"strategy": "Immediate"}, [CARRY]),
        # Progressive with steps
        ({"steps": [step(20, "30s"), step(60, "1h30m")]}, [(20, 30, False), (60, 5400, False), CARRY]),
        ({"steps": [step(20)]}, [(20, 0, False), CARRY]),
        ({"steps": [step(20, approval=True)]}, [(20, 0, True), CARRY]),
        ({"steps": [step(5), step(None, "10m"), step(50)]}, [(5, 0, False), (5, 600, False), (50, 0, False), CARRY]),
        ({"steps": [step(None, approval=True), step(50)]}, [(0, 0, True), (50, 0, False), CARRY]),
        ({"steps": [step()]}, [(0, 0, False), CARRY]),
        ({"steps": [step(0, "1m")]}, [(0, 60, False), CARRY]),
        # steps that go to 100 themselves say how it ends
        ({"steps": [step(50), step(100, "10m")]}, [(50, 0, False), (100, 600, False)]),
        ({"steps": [step(100)]}, [(100, 0, False)]),
        ({"steps": [step(100), step(None, approval=True)]}, [(100, 0, False), (100, 0, True)]),
        # BlueGreen with steps
        ({"strategy": "BlueGreen", "steps": [step(0, approval=True)]}, [(0, 0, True), CARRY]),
        ({"strategy": "BlueGreen", "steps": [step(100, "1h")]}, [(100, 3600, False)]),
        (
            {"strategy": "BlueGreen", "steps": [step(0, "5m"), step(100, approval=True)]},
            [(0, 300, False), (100, 0, True)],
        ),
        # Immediate has no steps; the CRD refuses them, and an object stored before that is read without them
        ({"strategy": "Immediate", "steps": [step(50)]}, [CARRY]),
    ],
)
def test_steps_of_each_strategy(rollout: dict[str, Any], expected: Steps) -> None:
    assert planned(rollout) == expected


@pytest.mark.parametrize("strategy", ["Progressive", "BlueGreen", "Immediate"])
def test_a_version_that_was_stable_before_takes_over_at_once(strategy: str) -> None:
    assert planned({"strategy": strategy}, known=True) == [CARRY]
    if strategy != "Immediate":
        assert planned({"strategy": strategy, "steps": [step(0, approval=True)]}, known=True) == [CARRY]


def compared(rollout: dict[str, Any]) -> list[int]:
    """Steps, from 1, that end only with proof."""
    steps = plan(RolloutSpec.model_validate(rollout), WINDOW, known=False)
    return [index for index, planned in enumerate(steps, start=1) if planned.proof]


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({}, [1]),
        ({"guardrails": []}, [1]),
        ({"steps": [step(5), step(50)]}, [2]),
        ({"steps": [step(5), step(50), step(None, approval=True)]}, [3]),
        ({"steps": [step(5), step(100, "1h"), step(None, approval=True)]}, [1]),
        ({"steps": [step(0, "1m"), step(100)]}, []),
        ({"steps": [step(5), step(50)], "guardrails": []}, []),
        ({"strategy": "BlueGreen"}, []),
        ({"strategy": "Immediate"}, []),
    ],
)
def test_the_last_step_with_both_versions_asks_for_proof(rollout: dict[str, Any], expected: list[int]) -> None:
    assert compared(rollout) == expected


def test_without_steps_the_weight_rises_with_the_evidence() -> None:
    ramping = [planned.ramp for planned in plan(RolloutSpec(), WINDOW, known=False)]
    assert ramping == [True, False]


weights = st.lists(st.none() | st.integers(0, 100), max_size=32).map(
    lambda raw: [None if w is None else max(v for v in raw[: i + 1] if v is not None) for i, w in enumerate(raw)]
)


@given(weights, st.booleans(), st.sampled_from(["6s", "60s", "1h"]))
def test_every_plan_ends_at_a_hundred_and_never_falls(given_: list[int | None], known: bool, window: str) -> None:
    rollout = RolloutSpec.model_validate({"steps": [step(weight) for weight in given_]})
    steps = plan(rollout, window, known=known)
    assert steps[-1].weight == 100
    assert all(earlier.weight <= later.weight for earlier, later in pairwise(steps))


def test_a_step_waits_for_a_time_or_for_approval_never_for_both() -> None:
    assert Planned(10) == Planned(10, timedelta(0), approval=False)
    for steps in (planned({"steps": [step(10, "1m")]}), planned({"steps": [step(10, approval=True)]})):
        assert not any(seconds and approval for _, seconds, approval in steps)
