"""What a pass sees of the cluster, and how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tidegate.core.rollout.counts import Sample

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
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why the API server did not take workloads when it was last asked to, by their names."""
    revisions: tuple[Object, ...] = ()
    """Knative Revisions that carry its label."""
    pods: tuple[Object, ...] = ()
    """Pods of its versions: Knative itself is slow to notice what ails them."""
    route: Object | None = None
    """The Route of its name, whoever owns it."""
    runtimes: tuple[Object, ...] = ()
    """ClusterServingRuntimes, and the ServingRuntimes of its namespace."""
    platform: Platform = Platform()
    sample: Sample | None = None
    """What was counted of its versions when they were last looked at; None while nothing is judged."""


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
class Crash:
    """A container of the version's own that ended with an error."""

    at: datetime | None
    """When, if the pod says so."""
    message: str
    recovered: bool
    """Whether its pod is ready again."""
    looping: bool
    """Whether it has ended so often that it is started late only."""


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
    """Pods that are ready now, as Knative's autoscaler counts them."""
    crashes: tuple[Crash, ...] = ()
    """How containers of its present pods last ended with an error."""
    pods_ready: int = 0
    """Pods that are ready now, as they themselves say."""


def revision(obj: Object, pods: Iterable[Object] = ()) -> Revision:
    """Reads a Revision, and what its pods say where it is not Ready.

    A Revision whose pods cannot start stays Unknown for as long as Knative's progress deadline, ten minutes. Its pods
    know better, and at once.
    """
    ready = condition(obj)
    since = ready.get("lastTransitionTime")
    alive = [pod for pod in pods if not _gone(pod)]
    state, message = ready["status"], ": ".join(str(p) for p in (ready.get("reason"), ready.get("message")) if p)
    if state != "True":
        ailing = [trouble for pod in alive if (trouble := ailment(pod))]
        if stuck := [said for said, final in ailing if final]:
            state, message = "False", stuck[0]
        elif ailing and state == "Unknown":
            message = ailing[0][0]
    return Revision(
        name=name(obj),
        uid=obj["metadata"].get("uid", ""),
        configuration=obj["metadata"].get("labels", {}).get("serving.knative.dev/configuration", ""),
        ready=state,
        message=message,
        changed=datetime.fromisoformat(since) if since else None,
        replicas=int(obj.get("status", {}).get("actualReplicas") or 0),
        crashes=tuple(crash for pod in alive for crash in crashes(pod)),
        pods_ready=sum(condition(pod)["status"] == "True" for pod in alive),
    )


_STUCK = frozenset(
    {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"}
)
"""Reasons for which a container waits that mean that it will not start as it is."""


def _gone(pod: Object) -> bool:
    """Whether the pod is leaving or was put out: an eviction is the node's doing, and another pod takes over."""
    return bool(pod["metadata"].get("deletionTimestamp")) or pod.get("status", {}).get("phase") == "Failed"


def ailment(pod: Object) -> tuple[str, bool] | None:
    """What keeps a pod from starting, and whether that is final as it stands; None if nothing does."""
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container.get("state", {}).get("waiting") or {}
        if (ended := _ended(container)) is not None:
            return _told(container, ended), True
        if (reason := waiting.get("reason")) in _STUCK:
            # two reasons for one thing take turns, with different words: what is written down must stay as it is
            image = f"image {container.get('image', '')} cannot be pulled" if reason in _PULLING else ""
            shown = "ImagePullBackOff" if reason in _PULLING else reason
            return f"{shown}: container {container['name']}: {image or waiting.get('message', '')}"[:1000], True
    for found in status.get("conditions") or ():
        if found.get("type") == "PodScheduled" and found.get("status") == "False":
            return f"{found.get('reason', 'Unschedulable')}: {found.get('message', '')}"[:1000], False
    return None


_PULLING = frozenset({"ErrImagePull", "ImagePullBackOff"})
_SIDECARS = frozenset({"queue-proxy"})


def crashes(pod: Object) -> list[Crash]:
    """How the pod's containers last ended with an error, Knative's own left out."""
    ready = condition(pod)["status"] == "True"
    found = []
    for container in pod.get("status", {}).get("containerStatuses") or ():
        ended = _ended(container)
        if ended is None or container.get("name") in _SIDECARS:
            continue
        at = ended.get("finishedAt")
        waiting = container.get("state", {}).get("waiting") or {}
        found.append(
            Crash(
                at=datetime.fromisoformat(at) if at else None,
                message=_told(container, ended),
                recovered=ready,
                looping=waiting.get("reason") == "CrashLoopBackOff",
            )
        )
    return found


def _ended(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the container last ended, if that was with an error."""
    for part in ("state", "lastState"):
        ended: Mapping[str, Any] = container.get(part, {}).get("terminated") or {}
        if ended.get("exitCode"):
            return ended
    return None


def _told(container: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    lines = str(ended.get("message") or "").strip().splitlines()
    words = [f"exit code {ended['exitCode']}", lines[-1].strip() if lines else ""]  # a traceback says its cause last
    if container["name"] == "storage-initializer":
        words.append("check model.uri and the credentials (model.storage.secret, or the service account's secrets)")
    return f"{ended.get('reason') or 'Error'}: container {container['name']}: {', '.join(filter(None, words))}"[:1000]


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
