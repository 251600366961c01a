"""One pass of an experiment: which versions are in it, how the requests are split, and what follows from the evidence.

The version of spec.model is `control`, and the stable version; the challengers stand beside it. An experiment begins
once all of them are ready, and stays until the spec asks for another one. Weights are the spec's (ABTest) or follow
the goal (Bandit). A challenger that a guardrail condemns, that fails, or that is proven worse by the goal of an ABTest
is out, and the others share its requests; control is what guardrails compare with, and stays to the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tidegate.api.base import seconds
from tidegate.api.experiment import CONTROL, ArmStatus, ExperimentStatus, Out
from tidegate.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus, Pinned
from tidegate.api.rollout import RolloutSpec
from tidegate.core import route
from tidegate.core.observed import Object, Target
from tidegate.core.rollout import comparison
from tidegate.core.rollout.arms import rounded
from tidegate.core.rollout.counts import Sample
from tidegate.core.rollout.guardrails import degraded
from tidegate.core.scaling import replicas_for
from tidegate.core.views import View


@dataclass(frozen=True)
class Stand:
    """Where the experiment stands after a pass."""

    reason: str
    message: str
    """What it waits for."""
    floors: Mapping[str, int] = field(default_factory=dict)
    """Replicas that each version should keep until the next pass."""
    wake_at: datetime | None = None
    """When to look again, if nothing happens before."""


def identity(control: str, challengers: Mapping[str, str], rollout: RolloutSpec) -> str:
    """Short and stable: the same for two experiments with the same versions, by name, and the same goal."""
    text = json.dumps([control, sorted(challengers.items()), comparison.goal_mark(rollout)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def begun(
    status: ModelDeploymentStatus, spec: ModelDeploymentSpec, challengers: Mapping[str, str], control: View
) -> ExperimentStatus:
    """The experiment that is on, or a new one. `challengers`: their versions, by name."""
    mark = identity(control.spec.id, challengers, spec.rollout)
    running = status.experiment
    if running and running.id == mark:
        return running
    arms = [ArmStatus(name=CONTROL, version=control.spec.id)]
    arms += [ArmStatus(name=name, version=version) for name, version in challengers.items()]
    return ExperimentStatus(id=mark, arms=arms, stable_replicas=control.replicas)


def advance(
    experiment: ExperimentStatus,
    spec: ModelDeploymentSpec,
    views: Mapping[str, View],
    the_route: Object | None,
    sample: Sample | None,
    now: datetime,
) -> tuple[ExperimentStatus, Stand]:
    """Takes an experiment one pass further."""
    rollout = spec.rollout
    before = traffic(experiment, views)
    in_force = bool(before) and route.settled(the_route, before)
    carrying = [views[arm.version].replicas for arm in experiment.arms if arm.weight]
    cold = bool(carrying) and min(carrying) == 0
    # one that is not ready gets nothing meanwhile, whatever its weight: that is no wrong split
    whole = in_force and all(views[arm.version].ready == "True" for arm in experiment.arms if arm.weight)
    experiment = comparison.observe(experiment, rollout, sample, in_force=whole, cold=cold)
    if experiment.began:
        experiment = _won(_put_out(experiment, spec, views, now), rollout)
    held = _held(experiment, spec, views, in_force)
    wanted = _wanted(experiment, spec, held=held is not None, now=now)
    floors = _floors(experiment, spec, views, wanted, now)
    weights = _reached(experiment, wanted, views, floors)
    stand = _stand(experiment, spec, views, held, floors, now, lacking=weights != wanted)
    if weights != {arm.name: arm.weight for arm in experiment.arms}:
        anew = rollout.strategy == "ABTest" or experiment.began is None
        experiment = comparison.reweighted(_with(experiment, weights, views, now), rollout, anew=anew)
    return experiment, stand


def _won(experiment: ExperimentStatus, rollout: RolloutSpec) -> ExperimentStatus:
    """The experiment with its winner, if there is one now: by the goal, not because the others were stopped.

    A bandit has none.
    """
    alive, winner = experiment.alive, experiment.winner
    proven = len(alive) == 1 and all(
        arm.worse_than for arm in experiment.arms if arm not in alive and not _stopped(arm)
    )
    if rollout.strategy == "Bandit" or not proven or all(_stopped(arm) for arm in experiment.arms[1:]):
        winner = None
    elif not experiment.doubt and not rollout.paused:
        winner = alive[0].name
    return experiment.model_copy(update={"winner": winner})


def _stopped(arm: ArmStatus) -> bool:
    """Whether it is out for another reason than the goal."""
    return arm.out not in (None, "Worse")


def _with(
    experiment: ExperimentStatus, weights: Mapping[str, int], views: Mapping[str, View], now: datetime
) -> ExperimentStatus:
    """The experiment with other weights. The first time, it begins with what the stable version has by now."""
    arms = [arm.model_copy(update={"weight": weights[arm.name]}) for arm in experiment.arms]
    update = {"arms": arms, "changed": now}
    if experiment.began is None:
        has = views[experiment.control.version].replicas
        update |= {"began": now, "stable_replicas": max(experiment.stable_replicas, has)}
    return experiment.model_copy(update=update)


# --- who is in --------------------------------------------------------------------------------------------------------


def _put_out(
    experiment: ExperimentStatus, spec: ModelDeploymentSpec, views: Mapping[str, View], now: datetime
) -> ExperimentStatus:
    """The experiment without the challengers that must get no more requests."""
    for arm in experiment.challengers:
        if said := _verdict(arm, experiment, spec, views[arm.version], now):
            experiment = without(experiment, arm.version, *said)
    return experiment


def _verdict(
    arm: ArmStatus, experiment: ExperimentStatus, spec: ModelDeploymentSpec, view: View, now: datetime
) -> tuple[Out, str] | None:
    """Why a challenger is out, as a word and in words; None if it may stay."""
    rollout = spec.rollout
    if trouble := view.failing(experiment.began):
        return "Failed", trouble
    if arm.verdict == "Degraded":
        return "Degraded", degraded(arm.guardrails)
    if rollout.strategy == "Bandit" or rollout.paused or experiment.doubt:
        return None
    if arm.worse_than:
        return "Worse", f"{rollout.goal}: proven worse than {arm.worse_than}"
    if rollout.on_deadline == "Rollback" and _late(experiment, spec, now):
        return "DeadlineExceeded", f"no version was proven best within {rollout.deadline}"
    return None


def _late(experiment: ExperimentStatus, spec: ModelDeploymentSpec, now: datetime) -> bool:
    end = _end(experiment, spec)
    return end is not None and now >= end


def _end(experiment: ExperimentStatus, spec: ModelDeploymentSpec) -> datetime | None:
    """Until when an ABTest has to be decided; None before it begins, and once it is. A bandit has no end."""
    if experiment.began is None or experiment.winner or spec.rollout.strategy == "Bandit":
        return None
    return experiment.began + timedelta(seconds=seconds(spec.rollout.deadline))


# --- how the requests are split ---------------------------------------------------------------------------------------


def shares(spec: ModelDeploymentSpec) -> dict[str, int]:
    """Percent of each version at the beginning. Those of an ABTest are the spec's; all others share what is left."""
    given = {c.name: c.weight for c in spec.challengers if c.weight}
    others = [CONTROL, *(c.name for c in spec.challengers if c.name not in given)]
    left = 100 - sum(given.values())
    even = dict(zip(others, rounded([left / len(others)] * len(others), left), strict=True))
    return {name: given.get(name) or even[name] for name in (CONTROL, *(c.name for c in spec.challengers))}


