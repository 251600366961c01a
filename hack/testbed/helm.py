"""Tidegate itself in the cluster, by its Helm chart."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from . import files
from .cluster import Cluster
from .own import OwnImages, sources
from .settings import REPO
from .steps import Log, Problem, Step
from .versions import key

CHART = REPO / "charts" / "tidegate"
RELEASE, NAMESPACE = "tidegate", "tidegate-system"
VALUES = (
    "prometheus.url=http://prometheus.tidegate-testbed.svc:9090",
    "feedback.enabled=true",
    "feedback.persistence.enabled=false",  # volumes are few, and not made anew
)
NEEDED = ("operator",)  # without these there is nothing to deploy


def rolled_out(deployment: Mapping[str, Any]) -> bool:
    """Whether all of a deployment's (or StatefulSet's) pods are of its present template, and available."""
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    return bool(
        status.get("observedGeneration") == deployment["metadata"]["generation"]
        and status.get("replicas", 0) == wanted
        and status.get("updatedReplicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
    )


def newest_pods(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of some pods and ReplicaSets, the pods of each deployment's newest ReplicaSet."""
    label, revision = "pod-template-hash", "deployment.kubernetes.io/revision"
    newest: dict[str, tuple[int, str]] = {}
    for item in found:
        metadata = item["metadata"]
        if item["kind"] == "ReplicaSet" and metadata.get("ownerReferences"):
            owner = metadata["ownerReferences"][0]["name"]
            entry = (int(metadata.get("annotations", {}).get(revision, 0)), metadata["labels"][label])
            newest[owner] = max(newest.get(owner, entry), entry)
    current = {template for _, template in newest.values()}
    return [
        item for item in found if item["kind"] == "Pod" and item["metadata"].get("labels", {}).get(label) in current
    ]


def restarts(pod: Mapping[str, Any]) -> int:
    """How often the container of a pod that failed most has been started again."""
    return max(
        (entry.get("restartCount", 0) for entry in pod.get("status", {}).get("containerStatuses", [])), default=0
    )


def crashes(pod: Mapping[str, Any], before: int = 0) -> bool:
    """Whether a pod has failed so often that waiting is of no use.

    Args:
        pod: The pod as it is.
        before: Its restarts when the wait began: a restart of the node, or what was away then, is no fault of its own.
    """
    return restarts(pod) >= max(2, before + 1) and any(
        entry.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff"
        for entry in pod["status"]["containerStatuses"]
    )


class Tidegate:
    def __init__(self, cluster: Cluster, own: OwnImages, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self.images: dict[str, tuple[str, Step]] = {}
        found = {name: source for name, source in sources().items() if source.exists}
        for name, source in found.items():
            self.images[name] = own.ensure(source)
        self._absent = [str(CHART.relative_to(REPO))] if not (CHART / "Chart.yaml").is_file() else []
        self._absent += [f"{name}'s Dockerfile" for name in NEEDED if name not in found]
        if self._absent:
            say(f"Tidegate itself is not deployed yet: {' and '.join(self._absent)} not found")

    @property
    def refs(self) -> list[str]:
        return [ref for ref, _ in self.images.values()]

    def _values(self) -> dict[str, str]:
        repository, _, tag = self.images["operator"][0].rpartition(":")
        values = {"image.repository": repository, "image.tag": tag}
        if "sklearn" in self.images:
            values["modelServers.sklearn.image"] = self.images["sklearn"][0]
        return values

    def _content(self) -> str:
        return key(files.digest(CHART, files.tree(CHART)), self._values(), VALUES)

    def _deployed(self) -> bool:
        asked = subprocess.run(
            ["helm", "status", RELEASE, "--namespace", NAMESPACE, "--output", "json"],
            env=self._cluster.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if asked.returncode:
            return False
        info: Mapping[str, str] = json.loads(asked.stdout)["info"]
        return info["status"] == "deployed" and info.get("description") == self._content()

    def _running(self) -> bool:
        found = self._cluster.get("deployments,statefulsets", "-n", NAMESPACE)
        return found is not None and all(rolled_out(item) for item in found["items"])

    def _deploy(self, log: Log) -> None:
        env = self._cluster.env
        kubectl = ["kubectl", "-n", NAMESPACE]
        # An interrupted run leaves the release "pending", and Helm waits for it for ever. Nobody else is at work here:
        # this run has the cluster's lock.
        pending = "status in (pending-install,pending-upgrade,pending-rollback)"
        log.run([*kubectl, "delete", "secrets", "-l", f"owner=helm,name={RELEASE},{pending}"], env=env)
        settings = [word for name, value in self._values().items() for word in ("--set-string", f"{name}={value}")]
        settings += [word for value in VALUES for word in ("--set", value)]
        log.run(
            [
                *("helm", "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"),
                *("--description", self._content(), *settings),
            ],
            env=env,
        )
        self._wait_until_running(log)
        # Only the operator's: a model server's may be that of a version that is scaled to zero and comes back.
        self._cluster.forget(log, self.images["operator"][0])

    def _wait_until_running(self, log: Log) -> None:
        """Like helm's own --wait; but what crashes at once is not waited for, and its last words are shown."""
        deadline = time.monotonic() + 120
        before: dict[str, int] | None = None  # restarts of each pod when the wait began
        while not self._running():
            found = (self._cluster.get("pods,replicasets", "-n", NAMESPACE) or {"items": []})["items"]
            pods = {pod["metadata"]["name"]: pod for pod in newest_pods(found)}
            before = before or {name: restarts(pod) for name, pod in pods.items()}
            if hopeless := [pod for name, pod in pods.items() if crashes(pod, before.get(name, 0))]:
                name = hopeless[0]["metadata"]["name"]
                logs = ["kubectl", "-n", NAMESPACE, "logs", name, "--all-containers", "--tail=30"]
                with suppress(Problem):
                    log.run([*logs, "--previous"], env=self._cluster.env)
                raise Problem(f"pod {name} does not start")
            if time.monotonic() > deadline:
                log.run(["kubectl", "-n", NAMESPACE, "get", "pods"], env=self._cluster.env)
                raise Problem("its pods are not ready after two minutes")
            time.sleep(0.5)

    def steps(self, created: Step, installed: Step) -> list[Step]:
        loaded = Step(
            "Tidegate's images in the node",
            lambda log: self._cluster.load(log, self.refs),
            done=lambda: self._cluster.ready() and self._cluster.has_images(self.refs),
            needs=[created, *(step for _, step in self.images.values())],
            seconds=10,
        )
        if self._absent:
            return [loaded] if self.images else []
        return [
            loaded,
            Step(
                "Tidegate",
                self._deploy,
                # What runs is known only where the webhooks answer: until then its pods' state may be an old one.
                done=lambda: installed.done() and self._deployed() and self._running(),
                needs=[loaded, installed],
                seconds=15,
                advice=f"kubectl -n {NAMESPACE} get pods; kubectl -n {NAMESPACE} logs deploy/{RELEASE}",
            ),
        ]
