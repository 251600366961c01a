"""Several versions side by side, on the testbed: A/B/n tests and bandits by the rewards that users report."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import BODY, FAST, Model
from live import Kubectl, api_proxy, wait_for

pytestmark = pytest.mark.e2e

WIDE = [{"name": "errors", "errors": {"maxRatio": 1.5, "maxIncrease": "5%"}}]
"""A wide margin: what has to be proven takes a tenth of the usual requests."""
OPERATORS = ("pods", "-n", "tidegate-system", "-l", "app.kubernetes.io/component=operator")
LIKED = {"v1": 0.5, "v2": 0.85, "v3": 0.2}
"""How often users like the answer of each version."""
BATCH = 25
"""Rewards that a user sends at a time, after the fact."""


class Users:
    """People who ask, and say later whether they liked the answer."""

    def __init__(self, model: Model, feedback: int, liked: Mapping[str, float], threads: int, pause: float) -> None:
        self._model, self._feedback, self._liked, self._pause = model, feedback, liked, pause
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.answers: Counter[str] = Counter()
        """Good answers by version name."""
        self.failed: Counter[str] = Counter()
        """Failures by version name, '' where none was told."""
        self._threads = [threading.Thread(target=self._live, args=(n,), daemon=True) for n in range(threads)]

    def _live(self, seed: int) -> None:
        chance, items = random.Random(seed), []
        connection = http.client.HTTPConnection("127.0.0.1", self._model.port, timeout=60)
        while not self._stop.is_set():
            connection.request("POST", f"/v2/models/{self._model.name}/infer", BODY, {"Host": self._model.host})
            answer = connection.getresponse()
            answer.read()
            version = answer.getheader("Tidegate-Version", "")
            name = version.split("-")[0]
            with self._lock:
                (self.answers if answer.status == 200 else self.failed)[name] += 1
            if answer.status == 200 and version:
                reward = int(chance.random() < self._liked.get(name, 0.5))
                items.append({"deployment": self._model.name, "version": version, "reward": reward})
            if len(items) >= BATCH:
                self._report(items)
                items = []
            self._stop.wait(self._pause)
        connection.close()

    def _report(self, items: list[dict[str, Any]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._feedback, timeout=60)
        try:
            path = "/api/v1/namespaces/tidegate-system/services/tidegate-feedback:http/proxy/v1/feedback"
            batch = {"items": [{**item, "namespace": self._model.namespace} for item in items]}
            connection.request("POST", path, json.dumps(batch), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
        finally:
            connection.close()

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=70)


@pytest.fixture(scope="module")
def feedback(kubectl: Kubectl) -> Iterator[int]:
    """A port that leads to the API server, and by way of it to the testbed's feedback service."""
    with api_proxy(kubectl) as port:
        yield port


@contextmanager
def compared(model: Model, faulty: Any, feedback: int, **rollout: Any) -> Iterator[Users]:
    """v1 serving, then v2 (`deep`) and v3 (`wide`) beside it, with users meanwhile."""
    broken = rollout.pop("broken", {})
    model.apply(model=faulty("v1"), scaling=FAST)
    model.wait("Ready", "True/Serving")
    challengers = [{"name": "deep", "model": faulty("v2")}, {"name": "wide", "model": faulty("v3", **broken)}]
    model.apply(model=faulty("v1"), challengers=challengers, scaling=FAST, rollout={"guardrails": WIDE, **rollout})
    with Users(model, feedback, LIKED, threads=3, pause=0.03) as users:
        wait_for(lambda: arms(model).get("deep", {}).get("weight"), 120, "the challengers get requests")
        yield users


def arms(model: Model) -> dict[str, Any]:
    return {arm["name"]: arm for arm in model.status.get("experiment", {}).get("arms", [])}


def test_three_arms_with_rewards_and_the_right_one_wins_though_the_operator_is_killed(
    model: Model, faulty: Any, feedback: int, kubectl: Kubectl
) -> None:
    with compared(model, faulty, feedback, strategy="ABTest", promoteWinner=True) as users:
        model.wait_weights(v1=34, v2=33, v3=33)
        wait_for(lambda: arms(model)["wide"].get("goal", {}).get("count", 0) > 50, 120, "some rewards are counted")
        kubectl("delete", *OPERATORS, "--grace-period=0", "--force", "--wait=false")
        model.wait("Progressing", "False/WinnerServing", 300)
        wait_for(lambda: model.weights() == {"v2": 100}, 60, "the winner has all requests")
        model.wait("Ready", "True/Serving", 120)
        sent = users.answers["v2"]
        wait_for(lambda: users.answers["v2"] > sent + 50, 60, "it answers")
        wait_for(lambda: set(model.pods()) == {model.id_of("v2")}, 120, "the others are let go")
    status = model.status
    assert status["experiment"]["winner"] == "deep"
    assert arms(model)["wide"]["out"] == "Worse"
    assert arms(model)["control"]["worseThan"] == "deep"
    assert not users.failed
    told = model.cli("get")
    assert "Winner" in told
    assert "WinnerServing" in told


def test_bandit_gives_the_best_arm_most_requests(model: Model, faulty: Any, feedback: int) -> None:
    bandit = {"every": "10s", "maxChange": 25, "floor": 5, "halfLife": "1h"}
    with compared(model, faulty, feedback, strategy="Bandit", bandit=bandit) as users:
        wait_for(lambda: model.weights().get("v2", 0) >= 80, 240, "the best version has most requests")
        before = Counter(users.answers)
        wait_for(lambda: sum(users.answers.values()) > sum(before.values()) + 300, 60, "more requests are sent")
        since = users.answers - before
        assert since["v2"] / sum(since.values()) > 0.65, since
        found = arms(model)
        assert [arm["weight"] for arm in found.values() if arm["name"] != "deep"] >= [5, 5]
        assert found["deep"]["best"] > 0.9
        model.wait("Progressing", "True", 60)
    assert not users.failed


def test_failing_challenger_is_stopped_and_the_others_go_on(model: Model, faulty: Any, feedback: int) -> None:
    broken = {"ERROR_RATE": "0.3"}
    with compared(model, faulty, feedback, strategy="ABTest", goal="errors", broken=broken) as users:
        wait_for(lambda: arms(model)["wide"].get("out"), 120, "the failing challenger is out")
        wait_for(lambda: set(model.weights()) == {"v1", "v2"}, 60, "it gets no more requests")
        assert sum(model.weights().values()) == 100
    assert arms(model)["wide"]["out"] == "Degraded"
    assert "responses failed, stable 0 of" in arms(model)["wide"]["why"]
    assert set(users.failed) == {"v3"}
    assert 3 <= users.failed["v3"] < 300, "it had a third of the requests for about twenty seconds"
    assert model.status["stable"].startswith("v1-")
