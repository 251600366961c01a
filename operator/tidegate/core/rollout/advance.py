"""One pass of a rollout: from where it is, and what is seen, to where it goes next."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidegate.api.modeldeployment import RolloutStatus
from tidegate.core.rollout.plan import Planned


@dataclass(frozen=True)
class Facts:
    """What a rollout looks at."""

    in_force: bool
    """The gateway does what the rollout asked for last."""
    ready_replicas: int
    """Replicas of the candidate that are ready."""
    needed: Sequence[int]
    """Replicas that the candidate needs before each step of the plan, and before its promotion (the last)."""
    paused: bool = False
    window: timedelta = timedelta(0)
    """The autoscaler's: how long a promoted candidate carries everything before the stable version is let go."""


@dataclass(frozen=True)
class Next:
    """Where the rollout goes."""

    rollout: RolloutStatus
    promoted: bool = False
    """The candidate takes everything and becomes the stable version."""
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
    step = sum(planned.weight <= rollout.weight for planned in plan)
    return rollout.model_copy(update={"plan": mark, "step": step, "approved": 0, "since": None})


def advance(rollout: RolloutStatus, plan: Sequence[Planned], facts: Facts, now: datetime) -> Next:
    """Moves a rollout on by at most one step. Weights never fall; nothing is promoted that is not warm.

    A step ends when its weight is in force at the gateway, its time has passed since then, and its approval is
    given. The next begins once the candidate has the replicas for it: traffic never arrives before capacity.
    """
    total = len(plan)
    step = min(rollout.step, total)
    at = f"step {step} of {total}, weight {rollout.weight}%"
    floor = facts.needed[max(step - 1, 0)]

    def stay(reason: str, message: str, floor: int = floor, wake_at: datetime | None = None) -> Next:
        return Next(rollout, reason=reason, message=f"{at}: {message}", floor=floor, wake_at=wake_at)

    if not facts.in_force:
        return stay("Programming", "waiting for the gateway to take the weights on")
    if step and rollout.since is None:
        rollout = rollout.model_copy(update={"since": now})
    if facts.paused:
        return stay("Paused", "paused by spec.rollout.paused; `tidegate resume` goes on")
    skipping = rollout.promote and step < total
    if step and rollout.since and not skipping:
        here = plan[step - 1]
        if here.approval and rollout.approved < step and not rollout.promote:
            return stay("AwaitingApproval", "waiting for approval; `tidegate promote` gives it")
        until = rollout.since + (min(here.wait, facts.window) if rollout.promote else here.wait)
        if now < until:
            return stay("Holding", f"holding until {until:%Y-%m-%d %H:%M:%S} UTC", wake_at=until)

    last = step == total
    coming = total if rollout.promote else step + 1
    needed = facts.needed[total if last else coming - 1]
    if facts.ready_replicas < needed:
        return stay("Warming", f"{facts.ready_replicas} of {needed} replicas ready for what comes next", floor=needed)
    if last:
        return Next(rollout, promoted=True, floor=needed)
    weight = max(rollout.weight, plan[coming - 1].weight)
    exposed = rollout.exposed or (now if weight else None)
    moved = rollout.model_copy(update={"step": coming, "weight": weight, "since": None, "exposed": exposed})
    return Next(
        moved, reason="Advancing", message=f"step {coming} of {total}: moving to weight {weight}%", floor=needed
    )
