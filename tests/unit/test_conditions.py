"""What a ModelDeployment says about itself: each condition and reason, and that its message says what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tidegate.api.conditions import Condition, Truth, carry_times
from tidegate.api.modeldeployment import ModelDeploymentStatus, Pinned, Rejected
from tidegate.api.modelversion import ModelVersionSpec
from tidegate.api.rollout import RolloutStatus
from tidegate.core import route
from tidegate.core.conditions import Problem, Scene, conditions
from tidegate.core.lifecycle import Turn
from tidegate.core.observed import Object, Platform, Revision, Target
from tidegate.core.rollout.advance import Next
from tidegate.core.views import View
from world import World, container, files

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
V1, V2 = "v1-11111111", "v2-22222222"
KINDS = ("Ready", "Servable", "Progressing", "VersionsReady")


def view(identity: str, ready: str = "True", *, message: str = "", replicas: int = 1) -> View:
    name = identity.split("-")[0]
    spec = ModelVersionSpec.model_validate(
        {
            "deployment": "churn",
            "id": identity,
            "hash": "0" * 64,
            "tag": name,
            "template": {"model": {"version": name, "container": {"image": "registry.test/m"}}},
        }
    )
    configuration = f"churn-{identity}"
    return View(spec, revision=Revision(f"{configuration}-00001", "u", configuration, ready, message, None, replicas))


def the_route(percents: dict[str, int], *, ready: str = "True", observed: int = 1, **condition: str) -> Object:
    traffic = [{"revisionName": f"churn-{identity}-00001", "percent": p} for identity, p in percents.items()]
    return {
        "metadata": {"name": "churn", "generation": 1},
        "spec": {"traffic": traffic},
        "status": {
            "observedGeneration": observed,
            "traffic": traffic,
            "conditions": [{"type": "Ready", "status": ready} | condition],
        },
    }


def scene(
    status: ModelDeploymentStatus | None = None,
    *views: View,
    goal: str | None = V1,
    coming: Next | None = None,
    serves: Object | None = None,
    problem: Problem | None = None,
    note: str = "",
    desired: str = V1,
) -> Scene:
    turn = Turn(status or ModelDeploymentStatus(), coming, goal)
    return Scene(desired, turn, {v.spec.id: v for v in views}, serves, problem, note)


SERVING = scene(ModelDeploymentStatus(stable=V1), view(V1), serves=the_route({V1: 100}))
ROLLOUT = RolloutStatus(candidate=V2, stable=V1, step=1, weight=20)


def rolling(reason: str, ready: str = "True", message: str = "told by the rollout") -> Scene:
    status = ModelDeploymentStatus(stable=V1, rollout=ROLLOUT)
    coming = Next(ROLLOUT, reason=reason, message=message)
    parts = view(V1), view(V2, ready, message="" if ready == "True" else "ExitCode1: it broke")
    return scene(status, *parts, goal=V2, desired=V2, coming=coming, serves=the_route({V1: 80, V2: 20}))


def said(about: Scene) -> dict[str, Condition]:
    return {condition.type: condition for condition in conditions(about, 7, NOON)}


def facts(about: Scene) -> dict[str, str]:
    return {kind: f"{condition.status}/{condition.reason}" for kind, condition in said(about).items()}


# --- the states ---


def test_serving() -> None:
    assert facts(SERVING) == {
        "Ready": "True/Serving",
        "Servable": "True/RouteReady",
        "Progressing": "False/AtRest",
        "VersionsReady": "True/VersionsReady",
    }
    assert said(SERVING)["Ready"].message == "v1 (v1-11111111) serves all requests"


def test_starting() -> None:
    assert facts(scene(None, view(V1, "Unknown"))) == {
        "Ready": "Unknown/VersionStarting",
        "Servable": "False/NoVersion",
        "Progressing": "True/Starting",
        "VersionsReady": "Unknown/VersionStarting",
    }


def test_first_version_failed() -> None:
    found = scene(None, view(V1, "False", message="ExitCode1: no such key"))
    assert facts(found) == {
        "Ready": "False/VersionFailed",
        "Servable": "False/NoVersion",
        "Progressing": "False/VersionFailed",
        "VersionsReady": "False/VersionFailed",
    }
    assert said(found)["Ready"].message == "v1 (v1-11111111): ExitCode1: no such key"


def test_the_stable_version_fails_later() -> None:
    found = scene(
        ModelDeploymentStatus(stable=V1),
        view(V1, "False", message="ExitCode1: gone"),
        serves=the_route({V1: 100}, ready="False", reason="RevisionMissing", message="gone"),
    )
    assert facts(found) == {
        "Ready": "False/VersionFailed",
        "Servable": "False/RouteNotReady",
        "Progressing": "False/AtRest",
        "VersionsReady": "False/VersionFailed",
    }


@pytest.mark.parametrize(
    ("serves", "ready", "servable"),
    [
        (None, "Unknown/RouteNotReady", "Unknown/RouteNotReady"),
        (the_route({V1: 100}, ready="Unknown"), "Unknown/RouteNotReady", "True/RouteChanging"),
        (the_route({V1: 100}, observed=0), "Unknown/RouteNotReady", "True/RouteChanging"),
        (the_route({}, ready="Unknown"), "Unknown/RouteNotReady", "Unknown/RouteNotReady"),
        (the_route({}, ready="False"), "Unknown/RouteNotReady", "False/RouteNotReady"),
        (the_route({V2: 100}, ready="False"), "Unknown/RouteNotReady", "False/RouteNotReady"),
        # settled, but not at what it is to be
        (the_route({V2: 100}), "Unknown/RouteNotReady", "True/RouteReady"),
        (the_route({V1: 50, V2: 50}), "Unknown/RouteNotReady", "True/RouteReady"),
    ],
)
def test_the_route_is_not_what_it_should_be(serves: Object | None, ready: str, servable: str) -> None:
    found = facts(replace(SERVING, route=serves))
    assert (found["Ready"], found["Servable"]) == (ready, servable)


def test_why_the_route_is_not_ready_is_told_in_knatives_words() -> None:
    broken = the_route({}, ready="False", reason="RevisionMissing", message="no Revision churn-v9")
    found = said(replace(SERVING, route=broken))
    assert found["Servable"].message == "the Route is not ready: RevisionMissing: no Revision churn-v9"
    assert found["Ready"].message == found["Servable"].message
    quiet = said(replace(SERVING, route=the_route({}, ready="Unknown")))
    assert quiet["Servable"].message == "the Route is not ready: no news of it yet"


@pytest.mark.parametrize(
    ("reason", "ready", "progressing"),
    [
        ("Programming", "True", "True"),
        ("Warming", "True", "True"),
        ("Holding", "True", "True"),
        ("Advancing", "True", "True"),
        ("StableFailed", "True", "True"),
        ("CandidateNotReady", "Unknown", "True"),
        # these wait for somebody
        ("CandidateNotReady", "False", "False"),
        ("Paused", "True", "False"),
        ("AwaitingApproval", "True", "False"),
    ],
)
def test_progressing_during_a_rollout(reason: str, ready: str, progressing: Truth) -> None:
    found = rolling(reason, ready)
    assert facts(found)["Progressing"] == f"{progressing}/{reason}"
    assert facts(found)["Ready"] == "Unknown/RollingOut"
    assert facts(found)["Servable"] == "True/RouteReady", "whatever the candidate does"
    assert said(found)["Progressing"].message == "v2 (v2-22222222): told by the rollout"


def test_a_rejected_version_keeps_ready_false_until_somebody_decides() -> None:
    rejected = Rejected(id=V2, reason="CandidateFailed", message="rolled back at weight 20%: ExitCode1", at=NOON)
    status = ModelDeploymentStatus(stable=V1, rejected=rejected)
    found = scene(status, view(V1), view(V2, "False"), desired=V2, serves=the_route({V1: 100}))
    assert facts(found) == {
        "Ready": "False/CandidateFailed",
        "Servable": "True/RouteReady",
        "Progressing": "False/CandidateFailed",
        "VersionsReady": "True/VersionsReady",
    }
    assert said(found)["Ready"].message == ("v2 (v2-22222222) is not tried again: rolled back at weight 20%: ExitCode1")


def test_a_rejected_version_that_nothing_stands_in_for_is_not_told_as_ready() -> None:
    """The record of the stable version was deleted by hand, and the spec still asks for what was given up."""
    rejected = Rejected(id=V2, reason="Aborted", message="aborted on request; `tidegate retry` tries it again", at=NOON)
    found = scene(
        ModelDeploymentStatus(rejected=rejected), view(V2), goal=None, desired=V2, serves=the_route({V1: 100})
    )
    assert facts(found)["Ready"] == facts(found)["Progressing"] == "False/Aborted"
    assert facts(found)["Servable"] == "False/NoVersion"


def test_an_undo_says_that_spec_and_traffic_differ() -> None:
    status = ModelDeploymentStatus(stable=V1, pinned=Pinned(to=V1, over=V2))
    found = scene(status, view(V1), view(V2), desired=V2, serves=the_route({V1: 100}))
    assert facts(found)["Ready"] == facts(found)["Progressing"] == "False/Undone"
    assert said(found)["Ready"].message == (
        "the spec asks for v2 (v2-22222222), traffic goes to v1 (v1-11111111): change the spec, or `tidegate retry` "
        "for what it asks"
    )


def test_an_undo_under_way_is_a_rollout() -> None:
    rollout = RolloutStatus(candidate=V1, stable=V2)
    status = ModelDeploymentStatus(stable=V2, pinned=Pinned(to=V1, over=V2), rollout=rollout)
    coming = Next(rollout, reason="Warming", message="0 of 1 replicas ready")
    found = scene(status, view(V1), view(V2), goal=V1, desired=V2, coming=coming, serves=the_route({V2: 100}))
    assert facts(found)["Progressing"] == "True/Warming"


def test_what_only_a_person_can_mend_is_told_by_all_but_servable() -> None:
    found = replace(SERVING, problem=Problem("NoRuntime", "install one"))
    assert facts(found) == {
        "Ready": "False/NoRuntime",
        "Servable": "True/RouteReady",
        "Progressing": "False/NoRuntime",
        "VersionsReady": "False/NoRuntime",
    }
    assert {said(found)[kind].message for kind in KINDS if kind != "Servable"} == {"install one"}


def test_a_failed_version_is_told_before_one_that_starts() -> None:
    status = ModelDeploymentStatus(stable=V1, rollout=ROLLOUT)
    both = scene(status, view(V1, "Unknown"), view(V2, "False", message="it broke"), goal=V2, coming=Next(ROLLOUT))
    assert said(both)["VersionsReady"].message == "v2 (v2-22222222): it broke"


def test_a_remark_about_the_versions_is_added() -> None:
    note = "the version name v1 was used before, for v1-00000000; v1-11111111 is a new version"
    for about in (SERVING, scene(None, view(V1, "Unknown"))):
        assert said(replace(about, note=note))["VersionsReady"].message.endswith(f"; {note}")


# --- every condition ---


def test_conditions_are_four_each_for_its_generation_and_time() -> None:
    found = conditions(SERVING, 7, NOON)
    assert [condition.type for condition in found] == list(KINDS)
    assert {(c.observed_generation, c.last_transition_time) for c in found} == {(7, NOON)}


def test_messages_fit_the_crd() -> None:
    long = scene(None, view(V1, "False", message="x" * 9000))
    assert all(0 < len(condition.message) <= 4096 for condition in conditions(long, 7, NOON))


def test_a_transition_time_moves_only_when_the_status_flips() -> None:
    def ready(status: Truth, reason: str, at: datetime) -> Condition:
        return Condition(
            type="Ready", status=status, reason=reason, message=reason, observed_generation=1, last_transition_time=at
        )

    later = NOON + timedelta(hours=1)
    (same,) = carry_times([ready("False", "Other", later)], [ready("False", "One", NOON)])
    assert (same.reason, same.last_transition_time) == ("Other", NOON)
    (flipped,) = carry_times([ready("True", "Fine", later)], [ready("False", "One", NOON)])
    assert flipped.last_transition_time == later
    (fresh,) = carry_times([ready("True", "Fine", later)], [])
    assert fresh.last_transition_time == later


# --- what only a person can mend: as it comes out of a whole decision, with what to do ---

GPU: dict[str, Any] = {"accelerator": {"minMemory": "20Gi", "runtimeClass": "nvidia"}}


@pytest.mark.parametrize(
    ("reason", "spec", "world", "advice"),
    [
        ("NoRuntime", files(), {"runtimes": ()}, ["sklearn", "Install one", "model.runtime"]),
        ("KnativeMissing", container(), {"platform": Platform(knative=False)}, ["Knative Serving", "install it"]),
        (
            "KServeMissing",
            files(),
            {"platform": Platform(kserve=False), "runtimes": ()},
            ["install it", "model.container"],
        ),
        (
            "KnativeFeatureDisabled",
            container(**GPU),
            {"platform": Platform(features={"kubernetes.podspec-tolerations": "enabled"})},
            [
                "kubectl -n knative-serving patch configmap config-features --type merge -p",
                '{"kubernetes.podspec-affinity": "enabled", "kubernetes.podspec-runtimeclassname": "enabled"}',
            ],
        ),
    ],
)
def test_a_problem_says_what_to_do_and_goes_by_itself(
    reason: str, spec: dict[str, Any], world: dict[str, Any], advice: list[str]
) -> None:
    here = World(**world)
    here.submit(spec)
    operator = here.run(20)
    assert here.reason("Ready") == here.reason("Progressing") == f"False/{reason}"
    told = here.status.condition("Ready")
    assert told is not None
    for words in advice:
        assert words in told.message
    assert not here.of("Configuration")
    assert not here.of("InferenceService")
    flags = {f"kubernetes.podspec-{part}": "enabled" for part in ("tolerations", "affinity", "runtimeclassname")}
    here.runtimes, here.platform = World().runtimes, Platform(features=flags)
    here.run(60, operator)
    assert here.reason("Ready") == "True/Serving"


@pytest.mark.parametrize("reason", ["KServeMissing", "NoRuntime"])
def test_a_problem_with_a_new_version_leaves_the_old_one_serving(reason: str) -> None:
    here = World()
    here.submit(container("v1"))
    operator = here.run(30)
    here.platform = Platform(kserve=reason != "KServeMissing")
    here.runtimes = ()
    here.submit(files("v2"))
    here.run(60, operator)
    assert here.weights() == {"v1": 100}
    assert here.reason("Servable") == "True/RouteReady"
    assert here.reason("Ready") == f"False/{reason}"


@pytest.mark.parametrize("spec", [container, files])
def test_a_workload_that_the_api_server_does_not_take_is_told_and_tried_again(spec: Any) -> None:
    here = World(refusing={"v1"})
    here.submit(spec("v1"))
    operator = here.run(20)
    assert here.reason("Ready") == here.reason("VersionsReady") == "False/VersionFailed"
    told = here.status.condition("Ready")
    assert told is not None
    assert "is refused: admission webhook denied the request: expected 0 <= 1200 <= 600" in told.message
    here.refusing.clear()
    here.run(60, operator)
    assert here.reason("Ready") == "True/Serving"


def test_a_candidate_that_is_refused_keeps_nothing_else_from_being_written() -> None:
    here = World()
    here.submit(container("v1"))
    operator = here.run(30)
    here.refusing.add("v2")
    here.submit(container("v2", visibility="ClusterLocal"))
    here.run(30, operator)
    assert here.reason("Progressing") == "False/CandidateNotReady"
    assert here.weights() == {"v1": 100}
    assert "networking.knative.dev/visibility" in here.objects["Route", "churn"]["metadata"]["labels"]
    writes = here.writes
    here.run(60, operator)
    assert here.writes == writes, "what is refused is asked for again, and nothing else"


def test_servable_needs_traffic_to_something_that_is_ready() -> None:
    """A Route that is not Ready still serves if what the gateway does leads to a Ready Revision."""
    status = ModelDeploymentStatus(stable=V1)
    frozen = the_route({V1: 80, V2: 20}, ready="False", reason="RevisionMissing")
    half = scene(status, view(V1), view(V2, "False"), serves=frozen)
    assert facts(half)["Servable"] == "True/RouteChanging"
    none = scene(status, view(V1, "False"), view(V2), serves=the_route({V1: 100, V2: 0}, ready="False"))
    assert facts(none)["Servable"] == "False/RouteNotReady", "a target with 0% serves nobody"


def test_route_targets_are_read_as_they_are_written() -> None:
    assert route.asked(the_route({V1: 100})) == (Target(f"churn-{V1}-00001", 100),)
