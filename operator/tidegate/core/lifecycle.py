"""Which version has the traffic, which is on its way to it, which are kept: one transition a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tidegate.api.base import seconds
from tidegate.api.experiment import ExperimentStatus
from tidegate.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus, Pinned, Rejected
from tidegate.api.rollout import RolloutStatus
from tidegate.core import experiment, route, versions
from tidegate.core.experiment import Stand
from tidegate.core.observed import Object, Target
from tidegate.core.rollout import findings
from tidegate.core.rollout.advance import Facts, Next, advance, replan
from tidegate.core.rollout.counts import Sample
from tidegate.core.rollout.guardrails import degraded
from tidegate.core.rollout.plan import Planned, asks_for_proof
from tidegate.core.scaling import replicas_for
from tidegate.core.views import STABLE_DOWN, View


@dataclass(frozen=True)
class Seen:
    """What a pass over a judged rollout went by."""

    before: RolloutStatus
    """As the pass found it."""
    after: RolloutStatus
    """With what the sample adds."""
    sample: Sample | None
    """None if it adds nothing."""
    in_force: bool
    """The gateway splits the requests as was asked."""
    cold: bool
    """A version had no replica ready."""
    replicas: Mapping[str, int]
    """Those that are ready of the candidate and, if there is one, the baseline; and how many of the stable version the
    candidate has its share of."""
    next: Next | None = None
    """What was decided; None if it was Degraded."""


@dataclass(frozen=True)
class Turn:
    """What one pass makes of the lifecycle."""

    status: ModelDeploymentStatus
    """With stable, kept, rollout, rejected and pinned as they are to be from now on."""
    next: Next | None = None
    """What the rollout waits for, while one is on."""
    goal: str | None = None
    """Version that should have the traffic in the end."""
    stand: Stand | None = None
    """Where the experiment stands, while one is on."""
    seen: Seen | None = None
    """What it was decided by, where the evidence has a part in it."""

    @property
    def experiment(self) -> ExperimentStatus | None:
        """The experiment that is on; none where the status only remembers how one ended."""
        return self.status.experiment if self.stand else None


@dataclass(frozen=True)
class Sides:
    """The versions of a rollout."""

    stable: View
    candidate: View
    baseline: View | None = None
    """A fresh copy of the stable version, where the candidate is compared with that."""

    @property
    def reference(self) -> View:
        """What the candidate is compared with."""
        return self.baseline or self.stable

    def starting(self, weight: int) -> View | None:
        """One that is not ready to have so many percent, if there is any."""
        new = (self.candidate, self.baseline if findings.baseline_weight(weight or 1) else None)
        return next((view for view in new if view and view.ready != "True"), None)

    def ready(self, weight: int) -> int:
        """Replicas that are ready of each of those that are new to so many percent."""
        if self.baseline and findings.baseline_weight(weight):
            return min(self.candidate.replicas, self.baseline.replicas)
        return self.candidate.replicas

    def replicas(self, rollout: RolloutStatus) -> dict[str, int]:
        """What a decision about the next weight goes by."""
        known = {"stable": max(rollout.stable_replicas, self.stable.replicas), "candidate": self.candidate.replicas}
        return known | ({"baseline": self.baseline.replicas} if self.baseline else {})

    def traffic(self, weight: int) -> tuple[Target, ...]:
        """The Route's entries with so many percent for the candidate, and as many for the baseline if it is Ready."""
        others = [self.candidate.target(weight)]
        if self.baseline and self.baseline.ready == "True":
            others.append(self.baseline.target(findings.baseline_weight(weight)))
        return route.split(self.stable.target(100), [target for target in others if target])


def goal(status: ModelDeploymentStatus, desired: str) -> str | None:
    """Version that should have the traffic: the spec's, unless it was undone or given up."""
    if status.pinned and status.pinned.over == desired:
        return status.pinned.to
    if status.rejected and status.rejected.id == desired:
        return status.stable
    return desired


def forget(status: ModelDeploymentStatus, desired: str, known: Mapping[str, object]) -> ModelDeploymentStatus:
    """Drops what the present spec has made void: an undo or a rejection of another version, lost records."""
    pinned, rejected = status.pinned, status.rejected
    return status.model_copy(
        update={
            "pinned": pinned if pinned and pinned.over == desired and pinned.to in known else None,
            "rejected": rejected if rejected and rejected.id == desired else None,
            "stable": status.stable if status.stable in known else None,
            "kept": [identity for identity in status.kept if identity in known],
        }
    )


