"""The decision about one ModelDeployment: from what is, to what should be written. Pure; the heart of Tidegate.

spec ── hash ──► version ──► record (ModelVersion) and workload (InferenceService | Configuration)
status + request + Revisions ── lifecycle ──► stable, candidate, weight ──► Route, replicas, conditions
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tidegate.api.conditions import Condition, Truth, carry_times
from tidegate.api.evidence import Verdict
from tidegate.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus, Role, VersionStatus
from tidegate.api.modelversion import ModelVersionSpec, ModelVersionStatus
from tidegate.api.rollout import RolloutStatus
from tidegate.api.template import Template
from tidegate.core import experiment, lifecycle, names, recording, requests, route, scaling, versions, workloads
from tidegate.core.conditions import Problem, Scene, conditions
from tidegate.core.events import Event, between
from tidegate.core.lifecycle import Sides, Turn
from tidegate.core.observed import Object, Observed, Platform, Target, name, owned
from tidegate.core.placement import forbidden, place
from tidegate.core.rollout import findings
from tidegate.core.rollout.advance import replan
from tidegate.core.rollout.counts import Sample
from tidegate.core.rollout.ledger import Entry
from tidegate.core.rollout.plan import plan
from tidegate.core.views import View, look

FLAGS_HELP = "kubectl -n knative-serving patch configmap config-features --type merge -p"


@dataclass(frozen=True)
class Decision:
    """What to write, in this order: status first, so that what was decided is on record before it is acted upon."""

    status: ModelDeploymentStatus
    apply: tuple[dict[str, Any], ...] = ()
    """Objects as they should be, for server-side apply."""
    delete: tuple[Object, ...] = ()
    """Objects that are ours and should go."""
    version_status: Mapping[str, ModelVersionStatus] = field(default_factory=dict)
    """Statuses of records that changed, by the record's name."""
    events: tuple[Event, ...] = ()
    ledger: tuple[Entry, ...] = ()
    """What the ledger is to say of it, before anything else is written."""
    wake_at: datetime | None = None
    """When to look again, if nothing happens before."""
    blocked: bool = False
    """Only a person can mend what keeps the spec from being served, and no event may tell that it was mended."""