def _wanted(experiment: ExperimentStatus, spec: ModelDeploymentSpec, *, held: bool, now: datetime) -> dict[str, int]:
    """Percent for each version as it should be. `held`: nothing moves, but that one may be stopped.

    What a stopped one had goes to control, which has the replicas for it, and from there to the others.
    """
    present = {arm.name: arm.weight for arm in experiment.arms}
    within = [CONTROL, *(arm.name for arm in experiment.challengers)]
    if experiment.began is None:
        return present if held or len(within) == 1 else _among(within, shares(spec))
    taken = dict.fromkeys(present, 0) | {name: present[name] for name in within}
    taken[CONTROL] += 100 - sum(taken.values())
    if held or len(within) == 1:
        return taken
    if spec.rollout.strategy == "ABTest":
        return _among(within, shares(spec))
    every = timedelta(seconds=seconds(spec.rollout.bandit.every))
    due = experiment.changed is None or now >= experiment.changed + every
    return comparison.bandit_weights(experiment, spec.rollout, taken) if due else taken


def _reached(
    experiment: ExperimentStatus, wanted: Mapping[str, int], views: Mapping[str, View], floors: Mapping[str, int]
) -> dict[str, int]:
    """Those weights, as far as the replicas are there: traffic never arrives before capacity. Control has the rest.

    An experiment begins as a whole.
    """
    present = {arm.name: arm.weight for arm in experiment.arms}
    lacking = [
        arm.name
        for arm in experiment.challengers
        if wanted[arm.name] > arm.weight and views[arm.version].replicas < floors[arm.version]
    ]
    if lacking and experiment.began is None:
        return present
    out = dict(wanted) | {name: present[name] for name in lacking}
    return out | {CONTROL: out[CONTROL] + 100 - sum(out.values())} if any(out.values()) else out