def turn(
    status: ModelDeploymentStatus,
    spec: ModelDeploymentSpec,
    desired: str,
    plan: tuple[Planned, ...],
    views: Mapping[str, View],
    the_route: Object | None,
    sample: Sample | None,
    now: datetime,
) -> Turn:
    """Takes the lifecycle one transition further. `status` has been through `forget`; `plan` is the goal's."""
    aim = goal(status, desired)
    at_rest = status.model_copy(update={"rollout": None})
    if aim is None or aim == status.stable:
        return Turn(at_rest, goal=aim)
    candidate = views[aim]
    if status.stable is None:
        if candidate.ready != "True":
            return Turn(at_rest, goal=aim)
        return Turn(_promoted(at_rest, aim, spec.rollout.keep_versions), goal=aim)

    stable = views[status.stable]
    rollout = replan(_begun(status, aim, stable), plan)
    rollout = against(rollout, *_baseline(rollout, spec, plan, stable, views))
    sides = Sides(stable, candidate, views[rollout.baseline] if rollout.baseline else None)
    if (rollout.step or rollout.weight) and (trouble := candidate.failing(rollout.exposed)):
        return Turn(_rolled_back(at_rest, rollout, "CandidateFailed", trouble, desired, now), goal=status.stable)
    in_force = route.settled(the_route, sides.traffic(rollout.weight))
    # a baseline that is not ready gets nothing meanwhile: that is no wrong split
    whole = in_force and sides.starting(rollout.weight) is None
    seen = None
    if asks_for_proof(plan):
        before, cold = rollout, min(sides.reference.replicas, candidate.replicas) == 0
        rollout = findings.observe(before, spec.rollout, sample, in_force=whole, cold=cold)
        seen = Seen(before, rollout, sample if rollout is not before else None, whole, cold, sides.replicas(before))
        if rollout.verdict == "Degraded" and not rollout.promote:
            why = degraded(rollout.guardrails)
            return Turn(_rolled_back(at_rest, rollout, "Degraded", why, desired, now), goal=status.stable, seen=seen)

    coming = _next(rollout, spec, plan, sides, in_force, now)
    seen = replace(seen, next=coming) if seen else None
    if coming.late and spec.rollout.on_deadline == "Rollback":
        late = _rolled_back(at_rest, rollout, "DeadlineExceeded", coming.message, desired, now)
        return Turn(late, goal=status.stable, seen=seen)
    if coming.promoted:
        return Turn(_promoted(at_rest, aim, spec.rollout.keep_versions), coming, aim, seen=seen)
    moved = coming.rollout
    if moved.weight != rollout.weight:
        moved = findings.restart(moved, spec.rollout)
    return Turn(status.model_copy(update={"rollout": moved}), coming, aim, seen=seen)


def _rolled_back(
    status: ModelDeploymentStatus, rollout: RolloutStatus, reason: str, why: str, desired: str, now: datetime
) -> ModelDeploymentStatus:
    """The status with the candidate given up. One that an undo went back to is not kept either: it would fail again."""
    said = f"rolled back at weight {rollout.weight}%: {why}"[:4000]
    if rollout.candidate == desired:
        rejected = Rejected(
            id=desired, reason=reason, message=said, at=now, verdict=rollout.verdict, guardrails=rollout.guardrails
        )
        return status.model_copy(update={"rejected": rejected})
    if status.experiment and status.pinned and status.pinned.won:  # the winner of an experiment, which is lost by that
        tested = experiment.without(status.experiment, rollout.candidate, "Failed", said)
        return status.model_copy(update={"pinned": None, "experiment": tested})
    pinned = Pinned(to=rollout.stable, over=desired) if rollout.stable != desired else None
    kept = [identity for identity in status.kept if identity != rollout.candidate]
    request = status.request
    if request:
        request = request.model_copy(
            update={"accepted": False, "message": f"the undo to {rollout.candidate} was {said}"[:1024]}
        )
    return status.model_copy(update={"pinned": pinned, "kept": kept, "request": request})


