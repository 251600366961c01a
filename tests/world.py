"""A little cluster for tests of decisions: an API server's bookkeeping, Knative and KServe, in virtual time.

It stands for nothing that is tested on the real cluster (tests/cluster, tests/e2e). It lets thousands of histories of
one ModelDeployment be played in milliseconds: crashes after any write, versions that fail, clocks that jump.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from tidegate.api import API_VERSION
from tidegate.api.modeldeployment import REQUEST_ANNOTATION, ModelDeploymentStatus
from tidegate.core.decide import Decision
from tidegate.core.events import Event
from tidegate.core.names import DEPLOYMENT_LABEL, FIELD_MANAGER, VERSION_LABEL
from tidegate.core.observed import Object, Observed, Platform
from tidegate.core.rollout.ask import ask
from tidegate.core.rollout.counts import Reading, Requests, Rewards, Sample
from tidegate.core.rollout.ledger import Entry, text
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.reconcile import Reconciler
from tidegate.runtime.write import Conflict, Refused

NAMESPACE = "default"
RUNTIME = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ClusterServingRuntime",
    "metadata": {"name": "tidegate-sklearn-0-1", "labels": {"app.kubernetes.io/part-of": "tidegate"}},
    "spec": {
        "supportedModelFormats": [{"name": "sklearn", "autoSelect": True, "priority": 2}],
        "containers": [{"name": "kserve-container", "args": ["--model_name={{.Name}}", "--model_dir=/mnt/models"]}],
    },
}


def drive(coroutine: Coroutine[None, None, Any]) -> Any:
    """Runs a coroutine that waits for nothing, without the cost of an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the coroutine waits for something")


class Crash(BaseException):
    """The operator was stopped right after a write."""


def container(version: str = "v1", **more: Any) -> dict[str, Any]:
    """A spec that serves an image."""
    return {"model": {"version": version, "container": {"image": f"registry.test/model:{version}"}}, **more}


def files(version: str = "v1", **more: Any) -> dict[str, Any]:
    """A spec that serves a model's files."""
    return {"model": {"version": version, "uri": f"s3://models/{version}", "format": "sklearn"}, **more}


