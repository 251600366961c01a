"""Histories of one ModelDeployment, from apply to traffic. Each name says what must be true."""

from __future__ import annotations

import contextlib
import copy
from datetime import timedelta

import pytest

from tidegate.core.observed import Platform
from tidegate.runtime.queue import Key
from tidegate.runtime.write import Refused
from world import NAMESPACE, World, container, crashed, drive, files

FAST = {"guardrails": [], "steps": [{"weight": 20, "pause": {"for": "30s"}}, {"weight": 60, "pause": {"for": "30s"}}]}


def settled(spec: dict | None = None) -> World:
    """A world with v1 serving."""
    world = World()
    world.submit(spec or container("v1", rollout=FAST))
    world.run(30)
    assert list(world.weights().values()) == [100]
    return world


@pytest.mark.parametrize("spec", [container, files])
def test_first_version_is_served_once_it_is_ready(spec) -> None:
    world = World(slow={"v1"})
    world.submit(spec("v1"))
    world.run(30)
    assert world.weights() == {}
    assert world.reason("Servable") == "False/NoVersion"
    assert world.reason("VersionsReady") == "Unknown/VersionStarting"
    world.slow.clear()
    world.run(30)
    assert world.weights() == {"v1": 100}
    assert world.reason("Ready") == "True/Serving"
    assert world.status.url == "http://churn.default.localhost"
    assert world.status.observed_generation == world.deployment["metadata"]["generation"]


def test_unlooked_at_version_has_no_replica_floor() -> None:
    world = settled()
    (revision,) = world.of("Revision").values()
    assert revision["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] == "0"


@pytest.mark.parametrize("spec", [container, files])
def test_progressive_rollout_goes_by_its_steps_and_keeps_the_old_version(spec) -> None:
    world = settled(spec("v1", rollout=FAST))
    world.submit(spec("v2", rollout=FAST))
    world.run(300)
    assert world.history == [
        {"v1": 100},
        {"v1": 100},
        {"v1": 80, "v2": 20},
        {"v1": 40, "v2": 60},
        {"v2": 100},
        {"v2": 100},
    ]
    assert world.status.stable
    assert world.status.stable.startswith("v2-")
    assert [k.split("-")[0] for k in world.status.kept] == ["v1"]
    assert world.pods() == {"v2": 1}
    assert world.reason("Progressing") == "False/AtRest"
    roles = {r["spec"]["template"]["model"]["version"]: r["status"]["role"] for r in world.of("ModelVersion").values()}
    assert roles == {"v1": "Kept", "v2": "Stable"}


def test_immediate_moves_everything_once_warm() -> None:
    rollout = {"strategy": "Immediate"}
    world = settled(container("v1", rollout=rollout))
    world.submit(container("v2", rollout=rollout))
    world.run(200)
    assert world.history == [{"v1": 100}, {"v1": 100}, {"v2": 100}, {"v2": 100}]


def test_blue_green_has_the_stable_versions_replicas_before_it_moves() -> None:
    spec = {"scaling": {"min": 3, "max": 5}, "rollout": {"strategy": "BlueGreen"}}
    world = settled(container("v1", **spec))
    world.run(30)
    assert world.pods() == {"v1": 3}
    world.submit(container("v2", **spec))
    operator = world.operator()
    while world.weights() != {"v2": 100}:
        world.step(operator)
        assert world.pods().get("v1") == 3
    assert world.pods() == {"v1": 3, "v2": 3}, "the old version stays warm"
    assert world.status.stable.startswith("v1-"), "and stable, until the pause is over"
    world.run(400, operator)
    assert world.pods() == {"v2": 3}
    assert world.status.stable.startswith("v2-")


def test_stable_keeps_its_replicas_until_promotion() -> None:
    spec = {"scaling": {"min": 2}, "rollout": FAST}
    world = settled(container("v1", **spec))
    world.run(10)
    world.submit(container("v2", **(spec | {"scaling": {"min": 0}})))
    operator = world.operator()
    while world.status.rollout is None or world.status.rollout.step < 2:
        world.step(operator)
    assert world.pods()["v1"] == 2, "though the spec now asks for none"
    world.run(300, operator)
    assert world.pods() == {"v2": 1}


def test_candidate_waits_for_its_initial_scale() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST, scaling={"initial": 3}))
    operator = world.operator()
    for _ in range(20):
        world.step(operator)
        if world.weights().get("v2"):
            break
    assert world.pods()["v2"] >= 3


