"""Rollouts under load on the real cluster: Knative, Kourier's Envoy, and the operator in its pod."""

from __future__ import annotations

import pytest

from conftest import FAST
from live import wait_for

pytestmark = pytest.mark.e2e

IMMEDIATE = {"strategy": "Immediate"}


def quick(*weights: int) -> dict:
    return {"guardrails": [], "steps": [{"weight": weight, "pause": {"for": "3s"}} for weight in weights]}


def test_ten_changes_of_version_fail_no_request(model, faulty) -> None:
    model.apply(model=faulty("v0"), scaling=FAST | {"min": 1}, rollout=IMMEDIATE)
    model.wait("Ready", "True")
    rollouts = [quick(20, 60), IMMEDIATE, {"strategy": "BlueGreen", "steps": [{"weight": 100, "pause": {"for": "3s"}}]}]
    with model.load(pause=0.002) as load:
        for n in range(1, 11):
            model.apply(model=faulty(f"v{n}"), scaling=FAST | {"min": 1}, rollout=rollouts[n % 3])
            model.wait("Ready", "True/Serving", 180)
        wait_for(lambda: load.sent >= 5000, 120, "5000 requests")
    assert load.failed == []
    assert load.sent >= 5000
    print(
        f"\n{load.sent} requests during ten changes of version, {len(load.failed)} failed, slowest {load.slowest:.2f} s"
    )
    assert len(load.versions) == 11, "every version answered some"


def test_candidate_that_crashes_at_20_percent_is_at_zero_in_envoy(model, faulty) -> None:
    """The most important one: a candidate fails once it has traffic, and the stable version answers all."""
    rollout = {"guardrails": [], "steps": [{"weight": 20, "pause": {}}]}
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout=rollout)
    model.wait("Ready", "True")
    model.apply(model=faulty("v2", CRASH_AFTER_REQUESTS="20"), scaling=FAST | {"min": 1}, rollout=rollout)
    model.wait_weights(v1=80, v2=20)
    revision = model.revision_of("v2")
    with model.load() as load:
        model.wait("Ready", "False/CandidateFailed", 60)
        model.wait_weights(v1=100)
    wait_for(
        lambda: model.kubectl.json("get", "kingress", model.name, "-n", model.namespace)["status"], 5, "an ingress"
    )
    before = model.envoy_requests(revision)
    with model.load() as after:
        wait_for(lambda: after.sent >= 500, 60, "500 requests")
    assert after.failed == []
    assert set(after.versions) == {model.id_of("v1")}
    assert model.envoy_requests(revision) == before, "Envoy sends it nothing"
    print(f"\n{len(load.failed)} of {load.sent} requests failed until the candidate was at zero")
    assert "rolled back at weight 20%" in model.get()["status"]["rejected"]["message"]
    wait_for(lambda: set(model.pods()) == {model.id_of("v1")}, 90, "no pod of the candidate")
    model.apply(model=faulty("v3"), scaling=FAST | {"min": 1}, rollout=IMMEDIATE)
    model.wait("Ready", "True/Serving")


def test_candidate_that_never_starts_harms_nobody(model, faulty) -> None:
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout=quick(50))
    model.wait("Ready", "True")
    with model.load() as load:
        model.apply(model=faulty("v2", CRASH_ON_START="1"), scaling=FAST | {"min": 1}, rollout=quick(50))
        model.wait("VersionsReady", "False/VersionFailed", 120)
        assert model.condition("Servable") == "True/RouteReady"
        model.apply(model=faulty("v3"), scaling=FAST | {"min": 1}, rollout=quick(50))
        model.wait("Ready", "True/Serving")
    assert load.failed == []
    assert {i.split("-")[0] for i in load.versions} == {"v1", "v3"}


def test_steps_pauses_and_everything_one_can_ask_for(model, faulty) -> None:
    rollout = {"guardrails": [], "steps": [{"weight": 10, "pause": {}}, {"weight": 50, "pause": {}}]}
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout=rollout)
    model.wait("Ready", "True")
    assert "no rollout" in model.cli("promote", code=1)
    assert "no earlier version is kept" in model.cli("undo", code=1)

    model.apply(model=faulty("v2"), scaling=FAST | {"min": 1}, rollout=rollout)
    model.wait("Progressing", "False/AwaitingApproval")
    model.wait_weights(v1=90, v2=10)
    status, version, _ = model.ask(headers={"Knative-Serving-Tag": "v2"})
    assert (status, version) == (200, model.id_of("v2")), "the tag reaches one version"
    model.cli("pause")
    model.cli("promote")
    model.wait("Progressing", "False/Paused")
    assert model.weights() == {"v1": 90, "v2": 10}
    model.cli("resume")
    model.wait_weights(v1=50, v2=50)
    model.wait("Progressing", "False/AwaitingApproval")
    with model.load() as load:
        wait_for(lambda: load.sent >= 1000, 60, "1000 requests")
    share = load.versions[model.id_of("v2")] / load.sent
    assert 0.4 < share < 0.6, "half is half"

    model.cli("abort")
    model.wait_weights(v1=100)
    model.wait("Ready", "False/Aborted")
    model.cli("retry")
    model.wait_weights(v1=90, v2=10)
    model.cli("promote", "--full")
    model.wait_weights(v2=100)
    model.wait("Ready", "True/Serving")

    model.cli("undo")
    model.wait_weights(v1=100)
    model.wait("Ready", "False/Undone")
    assert "v1" in model.cli("get")
    model.cli("retry")
    model.wait_weights(v2=100)
    model.wait("Ready", "True/Serving")
    assert "not kept" in model.cli("undo", "--to", "v9", code=1)