def _begun(status: ModelDeploymentStatus, aim: str, stable: View) -> RolloutStatus:
    """The rollout to the goal: the one that is on, or a new one, which supersedes another candidate's."""
    running = status.rollout
    if running and running.candidate == aim and running.stable == stable.spec.id:
        return running
    tested = status.experiment
    floor = max(stable.replicas, running.stable_replicas if running else 0, tested.stable_replicas if tested else 0)
    # a challenger goes on from the share that it had in the experiment
    weight = sum(arm.weight for arm in tested.challengers if arm.version == aim) if tested else 0
    return RolloutStatus(
        candidate=aim,
        stable=stable.spec.id,
        stable_replicas=floor,
        weight=weight,
        exposed=tested.began if tested and weight else None,
    )


def _baseline(
    rollout: RolloutStatus,
    spec: ModelDeploymentSpec,
    plan: tuple[Planned, ...],
    stable: View,
    views: Mapping[str, View],
) -> tuple[str | None, str]:
    """The copy of the stable version that the candidate is compared with, if any, and why there is none any more.

    One that fails under its requests is done without from then on: a candidate must not get by because of it.
    """
    copied = versions.baseline(stable.spec).id
    if not spec.rollout.baseline or not asks_for_proof(plan) or copied not in views:
        return None, ""
    view, lost = views[copied], rollout.without_baseline
    if rollout.baseline == copied and findings.baseline_weight(rollout.weight):
        lost = lost or view.failing(rollout.exposed)
    return (None if lost else copied), lost[:1024]


def against(rollout: RolloutStatus, baseline: str | None, lost: str = "") -> RolloutStatus:
    """The rollout with what its candidate is compared with. With another one, the comparison begins anew.

    `lost` is why it has no baseline any more.
    """
    rollout = rollout.model_copy(update={"without_baseline": lost})
    if rollout.baseline == baseline:
        return rollout
    nothing = {name: RolloutStatus.model_fields[name].get_default() for name in findings.FOUND} if rollout.state else {}
    if line := findings.State.load(rollout.state).line:  # the ledger goes on
        nothing["state"] = findings.noted("", line)
    return rollout.model_copy(update={**nothing, "baseline": baseline})


def _next(
    rollout: RolloutStatus,
    spec: ModelDeploymentSpec,
    plan: tuple[Planned, ...],
    sides: Sides,
    in_force: bool,
    now: datetime,
) -> Next:
    stable, candidate = sides.stable, sides.candidate
    there = max(rollout.stable_replicas, stable.replicas)

    def replicas(weight: int) -> int:
        return replicas_for(weight, there, spec.scaling)

    if starting := sides.starting(rollout.weight):
        which = "" if starting is candidate else "the baseline: "
        floor = replicas(rollout.weight)
        return Next(rollout, reason="CandidateNotReady", message=f"{which}{starting.trouble}", floor=floor)

    down = _down_since(stable, now)
    if down is not None and not spec.rollout.paused:
        if now >= down + STABLE_DOWN:
            return Next(rollout, promoted=True, reason="StableFailed", floor=replicas(100))
        wait = (
            f"the stable version has failed; {candidate.spec.id} takes over if it stays so for {STABLE_DOWN.seconds} s"
        )
        return Next(
            rollout, reason="StableFailed", message=wait, floor=replicas(rollout.weight), wake_at=down + STABLE_DOWN
        )

    facts = Facts(
        in_force=in_force,
        ready=sides.ready,
        replicas=replicas,
        paused=spec.rollout.paused,
        window=timedelta(seconds=seconds(spec.scaling.window)),
        evidence=findings.evidence(rollout, spec.rollout, now.timestamp()) if asks_for_proof(plan) else None,
    )
    return advance(rollout, plan, facts, now)


def _down_since(stable: View, now: datetime) -> datetime | None:
    """Since when the stable version can answer no request; None if it can, or may soon."""
    if stable.revision is None:
        return now - STABLE_DOWN  # there is nothing left of it that could
    failed = [part.changed or now for part in stable.revisions if part.ready == "False"]
    return max(failed) if failed else None


def alone(stable: View) -> tuple[Target, ...]:
    """The Route's entries for a stable version that has it all; none while it has no Revision."""
    return route.split(stable.target(100))


def _promoted(status: ModelDeploymentStatus, identity: str, keep: int) -> ModelDeploymentStatus:
    """The status with another stable version; the one before it is kept for an undo, the oldest beyond `keep` goes."""
    earlier = [status.stable] if status.stable else []
    kept = [*earlier, *(k for k in status.kept if k != identity)]
    return status.model_copy(update={"stable": identity, "kept": kept[:keep]})