def _among(within: Sequence[str], weights: Mapping[str, int]) -> dict[str, int]:
    """The weights of those that are within, grown in proportion to 100; the others get nothing."""
    total = sum(weights[name] for name in within)
    if not total:
        return dict.fromkeys(weights, 0)
    grown = rounded([100 * weights[name] / total for name in within])
    return dict.fromkeys(weights, 0) | dict(zip(within, grown, strict=True))


def traffic(experiment: ExperimentStatus, views: Mapping[str, View]) -> tuple[Target, ...]:
    """The Route's entries: every version that is in and Ready, since one that is not would freeze the Route.

    Before the beginning control has it all, and the challengers have their entries already: what no Route points to
    is kept at no replica. Nothing if no version could answer.
    """
    able = {
        arm.name: views[arm.version]
        for arm in (experiment.control, *experiment.challengers)
        if views[arm.version].revision and views[arm.version].ready == "True"
    }
    asked = {arm.name: arm.weight for arm in experiment.arms if arm.name in able}
    if not any(asked.values()):
        if experiment.began or CONTROL not in able:
            return ()
        asked[CONTROL] = 100
    percents = _among(list(able), asked)
    found = (view.target(percents[name]) for name, view in able.items())
    return tuple(target for target in found if target)


# --- what it waits for ------------------------------------------------------------------------------------------------


def _stand(
    experiment: ExperimentStatus,
    spec: ModelDeploymentSpec,
    views: Mapping[str, View],
    held: tuple[str, str] | None,
    floors: Mapping[str, int],
    now: datetime,
    *,
    lacking: bool,
) -> Stand:
    """`held`: what keeps it where it is. `lacking`: replicas are missing for the weights that it should have."""
    end, every = _end(experiment, spec), timedelta(seconds=seconds(spec.rollout.bandit.every))
    tick = experiment.changed + every if experiment.changed and spec.rollout.strategy == "Bandit" else None
    times = [at for at in (end, tick, _settled_at(experiment, spec)) if at and at > now]

    def stand(reason: str, message: str) -> Stand:
        return Stand(reason, message, floors, min(times, default=None))

    said = _says(experiment, spec)
    over = not experiment.challengers
    if over and experiment.winner != CONTROL:
        out = "; ".join(f"{arm.name}: {arm.out}, {arm.why}" for arm in experiment.arms[1:])
        return stand("NoChallenger", f"no challenger is left: {out}")
    if held and not over:
        return stand(*held)
    if lacking:
        few = [
            f"{arm.name}: {views[arm.version].replicas} of {floors[arm.version]} replicas ready"
            for arm in experiment.challengers
            if views[arm.version].replicas < floors[arm.version]
        ]
        return stand("Warming", "; ".join(few))
    if experiment.began is None:
        return stand("Advancing", "the challengers get their first requests")
    if experiment.winner:
        return stand("WinnerFound", f"{experiment.winner} is proven best: {said}. {_next(experiment, spec)}")
    if _late(experiment, spec, now):
        return stand(
            "DeadlineExceeded",
            f"no version is proven best after {spec.rollout.deadline}: {said}. Wait on, `tidegate promote --arm` one, "
            "or `tidegate abort`",
        )
    return stand("Comparing", said)


def _held(
    experiment: ExperimentStatus, spec: ModelDeploymentSpec, views: Mapping[str, View], in_force: bool
) -> tuple[str, str] | None:
    """What keeps the weights where they are, as a reason and in words; None if nothing does."""
    starting = [] if experiment.began else [experiment.control, *experiment.challengers]
    for arm in starting:
        if views[arm.version].ready != "True":
            return "CandidateNotReady", f"{arm.name}: {views[arm.version].trouble}"
    if not in_force:
        return "Programming", "waiting for the gateway to take the weights on"
    if spec.rollout.paused:
        return "Paused", "paused by spec.rollout.paused; `tidegate resume` goes on"
    if experiment.doubt:
        return "NoCounts", experiment.doubt
    if experiment.began is None and not comparison.counted(experiment):
        return "Counting", "reading the counters before the first requests"
    return None


