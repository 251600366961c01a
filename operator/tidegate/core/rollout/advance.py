"""One pass of a rollout: from where it is, and what is seen, to where it goes next."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidegate.api.rollout import RolloutStatus
from tidegate.core.rollout.plan import Planned


@dataclass(frozen=True)
class Evidence:
    """What is known of the candidate, as far as it matters to its weight."""

    healthy: bool = False
    """Proven to be as good as allowed, at the present weight."""
    weight: int = 0
    """Percent that the evidence allows it."""
    doubt: str = ""
    """Why the counts cannot be relied on; then the weight stays."""
    counting: bool = False
    """Nothing has been counted yet, since counting has only just begun."""
    short: str = ""
    """Why not even one percent can be risked; empty if it can."""
    says: str = ""
    """All that, in words."""
    deadline: timedelta = timedelta(hours=6)
    """How long it may take to prove itself."""


@dataclass(frozen=True)
class Facts:
    """What a rollout looks at."""

    in_force: bool
    """The gateway does what the rollout asked for last."""
    ready: Callable[[int], int]
    """Replicas that are ready of each version that is new to so many percent: the candidate, and perhaps a baseline."""
    replicas: Callable[[int], int]
    """Replicas that the candidate needs before it gets so many percent."""
    paused: bool = False
    window: timedelta = timedelta(0)
    """The autoscaler's: how long a promoted candidate carries everything before the stable version is let go."""
    evidence: Evidence | None = None
    """None if the candidate is not judged."""


@dataclass(frozen=True)
class Next:
    """Where the rollout goes."""

    rollout: RolloutStatus
    promoted: bool = False
    """The candidate takes everything and becomes the stable version."""
    late: bool = False
    """It has not proven itself in time."""
    reason: str = ""
    message: str = ""
    """What it waits for."""
    floor: int = 0
    """Replicas that the candidate should keep until the next pass."""
    wake_at: datetime | None = None
    """When to look again, if nothing happens before."""


def replan(rollout: RolloutStatus, plan: Sequence[Planned]) -> RolloutStatus:
    """The rollout, brought in line with a plan that changed under way.

    It stands at the last step whose weight it has reached, and waits there anew: what was approved was another plan.
    """
    mark = hashlib.sha256(repr(tuple(plan)).encode()).hexdigest()[:8]
    if rollout.plan == mark:
        return rollout
    if not rollout.plan or not rollout.step:
        return rollout.model_copy(update={"plan": mark})
    reached = sum(planned.weight <= rollout.weight for planned in plan)
    # a step that ramps is being gone through at any weight up to its own
    step = reached + 1 if reached < len(plan) and plan[reached].ramp else reached
    return rollout.model_copy(update={"plan": mark, "step": step, "approved": 0, "since": None, "waiting": None})


def advance(rollout: RolloutStatus, plan: Sequence[Planned], facts: Facts, now: datetime) -> Next:
    """Moves a rollout on by at most one weight. Weights never fall; nothing is promoted that is not warm.

    A step ends when its weight is in force at the gateway, its time has passed since then, its approval is given and,
    where it asks for proof, the candidate is proven healthy. The next begins once the candidate has the replicas for
    it: traffic never arrives before capacity.
    """
    total, step, evidence = len(plan), min(rollout.step, len(plan)), facts.evidence
    at = f"step {step} of {total}, weight {rollout.weight}%"

    kept = facts.replicas(rollout.weight if step or plan[0].ramp else plan[0].weight)

    def stay(reason: str, message: str, floor: int = kept, wake_at: datetime | None = None) -> Next:
        return Next(rollout, reason=reason, message=f"{at}: {message}", floor=floor, wake_at=wake_at)

    if not facts.in_force:
        return stay("Programming", "waiting for the gateway to take the weights on")
    if step and rollout.since is None:
        waiting = rollout.waiting or (now if plan[step - 1].proof else None)
        rollout = rollout.model_copy(update={"since": now, "waiting": waiting})
    if facts.paused:
        return stay("Paused", "paused by spec.rollout.paused; `tidegate resume` goes on")

    here = plan[step - 1] if step else None
    coming, weight = step + 1, plan[step].weight if step < total else 100
    if rollout.promote and step < total:
        coming, weight = total, 100
    elif here and rollout.since:
        if here.approval and rollout.approved < step and not rollout.promote:
            return stay("AwaitingApproval", "waiting for approval; `tidegate promote` gives it")
        until = rollout.since + (min(here.wait, facts.window) if rollout.promote else here.wait)
        if now < until:
            return stay("Holding", f"holding until {until:%Y-%m-%d %H:%M:%S} UTC", wake_at=until)
        if here.proof and evidence and not (evidence.healthy and rollout.weight >= here.weight):
            if here.ramp and not evidence.doubt and min(evidence.weight, here.weight) > rollout.weight:
                coming, weight = step, min(evidence.weight, here.weight)
            else:
                return _unproven(rollout, evidence, stay, now)
    elif evidence:
        if evidence.doubt:
            return stay("NoCounts", evidence.doubt)
        if evidence.counting:
            return stay("Counting", "counting the stable version's requests first")
        if plan[0].ramp:
            if evidence.short:
                return stay("BudgetTooSmall", evidence.short)
            weight = min(evidence.weight, weight)

    needed = facts.replicas(weight)
    if (ready := facts.ready(weight)) < needed:
        return stay("Warming", f"{ready} of {needed} replicas ready for what comes next", floor=needed)
    if coming > total:
        return Next(rollout, promoted=True, floor=needed)
    weight = max(rollout.weight, weight)
    exposed = rollout.exposed or (now if weight else None)
    waiting = rollout.waiting if coming == step else None
    moved = rollout.model_copy(
        update={"step": coming, "weight": weight, "since": None, "exposed": exposed, "waiting": waiting}
    )
    return Next(
        moved, reason="Advancing", message=f"step {coming} of {total}: moving to weight {weight}%", floor=needed
    )


def _unproven(rollout: RolloutStatus, evidence: Evidence, stay: Callable[..., Next], now: datetime) -> Next:
    """Waits for evidence, or for a person once that took too long."""
    end = (rollout.waiting or now) + evidence.deadline
    if now >= end:
        told = f"not proven by {end:%Y-%m-%d %H:%M:%S} UTC: {evidence.says}; `tidegate promote --full` or `abort`"
        held = stay("DeadlineExceeded", told)
        return Next(held.rollout, late=True, reason=held.reason, message=held.message, floor=held.floor)
    if evidence.doubt:
        return stay("NoCounts", evidence.doubt, wake_at=end)
    return stay("Judging", evidence.says, wake_at=end)
