"""Whole ModelDeployments on the testbed, reached as users reach them: through the gateway's port on this host."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from live import Kubectl, wait_for

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [[5.1, 3.5, 1.4, 0.2]]}]})
FAST = {"min": 0, "window": "6s", "idle": "0s"}
"""Scaling for tests: no time is lost on the autoscaler's averages."""


@dataclass
class Load:
    """Requests that are being sent, and what came of them."""

    versions: Counter[str] = field(default_factory=Counter)
    """Good answers by the version that gave them."""
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def sent(self) -> int:
        return sum(self.versions.values()) + len(self.failed)


@dataclass
class Model:
    """One ModelDeployment of the test."""

    kubectl: Kubectl
    namespace: str
    name: str
    port: int

    @property
    def host(self) -> str:
        return f"{self.name}.{self.namespace}.localhost"

    def apply(self, **spec: Any) -> None:
        """kubectl apply."""
        kind = {"apiVersion": "tidegate.dev/v1alpha1", "kind": "ModelDeployment"}
        self.kubectl.apply({**kind, "metadata": {"name": self.name}, "spec": spec}, namespace=self.namespace)

    def get(self) -> Any:
        return self.kubectl.json("get", "modeldeployments.tidegate.dev", self.name, "-n", self.namespace)

    @property
    def status(self) -> Any:
        return self.get().get("status", {})

    def condition(self, kind: str) -> str:
        found = [c for c in self.status.get("conditions", []) if c["type"] == kind]
        return f"{found[0]['status']}/{found[0]['reason']}" if found else "absent"

    def wait(self, kind: str, value: str, timeout: float = 120) -> None:
        """Waits until the condition, of the newest spec, has that status (`True`) or status and reason."""

        def so() -> bool:
            found = self.get()
            assert found["metadata"]["generation"] == found.get("status", {}).get("observedGeneration"), found.get(
                "status"
            )
            conditions = {c["type"]: c for c in found["status"]["conditions"]}
            said = f"{conditions[kind]['status']}/{conditions[kind]['reason']}"
            assert said == value or conditions[kind]["status"] == value, json.dumps(conditions, indent=1)
            return True

        wait_for(so, timeout, f"{self.name}: {kind} is {value}")

    def weights(self) -> dict[str, int]:
        """Percent of requests by version name, as the Route has it in force; those with none left out."""
        return {v["name"]: v["weight"] for v in self.status.get("versions", []) if v.get("weight")}

    def wait_weights(self, timeout: float = 120, **weights: int) -> None:
        wait_for(lambda: self.weights() == weights, timeout, f"{self.name}: weights are {weights}")

    def ask(self, path: str | None = None, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        """One request: status, version that answered, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                "POST", path or f"/v2/models/{self.name}/infer", BODY, {"Host": self.host} | (headers or {})
            )
            answer = connection.getresponse()
            return answer.status, answer.getheader("Tidegate-Version", ""), answer.read().decode()
        finally:
            connection.close()

    @contextmanager
    def load(self, threads: int = 4, pause: float = 0.005) -> Iterator[Load]:
        """Sends requests over kept-alive connections meanwhile."""
        load, stop, lock = Load(), threading.Event(), threading.Lock()

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            while not stop.is_set():
                began = time.monotonic()
                try:
                    connection.request("POST", f"/v2/models/{self.name}/infer", BODY, {"Host": self.host})
                    answer = connection.getresponse()
                    text = answer.read()
                    problem = "" if answer.status == 200 else f"{answer.status} {text[:200]!r}"
                except (OSError, http.client.HTTPException) as error:
                    problem = repr(error)
                    connection.close()
                with lock:
                    load.slowest = max(load.slowest, time.monotonic() - began)
                    if problem:
                        load.failed.append(problem)
                    else:
                        load.versions[answer.getheader("Tidegate-Version", "")] += 1
                stop.wait(pause)
            connection.close()

        workers = [threading.Thread(target=send, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield load
        finally:
            stop.set()
            for worker in workers:
                worker.join(timeout=70)

    def pods(self) -> Counter[str]:
        """Pods that are not on their way out, by version id."""
        items = self.kubectl.json("get", "pods", "-n", self.namespace, "-l", f"tidegate.dev/deployment={self.name}")[
            "items"
        ]
        alive = [pod for pod in items if not pod["metadata"].get("deletionTimestamp")]
        return Counter(pod["metadata"]["labels"]["tidegate.dev/version"] for pod in alive)

    def id_of(self, version: str) -> str:
        return next(v["id"] for v in self.status["versions"] if v["name"] == version)

    def revision_of(self, version: str) -> str:
        return next(v["revision"] for v in self.status["versions"] if v["name"] == version)

    def cli(self, *args: str, code: int = 0) -> str:
        """`tidegate … NAME -n NAMESPACE`; what it printed."""
        command = [sys.executable, "-m", "tidegate", *args, self.name, "-n", self.namespace]
        done = subprocess.run(command, env=self.kubectl.env, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def envoy_requests(self, revision: str) -> int:
        """Requests that the gateway's Envoys have sent to a Revision, ever."""
        total = 0
        for pod in self.kubectl("get", "pods", "-n", "kourier-system", "-o", "name").split():
            path = f"/api/v1/namespaces/kourier-system/pods/{pod.removeprefix('pod/')}:9000/proxy/stats/prometheus"
            text = self.kubectl("get", "--raw", path)
            cluster = re.escape(f"{self.namespace}/{revision}")
            pattern = rf'^envoy_cluster_upstream_rq_total\{{envoy_cluster_name="{cluster}"\}} (\d+)'
            total += sum(int(n) for n in re.findall(pattern, text, re.MULTILINE))
        return total


@pytest.fixture
def model(request: pytest.FixtureRequest, kubectl: Kubectl, namespace: str, testbed: dict[str, str]) -> Iterator[Model]:
    """A ModelDeployment with a name of its own; deleted at the end, pods and all."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:24].strip("-")
    made = Model(kubectl, namespace, words, int(testbed["TIDEGATE_URL_PORT"]))
    yield made
    kubectl("delete", "modeldeployments.tidegate.dev", made.name, "-n", namespace, "--ignore-not-found", "--wait=false")


@pytest.fixture
def faulty(testbed: dict[str, str]) -> Any:
    """`faulty(version, **environment)`: the model part of a spec that serves the test image."""

    def spec(version: str, **environment: str) -> dict[str, Any]:
        container: dict[str, Any] = {"version": version, "container": {"image": testbed["TIDEGATE_IMAGE_FAULTY"]}}
        if environment:
            container["env"] = [{"name": name, "value": value} for name, value in environment.items()]
        return container

    return spec