def test_timed_pause_is_counted_from_when_the_weight_is_in_force() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.operator()
    while world.weights().get("v2") != 20:
        world.step(operator)
    world.step(operator)
    since = world.status.rollout.since
    assert since
    world.step(operator, 29 - (world.now - since).seconds)
    assert world.status.rollout.step == 1
    world.step(operator, 1)
    assert world.status.rollout.step == 2


APPROVAL = {"guardrails": [], "steps": [{"weight": 10, "pause": {}}, {"weight": 50, "pause": {}}]}


def test_pause_without_time_waits_for_approval_of_that_very_step() -> None:
    world = settled()
    world.submit(container("v2", rollout=APPROVAL))
    operator = world.run(600)
    assert world.weights() == {"v1": 90, "v2": 10}
    assert world.reason("Progressing") == "False/AwaitingApproval"
    candidate = world.status.candidate
    world.request(f"approve {candidate}/2 #too early")
    world.run(10, operator)
    assert not world.status.request.accepted
    world.request(f"approve {candidate}/1 #1")
    world.run(60, operator)
    assert world.weights() == {"v1": 50, "v2": 50}
    world.run(600, operator)
    assert world.weights() == {"v1": 50, "v2": 50}, "one approval is for one pause"
    world.request("approve v2 #2")
    world.run(200, operator)
    assert world.weights() == {"v2": 100}


def test_promote_skips_what_is_left() -> None:
    world = settled()
    world.submit(container("v2", rollout=APPROVAL))
    operator = world.run(60)
    world.request("promote #now")
    world.run(20, operator)
    assert world.weights() == {"v2": 100}
    assert world.status.stable.startswith("v1-"), "which is warm until v2 has carried everything for a window"
    world.run(60, operator)
    assert world.status.stable.startswith("v2-")


def test_paused_holds_and_resumes() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST | {"paused": True}))
    operator = world.run(300)
    assert world.weights() == {"v1": 100}
    assert world.reason("Progressing") == "False/Paused"
    world.submit(container("v2", rollout=FAST))
    world.run(30, operator)
    assert world.weights()["v2"] == 20
    world.submit(container("v2", rollout=FAST | {"paused": True}))
    world.run(300, operator)
    assert world.weights()["v2"] == 20
    assert len(world.of("ModelVersion")) == 2, "pausing makes no version"


def test_failing_candidate_is_taken_out_and_not_tried_again() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.operator()
    while world.weights().get("v2") != 20:
        world.step(operator)
    world.failing.add("v2")
    world.step(operator)
    world.react()
    assert world.weights() == {"v1": 100}
    assert world.reason("Ready") == "False/CandidateFailed"
    world.failing.clear()
    world.run(600, operator)
    assert world.weights() == {"v1": 100}
    assert "v2" not in world.pods()
    assert [r["status"]["role"] for r in world.of("ModelVersion").values()] == ["Stable", "Rejected"]
    assert len(world.of("Configuration")) == 1, "its workload is gone, its record is not"
    world.request("retry #1")
    world.run(300, operator)
    assert world.weights() == {"v2": 100}


def test_candidate_that_never_becomes_ready_harms_nobody_and_recovers() -> None:
    world = settled()
    world.failing.add("v2")
    world.submit(container("v2", rollout=FAST))
    operator = world.run(300)
    assert world.weights() == {"v1": 100}
    assert world.reason("Progressing") == "False/CandidateNotReady"
    assert world.reason("Servable") == "True/RouteReady"
    assert all(len(o["spec"]["traffic"]) == 1 for o in world.of("Route").values()), "an unready target freezes a Route"
    world.failing.clear()
    world.run(300, operator)
    assert world.weights() == {"v2": 100}


def test_abort_and_a_new_spec() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.run(30)
    world.request(f"abort {world.status.candidate} #1")
    world.run(60, operator)
    assert world.weights() == {"v1": 100}
    assert world.reason("Ready") == "False/Aborted"
    world.submit(container("v3", rollout=FAST))
    world.run(300, operator)
    assert world.weights() == {"v3": 100}


def test_a_request_is_acted_on_once_and_only_for_the_version_it_means() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.run(30)
    stale = f"abort {world.status.candidate} #1"
    world.submit(container("v3", rollout=FAST))
    world.run(30, operator)
    world.request(stale)
    world.run(10, operator)
    assert not world.status.request.accepted
    assert "v3-" in world.status.request.message
    world.run(300, operator)
    assert world.weights() == {"v3": 100}


