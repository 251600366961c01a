"""One pass of a rollout, as a table: where it is and what is seen → where it goes. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api.rollout import RolloutStatus
from tidegate.core.rollout.advance import Evidence, Facts, Next, advance
from tidegate.core.rollout.plan import Planned

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WINDOW = timedelta(seconds=20)
MINUTE = timedelta(minutes=1)
PLAN = (Planned(10, MINUTE), Planned(50, approval=True), Planned(100, MINUTE))


def needed(weight: int) -> int:
    """Replicas by weight."""
    return 1 if weight <= 10 else 3 if weight <= 50 else 6


def at(step: int, *, since: datetime | None = None, **more: Any) -> RolloutStatus:
    weight = 0 if step == 0 else PLAN[min(step, len(PLAN)) - 1].weight
    return RolloutStatus(candidate="v2-b", stable="v1-a", step=step, weight=weight, since=since, **more)


def facts(replicas: int = 9, *, in_force: bool = True, paused: bool = False) -> Facts:
    return Facts(in_force=in_force, ready=lambda weight: replicas, replicas=needed, paused=paused, window=WINDOW)


@dataclass(frozen=True)
class Case:
    """Where a rollout is, and where it must be after one pass at noon."""

    name: str
    rollout: RolloutStatus
    facts: Facts = field(default_factory=facts)
    reason: str = ""
    to: int | None = None
    """The step it is at afterwards; as before if None."""
    floor: int = 0
    promoted: bool = False
    wake_in: timedelta | None = None


CASES = [
    # warming up
    Case("begins once it is warm", at(0), reason="Advancing", to=1, floor=1),
    Case("waits for its first replica", at(0), facts(0), reason="Warming", floor=1),
    Case("waits for the Route before it begins", at(0), facts(in_force=False), reason="Programming", floor=1),
    Case("does not begin while paused", at(0), facts(paused=True), reason="Paused", floor=1),
    # a step with a time
    Case("waits for the weights", at(1), facts(in_force=False), reason="Programming", floor=1),
    Case("its time begins when the weight is in force", at(1), reason="Holding", floor=1, wake_in=MINUTE),
    Case(
        "holds to its end",
        at(1, since=NOON - MINUTE + timedelta(seconds=1)),
        reason="Holding",
        floor=1,
        wake_in=timedelta(seconds=1),
    ),
    Case("goes on at its end", at(1, since=NOON - MINUTE), reason="Advancing", to=2, floor=3),
    Case("and not before it has the replicas", at(1, since=NOON - MINUTE), facts(2), reason="Warming", floor=3),
    Case("pauses after its end", at(1, since=NOON - MINUTE), facts(paused=True), reason="Paused", floor=1),
    # a step with approval
    Case("waits for approval", at(2, since=NOON - MINUTE), reason="AwaitingApproval", floor=3),
    Case("an earlier approval is no approval", at(2, since=NOON, approved=1), reason="AwaitingApproval", floor=3),
    Case("goes on once approved", at(2, since=NOON, approved=2), reason="Advancing", to=3, floor=6),
    Case("pause beats approval", at(2, since=NOON, approved=2), facts(paused=True), reason="Paused", floor=3),
    # the last step
    Case("holds at a hundred", at(3, since=NOON), reason="Holding", floor=6, wake_in=MINUTE),
    Case("is promoted after it", at(3, since=NOON - MINUTE), floor=6, promoted=True),
    Case("is promoted warm only", at(3, since=NOON - MINUTE), facts(5), reason="Warming", floor=6),
    # told to promote
    Case("promote goes to the last step", at(1, since=NOON, promote=True), reason="Advancing", to=3, floor=6),
    Case("promote skips approval", at(2, since=NOON, promote=True), reason="Advancing", to=3, floor=6),
    Case("promote from the beginning", at(0, promote=True), reason="Advancing", to=3, floor=6),
    Case(
        "promote carries all for a window", at(3, since=NOON, promote=True), reason="Holding", floor=6, wake_in=WINDOW
    ),
    Case("promote is done after it", at(3, since=NOON - WINDOW, promote=True), floor=6, promoted=True),
    Case("promote waits for replicas", at(1, since=NOON, promote=True), facts(5), reason="Warming", floor=6),
    Case("promote waits for the Route", at(1, promote=True), facts(in_force=False), reason="Programming", floor=1),
    Case("promote waits while paused", at(1, since=NOON, promote=True), facts(paused=True), reason="Paused", floor=1),
    # the plan has become shorter
    Case("beyond the plan is at its end", at(7, since=NOON - MINUTE), floor=6, promoted=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_pass(case: Case) -> None:
    found = advance(case.rollout, PLAN, case.facts, NOON)
    assert found.reason == case.reason
    assert found.floor == case.floor
    assert found.promoted is case.promoted
    assert found.wake_at == (NOON + case.wake_in if case.wake_in is not None else None)
    step = case.rollout.step if case.to is None else case.to
    assert found.rollout.step == step
    if case.to is not None:
        assert found.rollout.weight == PLAN[step - 1].weight
        assert found.rollout.since is None, "the time of the new step has not begun"
    else:
        assert found.rollout.weight == case.rollout.weight


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_paused_holds_at_every_step(step: int) -> None:
    found = advance(at(step, since=NOON - timedelta(hours=1), approved=3), PLAN, facts(paused=True), NOON)
    assert (found.reason, found.promoted, found.rollout.step) == ("Paused", False, step)
    assert "tidegate resume" in found.message


def test_what_it_waits_for_is_said_with_where_it_is() -> None:
    told = advance(at(2, since=NOON), PLAN, facts(), NOON).message
    assert told == "step 2 of 3, weight 50%: waiting for approval; `tidegate promote` gives it"
    told = advance(at(1, since=NOON), PLAN, facts(), NOON).message
    assert told == "step 1 of 3, weight 10%: holding until 2026-01-01 12:01:00 UTC"
    told = advance(at(1, since=NOON - MINUTE), PLAN, facts(2), NOON).message
    assert told == "step 1 of 3, weight 10%: 2 of 3 replicas ready for what comes next"


def test_the_time_in_force_is_remembered_through_every_wait() -> None:
    for seen in (facts(paused=True), facts(0), facts()):
        assert advance(at(1), PLAN, seen, NOON).rollout.since == NOON
    earlier = NOON - timedelta(seconds=5)
    assert advance(at(1, since=earlier), PLAN, facts(), NOON).rollout.since == earlier
    assert advance(at(0), PLAN, facts(0), NOON).rollout.since is None, "there is no weight to be in force yet"


def test_a_weight_never_falls_though_the_plan_does() -> None:
    """The steps may be edited under way; what the candidate has it keeps."""
    rollout = at(1, since=NOON - MINUTE).model_copy(update={"weight": 40})
    found = advance(rollout, (Planned(40), Planned(20), Planned(100)), facts(), NOON)
    assert (found.rollout.step, found.rollout.weight) == (2, 40)


def test_a_clock_that_goes_back_only_holds_longer() -> None:
    found = advance(at(1, since=NOON + timedelta(hours=1)), PLAN, facts(), NOON)
    assert (found.reason, found.promoted) == ("Holding", False)


plans = st.lists(
    st.builds(
        Planned,
        weight=st.integers(0, 100),
        wait=st.integers(0, 300).map(lambda n: timedelta(seconds=n)),
        approval=st.booleans(),
    ),
    min_size=1,
    max_size=5,
).map(lambda steps: (*sorted(steps, key=lambda step: step.weight), Planned(100)))


@given(
    plan=plans,
    step=st.integers(0, 6),
    replicas=st.integers(0, 4),
    in_force=st.booleans(),
    paused=st.booleans(),
    promote=st.booleans(),
    approved=st.integers(0, 6),
    held=st.none() | st.integers(0, 600),
)
def test_any_pass_moves_by_one_step_at_most_and_never_past_what_is_missing(
    plan: tuple[Planned, ...],
    step: int,
    replicas: int,
    in_force: bool,
    paused: bool,
    promote: bool,
    approved: int,
    held: int | None,
) -> None:
    weight = plan[min(step, len(plan)) - 1].weight if step else 0
    since = None if held is None or not step else NOON - timedelta(seconds=held)
    before = RolloutStatus(
        candidate="v2-b", stable="v1-a", step=step, weight=weight, since=since, promote=promote, approved=approved
    )
    seen = Facts(in_force=in_force, ready=lambda weight: replicas, replicas=lambda weight: 2, paused=paused)
    found: Next = advance(before, plan, seen, NOON)
    moved = found.promoted or found.rollout.step != before.step
    if moved:
        assert in_force
        assert not paused
        assert replicas >= 2
    assert found.rollout.step in (before.step, len(plan) if promote else before.step + 1)
    assert found.rollout.weight >= before.weight
    assert found.promoted or found.reason
    assert not moved or found.wake_at is None
    assert found.wake_at is None or found.wake_at > NOON


# --- with evidence ---

RAMP = (Planned(35, proof=True, ramp=True), Planned(100, MINUTE))
PROVEN = (Planned(20, MINUTE), Planned(50, proof=True), Planned(100, MINUTE))
HOUR = timedelta(hours=1)


def judged(evidence: Evidence, *, replicas: int = 9, paused: bool = False) -> Facts:
    return Facts(
        in_force=True, ready=lambda weight: replicas, replicas=lambda weight: 1, paused=paused, evidence=evidence
    )


def ramping(weight: int, **more: Any) -> RolloutStatus:
    since = NOON - MINUTE if weight else None
    return RolloutStatus(
        candidate="v2-b", stable="v1-a", step=int(weight > 0), weight=weight, since=since, waiting=since, **more
    )


@pytest.mark.parametrize(
    ("weight", "evidence", "reason", "to"),
    [
        (0, Evidence(weight=7), "Advancing", 7),
        (0, Evidence(weight=0, short="too much"), "BudgetTooSmall", 0),
        (0, Evidence(weight=7, doubt="no counts"), "NoCounts", 0),
        (0, Evidence(counting=True), "Counting", 0),
        (7, Evidence(counting=True), "Judging", 7),
        (7, Evidence(weight=7), "Judging", 7),
        (7, Evidence(weight=35), "Advancing", 35),
        (7, Evidence(weight=90), "Advancing", 35),
        (7, Evidence(weight=3), "Judging", 7),
        (7, Evidence(weight=35, doubt="no counts"), "NoCounts", 7),
        (7, Evidence(weight=7, healthy=True), "Judging", 7),
        (35, Evidence(weight=35), "Judging", 35),
        (35, Evidence(weight=35, healthy=True), "Advancing", 100),
    ],
)
def test_the_weight_follows_the_evidence(weight: int, evidence: Evidence, reason: str, to: int) -> None:
    found = advance(ramping(weight), RAMP, judged(evidence), NOON)
    assert (found.reason, found.rollout.weight, found.promoted) == (reason, to, False)


def test_steps_are_obeyed_and_the_last_asks_for_proof() -> None:
    undecided = judged(Evidence(weight=50))
    first = RolloutStatus(candidate="v2-b", stable="v1-a", step=1, weight=20, since=NOON - MINUTE)
    assert advance(first, PROVEN, undecided, NOON).rollout.weight == 50
    second = first.model_copy(update={"step": 2, "weight": 50})
    waiting = advance(second, PROVEN, undecided, NOON)
    assert (waiting.reason, waiting.rollout.weight) == ("Judging", 50)
    assert advance(second, PROVEN, judged(Evidence(healthy=True)), NOON).rollout.weight == 100


@pytest.mark.parametrize("evidence", [Evidence(weight=35), Evidence(weight=35, doubt="no counts")])
def test_time_alone_promotes_nothing(evidence: Evidence) -> None:
    found = advance(ramping(35), RAMP, judged(evidence), NOON + HOUR * 24 * 365)
    assert (found.late, found.promoted, found.rollout.weight) == (True, False, 35)
    assert found.reason == "DeadlineExceeded"
    assert "promote --full" in found.message
    soon = advance(ramping(35), RAMP, judged(evidence), NOON)
    assert not soon.late
    assert soon.wake_at == NOON - MINUTE + evidence.deadline


def test_a_person_may_promote_without_proof() -> None:
    found = advance(ramping(7, promote=True), RAMP, judged(Evidence(weight=7, doubt="no counts")), NOON)
    assert found.rollout.weight == 100


def test_the_wait_for_evidence_begins_once_and_ends_with_the_step() -> None:
    fresh = RolloutStatus(candidate="v2-b", stable="v1-a", step=1, weight=7)
    first = advance(fresh, RAMP, judged(Evidence(weight=7)), NOON).rollout
    assert first.waiting == NOON
    higher = advance(first, RAMP, judged(Evidence(weight=20)), NOON + MINUTE).rollout
    assert (higher.weight, higher.waiting, higher.since) == (20, NOON, None)
    done = advance(
        higher.model_copy(update={"weight": 35}), RAMP, judged(Evidence(weight=35, healthy=True)), NOON + 2 * MINUTE
    ).rollout
    assert (done.weight, done.waiting) == (100, None)
