"""A version as a pass sees it: its record, its workload, and the Revisions that its requests would go to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidegate.api.modeldeployment import ModelDeploymentStatus
from tidegate.api.modelversion import ModelVersionSpec
from tidegate.core import names, workloads
from tidegate.core.observed import Object, Observed, Revision, Target, name, owned, revision


@dataclass(frozen=True)
class View:
    """One version, with what there is of it."""

    spec: ModelVersionSpec
    workload: Object | None = None
    """Its workload, if it is there and ours."""
    refused: str = ""
    """Why the API server does not take its workload, if that is not there."""
    foreign: bool = False
    """Whether somebody else's object stands under the workload's name."""
    revision: Revision | None = None
    """The Revision that the Route sends requests to."""
    behind: tuple[Revision, ...] = ()
    """Revisions that it needs besides: the predictor behind a transformer."""

    @property
    def revisions(self) -> tuple[Revision, ...]:
        """All Revisions whose replicas count."""
        return (*((self.revision,) if self.revision else ()), *self.behind)

    @property
    def complete(self) -> bool:
        """Whether every part of it has a Revision."""
        return len(self.revisions) == len(workloads.configurations(self.spec))

    @property
    def ready(self) -> str:
        """True if every part of it is, False if one has failed, else Unknown."""
        states = {part.ready for part in self.revisions}
        if "False" in states or self.refused:
            return "False"
        return "True" if self.complete and states == {"True"} else "Unknown"

    @property
    def replicas(self) -> int:
        """Replicas that are ready in every part of it."""
        return min((part.replicas for part in self.revisions), default=0) if self.complete else 0

    def crashing(self, since: datetime | None) -> str:
        """How it crashes under its traffic; empty if it does not.

        A crash counts if it happened since `since`, when the first requests came: what a server does at start, before
        it is ready, harms nobody. One that is over counts no more, unless nothing else is ready meanwhile.
        """
        for part in self.revisions:
            for crash in part.crashes:
                fresh = since is None or crash.at is None or crash.at >= since
                if fresh and not crash.recovered and (crash.looping or not part.pods_ready):
                    return crash.message
        return ""

    def failing(self, since: datetime | None) -> str:
        """Why it can have no more requests, the first of which came at `since`; empty if it can."""
        return self.crashing(since) or (self.trouble if self.ready == "False" else "")

    @property
    def trouble(self) -> str:
        """Why it is not ready."""
        if self.foreign:
            return f"another {workloads.kind(self.spec)} has the name {self.child}; delete or rename it"
        if self.refused:
            return f"its {workloads.kind(self.spec)} is refused: {self.refused}"
        failed = [part.message for part in self.revisions if part.ready == "False" and part.message]
        starting = [part.message for part in self.revisions if part.ready == "Unknown" and part.message]
        told = workloads.trouble(self.workload) if self.workload else ""
        return "; ".join(failed) or told or "; ".join(starting) or "waiting for its pods"

    @property
    def child(self) -> str:
        """Name of its workload and record."""
        return names.child(self.spec.deployment, self.spec.id)

    def target(self, percent: int) -> Target | None:
        """Its entry in the Route; None while it has no Revision."""
        return Target(self.revision.name, percent, self.spec.tag) if self.revision else None


STABLE_DOWN = timedelta(seconds=60)
"""A version, or a Revision of one, that has failed for this long is no longer what traffic is held to."""


def look(
    observed: Observed, status: ModelDeploymentStatus, specs: Mapping[str, ModelVersionSpec], now: datetime
) -> dict[str, View]:
    """Every version that has a record, by id."""
    pinned = {version.id: version.revision for version in status.versions}
    by_name = {(obj["kind"], name(obj)): obj for obj in observed.workloads}
    pods: dict[str, list[Object]] = {}
    for pod in observed.pods:
        pods.setdefault(pod["metadata"].get("labels", {}).get("serving.knative.dev/revision", ""), []).append(pod)
    revisions = [revision(obj, pods.get(name(obj), ())) for obj in observed.revisions]
    views = {}
    for identity, spec in specs.items():
        workload = by_name.get((workloads.kind(spec), names.child(spec.deployment, identity)))
        ours = workload is not None and owned(workload, observed.deployment)
        entry = workloads.entry(spec)
        views[identity] = View(
            spec=spec,
            workload=workload if ours else None,
            refused="" if workload else observed.refused.get(names.child(spec.deployment, identity), ""),
            foreign=workload is not None and not ours,
            revision=_pick(entry, revisions, pinned.get(identity), now),
            behind=tuple(
                found
                for configuration in sorted(workloads.configurations(spec) - {entry})
                if (found := _pick(configuration, revisions, None, now))
            ),
        )
    return views


def _pick(configuration: str, revisions: list[Revision], pinned: str | None, now: datetime) -> Revision | None:
    """The Revision that stands for a Configuration: the pinned one while it exists, else the newest that is Ready.

    A pin keeps traffic where it was judged when a newer Revision appears under the same version (KServe renders an
    InferenceService anew when its runtime changes). One that has failed for a while is left for one that is Ready.
    """
    candidates = sorted((r for r in revisions if r.configuration == configuration), key=lambda r: r.name)
    if not candidates:
        return None
    ready = [r for r in candidates if r.ready == "True"]
    held = [r for r in candidates if r.name == pinned and not (ready and _failed_for_long(r, now))]
    return (held or ready or candidates)[-1]


def _failed_for_long(found: Revision, now: datetime) -> bool:
    return found.ready == "False" and found.changed is not None and now - found.changed >= STABLE_DOWN