@pytest.mark.parametrize("value", ["frobnicate", "abort", "approve v9/1", "undo v9", "promote nonsense!", "retry"])
def test_requests_that_cannot_be_done_are_refused_with_a_reason(value: str) -> None:
    world = settled()
    world.request(value)
    world.run(10)
    assert world.status.request.value == value
    assert not world.status.request.accepted
    assert len(world.status.request.message) > 10
    assert world.weights() == {"v1": 100}


def promoted(*versions: str, **more) -> World:
    world = settled(container(versions[0], **more))
    operator = world.operator()
    for version in versions[1:]:
        world.submit(container(version, **more))
        world.run(300, operator)
    assert world.weights() == {versions[-1]: 100}
    return world


def test_undo_warms_the_earlier_version_and_says_that_spec_and_traffic_differ() -> None:
    world = promoted("v1", "v2", rollout=FAST)
    assert world.pods() == {"v2": 1}
    world.request("undo #1")
    operator = world.operator()
    for _ in range(30):
        world.step(operator)
        if world.weights().get("v1"):
            break
        assert world.weights() == {"v2": 100}
    assert world.weights() == {"v1": 100}, "at once, without steps"
    world.run(200, operator)
    assert world.status.stable.startswith("v1-")
    assert world.reason("Ready") == "False/Undone"
    assert world.pods() == {"v1": 1}
    world.request("retry #2")
    world.run(300, operator)
    assert world.weights() == {"v2": 100}


def test_undo_goes_to_any_kept_version() -> None:
    world = promoted("v1", "v2", "v3", rollout=FAST)
    world.request("undo v1 #1")
    world.run(200)
    assert world.weights() == {"v1": 100}


def test_undo_during_a_rollout_is_an_abort() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.run(40)
    world.request("undo #1")
    world.run(30, operator)
    assert world.weights() == {"v1": 100}
    assert world.reason("Ready") == "False/Aborted"


def test_a_new_spec_ends_an_undo() -> None:
    world = promoted("v1", "v2", rollout=FAST)
    world.request("undo #1")
    operator = world.run(200)
    world.submit(container("v3", rollout=FAST))
    world.run(300, operator)
    assert world.weights() == {"v3": 100}
    assert world.status.pinned is None


def test_reverting_the_spec_goes_back_at_once() -> None:
    world = promoted("v1", "v2", rollout=FAST)
    world.history.clear()
    world.submit(container("v1", rollout=FAST))
    world.run(200)
    assert {"v1": 80, "v2": 20} not in world.history
    assert {"v2": 80, "v1": 20} not in world.history
    assert world.weights() == {"v1": 100}
    assert len(world.of("ModelVersion")) == 2, "A → B → A is A"


def test_a_new_spec_supersedes_the_candidate() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.run(40)
    assert world.weights().get("v2")
    world.submit(container("v3", rollout=FAST))
    world.run(300, operator)
    assert world.weights() == {"v3": 100}
    assert not any("v2" in weights and "v3" in weights for weights in world.history)
    names = {r["spec"]["template"]["model"]["version"]: r["status"]["role"] for r in world.of("ModelVersion").values()}
    assert names == {"v1": "Kept", "v2": "Retired", "v3": "Stable"}
    assert len(world.of("Configuration")) == 2


def test_only_so_many_versions_are_kept() -> None:
    world = promoted("v1", "v2", "v3", "v4", rollout=FAST | {"keepVersions": 1})
    assert [k.split("-")[0] for k in world.status.kept] == ["v3"]
    assert len(world.of("Configuration")) == 2
    assert len(world.of("ModelVersion")) == 4
    world.submit(container("v4", rollout=FAST | {"keepVersions": 0}))
    world.run(30)
    assert len(world.of("Configuration")) == 1


def test_changing_scaling_only_makes_no_version_and_moves_no_traffic() -> None:
    world = settled()
    before = {
        name: obj["metadata"]["generation"] for name, obj in (world.of("Configuration") | world.of("Route")).items()
    }
    world.submit(
        container("v1", rollout=FAST, scaling={"min": 2, "max": 9, "metric": "rps", "target": 50, "idle": "5m"})
    )
    world.run(30)
    after = {
        name: obj["metadata"]["generation"] for name, obj in (world.of("Configuration") | world.of("Route")).items()
    }
    assert before == after
    assert world.pods() == {"v1": 2}
    (revision,) = world.of("Revision").values()
    assert revision["metadata"]["annotations"] == {
        "autoscaling.knative.dev/min-scale": "2",
        "autoscaling.knative.dev/max-scale": "9",
        "autoscaling.knative.dev/metric": "rps",
        "autoscaling.knative.dev/target": "50",
        "autoscaling.knative.dev/window": "60s",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "300s",
    }


