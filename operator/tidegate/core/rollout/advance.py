"""One pass of a rollout: from where it is, and what is seen, to where it goes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

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


def advance(rollout: RolloutStatus, plan: Sequence[Planned], facts: Facts, now: datetime) -> Next:
    """Moves a rollout on by at most one step. Weights never fall; nothing is promoted that is not warm.

    A step ends when its weight is in force at the gateway, its time has passed since then, and its approval is
    given. The next begins once the candidate has the replicas for it: traffic never arrives before capacity.
    """
    step = min(rollout.step, len(plan))  # the plan may have become shorter under way
    total = len(plan)
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
    if step and rollout.since and not rollout.promote:
        here = plan[step - 1]
        if here.approval and rollout.approved < step:
            return stay("AwaitingApproval", "waiting for approval; `tidegate promote` gives it")
        until = rollout.since + here.wait
        if now < until:
            return stay("Holding", f"holding until {until:%H:%M:%S} UTC", wake_at=until)

    last = step == total or rollout.promote
    needed = facts.needed[total if last else step]
    if facts.ready_replicas < needed:
        return stay("Warming", f"{facts.ready_replicas} of {needed} replicas ready for what comes next", floor=needed)
    if last:
        return Next(rollout, promoted=True, floor=needed)
    weight = max(rollout.weight, plan[step].weight)
    moved = rollout.model_copy(update={"step": step + 1, "weight": weight, "since": None})
    return Next(
        moved, reason="Advancing", message=f"step {step + 1} of {total}: moving to weight {weight}%", floor=needed
    )
