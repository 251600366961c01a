"""What a pass sees of the cluster, and how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True)
class Platform:
    """What the cluster has installed."""

    knative: bool = True
    kserve: bool = True
    features: Mapping[str, str] = field(default_factory=dict)
    """Data of Knative's ConfigMap config-features."""


@dataclass(frozen=True)
class Observed:
    """A ModelDeployment and everything that a decision about it depends on."""

    deployment: Object
    records: tuple[Object, ...] = ()
    """ModelVersions of the deployment."""
    workloads: tuple[Object, ...] = ()
    """InferenceServices and Configurations of its versions, and any other object that stands under such a name."""
    revisions: tuple[Object, ...] = ()
    """Knative Revisions that carry its label."""
    route: Object | None = None
    """The Route of its name, whoever owns it."""
    runtimes: tuple[Object, ...] = ()
    """ClusterServingRuntimes, and the ServingRuntimes of its namespace."""
    platform: Platform = Platform()


def name(obj: Object) -> str:
    """The object's name."""
    return str(obj["metadata"]["name"])


def owned(obj: Object, owner: Object) -> bool:
    """Whether `owner` is the controller of the object."""
    uid = owner["metadata"]["uid"]
    return any(
        reference.get("controller") and reference.get("uid") == uid
        for reference in obj["metadata"].get("ownerReferences", ())
    )


def condition(obj: Object, kind: str = "Ready") -> Mapping[str, Any]:
    """The condition of that type; one with status Unknown if it is not there."""
    found = (c for c in obj.get("status", {}).get("conditions") or () if c.get("type") == kind)
    return next(found, {"type": kind, "status": "Unknown"})


def up_to_date(obj: Object) -> bool:
    """Whether the object's status speaks of its newest spec."""
    return bool(obj.get("status", {}).get("observedGeneration") == obj["metadata"].get("generation"))


@dataclass(frozen=True)
class Revision:
    """A Knative Revision."""

    name: str
    uid: str
    configuration: str
    ready: str
    """Status of its Ready condition: True, False or Unknown."""
    message: str
    """Why it is not Ready, as Knative says it."""
    changed: datetime | None
    """When Ready last changed."""
    replicas: int
    """Pods that are ready now."""


def revision(obj: Object) -> Revision:
    """Reads a Revision."""
    ready = condition(obj)
    since = ready.get("lastTransitionTime")
    parts = (ready.get("reason"), ready.get("message"))
    return Revision(
        name=name(obj),
        uid=obj["metadata"].get("uid", ""),
        configuration=obj["metadata"].get("labels", {}).get("serving.knative.dev/configuration", ""),
        ready=ready["status"],
        message=": ".join(str(part) for part in parts if part),
        changed=datetime.fromisoformat(since) if since else None,
        replicas=int(obj.get("status", {}).get("actualReplicas") or 0),
    )


@dataclass(frozen=True)
class Target:
    """One entry of a Route's traffic."""

    revision: str
    percent: int
    tag: str | None = None
    url: str | None = None


def targets(entries: Iterable[Object] | None) -> tuple[Target, ...]:
    """Reads `spec.traffic` or `status.traffic` of a Route."""
    return tuple(
        Target(e.get("revisionName", ""), int(e.get("percent") or 0), e.get("tag"), e.get("url")) for e in entries or ()
    )