def test_an_old_name_for_a_new_template_is_a_new_version_and_is_said() -> None:
    world = settled()
    changed = container("v1", rollout=FAST)
    changed["model"]["args"] = ["--other"]
    world.submit(changed)
    world.run(300)
    assert len(world.of("ModelVersion")) == 2
    tags = [r["spec"]["tag"] for r in world.of("ModelVersion").values()]
    assert tags[0] == "v1"
    assert tags[1].startswith("v1-")
    assert "used before" in world.status.condition("VersionsReady").message


def test_stable_that_has_failed_for_a_minute_gives_way_to_a_ready_candidate() -> None:
    world = settled()
    world.failing.add("v1")
    world.submit(container("v2", rollout=FAST))
    operator = world.run(30)
    assert world.status.stable.startswith("v1-")
    world.run(60, operator)
    assert world.weights() == {"v2": 100}
    assert world.reason("Ready") == "True/Serving"


def test_stable_that_fails_for_a_moment_promotes_nobody() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.operator()
    while world.weights().get("v2") != 20:
        world.step(operator)
    world.failing.add("v1")
    world.run(30, operator)
    world.failing.clear()
    world.step(operator)
    assert world.status.stable.startswith("v1-")
    assert world.weights()["v1"]


def test_bad_first_spec_then_a_good_one() -> None:
    world = World(failing={"v1"})
    world.submit(container("v1"))
    operator = world.run(60)
    assert world.reason("VersionsReady") == "False/VersionFailed"
    world.submit(container("v2"))
    world.run(60, operator)
    assert world.weights() == {"v2": 100}
    assert len(world.of("Configuration")) == 1


def test_invalid_spec_is_told_and_changes_nothing() -> None:
    world = settled()
    world.submit({"model": {"version": "v2"}, "scaling": {"min": "many"}})
    operator = world.run(30)
    assert world.reason("Ready") == "False/InvalidSpec"
    assert "spec.scaling.min" in world.status.condition("Ready").message
    assert world.weights() == {"v1": 100}
    world.submit(container("v2", rollout=FAST))
    world.run(300, operator)
    assert world.weights() == {"v2": 100}


def foreign(kind: str, name: str, version: str = "serving.knative.dev/v1") -> dict:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": "theirs", "generation": 1, "labels": {"a": "b"}},
        "spec": {"theirs": True, "traffic": []},
    }


@pytest.mark.parametrize("kind", ["Route", "Configuration", "ModelVersion"])
def test_an_object_of_somebody_else_is_left_alone_and_said(kind: str) -> None:
    probe = settled()
    name = next(iter(probe.of(kind)))
    version = "tidegate.dev/v1alpha1" if kind == "ModelVersion" else "serving.knative.dev/v1"
    world = World()
    theirs = foreign(kind, name, version)
    world.objects[kind, name] = theirs
    untouched = repr(theirs)
    world.submit(container("v1", rollout=FAST))
    operator = world.run(60)
    assert repr(world.objects[kind, name]) == untouched
    assert world.reason("Ready") == "False/NameTaken"
    del world.objects[kind, name]
    world.run(60, operator)
    assert world.weights() == {"v1": 100}