def decide(observed: Observed, now: datetime) -> Decision:
    """Decides about a ModelDeployment. The same input gives the same decision; a settled one writes nothing new."""
    raw = observed.deployment
    old = remembered(raw)
    generation = int(raw["metadata"].get("generation", 0))
    try:
        spec = ModelDeploymentSpec.model_validate(raw["spec"])
    except ValidationError as error:
        told = "; ".join(
            f"spec.{'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False)
        )
        return _told(old, "InvalidSpec", told, generation, now)

    # the versions: what the spec asks for, and what there has been
    specs = {s.id: s for record in observed.records if owned(record, raw) and (s := _read(record))}
    if lost := _unreadable(observed, old, specs):
        return _told(old, "RecordUnreadable", lost, generation, now)
    desired = versions.identity(spec.template)
    templates, challengers = {desired: spec.template}, {}
    for challenger in spec.challengers if spec.experiments else ():
        template = spec.template_of(challenger)
        identity = challengers[challenger.name] = versions.identity(template)
        templates[identity] = template
    problem = _same(desired, challengers)
    made = []
    for identity, template in templates.items():
        if identity in specs:
            continue
        try:
            specs[identity] = versions.record(raw, template, observed.runtimes, specs.values())
            made.append(identity)
        except versions.NoRuntime as missing:
            problem = _not_installed(observed.platform, template) or Problem(
                "NoRuntime", f"{missing.message}. Install one, or name it in model.runtime"
            )
    if spec.rollout.baseline and old.stable in specs:
        copied = versions.baseline(specs[old.stable])
        specs[copied.id] = copied
    views = look(observed, old, specs, now)

    # the lifecycle: which of them has the traffic, and which is to get it
    foreign_route = observed.route is not None and not owned(observed.route, raw)
    the_route = None if foreign_route else observed.route
    status = lifecycle.forget(old, desired, specs)
    over = status.experiment and status.experiment.id != experiment.identity(desired, challengers, spec.rollout)
    if over and not _goes_on(status, desired):
        status = status.model_copy(update={"experiment": None})
    if status.stable is None:
        status = status.model_copy(update={"stable": _carrying(the_route, views)})
    kept = status.kept[: spec.rollout.keep_versions]
    status = status.model_copy(update={"kept": kept, "observed_generation": generation})
    steps = plan(spec.rollout, spec.scaling.window, known=_known(status, desired))
    if status.rollout and status.rollout.candidate == lifecycle.goal(status, desired):
        status = status.model_copy(update={"rollout": replan(status.rollout, steps)})
    status = requests.take(raw, status, desired, steps, specs.values(), now)
    goal = lifecycle.goal(status, desired)
    problem = problem if goal == desired else None
    coming = [identity for identity in (goal, *challengers.values()) if identity in views and identity != status.stable]
    for identity in coming:
        if problem is None and views[identity].workload is None:
            problem = _problem(observed, views[identity])
    if foreign_route:
        problem = Problem(
            "NameTaken", f"a Route called {name(raw)} is there and is not ours; delete it, or rename this"
        )
    if problem:
        turn = Turn(status.model_copy(update={"rollout": None, "experiment": None}), goal=status.stable)
    else:
        steps = plan(spec.rollout, spec.scaling.window, known=_known(status, desired))
        turn = lifecycle.turn(status, spec, desired, steps, views, the_route, observed.sample, now)
        if challengers and turn.status.rollout is None and turn.goal == turn.status.stable == desired:
            turn = _compared(turn, spec, challengers, views[desired], views, the_route, observed.sample, now)

    # what should be there, and what should not
    here = (turn.status.stable, turn.goal, *_baseline(turn), *_contesting(turn), *turn.status.kept)
    active = {identity for identity in here if identity in views}
    apply: list[dict[str, Any]] = []
    if problem is None:
        apply += [versions.manifest(raw, specs[identity]) for identity in made]
    apply += [workloads.manifest(raw, views[i].spec) for i in sorted(active) if not views[i].foreign]
    apply += _replicas(turn, spec, views, the_route, observed.revisions)
    traffic = _traffic(turn, views)
    if traffic and not foreign_route:
        apply.append(route.manifest(raw, spec, traffic))

    if problem is None and (said := _other_refusals(observed, views)):
        problem = Problem("Refused", said)
    others = [known for identity, known in specs.items() if identity not in challengers.values()]
    note = _reused(spec.model.version, desired, others)
    scene = Scene(desired, turn, views, the_route, problem, note)
    status = turn.status.model_copy(
        update={
            "url": (the_route or {}).get("status", {}).get("url") if turn.status.stable else None,
            "candidate": turn.status.rollout.candidate if turn.status.rollout else None,
            "verdict": _said(turn.status),
            "versions": _version_statuses(turn, views, the_route, active),
            "conditions": carry_times(conditions(scene, generation, now), old.conditions),
        }
    )
    weights = {version.id: version.weight for version in status.versions}
    status = status.model_copy(update={"weight": weights.get(status.candidate) if status.candidate else None})
    status, entries = recording.record(raw, spec, old, status, turn, now)
    return Decision(
        status=status,
        ledger=entries,
        apply=tuple(apply),
        delete=tuple(_leftovers(observed, active, the_route)),
        version_status=dict(_record_statuses(observed, status, views, generation, now)),
        events=tuple(between(old, status)),
        wake_at=turn.next.wake_at if turn.next else turn.stand.wake_at if turn.stand else None,
        blocked=problem is not None,
    )


def _same(desired: str, challengers: Mapping[str, str]) -> Problem | None:
    """Two names for one version: then there is nothing to compare."""
    seen = {desired: "spec.model"}
    for name_, identity in challengers.items():
        if identity in seen:
            return Problem(
                "SameVersion",
                f"challenger {name_} is the same version as {seen[identity]}; change its model or remove it",
            )
        seen[identity] = f"challenger {name_}"
    return None


