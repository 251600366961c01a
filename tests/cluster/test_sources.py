"""What users have sent is what is counted: the real gateway, while its routes and its pods change."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from live import Kubectl, wait_for
from tidegate.adapters.api import connected
from tidegate.adapters.sources.gateway import Gateway, Where
from tidegate.adapters.sources.prometheus import Prometheus, PrometheusCounts, Server
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.runtime.queue import Key

pytestmark = pytest.mark.cluster

NAME = "counted"
GATEWAY = ("deployment", "3scale-kourier-gateway", "-n", "kourier-system")
PODS = ("pods", "-n", "kourier-system", "-l", "app=3scale-kourier-gateway")


def configuration(name: str, image: str, **environment: str) -> dict[str, Any]:
    env = [{"name": key, "value": value} for key, value in {"VERSION": name, **environment}.items()]
    container = {"name": "user-container", "image": image, "env": env}
    template = {
        "metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1"}},
        "spec": {"timeoutSeconds": 2, "responseStartTimeoutSeconds": 1, "containers": [container]},
    }
    kind = {"apiVersion": "serving.knative.dev/v1", "kind": "Configuration"}
    return {**kind, "metadata": {"name": name}, "spec": {"template": template}}


@dataclass
class Users:
    """Whoever sends requests, one after another, and knows what came of them."""

    host: str
    port: int
    total: Counter[str] = field(default_factory=Counter)
    """Answers by version, and failures by the version whose tag was asked."""
    failed: Counter[str] = field(default_factory=Counter)

    def send(self, count: int) -> None:
        """Good answers say which version gave them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for _ in range(count):
            connection.request("POST", f"/v2/models/{NAME}/infer", "{}", {"Host": self.host})
            answer = connection.getresponse()
            told = json.loads(answer.read())
            assert answer.status == 200, told
            self.total[told["model_version"]] += 1
        connection.close()

    def provoke(self, version: str, expected: int) -> None:
        """One request to a version that fails it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Host": self.host, "Knative-Serving-Tag": version}
        connection.request("POST", f"/v2/models/{NAME}/infer", "{}", headers)
        status = connection.getresponse().status
        connection.close()
        assert status == expected
        self.total[version] += 1
        self.failed[version] += 1


@dataclass
class Served:
    """A Route over Revisions, as an operator would have it."""

    kubectl: Kubectl
    namespace: str
    users: Users

    def split(self, **weights: int) -> None:
        """Asks for that split; returns at once."""
        traffic = [
            {"revisionName": f"{version}-00001", "percent": weight, "tag": version}
            for version, weight in weights.items()
        ]
        kind = {"apiVersion": "serving.knative.dev/v1", "kind": "Route"}
        route = {**kind, "metadata": {"name": NAME}, "spec": {"traffic": traffic}}
        self.kubectl.apply(route, namespace=self.namespace)

    def wait(self) -> None:
        """Until the Route is in force."""

        def ready() -> bool:
            route = self.kubectl.json("get", "routes.serving.knative.dev", NAME, "-n", self.namespace)
            status = route.get("status", {})
            assert status.get("observedGeneration") == route["metadata"]["generation"]
            conditions = status["conditions"]
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        wait_for(ready, 60, "the Route is ready")

    def ask(self, *versions: str) -> Ask:
        return Ask(self.namespace, NAME, {version: f"{version}-00001" for version in versions})


@pytest.fixture(scope="module")
def served(kubectl: Kubectl, namespace: str, testbed: dict[str, str]) -> Served:
    image = testbed["TIDEGATE_IMAGE_FAULTY"]
    broken = configuration("broken", image, ERROR_RATE="1")
    crashing = configuration("crashing", image, CRASH_AFTER_REQUESTS="1")
    slow = configuration("slow", image, SLOW_RATE="1", SLOW_MS="8000")
    kubectl.apply(configuration("v1", image), configuration("v2", image), broken, crashing, slow, namespace=namespace)

    def ready() -> bool:
        found = kubectl.json("get", "revisions.serving.knative.dev", "-n", namespace)["items"]
        conditions = [c for r in found for c in r.get("status", {}).get("conditions", ())]
        return [c["status"] for c in conditions if c["type"] == "Ready"] == ["True"] * 5

    wait_for(ready, 180, "all five Revisions are ready")
    made = Served(kubectl, namespace, Users(f"{NAME}.{namespace}.localhost", int(testbed["TIDEGATE_URL_PORT"])))
    made.split(v1=90, v2=10)
    made.wait()
    return made


Look = Callable[[Ask], Awaitable[Reading[Requests]]]


@pytest.fixture
async def looks(testbed: dict[str, str]) -> AsyncIterator[dict[str, Look]]:
    """Looks at each source, once all that was sent before has had the time to get there."""
    async with connected(testbed["KUBECONFIG"]) as api, aiohttp.ClientSession() as session:
        server = Server(testbed["PROMETHEUS_URL"], scrape_interval=5)
        prometheus = PrometheusCounts(api, Prometheus(session, server), server)
        gateway = Gateway(api, session, Where(), direct=False)
        key = Key("", NAME)

        async def at_once(ask: Ask) -> Reading[Requests]:
            return (await gateway.read({key: ask}))[key]

        async def once_scraped(ask: Ask) -> Reading[Requests]:
            begun, end = time.time(), time.monotonic() + 30
            while True:
                found = (await prometheus.read({key: ask}))[key]
                # the mean of two pods' scrapes, 5 s apart at most, so that both are new
                if found.trouble or found.t > begun + 2.5 or time.monotonic() > end:
                    return found
                await asyncio.sleep(0.25)

        yield {"gateway": at_once, "prometheus": once_scraped}


@pytest.fixture(params=["gateway", "prometheus"])
def look(request: pytest.FixtureRequest, looks: dict[str, Look]) -> Look:
    return looks[request.param]


async def whole(look: Look, ask: Ask) -> Reading[Requests]:
    """The first reading without a trouble."""
    end = time.monotonic() + 60
    while (found := await look(ask)).trouble:
        assert time.monotonic() < end, found.trouble
        await asyncio.sleep(0.25)
    return found


def counted(new: dict[str, Requests]) -> dict[str, tuple[int, int]]:
    return {version: (counts.requests, counts.errors) for version, counts in new.items() if counts.requests}


async def test_every_request_is_in_one_window_and_no_probe_in_any(served: Served, look: Look) -> None:
    ask, users = served.ask("v1", "v2"), served.users
    first = before = await whole(look, ask)
    started = known = users.total.copy()
    clean = dropped = 0
    for weight in (20, 50, 10):
        served.split(v1=100 - weight, v2=weight)  # not waited for: requests go on while it comes into force
        windows: list[str] = []
        end = time.monotonic() + 90
        while windows[-2:] != ["clean", "clean"] or "dropped" not in windows:
            assert time.monotonic() < end, windows
            users.send(7)
            after = await look(ask)
            if after.trouble:
                continue
            new, sent = after.since(before), users.total - known
            if new is None:
                dropped += sent.total()
            else:
                assert counted(new) == {version: (n, 0) for version, n in sent.items()}
                clean += sent.total()
            windows.append("dropped" if new is None else "clean")
            before, known = after, users.total.copy()
        served.wait()
    assert clean + dropped == (users.total - started).total()
    in_all = sum(before.versions[v].requests - first.versions[v].requests for v in ("v1", "v2"))
    assert in_all > clean + dropped, "probes are among the counters, and in no window"


async def test_failures_count_once_whoever_made_them(served: Served, look: Look) -> None:
    served.split(v1=100, v2=0, broken=0, crashing=0, slow=0)
    served.wait()
    ask, users = served.ask("v1", "broken", "crashing", "slow"), served.users
    before, known = await whole(look, ask), users.total.copy()
    users.provoke("broken", 500)
    users.provoke("broken", 500)
    users.provoke("crashing", 502)
    users.provoke("slow", 504)
    users.send(3)
    new = (await whole(look, ask)).since(before)
    assert new is not None
    assert counted(new) == {"v1": (3, 0), "broken": (2, 2), "crashing": (1, 1), "slow": (1, 1)}
    assert (users.total - known).total() == 7


async def test_times_are_those_of_users_alone(served: Served, look: Look) -> None:
    ask, users = served.ask("v1", "v2"), served.users
    served.split(v1=60, v2=40)
    served.wait()
    known = users.total.copy()

    async def timed() -> Reading[Requests]:
        end = time.monotonic() + 60
        while not (found := await whole(look, ask)).versions["v1"].latency:
            assert time.monotonic() < end
            await asyncio.sleep(0.25)
        return found

    before = await timed()
    users.send(40)
    end = time.monotonic() + 30
    while True:
        new = (await whole(look, ask)).since(before)
        assert new is not None
        got = {version: max(counts.latency.values(), default=0) for version, counts in new.items()}
        if sum(got.values()) >= 40 or time.monotonic() > end:
            break
        await asyncio.sleep(0.25)
    assert got == dict(users.total - known)
    for version, counts in new.items():
        edges = sorted(counts.latency)
        rising = [counts.latency[edge] for edge in edges]
        assert rising == sorted(rising), version
        assert counts.latency[0.5] < counts.latency[edges[-1]], "nothing answers within half a millisecond"


@contextmanager
def scaled(kubectl: Kubectl, replicas: int) -> Iterator[None]:
    """As many gateway pods meanwhile; as many as before afterwards."""
    before = kubectl.json("get", *GATEWAY)["spec"]["replicas"]
    try:
        kubectl("scale", *GATEWAY, f"--replicas={replicas}")
        settle(kubectl, replicas)
        yield
    finally:
        kubectl("scale", *GATEWAY, f"--replicas={before}")
        settle(kubectl, before)


def settle(kubectl: Kubectl, replicas: int) -> None:
    """Until there are so many, all ready, and Prometheus scrapes exactly them."""

    def so() -> bool:
        pods = kubectl.json("get", *PODS)["items"]
        ready = [any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"]["conditions"]) for p in pods]
        assert ready == [True] * replicas
        query = urllib.parse.urlencode({"query": 'up{app="3scale-kourier-gateway"}'})
        with urllib.request.urlopen(f"{kubectl.env['PROMETHEUS_URL']}/api/v1/query?{query}") as answer:  # noqa: S310
            found = json.load(answer)["data"]["result"]
        names = {pod["metadata"]["name"] for pod in pods}
        return {each["metric"]["pod"] for each in found if each["value"][1] == "1"} == names and len(found) == replicas

    wait_for(so, 120, f"there are {replicas} gateway pods, all ready and scraped")


async def test_pods_of_the_gateway_come_restart_and_go(
    served: Served, looks: dict[str, Look], kubectl: Kubectl
) -> None:
    ask, users = served.ask("v1", "v2"), served.users

    async def now() -> dict[str, Reading[Requests]]:
        return {name: await whole(look, ask) for name, look in looks.items()}

    async def exact(before: dict[str, Reading[Requests]]) -> dict[str, Reading[Requests]]:
        """A window of 30 requests, from whole readings on; the readings at its end."""
        known = users.total.copy()
        users.send(30)
        after = await now()
        for name, reading in after.items():
            new = reading.since(before[name])
            assert new is not None, name
            assert counted(new) == {version: (n, 0) for version, n in (users.total - known).items()}, name
        return after

    async def others(before: dict[str, Reading[Requests]]) -> dict[str, Reading[Requests]]:
        """Readings of other counters than before."""
        after = await now()
        assert [name for name, reading in after.items() if reading.since(before[name])] == []
        return after

    alone = await exact(await now())
    with scaled(kubectl, 2):
        both = await exact(await exact(await others(alone)))  # connections spread over the two
        leaving = kubectl.json("get", *PODS)["items"][0]["metadata"]["name"]
        kubectl("delete", "pod", leaving, "-n", "kourier-system", "--wait=true")
        settle(kubectl, 2)
        again = await exact(await others(both))
    await exact(await others(again))


def test_the_operator_may_do_what_this_takes(kubectl: Kubectl, namespace: str) -> None:
    def may(verb: str, what: str, where: str) -> bool:
        account = "--as=system:serviceaccount:tidegate-system:tidegate"
        answer = kubectl("auth", "can-i", "--list", account, "-n", where)
        rows = [row for row in answer.splitlines() if row.startswith(f"{what} ")]
        return any(verb in row.rpartition("[")[2] for row in rows)

    assert may("list", "ingresses.networking.internal.knative.dev", namespace)
    assert may("list", "pods", "kourier-system")
    assert not may("get", "pods/proxy", "kourier-system")