def _says(experiment: ExperimentStatus, spec: ModelDeploymentSpec) -> str:
    """The evidence in one line."""
    told = []
    for arm in experiment.arms:
        if arm.out:
            told.append(f"{arm.name} is out ({arm.out})")
            continue
        counts = f"{arm.goal.rate:g} ({arm.goal.count})" if arm.goal.rate is not None else "nothing counted yet"
        worse = f", proven worse than {arm.worse_than}" if arm.worse_than else ""
        told.append(f"{arm.name} {arm.weight}% {counts}{worse}")
    return f"{spec.rollout.goal}: {'; '.join(told)}"


def _next(experiment: ExperimentStatus, spec: ModelDeploymentSpec) -> str:
    """What becomes of the winner."""
    if experiment.winner == CONTROL:
        return "The spec may go on without challengers"
    if not spec.rollout.promote_winner:
        return f"Make it spec.model, or `tidegate promote --arm {experiment.winner}`"
    waits = [g.name for arm in experiment.arms if arm.name == experiment.winner for g in arm.guardrails]
    return f"It is promoted once its guardrails are Healthy ({', '.join(waits)})"


def _floors(
    experiment: ExperimentStatus,
    spec: ModelDeploymentSpec,
    views: Mapping[str, View],
    wanted: Mapping[str, int],
    now: datetime,
) -> dict[str, int]:
    """Replicas that each version should keep.

    A challenger: its share of what the stable version had, before it gets that share and until the autoscaler has seen
    the load; then as few as the spec allows, one that was ready at the beginning at least, so that no cold start is
    counted. Control keeps what it had as long as there is a challenger: it may have to take everything back at once.
    """
    scaling, control = spec.scaling, experiment.control
    # before the beginning the stable version still follows its load, and the challengers with it
    there = max(experiment.stable_replicas, 0 if experiment.began else views[control.version].replicas)
    settled = _settled_at(experiment, spec)
    moving = any(wanted[arm.name] != arm.weight for arm in experiment.arms)
    settling = moving or (settled is not None and now < settled)
    kept = experiment.stable_replicas if experiment.challengers or settling else 0
    floors = {control.version: max(scaling.min, kept)}
    coming = shares(spec) if experiment.began is None else wanted
    for arm in experiment.challengers:
        floor, share = max(scaling.min, scaling.initial), max(coming[arm.name], arm.weight)
        if settling or share > arm.weight:
            floor = max(floor, replicas_for(share, there, scaling))
        floors[arm.version] = floor
    return floors


def _settled_at(experiment: ExperimentStatus, spec: ModelDeploymentSpec) -> datetime | None:
    """When the autoscaler has seen the whole load of each version; None before the beginning."""
    if experiment.changed is None:
        return None
    return experiment.changed + timedelta(seconds=seconds(spec.scaling.window))


def without(experiment: ExperimentStatus, version: str, out: Out, why: str) -> ExperimentStatus:
    """The experiment with one more challenger out. What is stopped has beaten nobody: see `Contest.stop`."""
    lost = {arm.name for arm in experiment.arms if arm.version == version and out != "Worse" and not arm.worse_than}
    arms = [
        arm.model_copy(update={"out": out, "why": why[:1024]})
        if arm.version == version and arm.out is None
        else arm.model_copy(update={"worse_than": None})
        if arm.worse_than in lost
        else arm
        for arm in experiment.arms
    ]
    gone = {arm.name for arm in arms if arm.out}
    return experiment.model_copy(
        update={"arms": arms, "winner": None if experiment.winner in gone else experiment.winner}
    )


def promotion(experiment: ExperimentStatus, spec: ModelDeploymentSpec, desired: str) -> Pinned | None:
    """The winner as what the traffic goes to, if it may have it all; None if not, or not yet."""
    if not (spec.rollout.promote_winner and experiment.winner) or spec.rollout.paused or experiment.doubt:
        return None
    arm = next(arm for arm in experiment.arms if arm.name == experiment.winner)
    if arm.name == CONTROL or not arm.proven:
        return None
    return Pinned(to=arm.version, over=desired, won=True)