def _goes_on(status: ModelDeploymentStatus, desired: str) -> bool:
    """Whether a challenger of an experiment that is over is the spec's version now, and its rollout has yet to begin.

    It begins with the share that the challenger had, so the experiment is remembered until then.
    """
    if status.experiment is None or status.rollout or desired == status.stable:
        return False
    return desired in {arm.version for arm in status.experiment.challengers}


def _known(status: ModelDeploymentStatus, desired: str) -> bool:
    """Whether the version that should have the traffic has been through all that before."""
    goal = lifecycle.goal(status, desired)
    won = status.pinned is not None and status.pinned.won and status.pinned.to == goal
    return won or goal in status.kept


def _compared(
    turn: Turn,
    spec: ModelDeploymentSpec,
    challengers: Mapping[str, str],
    control: View,
    views: Mapping[str, View],
    the_route: Object | None,
    sample: Sample | None,
    now: datetime,
) -> Turn:
    """At rest at the version of the spec, the challengers have their turn."""
    begun = experiment.begun(turn.status, spec, challengers, control)
    moved, stand = experiment.advance(begun, spec, views, the_route, sample, now)
    pinned = experiment.promotion(moved, spec, begun.control.version)
    status = turn.status.model_copy(update={"experiment": moved, "pinned": pinned or turn.status.pinned})
    return replace(turn, status=status, stand=stand)


def _contesting(turn: Turn) -> tuple[str, ...]:
    """Versions that are here for the experiment that is on."""
    return tuple(arm.version for arm in turn.experiment.challengers) if turn.experiment else ()


def _baseline(turn: Turn) -> tuple[str, ...]:
    """The version that is here for the candidate to be compared with."""
    rollout = turn.status.rollout
    return (rollout.baseline,) if rollout and rollout.baseline else ()


def _said(status: ModelDeploymentStatus) -> Verdict | None:
    """What the evidence says of the candidate, or said of the one that was given up."""
    if status.rollout:
        return status.rollout.verdict
    return status.rejected.verdict if status.rejected else None


def _carrying(the_route: Object | None, views: Mapping[str, View]) -> str | None:
    """The version with most of the traffic, where the status has been lost: as after a restore from a backup."""
    percents = {target.revision: target.percent for target in route.asked(the_route)}
    share = {i: percents[v.revision.name] for i, v in views.items() if v.revision and v.revision.name in percents}
    return max(share, key=lambda identity: share[identity], default=None)


def _read(record: Object) -> ModelVersionSpec | None:
    """The record's spec; None if it cannot be read (written by a release that knows more)."""
    try:
        return ModelVersionSpec.model_validate(record["spec"])
    except ValidationError:
        return None


def remembered(deployment: Object) -> ModelDeploymentStatus:
    """The deployment's status. Of one that a later release wrote, what this one understands.

    What only tells (versions, conditions) is dropped before what decides.
    """
    status = dict(deployment.get("status") or {})
    for unread in (
        (),
        ("conditions",),
        ("versions",),
        ("request",),
        ("experiment",),
        ("rejected",),
        ("pinned",),
        ("rollout",),
    ):
        for part in unread:
            status.pop(part, None)
        with contextlib.suppress(ValidationError):
            return ModelDeploymentStatus.model_validate(status)
    return ModelDeploymentStatus()


def _record_status(record: Object) -> ModelVersionStatus:
    with contextlib.suppress(ValidationError):
        return ModelVersionStatus.model_validate(record.get("status") or {})
    return ModelVersionStatus()


def _unreadable(observed: Observed, old: ModelDeploymentStatus, specs: Mapping[str, ModelVersionSpec]) -> str:
    """The record of the stable version, if it is there and cannot be read: then nothing may be done on a guess."""
    if old.stable is None or old.stable in specs:
        return ""
    there = [r for r in observed.records if owned(r, observed.deployment) and r["spec"].get("id") == old.stable]
    return (
        f"ModelVersion {name(there[0])} was written by a later release of Tidegate; install that again" if there else ""
    )


def _other_refusals(observed: Observed, views: Mapping[str, View]) -> str:
    """What the API server did not take besides workloads, of which their versions tell."""
    workloads_too = {view.child for view in views.values()}
    return "; ".join(f"{n} is refused: {why}" for n, why in sorted(observed.refused.items()) if n not in workloads_too)