def test_somebodys_change_to_a_child_is_taken_back() -> None:
    world = settled()
    operator = world.run(10)
    route = world.objects["Route", "churn"]
    good = route["spec"]
    route["spec"] = {"traffic": []}
    route["metadata"]["managedFields"] = [{"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {}}]
    world.run(10, operator)
    assert world.objects["Route", "churn"]["spec"] == good


def test_settled_deployment_is_written_to_no_more() -> None:
    world = settled()
    operator = world.run(30)
    writes = world.writes
    world.run(300, operator)
    assert world.writes == writes
    changes = world.changes
    world.run(30)
    assert world.changes == changes, "a restarted operator applies everything once more, which changes nothing"


def test_a_gone_deployment_is_forgotten() -> None:
    world = settled()
    operator = world.run(10)
    del world.objects["ModelDeployment", "churn"]
    world.step(operator)
    assert world.writes


def test_a_stale_read_writes_nothing() -> None:
    world = World()
    world.submit(container("v1"))
    operator = world.operator()

    async def late(key):
        seen = await World.gather(world, key)
        world.request("retry #changed meanwhile")
        return seen

    world.gather = late  # type: ignore[method-assign]
    with pytest.raises(Exception, match="stale"):
        world.step(operator)
    assert set(world.objects) == {("ModelDeployment", "churn")}


def test_transformer_and_predictor_must_both_be_ready() -> None:
    spec = files("v1")
    spec["model"]["transformer"] = {"image": "registry.test/transformer"}
    world = World()
    world.submit(spec)
    world.run(60)
    assert len(world.of("Revision")) == 2
    (target,) = world.objects["Route", "churn"]["spec"]["traffic"]
    assert target["revisionName"].endswith("-transformer-00001")


def test_events_tell_the_story_once() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    world.run(300)
    reasons = [event.reason for event in world.events]
    assert reasons.count("RolloutStarted") == 1
    assert reasons.count("WeightChanged") == 3
    assert reasons.count("Promoted") == 2


def test_history_is_bounded() -> None:
    world = settled(container("v0", rollout={"strategy": "Immediate", "keepVersions": 0}))
    operator = world.operator()
    for n in range(1, 56):
        world.submit(container(f"v{n}", rollout={"strategy": "Immediate", "keepVersions": 0}))
        world.run(15, operator)
    world.run(120, operator)
    assert len(world.of("ModelVersion")) == 50


def test_a_version_is_deleted_only_once_the_gateway_has_let_it_go() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.run(40)
    assert world.weights().get("v2")
    world.gateway_behind = True
    world.submit(container("v3", rollout=FAST))
    world.run(60, operator)
    assert world.weights().get("v2"), "the gateway has not heard yet"
    assert any("-v2-" in name for name in world.of("Configuration"))
    world.gateway_behind = False
    world.run(30, operator)
    assert not any("-v2-" in name for name in world.of("Configuration"))


def test_weights_do_not_fall_when_the_plan_changes_under_way() -> None:
    world = settled()
    world.submit(
        container("v2", rollout={"guardrails": [], "steps": [{"weight": 50, "pause": {"for": "20s"}}, {"weight": 60}]})
    )
    operator = world.operator()
    while world.weights().get("v2") != 50:
        world.step(operator)
    world.submit(container("v2", rollout={"guardrails": [], "steps": [{"weight": 5}, {"weight": 10, "pause": {}}]}))
    world.run(120, operator)
    assert world.weights()["v2"] == 50
    assert world.reason("Progressing") == "False/AwaitingApproval"


def test_pods_that_cannot_start_are_told_of_before_knative_notices() -> None:
    world = World(slow={"v1"})
    world.submit(container("v1"))
    operator = world.run(15)
    assert world.reason("VersionsReady") == "Unknown/VersionStarting"
    (revision,) = world.of("Revision")
    world.pods_seen = (
        {
            "metadata": {"name": "p", "labels": {"serving.knative.dev/revision": revision}},
            "status": {
                "containerStatuses": [
                    {
                        "name": "user-container",
                        "restartCount": 2,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ]
            },
        },
    )
    world.run(10, operator)
    assert world.reason("VersionsReady") == "False/VersionFailed"
    assert "OOMKilled: container user-container: exit code 137" in world.status.condition("VersionsReady").message


def test_a_release_that_renders_workloads_otherwise_leaves_those_that_are_there() -> None:
    world = settled()
    (workload,) = world.of("Configuration").values()
    workload["spec"] = {"template": {"rendered": "by an earlier release"}}
    before = workload["metadata"]["generation"]
    operator = world.run(30)
    assert workload["metadata"]["generation"] == before, "a new operator does not render it anew"
    workload["metadata"]["managedFields"] = [{"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {}}]
    world.run(10, operator)
    assert "rendered" not in workload["spec"]["template"], "but takes back what somebody changes"


def test_a_lost_status_does_not_let_the_candidate_take_everything() -> None:
    world = settled()
    world.submit(container("v2", rollout=FAST))
    operator = world.run(40)
    assert world.weights() == {"v1": 80, "v2": 20}
    del world.deployment["status"]
    world.history.clear()
    world.run(300, operator)
    assert {"v1": 80, "v2": 20} in world.history, "it goes through its steps again"
    assert world.weights() == {"v2": 100}


def at_weight(weight: int) -> tuple:
    world = settled()
    world.submit(container("v2", rollout={"guardrails": [], "steps": [{"weight": weight, "pause": {}}]}))
    operator = world.operator()
    while world.weights().get("v2") != weight:
        world.step(operator)
    return world, operator


def test_a_crash_under_traffic_is_rolled_back_though_knative_calls_it_ready() -> None:
    world, operator = at_weight(20)
    crashed(world, "v2", world.now)
    world.step(operator)
    world.react()
    assert world.weights() == {"v1": 100}
    assert "exit code 1" in world.status.rejected.message


@pytest.mark.parametrize("case", ["before it had traffic", "over"])
def test_a_crash_that_harms_nobody_is_no_reason_to_go_back(case: str) -> None:
    world, operator = at_weight(20)
    if case == "over":
        crashed(world, "v2", world.now, ready=True, code=255)
    else:
        crashed(world, "v2", world.now - timedelta(minutes=10), looping=True)
    world.run(60, operator)
    assert world.weights() == {"v1": 80, "v2": 20}


def test_an_undo_to_a_version_that_fails_is_over_and_does_not_begin_again() -> None:
    world = promoted("v1", "v2", rollout=FAST)
    world.history.clear()
    world.request("undo #1")
    operator = world.operator()
    while world.weights() != {"v1": 100}:
        world.step(operator)
    world.failing.add("v1")
    world.run(300, operator)
    assert world.weights() == {"v2": 100}
    assert world.history.count({"v1": 100}) == 1
    assert world.reason("Ready") == "True/Serving"
    assert not world.status.request.accepted
    assert "rolled back" in world.status.request.message


def test_a_blip_of_the_predictor_behind_a_transformer_promotes_nobody() -> None:
    def spec(version: str) -> dict:
        made = files(version, rollout={"guardrails": [], "steps": [{"weight": 5, "pause": {}}]})
        made["model"]["transformer"] = {"image": "registry.test/transformer"}
        return made

    world = World()
    world.submit(spec("v1"))
    operator = world.run(4000)
    world.submit(spec("v2"))
    world.run(60, operator)
    assert world.weights() == {"v1": 95, "v2": 5}
    predictor = next(r for n, r in world.of("Revision").items() if "-v1-" in n and "-predictor-" in n)
    blip = {"type": "Ready", "status": "False", "lastTransitionTime": f"{world.now:%Y-%m-%dT%H:%M:%SZ}"}
    predictor["status"]["conditions"] = [blip]
    drive(operator.reconcile(Key(NAMESPACE, "churn")))
    assert world.status.stable.startswith("v1-")
    assert world.reason("Progressing") == "True/StableFailed"


def test_a_new_plan_asks_for_its_own_approvals_and_can_be_given_them() -> None:
    world = settled()
    world.submit(
        container("v2", rollout={"guardrails": [], "steps": [{"weight": w, "pause": {}} for w in (10, 20, 30)]})
    )
    operator = world.run(60)
    for n in range(2):
        world.request(f"approve #{n}")
        world.run(30, operator)
    assert world.weights()["v2"] == 30
    world.submit(container("v2", rollout={"guardrails": [], "steps": [{"weight": 3}, {"weight": 10, "pause": {}}]}))
    world.run(300, operator)
    assert world.weights()["v2"] == 30, "the new gate is not passed by old approvals"
    assert world.reason("Progressing") == "False/AwaitingApproval"
    world.request("approve #3")
    world.run(200, operator)
    assert world.weights() == {"v2": 100}


def test_a_request_that_comes_back_from_git_is_not_acted_on_again() -> None:
    world = promoted("v1", "v2", rollout=FAST)
    world.request("undo")
    operator = world.run(200)
    assert world.weights() == {"v1": 100}
    world.request("retry #1")
    world.run(200, operator)
    assert world.weights() == {"v2": 100}
    world.request("undo")
    world.run(200, operator)
    assert world.weights() == {"v2": 100}


def test_promote_keeps_the_replicas_while_the_traffic_arrives() -> None:
    world = settled(container("v1", rollout=APPROVAL, scaling={"min": 4}))
    world.run(30)
    world.submit(container("v2", rollout=APPROVAL, scaling={"min": 0}))
    operator = world.run(60)
    world.request("promote #1")
    while world.weights() != {"v2": 100}:
        world.step(operator)
    world.step(operator)
    assert world.pods() == {"v1": 4, "v2": 4}
    world.run(120, operator)
    assert world.pods() == {"v2": 1}


def test_a_stable_version_of_which_nothing_is_left_does_not_block_the_next() -> None:
    world = settled()
    operator = world.run(10)
    admit = world.apply

    async def refusing(obj, subresource=None):
        if obj["kind"] == "Configuration" and "-v1-" in obj["metadata"]["name"]:
            raise Refused("a policy")
        return await admit(obj, subresource)

    world.apply = refusing  # type: ignore[method-assign]
    for key in [k for k in world.objects if "-v1-" in k[1] and k[0] in ("Configuration", "Revision")]:
        del world.objects[key]
    world.submit(container("v2", rollout=FAST))
    world.run(120, operator)
    assert world.weights() == {"v2": 100}


@pytest.mark.parametrize("error", [RuntimeError("500: failed calling webhook"), Refused("max-scale=5 is above 3")])
def test_one_write_that_fails_does_not_keep_the_route_from_being_written(error: Exception) -> None:
    world, operator = at_weight(20)
    admit = world.apply

    async def failing(obj, subresource=None):
        if obj["kind"] == ("Revision" if isinstance(error, Refused) else "Configuration"):
            raise error
        return await admit(obj, subresource)

    world.apply = failing  # type: ignore[method-assign]
    world.failing.add("v2")
    world.submit(container("v3", rollout=FAST, scaling={"min": 1}))
    for _ in range(4):
        with contextlib.suppress(RuntimeError):
            world.step(operator)
    world.react()
    assert world.weights() == {"v1": 100}
    if isinstance(error, Refused):
        assert world.reason("Ready") == "False/Refused"
        assert "max-scale=5 is above 3" in world.status.condition("Ready").message


def test_what_a_later_release_wrote_is_read_as_far_as_it_is_understood() -> None:
    world, operator = at_weight(20)
    world.deployment["status"]["versions"][0]["role"] = "Challenger"
    world.failing.add("v2")
    world.run(30, operator)
    assert world.weights() == {"v1": 100}


def test_a_stable_version_whose_record_cannot_be_read_is_held() -> None:
    world, operator = at_weight(20)
    record = next(r for n, r in world.of("ModelVersion").items() if "-v1-" in n)
    good = dict(record["spec"])
    record["spec"]["template"] = {"model": {"version": 7}}
    world.run(100, operator)
    assert world.weights() == {"v1": 80, "v2": 20}
    assert world.reason("Ready") == "False/RecordUnreadable"
    record["spec"] = {**good, "template": container("v1")}
    record["spec"]["template"].pop("rollout", None)
    world.run(30, operator)
    assert world.reason("Progressing") == "False/AwaitingApproval"


def test_a_pause_of_any_length_does_not_stop_the_passes() -> None:
    world = settled()
    world.submit(
        container("v2", rollout={"guardrails": [], "steps": [{"weight": 10, "pause": {"for": "999999999999h"}}]})
    )
    operator = world.run(60)
    assert world.weights() == {"v1": 90, "v2": 10}
    world.failing.add("v2")
    world.run(10, operator)
    assert world.weights() == {"v1": 100}


def test_a_pinned_revision_that_has_failed_is_left_for_one_that_is_ready() -> None:
    world = settled(files("v1"))
    operator = world.run(10)
    (revision,) = world.of("Revision").values()
    world.failing.add("v1")
    world.run(120, operator)
    newer = copy.deepcopy(revision)
    newer["metadata"] |= {"name": revision["metadata"]["name"].replace("00001", "00002"), "uid": "newer"}
    newer["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    world.objects["Revision", newer["metadata"]["name"]] = newer
    world.run(10, operator)
    assert world.objects["Route", "churn"]["spec"]["traffic"][0]["revisionName"].endswith("-00002")


def test_flags_that_vanish_for_a_moment_end_no_rollout() -> None:
    world = settled()
    accelerated = container("v2", rollout={"guardrails": [], "steps": [{"weight": 20, "pause": {}}]}, accelerator={})
    world.platform = Platform(features={"kubernetes.podspec-tolerations": "enabled"})
    world.submit(accelerated)
    operator = world.run(60)
    assert world.weights() == {"v1": 80, "v2": 20}
    world.platform = Platform()
    world.run(60, operator)
    assert world.weights() == {"v1": 80, "v2": 20}
