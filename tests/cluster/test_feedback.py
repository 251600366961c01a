"""The feedback service on a real cluster, as the chart brings it; and users who keep their version."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

import helm as charts
from helm import Helm
from live import Kubectl, api_proxy, wait_for
from tidegate.core.sticky import choose

pytestmark = pytest.mark.cluster

NAME = "tidegate-feedback"
VERSIONS = ("v1-00000001", "v2-00000002")


class Service:
    """The service of the module's namespace, reached through the API server by `kubectl proxy` on a port."""

    def __init__(self, kubectl: Kubectl, namespace: str, port: int) -> None:
        self.kubectl, self.namespace, self.port = kubectl, namespace, port

    def ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            where = f"/api/v1/namespaces/{self.namespace}/services/{NAME}:http/proxy{path}"
            body = None if content is None else json.dumps(content)
            connection.request(method, where, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def post(self, content: Any) -> tuple[int, Any]:
        return self.ask("POST", "/v1/feedback", content)

    def totals(self, deployment: str = "churn") -> Any:
        status, told = self.ask("GET", f"/v1/totals?namespace={self.namespace}&deployment={deployment}")
        assert status == 200, told
        return told

    def pod(self) -> Any:
        return self.kubectl.json("get", "pod", f"{NAME}-0", "-n", self.namespace)

    def ready(self) -> bool:
        pod = self.pod()
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
        assert conditions.get("Ready") == "True", pod["status"]
        return self.ask("GET", "/readyz") == (200, {"ready": True})


@pytest.fixture(scope="module")
def service(testbed: dict[str, str], kubectl: Kubectl, namespace: str) -> Iterator[Service]:
    path = charts.found()
    assert path, "the testbed has a helm"
    repository, _, tag = testbed["TIDEGATE_IMAGE_OPERATOR"].rpartition(":")
    settings = ("feedback.enabled=true", f"image.repository={repository}", f"image.tag={tag}")
    rendered = Helm(path, testbed).render(*settings, "feedback.persistence.storageClass=standard", namespace=namespace)
    mine = [thing for thing in charts.objects(rendered) if thing["metadata"]["name"] == NAME]
    assert {thing["kind"] for thing in mine} == {"StatefulSet", "Service", "PersistentVolumeClaim", "NetworkPolicy"}
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl.apply(*mine, namespace=namespace)
    with api_proxy(kubectl) as port:
        found = Service(kubectl, namespace, port)
        try:
            wait_for(found.ready, 120, "the feedback service is ready")
            yield found
            emptied = "import shutil; shutil.rmtree('/data/store')"
            kubectl("exec", f"{NAME}-0", "-n", namespace, "--", "python", "-c", emptied)
        finally:
            give_back(found)


def give_back(service: Service) -> None:
    """Makes the volume anybody's again: nothing else on the testbed does."""
    kubectl, where = service.kubectl, ("-n", service.namespace)
    claim = kubectl.json("get", "pvc", NAME, *where)
    kubectl("delete", "statefulset", NAME, *where)
    kubectl("delete", "pod", f"{NAME}-0", *where, "--ignore-not-found", "--grace-period=1")
    kubectl("delete", "pvc", NAME, *where)
    if volume := claim["spec"].get("volumeName"):
        kubectl("patch", "pv", volume, "--type=json", "-p", '[{"op": "remove", "path": "/spec/claimRef"}]')


def items(namespace: str, *names: str) -> dict[str, Any]:
    """One item for each name, with that as its id."""
    return {
        "items": [
            {"deployment": f"{namespace}/churn", "version": VERSIONS[n % 2], "reward": (n % 5) / 4, "id": name}
            for n, name in enumerate(names)
        ]
    }


def test_rewards_outlive_pods_that_end_and_pods_that_are_killed(service: Service) -> None:
    kubectl, where = service.kubectl, ("-n", service.namespace)
    status, told = service.post(items(service.namespace, *(f"a{n}" for n in range(40))))
    assert (status, told["credited"]) == (200, 40)
    first = service.totals()
    assert {name: each["count"] for name, each in first["versions"].items()} == dict.fromkeys(VERSIONS, 20)
    for grace in ("--grace-period=30", "--grace-period=1"):
        before = service.pod()["metadata"]["uid"]
        kubectl("delete", "pod", f"{NAME}-0", *where, grace, "--wait=false")

        def replaced(before: str = before) -> bool:
            return bool(service.pod()["metadata"]["uid"] != before and service.ready())

        wait_for(replaced, 120, "another pod is ready")
        assert service.totals() == first, "counters and mark are as they were"
    _, again = service.post(items(service.namespace, "a0", "a1", "b0"))
    assert (again["duplicates"], again["credited"]) == (2, 1)


def test_nonsense_is_refused_in_words_that_arrive(service: Service) -> None:
    status, told = service.post({"deployment": f"{service.namespace}/other", "version": VERSIONS[0], "reward": 2})
    assert (status, "from 0 to 1" in told["error"]) == (400, True)
    assert service.totals("other")["versions"] == {}


def test_pod_has_no_account_and_cannot_write_elsewhere(service: Service) -> None:
    where = ("-n", service.namespace)
    script = "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'), os.getuid()); open('/tmp/x', 'w')"
    command = ["kubectl", "exec", f"{NAME}-0", *where, "--", "python", "-c", script]
    done = subprocess.run(command, env=service.kubectl.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False 65532\n"
    assert "Read-only file system" in done.stderr


# --- users who keep their version -------------------------------------------------------------------------------------


def deployment(image: str, version: str) -> dict[str, Any]:
    model = {"version": version, "container": {"image": image, "port": 8080}}
    return {
        "apiVersion": "tidegate.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "sticky"},
        "spec": {
            "model": model | {"env": [{"name": "VERSION", "value": version}]},
            "scaling": {"min": 1, "window": "6s", "idle": "0s"},
            "rollout": {"steps": [{"weight": 30, "pause": {}}], "guardrails": []},
        },
    }


def ask(port: int, url: str, headers: dict[str, str]) -> str:
    """Version that answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]})
        host = urlsplit(url).hostname or ""
        connection.request("POST", "/v2/models/sticky/infer", body, {"Host": host, **headers})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, (answer.status, url)
        return answer.getheader("Tidegate-Version", "")
    finally:
        connection.close()


def test_users_reach_their_version_by_url_and_by_header(testbed: dict[str, str], kubectl: Kubectl) -> None:
    """In a namespace of its own: pods of models are not held to the restricted standard."""
    namespace, image = f"t-sticky-{os.getpid()}", testbed["TIDEGATE_IMAGE_FAULTY"]
    port = int(testbed["TIDEGATE_URL_PORT"])

    def status() -> Any:
        return kubectl.json("get", "modeldeployments.tidegate.dev", "sticky", "-n", namespace).get("status", {})

    def weights() -> list[int]:
        return sorted(version.get("weight", 0) for version in status().get("versions", []))

    kubectl("create", "namespace", namespace)
    try:
        kubectl.apply(deployment(image, "v1"), namespace=namespace)
        wait_for(lambda: weights() == [100], 120, "v1 serves")
        kubectl.apply(deployment(image, "v2"), namespace=namespace)
        wait_for(lambda: weights() == [30, 70], 120, "v2 has its share")
        now = status()
        ids = {version["name"]: version["id"] for version in now["versions"]}
        seen: Counter[str] = Counter()
        for number in range(60):
            user = f"user-{number}"
            chosen = choose(now, user)
            assert chosen.url
            assert chosen.headers
            assert ask(port, chosen.url, {}) == chosen.version, "by the version's own URL"
            assert ask(port, now["url"], dict(chosen.headers)) == chosen.version, "by the header"
            seen[chosen.version] += 1
        assert seen.keys() == set(ids.values()), "both have users among sixty"
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