def test_version_without_traffic_keeps_no_pod_and_is_warm_before_an_undo(model, faulty) -> None:
    scaling = FAST | {"min": 2}
    model.apply(model=faulty("v1"), scaling=scaling, rollout=IMMEDIATE)
    model.wait("Ready", "True")
    wait_for(lambda: model.pods() == {model.id_of("v1"): 2}, 60, "two pods")
    model.apply(model=faulty("v2"), scaling=scaling, rollout=IMMEDIATE)
    model.wait("Ready", "True/Serving")
    wait_for(lambda: model.pods() == {model.id_of("v2"): 2}, 90, "pods of v2 only, though min is 2")
    with model.load() as load:
        model.cli("undo")
        model.wait_weights(v1=100)
        assert model.pods()[model.id_of("v1")] >= 2, "as many as the version before it had"
        model.wait("Ready", "False/Undone")
    assert load.failed == []
    wait_for(lambda: model.pods() == {model.id_of("v1"): 2}, 90, "pods of v1 only")


def test_scaling_alone_makes_no_version_and_moves_no_traffic(model, faulty) -> None:
    model.apply(model=faulty("v1"), scaling=FAST, rollout=IMMEDIATE)
    model.wait("Ready", "True")
    revision = model.revision_of("v1")
    with model.load() as load:
        changed = {"min": 2, "max": 3, "metric": "rps", "target": 200, "window": "7s", "idle": "9s"}
        model.apply(model=faulty("v1"), scaling=changed, rollout=IMMEDIATE)
        wait_for(lambda: model.pods() == {model.id_of("v1"): 2}, 60, "two pods")
        autoscaler = model.kubectl.json("get", "podautoscaler", revision, "-n", model.namespace)
    assert load.failed == []
    expected = {"min-scale": "2", "max-scale": "3", "metric": "rps", "target": "200", "window": "7s"}
    expected["scale-to-zero-pod-retention-period"] = "9s"
    found = autoscaler["metadata"]["annotations"]
    assert {key: found[f"autoscaling.knative.dev/{key}"] for key in expected} == expected
    revisions = model.kubectl.json(
        "get", "revisions", "-n", model.namespace, "-l", f"tidegate.dev/deployment={model.name}"
    )
    assert [r["metadata"]["name"] for r in revisions["items"]] == [revision]
    records = model.kubectl.json(
        "get", "modelversions.tidegate.dev", "-n", model.namespace, "-l", f"tidegate.dev/deployment={model.name}"
    )
    assert len(records["items"]) == 1


def test_operator_killed_in_a_rollout_loses_nothing(model, faulty) -> None:
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout=quick(10, 30, 60))
    model.wait("Ready", "True")
    with model.load() as load:
        model.apply(model=faulty("v2"), scaling=FAST | {"min": 1}, rollout=quick(10, 30, 60))
        wait_for(lambda: model.weights().get("v2"), 60, "v2 has traffic")
        model.kubectl(
            "delete",
            "pods",
            "-n",
            "tidegate-system",
            "-l",
            "app.kubernetes.io/name=tidegate",
            "--grace-period=0",
            "--force",
        )
        model.wait("Ready", "True/Serving", 180)
    assert load.failed == []
    assert model.weights() == {"v2": 100}
    events = model.kubectl.json(
        "get", "events", "-n", model.namespace, "--field-selector", f"involvedObject.name={model.name}"
    )
    reasons = [e["reason"] for e in events["items"]]
    assert reasons.count("RolloutStarted") == 1, "nothing is done twice"


def test_a_route_of_somebody_else_is_left_alone(model, faulty) -> None:
    theirs = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Route",
        "metadata": {"name": model.name},
        "spec": {"traffic": [{"configurationName": "absent", "latestRevision": True, "percent": 100}]},
    }
    model.kubectl.apply(theirs, namespace=model.namespace)
    before = model.kubectl.json("get", "route.serving.knative.dev", model.name, "-n", model.namespace)
    model.apply(model=faulty("v1"), scaling=FAST)
    model.wait("Ready", "False/NameTaken")
    after = model.kubectl.json("get", "route.serving.knative.dev", model.name, "-n", model.namespace)
    assert after["spec"] == before["spec"]
    assert after["metadata"].get("ownerReferences") is None
    model.kubectl("delete", "route.serving.knative.dev", model.name, "-n", model.namespace)
    model.wait("Ready", "True/Serving")


def test_deleting_it_in_a_rollout_takes_everything_along(model, faulty) -> None:
    rollout = {"guardrails": [], "steps": [{"weight": 10, "pause": {}}]}
    model.apply(model=faulty("v1"), scaling=FAST, rollout=rollout)
    model.wait("Ready", "True")
    model.apply(model=faulty("v2"), scaling=FAST, rollout=rollout)
    model.wait_weights(v1=90, v2=10)
    model.kubectl("delete", "modeldeployments.tidegate.dev", model.name, "-n", model.namespace)
    kinds = "modelversions,routes.serving.knative.dev,configurations.serving.knative.dev,revisions.serving.knative.dev"
    label = f"tidegate.dev/deployment={model.name}"
    wait_for(
        lambda: not model.kubectl.json("get", kinds, "-n", model.namespace, "-l", label)["items"], 60, "nothing is left"
    )
