"""Rollouts by evidence on the real gateway: what is good is promoted, what is bad taken back, nothing is guessed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import FAST, Model
from live import Kubectl, wait_for
from tidegate.replay.ledger import parse, replay

pytestmark = pytest.mark.e2e

WIDE = [{"name": "errors", "errors": {"maxRatio": 1.5, "maxIncrease": "5%"}}]
"""A wide margin: what has to be proven takes a tenth of the usual requests."""
OPERATORS = ("pods", "-n", "tidegate-system", "-l", "app.kubernetes.io/component=operator")


def rollout(model: Model) -> Any:
    return model.status.get("rollout", {})


def served(model: Model, faulty: Any, **more: Any) -> None:
    model.apply(model=faulty("v1"), scaling=FAST, rollout=more)
    model.wait("Ready", "True/Serving")


def test_healthy_version_is_promoted_by_evidence_alone(model: Model, faulty: Any) -> None:
    served(model, faulty, guardrails=WIDE)
    with model.load(threads=2, pause=0.03) as load:
        model.apply(model=faulty("v2"), scaling=FAST, rollout={"guardrails": WIDE})
        wait_for(lambda: rollout(model).get("verdict") == "Healthy", 240, "the rollout gets there")
        told = model.status["rollout"]["guardrails"][0]
        assert told["candidate"]["count"] > 20
        assert told["healthy"] >= told["healthyAt"]
        model.wait("Ready", "True/Serving", 240)
    assert not load.failed, load.failed[:3]
    assert model.weights() == {"v2": 100}


@pytest.mark.parametrize("killed", [False, True], ids=["", "operator killed"])
def test_failing_version_is_rolled_back_within_seconds(
    model: Model, faulty: Any, kubectl: Kubectl, killed: bool
) -> None:
    served(model, faulty)
    with model.load(threads=1, pause=0.045) as load:
        model.apply(model=faulty("v2", ERROR_RATE="0.2"), scaling=FAST, rollout={})
        wait_for(lambda: model.weights().get("v2"), 120, "v2 gets requests")
        assert 8 <= model.weights()["v2"] <= 10, "the usual budget allows 10% of 25 requests/s"
        candidate = model.revision_of("v2")
        if killed:
            wait_for(lambda: len(load.failed) >= 3, 120, "v2 fails three requests")
            kubectl("delete", *OPERATORS, "--grace-period=0", "--force", "--wait=false")
        twelfth: list[float] = []

        def back() -> bool:
            if len(load.failed) >= 12 and not twelfth:
                twelfth.append(time.monotonic())
            return model.weights() == {"v1": 100}

        wait_for(back, 240, "all requests go to v1")
        took = time.monotonic() - twelfth[0] if twelfth else 0.0
        quiet = model.envoy_requests(candidate)
        before = load.sent
        wait_for(lambda: load.sent > before + 50, 60, "more requests are sent")
        assert model.envoy_requests(candidate) == quiet, "Envoy sends it nothing more"
    assert took <= 20, f"{took:.0f} s after its first 12 errors"
    status = model.status
    assert (status["verdict"], status["rejected"]["reason"]) == ("Degraded", "Degraded")
    assert "responses failed, stable 0 of" in status["rejected"]["message"]
    assert 3 <= len(load.failed) < 60, "few bad responses were served"
    model.wait("Ready", "False/Degraded")
    events = kubectl("get", "events", "-n", model.namespace, "--field-selector", f"involvedObject.name={model.name}")
    assert "Degraded" in events

    # the ledger gives the same again; without its volume it goes with the pod, and what is left begins in the middle
    (chain,) = parse(model.cli("ledger").encode().splitlines(), "ledger").rollouts
    outcome = replay(chain)
    assert chain.whole is not killed
    assert (outcome.differs, outcome.replayed) == ("", len(chain.lines))
    assert outcome.found.verdict == chain.lines[-1]["decision"]["reason"] == "Degraded"
    assert chain.lines[-1]["decision"]["message"] == status["rejected"]["message"]


def test_slow_tail_is_rolled_back(model: Model, faulty: Any) -> None:
    tail = [*WIDE, {"name": "tail", "latency": {"slowerThan": "250ms", "maxIncrease": "5%"}}]
    served(model, faulty, guardrails=tail)
    with model.load(threads=4, pause=0.02) as load:
        slow = faulty("v2", SLOW_RATE="0.5", SLOW_MS="400")
        model.apply(model=slow, scaling=FAST, rollout={"guardrails": tail})
        model.wait("Ready", "False/Degraded", 300)
    assert not load.failed, load.failed[:3]
    assert "tail: " in model.status["rejected"]["message"]
    assert "slower than 250" in model.status["rejected"]["message"]


def test_without_requests_nothing_is_decided_until_they_come(model: Model, faulty: Any) -> None:
    served(model, faulty)
    model.apply(model=faulty("v2", ERROR_RATE="0.5"), scaling=FAST, rollout={})
    wait_for(lambda: model.condition("Progressing") == "True/Judging", 120, "the rollout gets there")
    assert model.status["rollout"]["verdict"] == "Undecided"
    assert model.status["rollout"]["guardrails"][0]["why"]
    assert model.status["stable"].startswith("v1-")
    with model.load(threads=2, pause=0.03):
        model.wait("Ready", "False/Degraded", 240)


@contextmanager
def without_leave(kubectl: Kubectl, resource: str) -> Iterator[None]:
    """The operator may not look at a resource meanwhile."""
    role = kubectl.json("get", "clusterrole", "tidegate")
    rules = [rule for rule in role["rules"] if resource not in rule["resources"]]
    assert rules != role["rules"]
    patch = json.dumps({"rules": rules})
    kubectl("patch", "clusterrole", "tidegate", "--type=merge", "-p", patch)
    try:
        yield
    finally:
        kubectl("patch", "clusterrole", "tidegate", "--type=merge", "-p", json.dumps({"rules": role["rules"]}))


def test_source_that_is_down_holds_and_decides_nothing(model: Model, faulty: Any, kubectl: Kubectl) -> None:
    served(model, faulty)
    with model.load(threads=2, pause=0.03):
        model.apply(model=faulty("v2", ERROR_RATE="0.3"), scaling=FAST, rollout={})
        with without_leave(kubectl, "ingresses"):
            wait_for(lambda: "cannot be read" in rollout(model).get("doubt", ""), 120, "the rollout is in doubt")
            model.wait("Progressing", "False/NoCounts", 30)
            assert model.status["stable"].startswith("v1-")
        model.wait("Ready", "False/Degraded", 240)


def test_query_of_ones_own_takes_a_version_back(model: Model, faulty: Any) -> None:
    def guarded(promql: str) -> dict[str, Any]:
        return {"guardrails": [*WIDE, {"name": "drift", "query": {"promql": promql, "max": 1, "for": "10s"}}]}

    served(model, faulty)
    with model.load(threads=2, pause=0.03):
        model.apply(model=faulty("v2"), scaling=FAST, rollout=guarded("vector(2)"))
        model.wait("Ready", "False/Degraded", 120)
    assert "drift: 2 should be at most 1" in model.status["rejected"]["message"]


def test_a_bad_query_says_what_is_wrong(model: Model, faulty: Any) -> None:
    served(model, faulty)
    drift = {"name": "drift", "query": {"promql": "sum(", "max": 1, "for": "10s"}}
    model.apply(model=faulty("v2"), scaling=FAST, rollout={"guardrails": [*WIDE, drift]})
    wait_for(
        lambda: any(g["name"] == "drift" and g.get("why") for g in rollout(model).get("guardrails", [])),
        120,
        "the guardrail says why",
    )
    (told,) = (g["why"] for g in rollout(model)["guardrails"] if g["name"] == "drift")
    assert "Prometheus refuses the query" in told
    assert model.status["rollout"]["verdict"] == "Undecided"