def _told(old: ModelDeploymentStatus, reason: str, message: str, generation: int, now: datetime) -> Decision:
    """Says what a person has to mend, and leaves everything else as it is."""

    def said(kind: str, status: Truth) -> Condition:
        return Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message[:4096],
            observed_generation=generation,
            last_transition_time=now,
        )

    changed = {"Ready": said("Ready", "False"), "Progressing": said("Progressing", "False")}
    rest = [condition for condition in old.conditions if condition.type not in changed]
    new = carry_times([*changed.values(), *rest], old.conditions)
    status = old.model_copy(update={"observed_generation": generation, "conditions": new})
    return Decision(status, events=tuple(between(old, status)))


def _not_installed(platform: Platform, template: Template) -> Problem | None:
    """What the version needs of the cluster and it does not have."""
    if not platform.knative:
        return Problem("KnativeMissing", "Knative Serving is not installed in this cluster; install it first")
    if template.backed_by == "KServe" and not platform.kserve:
        return Problem(
            "KServeMissing",
            "KServe is not installed in this cluster; install it, or serve an image with model.container",
        )
    return None


def _problem(observed: Observed, view: View) -> Problem | None:
    """What keeps a version from being started, that only a person can mend."""
    template = view.spec.template
    if problem := _not_installed(observed.platform, template):
        return problem
    if flags := forbidden(place(template.accelerator), observed.platform.features):
        patch = ", ".join(f'"{flag}": "enabled"' for flag in flags)
        return Problem(
            "KnativeFeatureDisabled",
            f"Knative forbids what the accelerator needs: {FLAGS_HELP} '{{\"data\": {{{patch}}}}}'",
        )
    if view.foreign:
        return Problem("NameTaken", view.trouble)
    taken = [r for r in observed.records if name(r) == view.child and not owned(r, observed.deployment)]
    return Problem("NameTaken", f"another ModelVersion has the name {view.child}; delete it") if taken else None


def _traffic(turn: Turn, views: Mapping[str, View]) -> tuple[Target, ...]:
    """What the Route should do; nothing where it should be left as it is."""
    status = turn.status
    if status.stable is None:
        return ()
    stable, rollout = views[status.stable], status.rollout
    if turn.experiment:
        return experiment.traffic(turn.experiment, views)
    if rollout is None:
        return lifecycle.alone(stable)
    sides = _sides(rollout, views)
    if sides.candidate.ready == "True":
        return sides.traffic(rollout.weight)
    return () if rollout.weight else lifecycle.alone(stable)


def _sides(rollout: RolloutStatus, views: Mapping[str, View]) -> Sides:
    baseline = views[rollout.baseline] if rollout.baseline else None
    return Sides(views[rollout.stable], views[rollout.candidate], baseline)


def _replicas(
    turn: Turn,
    spec: ModelDeploymentSpec,
    views: Mapping[str, View],
    the_route: Object | None,
    revisions: Iterable[Object],
) -> Iterator[dict[str, Any]]:
    """Patches that give Revisions their replicas, for those that differ."""
    status, rollout = turn.status, turn.status.rollout
    floors: dict[str, int] = {}
    if status.stable:
        floors[status.stable] = max(spec.scaling.min, rollout.stable_replicas if rollout else 0)
    if rollout:
        floors[rollout.candidate] = floor = turn.next.floor if turn.next else spec.scaling.initial
        if rollout.baseline:
            floors[rollout.baseline] = 0 if rollout.weight and not findings.baseline_weight(rollout.weight) else floor
    elif status.stable is None and turn.goal:
        floors[turn.goal] = max(spec.scaling.min, spec.scaling.initial)
    if turn.stand:
        floors |= turn.stand.floors
    for identity in status.kept:
        if identity not in floors and not route.mentions(the_route, [r.name for r in views[identity].revisions]):
            floors[identity] = 0

    present = {name(obj): obj["metadata"] for obj in revisions}
    for identity, floor in floors.items():
        wanted = scaling.autoscaling(spec.scaling, floor)
        for part in views[identity].revisions:
            metadata = present[part.name]
            if wanted.items() <= metadata.get("annotations", {}).items():
                continue
            yield {
                "apiVersion": "serving.knative.dev/v1",
                "kind": "Revision",
                # the uid keeps the patch from making a Revision where this one has just gone
                "metadata": {
                    "name": part.name,
                    "namespace": metadata["namespace"],
                    "uid": part.uid,
                    "annotations": wanted,
                },
            }