@dataclass
class World:
    """One namespace with one ModelDeployment, `churn`."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    """Versions, by name, whose pods fail: their Revisions are Ready=False."""
    slow: set[str] = field(default_factory=set)
    """Versions whose pods take for ever: their Revisions stay Ready=Unknown."""
    pods_seen: tuple[Object, ...] = ()
    """Pods of Revisions that are not ready."""
    gateway_behind: bool = False
    """Whether the gateway has not yet taken on what the Routes ask for: they are Ready=Unknown."""
    refusing: set[str] = field(default_factory=set)
    """Versions, by name, whose workloads the API server does not take."""
    rate: float = 20.0
    """Users' requests per second."""
    errors: dict[str, float] = field(default_factory=dict)
    """Share of a version's responses that fail, by name, or by id where a name is not enough."""
    delays: dict[str, float] = field(default_factory=dict)
    """Share of a version's responses that take more than 250 ms, by name. If empty, nothing is timed."""
    astray: dict[str, float] = field(default_factory=dict)
    """Requests of a version as a multiple of what the gateway was asked to send to it, by name."""
    source_trouble: str = ""
    """Why the gateway's counts cannot be read."""
    feedback_trouble: str = ""
    """Why the rewards cannot be read."""
    counted: dict[str, Requests] = field(default_factory=dict)
    """What the gateway has counted, by the version's id."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Mean of the rewards, 0 or 1 for each response, that users give to a version, by name."""
    rewarded: dict[str, Rewards] = field(default_factory=dict)
    """What the feedback service has counted, by the version's id."""
    platform: Platform = field(default_factory=Platform)
    runtimes: tuple[Object, ...] = (RUNTIME,)
    gateway: dict[str, int] = field(default_factory=dict)
    """What the gateway does: percent by Revision."""
    history: list[dict[str, int]] = field(default_factory=list)
    """What it did, one entry a change."""
    events: list[Event] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    ledger: list[Mapping[str, Any]] = field(default_factory=list)
    """Lines that the operator wrote, in that order."""
    writes: int = 0
    changes: int = 0
    """Writes that changed an object."""
    crash_after: int | None = None
    """Writes that are let through before the operator is stopped."""
    _liked: dict[str, float] = field(default_factory=dict)
    """Sum of each version's rewards before it is rounded, by the version's id."""
    _uid: int = 0
    _version: int = 0

    # --- what a user does ---

    def submit(self, spec: dict[str, Any], name: str = "churn") -> None:
        """kubectl apply."""
        self._upsert({"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec})

    def request(self, value: str) -> None:
        """tidegate promote, abort, undo, …"""
        self.deployment["metadata"].setdefault("annotations", {})[REQUEST_ANNOTATION] = value
        self._bump(self.deployment)

    # --- what a user sees ---

    @property
    def deployment(self) -> dict[str, Any]:
        return self.objects["ModelDeployment", "churn"]

    @property
    def status(self) -> ModelDeploymentStatus:
        return ModelDeploymentStatus.model_validate(self.deployment.get("status") or {})

    def reason(self, condition: str) -> str:
        found = self.status.condition(condition)
        return f"{found.status}/{found.reason}" if found else "absent"

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Objects of a kind, by name."""
        return {name: obj for (k, name), obj in self.objects.items() if k == kind}

    def weights(self) -> dict[str, int]:
        """What the gateway does: percent by version name, those with none left out."""
        names = {r["metadata"]["name"]: self._version_of(r) for r in self.of("Revision").values()}
        return {names[revision]: percent for revision, percent in self.gateway.items() if percent}

    def pods(self) -> dict[str, int]:
        """Ready replicas by version name, those with none left out."""
        out: dict[str, int] = {}
        for revision in self.of("Revision").values():
            if count := revision["status"]["actualReplicas"]:
                out[self._version_of(revision)] = out.get(self._version_of(revision), 0) + count
        return out

    def _version_of(self, revision: Object) -> str:
        return str(revision["metadata"]["labels"][VERSION_LABEL]).split("-")[0]

    # --- the operator ---

    def operator(self) -> Reconciler:
        """A freshly started operator."""
        return Reconciler(self, self, Silent(), lambda: self.now, KeyQueue(clock=lambda: 0.0), self)

    def step(self, operator: Reconciler, seconds: int = 5) -> None:
        """The cluster reacts, time passes, the operator makes a pass."""
        self.pass_time(seconds)
        drive(operator.reconcile(Key(NAMESPACE, "churn")))

    def pass_time(self, seconds: int) -> None:
        """The cluster reacts, time passes."""
        self.react()
        self.now += timedelta(seconds=seconds)
        self._serve(seconds)

    def run(self, seconds: int = 60, operator: Reconciler | None = None, every: int = 5) -> Reconciler:
        """Passes for a while, one every so many seconds."""
        operator = operator or self.operator()
        for _ in range(seconds // every):
            self.step(operator, every)
        self.react()
        return operator

    # --- runtime.reconcile.Source and runtime.write.Cluster ---

    async def gather(self, key: Key) -> Observed | None:
        deployment = self.objects.get(("ModelDeployment", key.name))
        if deployment is None:
            return None
        here = {key: json.loads(json.dumps(obj)) for key, obj in self.objects.items()}
        revisions = [o for (kind, _), o in here.items() if kind == "Revision"]
        return Observed(
            deployment=here["ModelDeployment", key.name],
            records=tuple(o for (kind, _), o in here.items() if kind == "ModelVersion"),
            workloads=tuple(o for (kind, _), o in here.items() if kind in ("InferenceService", "Configuration")),
            revisions=tuple(o for o in revisions if o["metadata"]["labels"].get(DEPLOYMENT_LABEL) == key.name),
            pods=self.pods_seen,
            route=here.get(("Route", key.name)),
            runtimes=self.runtimes,
            platform=self.platform,
            sample=self._sample(here["ModelDeployment", key.name]),
        )

    def _sample(self, deployment: Object) -> Sample | None:
        """What the gateway's counters say, if they are asked for."""
        wanted = ask(deployment)
        if wanted is None:
            return None
        t = self.now.timestamp()
        counts = {version: self.counted.get(version, Requests()) for version in wanted.versions}
        mark = json.dumps([self.gateway, sorted(wanted.versions.values())])
        rewards = {version: self.rewarded.get(version, Rewards()) for version in wanted.versions}
        read = Reading(t, rewards, "feedback", self.feedback_trouble) if wanted.rewards else None
        return Sample(t, Reading(t, counts, mark, self.source_trouble), read, asked=wanted)

    def _serve(self, seconds: int) -> None:
        """Users' requests, split as the gateway does; exact shares, so that histories are the same every time."""
        revisions = self.of("Revision")
        for revision, percent in self.gateway.items():
            if revision not in revisions:
                continue
            identity = revisions[revision]["metadata"]["labels"][VERSION_LABEL]
            version = self._version_of(revisions[revision])
            before = self.counted.get(identity, Requests())
            new = round(self.rate * seconds * percent / 100 * self.astray.get(version, 1.0))
            errors = before.errors + round(self.errors.get(identity, self.errors.get(version, 0.0)) * new)
            requests = before.requests + new
            fast = before.latency.get(250.0, 0) + new - round(self.delays.get(version, 0.0) * new)
            self.counted[identity] = Requests(requests, errors, {250.0: fast, inf: requests} if self.delays else {})
            # rounded as a whole, so that a small mean of few responses is not lost
            had = self.rewarded.get(identity, Rewards())
            self._liked[identity] = self._liked.get(identity, 0.0) + self.rewards.get(version, 0.0) * new
            liked = float(round(self._liked[identity]))
            self.rewarded[identity] = Rewards(had.count + new, liked, liked)

    async def apply(self, obj: Mapping[str, Any], subresource: str | None = None) -> Object:
        present = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        if obj["kind"] == "Revision" and (present is None or present["metadata"]["uid"] != obj["metadata"]["uid"]):
            raise Conflict("no such Revision")
        if obj["kind"] in ("Configuration", "InferenceService") and self._version_of(obj) in self.refusing:
            raise Refused("admission webhook denied the request: expected 0 <= 1200 <= 600")
        if subresource:
            assert present is not None
            wanted = obj["metadata"].get("resourceVersion")
            if wanted is not None and wanted != present["metadata"]["resourceVersion"]:
                raise Conflict("stale")
            if present.get("status") != obj["status"]:
                present["status"] = copy.deepcopy(obj["status"])
                self._bump(present)
        else:
            present = self._upsert(copy.deepcopy(dict(obj)), by=FIELD_MANAGER)
        self._written()
        return json.loads(json.dumps(present))

    async def delete(self, obj: Object) -> None:
        key = (obj["kind"], obj["metadata"]["name"])
        present = self.objects.get(key)
        if present is not None and present["metadata"]["uid"] == obj["metadata"]["uid"]:
            del self.objects[key]
            self.changes += 1
        self._written()

    async def announce(self, about: Object, event: Event) -> None:
        self.events.append(event)

    async def write(self, about: Object, entries: Sequence[Entry]) -> None:
        """runtime.reconcile.Ledger"""
        for entry in entries:
            self.ledger += [json.loads(text(line)) for line in (entry.start, entry.line)]
            self._written()

    def _written(self) -> None:
        self.writes += 1
        if self.crash_after is not None and self.writes >= self.crash_after:
            self.crash_after = None
            raise Crash

    # --- the API server's bookkeeping ---

    def _upsert(self, obj: dict[str, Any], by: str = "kubectl") -> dict[str, Any]:
        key = (obj["kind"], obj["metadata"]["name"])
        present = self.objects.get(key)
        if present is None:
            self._uid += 1
            present = self.objects[key] = {
                **obj,
                "metadata": {
                    "namespace": NAMESPACE,
                    "generation": 1,
                    "creationTimestamp": f"{self.now:%Y-%m-%dT%H:%M:%S}.{self._uid:04d}Z",
                    **obj["metadata"],
                    "uid": f"uid-{self._uid}",
                },
            }
            self._bump(present)
        else:
            metadata = present["metadata"]
            merged = {
                part: {**metadata.get(part, {}), **obj["metadata"].get(part, {})} for part in ("labels", "annotations")
            }
            if "spec" in obj and obj["spec"] != present.get("spec"):
                present["spec"] = obj["spec"]
                metadata["generation"] += 1
                self._bump(present)
            if any(merged[part] != metadata.get(part, {}) for part in merged):
                metadata.update(merged)
                self._bump(present)
        if by == FIELD_MANAGER:
            fields = {"spec": json.dumps(present.get("spec"), sort_keys=True)}
            present["metadata"]["managedFields"] = [{"manager": by, "operation": "Apply", "fieldsV1": fields}]
        return present

    def _bump(self, obj: dict[str, Any]) -> None:
        self._version += 1
        self.changes += 1
        obj["metadata"]["resourceVersion"] = str(self._version)

    # --- Knative and KServe ---

    def react(self) -> None:
        """Controllers catch up with what is asked of them."""
        for (kind, name), workload in list(self.objects.items()):
            if VERSION_LABEL not in workload["metadata"].get("labels", {}):
                continue  # somebody else's
            if kind == "Configuration":
                self._revision(name, workload)
            if kind == "InferenceService":
                self._revision(f"{name}-predictor", workload)
                if "transformer" in workload["spec"]:
                    self._revision(f"{name}-transformer", workload)
        owners = {o["metadata"]["uid"] for o in self.objects.values()}
        for key, revision in list(self.objects.items()):
            if key[0] == "Revision" and revision["workload"] not in owners:
                del self.objects[key]
        self._program()
        for revision in self.of("Revision").values():
            self._scale(revision)

    def _revision(self, configuration: str, workload: Object) -> None:
        name = f"{configuration}-00001"
        labels = workload["metadata"]["labels"]
        revision = self.objects.get(("Revision", name))
        if revision is None:
            self._upsert(
                {
                    "apiVersion": "serving.knative.dev/v1",
                    "kind": "Revision",
                    "workload": workload["metadata"]["uid"],
                    "metadata": {
                        "name": name,
                        "labels": {
                            DEPLOYMENT_LABEL: labels[DEPLOYMENT_LABEL],
                            VERSION_LABEL: labels[VERSION_LABEL],
                            "serving.knative.dev/configuration": configuration,
                        },
                        "annotations": {},
                    },
                    "status": {"actualReplicas": 1},
                }
            )
            revision = self.objects["Revision", name]
        version = self._version_of(revision)
        ready = "False" if version in self.failing else "Unknown" if version in self.slow else "True"
        old = revision["status"].get("conditions", [{}])[0]
        if old.get("status") != ready:
            stamp = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
            why = {"reason": "ExitCode1", "message": "container exited"} if ready == "False" else {}
            revision["status"]["conditions"] = [{"type": "Ready", "status": ready, "lastTransitionTime": stamp, **why}]

    def _program(self) -> None:
        """The Route's controller: one target that is not Ready freezes it."""
        route = self.objects.get(("Route", "churn"))
        if route is None or not route["metadata"].get("ownerReferences"):
            return
        ready = {
            name: revision["status"]["conditions"][0]["status"] == "True"
            for name, revision in self.of("Revision").items()
        }
        wanted = route["spec"]["traffic"]
        status = route.setdefault("status", {})
        status["observedGeneration"] = route["metadata"]["generation"]
        if all(ready.get(target["revisionName"]) for target in wanted):
            status["url"] = "http://churn.default.localhost"
            status["traffic"] = copy.deepcopy(wanted)
            status["conditions"] = [{"type": "Ready", "status": "Unknown" if self.gateway_behind else "True"}]
            if self.gateway_behind:
                return
            gateway = {target["revisionName"]: target["percent"] for target in wanted}
            if gateway != self.gateway:
                self.gateway = gateway
                self.history.append(self.weights())
        else:
            status["conditions"] = [{"type": "Ready", "status": "False", "reason": "RevisionMissing"}]

    def _scale(self, revision: dict[str, Any]) -> None:
        """The autoscaler: at least min-scale where something can reach the Revision, one more for traffic."""
        name = revision["metadata"]["name"]
        if revision["status"]["conditions"][0]["status"] != "True":
            revision["status"]["actualReplicas"] = 0
            return
        floor = int(revision["metadata"]["annotations"].get("autoscaling.knative.dev/min-scale", 0))
        reachable = name in self.gateway or not name.startswith("churn-") or "-predictor" in name
        revision["status"]["actualReplicas"] = max(floor if reachable else 0, 1 if self.gateway.get(name) else 0)


class Silent:
    """Telemetry that goes nowhere."""

    def passed(self, key: Key, observed: Observed, decision: Decision, seconds: float, writes: int) -> None:
        pass

    def failed(self, key: Key, error: Exception) -> None:
        pass

    def gone(self, key: Key) -> None:
        pass


def crashed(
    world: World, version: str, at: datetime, *, ready: bool = False, looping: bool = False, code: int = 1
) -> None:
    """A pod of the version whose server ended with an error."""
    revision = next(name for name in world.of("Revision") if f"-{version}-" in name)
    state = {"waiting": {"reason": "CrashLoopBackOff"}} if looping else {"running": {}}
    ended = {"exitCode": code, "finishedAt": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
    world.pods_seen = (
        {
            "metadata": {"name": "p", "labels": {"serving.knative.dev/revision": revision}},
            "status": {
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                "containerStatuses": [
                    {"name": "user-container", "restartCount": 1, "state": state, "lastState": {"terminated": ended}}
                ],
            },
        },
    )
