"""Reading what the cluster holds: Revisions, and what their pods say before Knative does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tidegate.adapters.pods import trimmed
from tidegate.core.observed import Object, Revision, ailment, crashes, owned, revision, up_to_date

SINCE = "2026-01-01T12:00:00Z"


def rev(status: str = "True", replicas: int | None = 1, **condition: str) -> Object:
    return {
        "metadata": {"name": "r-00001", "uid": "u", "labels": {"serving.knative.dev/configuration": "r"}},
        "status": {
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": SINCE} | condition],
            "actualReplicas": replicas,
        },
    }


def box(
    name: str = "user-container",
    *,
    waiting: str | None = None,
    ended: int | None = None,
    before: int | None = None,
    restarts: int = 0,
    message: str = "",
) -> dict[str, Any]:
    """The status of a container."""
    state: dict[str, Any] = {"running": {}}
    if waiting:
        state = {"waiting": {"reason": waiting, "message": message}}
    if ended is not None:
        state = {"terminated": {"exitCode": ended, "reason": "Error", "message": message}}
    last = {} if before is None else {"terminated": {"exitCode": before, "reason": "Error", "message": message}}
    return {"name": name, "state": state, "lastState": last, "restartCount": restarts}


def pod(*containers: dict[str, Any], phase: str = "Running", ready: str = "False", **more: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "shop", "uid": "p", "labels": {}} | more.pop("metadata", {})
    conditions = [{"type": "Ready", "status": ready}, *more.pop("conditions", [])]
    return {
        "metadata": metadata,
        "status": {"phase": phase, "containerStatuses": list(containers), "conditions": conditions, **more},
    }


PUT_OUT = pod(box(ended=137), box("queue-proxy", ended=137), phase="Failed")
GOING = pod(box(ended=143), metadata={"deletionTimestamp": SINCE})
UNSCHEDULABLE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: insufficient gpu"}
]


# --- a Revision ---


def test_a_revision_is_read() -> None:
    assert revision(rev()) == Revision("r-00001", "u", "r", "True", "", datetime(2026, 1, 1, 12, tzinfo=UTC), 1)


def test_a_revision_that_says_nothing_yet_is_unknown() -> None:
    assert revision({"metadata": {"name": "r"}}) == Revision("r", "", "", "Unknown", "", None, 0)


def test_its_own_words_are_told_without_pods() -> None:
    found = revision(rev("False", reason="ExitCode1", message="container exited"))
    assert (found.ready, found.message) == ("False", "ExitCode1: container exited")


# --- what its pods say ---


@pytest.mark.parametrize(
    ("container", "told"),
    [
        (
            box(waiting="ImagePullBackOff", message="back-off pulling it"),
            "ImagePullBackOff: container user-container: image  cannot be pulled",
        ),
        (
            box(waiting="ErrImagePull", message="no such image"),
            "ImagePullBackOff: container user-container: image  cannot",
        ),
        (box(waiting="CreateContainerConfigError", message="no secret"), "CreateContainerConfigError: container"),
        (box(waiting="CrashLoopBackOff", before=1, restarts=3, message="no key"), "exit code 1, no key"),
        (box(ended=3), "Error: container user-container: exit code 3"),
        (box(before=137, restarts=1), "Error: container user-container: exit code 137"),
    ],
)
def test_a_container_that_cannot_start_fails_the_revision_at_once(container: dict[str, Any], told: str) -> None:
    found = revision(rev("Unknown", 0), [pod(container)])
    assert found.ready == "False"
    assert told in found.message


@pytest.mark.parametrize(
    "container",
    [
        box(),
        box(waiting="ContainerCreating"),
        box(waiting="PodInitializing"),
        box(ended=0),
        box(before=0, restarts=2),  # it ended well, as a job would
    ],
)
def test_a_container_on_its_way_is_no_failure(container: dict[str, Any]) -> None:
    assert ailment(pod(container)) is None
    assert revision(rev("Unknown", 0), [pod(container)]).ready == "Unknown"


def test_an_init_container_counts_as_well() -> None:
    """KServe fetches the model in one."""
    fetching = box("storage-initializer", before=1, restarts=1, message="Traceback:\n  File\nno such bucket\n")
    found = revision(rev("Unknown", 0), [pod(box(waiting="PodInitializing"), initContainerStatuses=[fetching])])
    assert found.ready == "False"
    told = "Error: container storage-initializer: exit code 1, no such bucket, check model.uri and the credentials"
    assert found.message.startswith(told)


def test_a_pod_without_a_node_is_told_and_may_still_get_one() -> None:
    found = revision(rev("Unknown", 0), [pod(conditions=UNSCHEDULABLE, phase="Pending")])
    assert (found.ready, found.message) == ("Unknown", "Unschedulable: 0/3 nodes: insufficient gpu")
    failed = revision(rev("False", 0, reason="Late"), [pod(conditions=UNSCHEDULABLE, phase="Pending")])
    assert (failed.ready, failed.message) == ("False", "Late"), "what Knative has decided stands"


def test_what_is_final_is_told_before_what_is_not() -> None:
    pods = [pod(conditions=UNSCHEDULABLE, phase="Pending"), pod(box(ended=1))]
    assert revision(rev("Unknown", 0), pods).message.startswith("Error: container")


def test_a_ready_revision_is_ready_whatever_one_pod_does() -> None:
    found = revision(rev(), [pod(box(), ready="True"), pod(box(waiting="CrashLoopBackOff", before=1, restarts=2))])
    assert (found.ready, found.message) == ("True", "")
    assert [crash.looping for crash in found.crashes] == [True]
    assert found.pods_ready == 1


@pytest.mark.parametrize("away", [PUT_OUT, GOING], ids=["evicted", "on its way out"])
def test_a_pod_that_was_put_out_or_is_leaving_says_nothing_about_the_version(away: dict[str, Any]) -> None:
    found = revision(rev("Unknown", 0), [away])
    assert (found.ready, found.crashes, found.pods_ready) == ("Unknown", (), 0)


@pytest.mark.parametrize(
    ("containers", "count"),
    [
        ([box()], 0),
        ([box(ended=1)], 1),
        ([box(ended=0)], 0),
        ([box(before=1, restarts=2)], 1),
        ([box(before=1, restarts=2, ended=1)], 1),
        ([box(before=0, restarts=2)], 0),
        ([box(ended=1), box("queue-proxy", ended=1)], 1),  # Knative's own container says nothing of the version
    ],
)
def test_crashes_are_ends_with_an_error(containers: list[dict[str, Any]], count: int) -> None:
    assert len(crashes(pod(*containers))) == count


@pytest.mark.parametrize(
    "full",
    [
        pod(box(ended=1, message="no key"), initContainerStatuses=[box("init", before=1, restarts=1)]),
        pod(conditions=UNSCHEDULABLE, phase="Pending"),
        PUT_OUT,
        GOING,
        pod(box(), ready="True"),
        {"metadata": {"name": "p", "namespace": "shop", "uid": "p", "labels": {}}},
    ],
)
def test_a_trimmed_pod_says_the_same(full: dict[str, Any]) -> None:
    bulky = {**full, "spec": {"containers": [{"image": "large"}]}}
    assert "spec" not in trimmed(bulky)
    for ready in ("True", "Unknown"):
        assert revision(rev(ready), [trimmed(bulky)]) == revision(rev(ready), [full])


# --- small questions ---


def test_owned_is_by_the_controllers_uid() -> None:
    owner = {"metadata": {"uid": "u1"}}
    for reference, ours in (
        ({"uid": "u1", "controller": True}, True),
        ({"uid": "u1"}, False),
        ({"uid": "u2", "controller": True}, False),
    ):
        assert owned({"metadata": {"ownerReferences": [reference]}}, owner) is ours
    assert not owned({"metadata": {}}, owner)


def test_a_status_without_a_generation_is_not_up_to_date() -> None:
    assert up_to_date({"metadata": {"generation": 2}, "status": {"observedGeneration": 2}})
    assert not up_to_date({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}})
    assert not up_to_date({"metadata": {"generation": 2}})