def _leftovers(observed: Observed, active: set[str], the_route: Object | None) -> Iterator[Object]:
    """Workloads of versions that are no longer needed and get no more requests, and records beyond the history."""
    for workload in observed.workloads:
        identity = workload["metadata"].get("labels", {}).get(names.VERSION_LABEL)
        if identity in active or not owned(workload, observed.deployment):
            continue
        own = [
            name(r) for r in observed.revisions if r["metadata"].get("labels", {}).get(names.VERSION_LABEL) == identity
        ]
        if not route.mentions(the_route, own):
            yield workload
    records = [r for r in observed.records if owned(r, observed.deployment)]
    records.sort(key=lambda r: (r["metadata"].get("creationTimestamp", ""), name(r)), reverse=True)
    yield from (r for r in records[versions.HISTORY :] if r["spec"].get("id") not in active)


def _version_statuses(
    turn: Turn, views: Mapping[str, View], the_route: Object | None, active: set[str]
) -> list[VersionStatus]:
    """The versions that are being kept: stable, then candidate, then challengers, then those for an undo."""
    status = turn.status
    flow = {target.revision: target for target in route.in_force(the_route)}
    out = []
    contesting, baseline = _contesting(turn), _baseline(turn)
    for identity in dict.fromkeys((status.stable, turn.goal, *baseline, *contesting, *status.kept)):
        if identity is None or identity not in active:
            continue
        view = views[identity]
        target = flow.get(view.revision.name) if view.revision else None
        pinned = view.revision if view.revision and view.ready == "True" else None
        before = next((v.revision for v in status.versions if v.id == identity), None)
        roles: tuple[tuple[Role, tuple[str | None, ...]], ...] = (
            ("Stable", (status.stable,)),
            ("Candidate", (turn.goal,)),
            ("Baseline", baseline),
            ("Challenger", contesting),
        )
        role: Role = next((role for role, those in roles if identity in those), "Kept")
        out.append(
            VersionStatus(
                id=identity,
                name=view.spec.template.model.version,
                role=role,
                weight=target.percent if target else 0,
                revision=pinned.name if pinned else before if view.revision and view.revision.name == before else None,
                url=target.url if target else None,
            )
        )
    return out


def _record_statuses(
    observed: Observed, status: ModelDeploymentStatus, views: Mapping[str, View], generation: int, now: datetime
) -> Iterator[tuple[str, ModelVersionStatus]]:
    """Statuses of the records that differ from what they say."""
    kept = {version.id: version for version in status.versions}
    for record in observed.records:
        if not owned(record, observed.deployment) or (spec := _read(record)) is None:
            continue
        old = _record_status(record)
        new = ModelVersionStatus(role="Rejected" if status.rejected and status.rejected.id == spec.id else "Retired")
        if entry := kept.get(spec.id):
            view = views[spec.id]
            ready = Condition(
                type="Ready",
                status="True" if view.ready == "True" else "False" if view.ready == "False" else "Unknown",
                reason={"True": "Ready", "False": "Failed"}.get(view.ready, "Starting"),
                message="" if view.ready == "True" else view.trouble[:4096],
                observed_generation=int(record["metadata"].get("generation", 0)),
                last_transition_time=now,
            )
            new = ModelVersionStatus(
                role=entry.role, revision=entry.revision, conditions=carry_times([ready], old.conditions)
            )
        if new != old or "status" not in record:
            yield name(record), new


def _reused(version: str, desired: str, specs: Iterable[ModelVersionSpec]) -> str:
    others = sorted(s.id for s in specs if s.template.model.version == version and s.id != desired)
    return (
        f"the version name {version} was used before, for {', '.join(others)}; {desired} is a new version"
        if others
        else ""
    )
