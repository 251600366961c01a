"""Events: what changed between two statuses, said once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tidegate.api.experiment import ExperimentStatus
from tidegate.api.modeldeployment import ModelDeploymentStatus


@dataclass(frozen=True)
class Event:
    """An Event about the ModelDeployment."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def between(old: ModelDeploymentStatus, new: ModelDeploymentStatus) -> Iterator[Event]:
    """The events that tell what happened from the old status to the new one."""
    if new.request and new.request != old.request:
        answered = new.request
        yield Event(
            "Normal" if answered.accepted else "Warning",
            "RequestAccepted" if answered.accepted else "RequestRefused",
            f"{answered.value}: {answered.message}",
        )
    was, now = old.rollout, new.rollout
    if was and was.candidate != new.stable and (now is None or now.candidate != was.candidate):
        rejected = new.rejected
        if rejected and rejected != old.rejected:
            yield Event("Warning", rejected.reason, f"{rejected.id}: {rejected.message}")
        else:
            yield Event(
                "Normal", "Superseded", f"{was.candidate} was given up at weight {was.weight}% for another version"
            )
    if now and (was is None or was.candidate != now.candidate):
        yield Event("Normal", "RolloutStarted", f"from {now.stable} to {now.candidate}")
    if now and was and was.candidate == now.candidate and was.weight != now.weight:
        yield Event("Normal", "WeightChanged", f"{now.candidate} goes from {was.weight}% to {now.weight}%")
    if now and was and was.candidate == now.candidate and now.verdict == "Healthy" != was.verdict:
        yield Event("Normal", "Healthy", f"{now.candidate} is proven healthy at {now.weight}%")
    if now and now.doubt and (was is None or was.doubt != now.doubt):
        yield Event("Warning", "NoCounts", now.doubt)
    yield from _of_experiment(old.experiment, new.experiment)
    if new.stable and new.stable != old.stable:
        yield Event(
            "Normal",
            "Promoted",
            f"{new.stable} is the stable version" + (f", after {old.stable}" if old.stable else ""),
        )
    before, after = old.condition("Ready"), new.condition("Ready")
    if after and after.status == "False" and (before is None or before.reason != after.reason):
        yield Event("Warning", after.reason, after.message)


def _of_experiment(was: ExperimentStatus | None, now: ExperimentStatus | None) -> Iterator[Event]:
    """What happened to the versions of an experiment. A bandit's weights move all the time: that is no news."""
    if now is None:
        return
    same = was if was and was.id == now.id else None
    if now.began and not (same and same.began):
        split = ", ".join(f"{arm.name} ({arm.version}) {arm.weight}%" for arm in now.arms)
        yield Event("Normal", "ExperimentStarted", split)
    before = {arm.name: arm for arm in same.arms} if same else {}
    for arm in now.arms:
        if arm.out and not (arm.name in before and before[arm.name].out):
            calm = arm.out in ("Worse", "Aborted")
            yield Event(
                "Normal" if calm else "Warning", f"Challenger{arm.out}", f"{arm.name} ({arm.version}): {arm.why}"
            )
    if now.winner and not (same and same.winner == now.winner):
        yield Event("Normal", "WinnerFound", f"{now.winner} is left: the others are proven worse, or out")
    if now.doubt and not (same and same.doubt == now.doubt):
        yield Event("Warning", "NoCounts", now.doubt)
