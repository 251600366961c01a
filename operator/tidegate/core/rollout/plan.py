"""From `spec.rollout` to the steps of a rollout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from tidegate.api.base import seconds
from tidegate.api.rollout import Pause, RolloutSpec, Step
from tidegate.core.rollout.weights import RAMPS

_BLUE_GREEN = [Step(weight=100, pause=Pause(for_="5m"))]


@dataclass(frozen=True)
class Planned:
    """One step: a weight, and what ends it once the weight is in force."""

    weight: int
    wait: timedelta = timedelta(0)
    """How long it lasts at least."""
    approval: bool = False
    """Whether somebody has to approve before it ends."""
    proof: bool = False
    """Whether it ends only when the candidate is proven healthy."""
    ramp: bool = False
    """Whether the weight rises to that of the step with the evidence."""


def judged(rollout: RolloutSpec) -> bool:
    """Whether a candidate has to prove itself: where neither guardrails nor steps are given, by the usual ones."""
    return rollout.strategy not in ("BlueGreen", "Immediate") and (rollout.guardrails != [] or not rollout.steps)


def asks_for_proof(plan: Iterable[Planned]) -> bool:
    """Whether any of the steps ends only when the candidate is proven healthy."""
    return any(step.proof for step in plan)


def plan(rollout: RolloutSpec, window: str, *, known: bool) -> tuple[Planned, ...]:
    """Steps that a candidate goes through before it is promoted. The last has weight 100.

    `known` is for a version that was stable before (an undo, a revert of the spec): it has been through this and
    takes over at once. `window` is the autoscaler's: unless the steps say otherwise, the candidate carries all
    requests for that long while the stable version is still warm, so that going back is instant and the autoscaler
    has seen the whole load before it alone decides on replicas.
    """
    carry = Planned(100, timedelta(seconds=seconds(window)))
    if known or rollout.strategy == "Immediate":
        return (carry,)
    given = rollout.steps or (_BLUE_GREEN if rollout.strategy == "BlueGreen" else [])
    if not given:
        return (Planned(RAMPS[rollout.pace].last, proof=True, ramp=True), carry)
    steps: list[Planned] = []
    weight = 0
    for step in given:
        weight = weight if step.weight is None else step.weight
        wait = timedelta(seconds=seconds(step.pause.for_)) if step.pause and step.pause.for_ else timedelta(0)
        steps.append(Planned(weight, wait, approval=step.pause is not None and step.pause.for_ is None))
    if weight != 100:
        steps.append(carry)
    compared = [index for index, planned in enumerate(steps) if 0 < planned.weight < 100]
    if judged(rollout) and compared:  # the last step that has both versions side by side has to prove it
        last = steps[compared[-1]]
        steps[compared[-1]] = Planned(last.weight, last.wait, last.approval, proof=True)
    return tuple(steps)
