"""What is asked for through the annotation tidegate.dev/request, and what becomes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api.modeldeployment import ModelDeploymentStatus, Pinned, Rejected, RequestStatus
from tidegate.api.modelversion import ModelVersionSpec
from tidegate.api.rollout import RolloutStatus
from tidegate.core.requests import VERBS, take
from tidegate.core.rollout.plan import Planned

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PLAN = (Planned(10, timedelta(minutes=1)), Planned(50, approval=True), Planned(100))
STABLE, CANDIDATE, KEPT, OLDER = "v2-22222222", "v3-33333333", "v1-11111111", "v0-00000000"


def record(identity: str) -> ModelVersionSpec:
    version = identity.split("-")[0]
    template = {"model": {"version": version, "container": {"image": "registry.test/m"}}}
    fields = {"deployment": "churn", "id": identity, "hash": "0" * 64, "tag": version, "template": template}
    return ModelVersionSpec.model_validate(fields)


RECORDS = [record(identity) for identity in (STABLE, CANDIDATE, KEPT, OLDER)]
AT_REST = ModelDeploymentStatus(stable=STABLE, kept=[KEPT, OLDER])
ROLLOUT = RolloutStatus(candidate=CANDIDATE, stable=STABLE, step=2, weight=50)
ROLLING = AT_REST.model_copy(update={"rollout": ROLLOUT})
REJECTED = AT_REST.model_copy(
    update={"rejected": Rejected(id=CANDIDATE, reason="CandidateFailed", message="it broke", at=NOON)}
)
UNDONE = AT_REST.model_copy(update={"pinned": Pinned(to=KEPT, over=STABLE)})


def asked(value: str, status: ModelDeploymentStatus, desired: str = CANDIDATE) -> ModelDeploymentStatus:
    deployment = {"metadata": {"name": "churn", "annotations": {"tidegate.dev/request": value}}}
    return take(deployment, status, desired, PLAN, RECORDS, NOON)


def told(found: ModelDeploymentStatus) -> tuple[bool, str]:
    assert found.request is not None
    return found.request.accepted, found.request.message


def refused(value: str, status: ModelDeploymentStatus, desired: str = CANDIDATE) -> str:
    """The reason for a refusal; nothing but the answer may have changed."""
    found = asked(value, status, desired)
    accepted, message = told(found)
    assert not accepted
    assert found.model_copy(update={"request": status.request, "acted": status.acted}) == status
    return message


# --- the annotation ---


def test_no_annotation_changes_nothing() -> None:
    for metadata in ({"name": "churn"}, {"name": "churn", "annotations": {}}):
        assert take({"metadata": metadata}, ROLLING, CANDIDATE, PLAN, RECORDS, NOON) is ROLLING
    assert asked("   ", ROLLING) is ROLLING


def test_each_value_is_answered_once() -> None:
    first = asked("abort #1", ROLLING)
    assert first.request == RequestStatus(value="abort #1", accepted=True, message="v3-33333333 is given up", at=NOON)
    assert asked("abort #1", first) is first, "acting on it again would be another abort"
    assert asked("abort #2", first) is not first


@pytest.mark.parametrize(
    "value", ["abort", "abort v3", f"abort {CANDIDATE}", "abort #x", "abort   v3   # by hand", "abort v3#1", " abort\n"]
)
def test_forms_that_are_understood(value: str) -> None:
    assert told(asked(value, ROLLING)) == (True, "v3-33333333 is given up")


@pytest.mark.parametrize(
    "value", ["frobnicate", "Abort", "abort now please", "abortv3", "abort v3/x", "v3 abort", "#1", "abort,undo"]
)
def test_forms_that_are_not(value: str) -> None:
    message = refused(value, ROLLING)
    assert message.startswith("not understood")
    for verb in VERBS:
        assert verb in message, "it says what can be asked"


def test_a_long_value_is_cut_and_still_answered_once() -> None:
    value = "abort #" + "x" * 600
    found = asked(value, ROLLING)
    assert told(found)[0]
    assert found.request is not None
    assert len(found.request.value) == 512, "as the CRD allows"
    assert asked(value, found) is found


# --- approve ---


@pytest.mark.parametrize("value", ["approve", "approve v3", f"approve {CANDIDATE}", f"approve {CANDIDATE}/2"])
def test_approve_is_for_the_step_that_waits(value: str) -> None:
    found = asked(value, ROLLING)
    assert told(found) == (True, "step 2 of v3-33333333 is approved")
    assert found.rollout == ROLLOUT.model_copy(update={"approved": 2})


@pytest.mark.parametrize(
    ("rollout", "value"),
    [
        ({}, "approve v3/1"),  # an earlier one, late
        ({}, "approve v3/3"),  # a later one, early
        ({"approved": 2}, "approve v3/2"),  # twice
        ({"step": 1}, "approve"),  # waits for a time
        ({"step": 0}, "approve"),  # warms up
        ({"step": 7}, "approve"),  # the plan has become shorter
    ],
)
def test_approve_of_a_step_that_does_not_wait(rollout: dict[str, Any], value: str) -> None:
    status = ROLLING.model_copy(update={"rollout": ROLLOUT.model_copy(update=rollout)})
    assert "does not wait for approval; the rollout is at step" in refused(value, status)


# --- promote ---


def test_promote() -> None:
    found = asked("promote", ROLLING)
    assert told(found) == (True, "v3-33333333 gets all requests as soon as it has the replicas for them")
    assert found.rollout == ROLLOUT.model_copy(update={"promote": True})


# --- abort ---


def test_abort_gives_the_version_of_the_spec_up() -> None:
    found = asked("abort", ROLLING)
    assert found.rejected is not None
    assert (found.rejected.id, found.rejected.reason) == (CANDIDATE, "Aborted")
    assert "tidegate retry" in found.rejected.message


def test_abort_of_an_undo_under_way_goes_on_as_the_spec_asks() -> None:
    undoing = UNDONE.model_copy(update={"rollout": RolloutStatus(candidate=KEPT, stable=STABLE)})
    found = asked("abort v1", undoing, desired=STABLE)
    assert told(found) == (True, "the undo to v1-11111111 is called off")
    assert found.pinned is None
    assert found.rejected is None


def test_abort_of_an_undo_out_of_a_rollout_tries_neither() -> None:
    """The spec asks for v3, v2 has the traffic, and v1 was on its way: calling that off must not begin v3 again."""
    undoing = AT_REST.model_copy(
        update={"rollout": RolloutStatus(candidate=KEPT, stable=STABLE), "pinned": Pinned(to=KEPT, over=CANDIDATE)}
    )
    found = asked("abort v1", undoing)
    assert found.pinned is None
    assert found.rejected is not None
    assert found.rejected.id == CANDIDATE


@pytest.mark.parametrize("verb", ["approve", "promote", "abort"])
def test_what_needs_a_rollout_is_refused_without_one(verb: str) -> None:
    assert refused(verb, AT_REST) == "no rollout is on"


@pytest.mark.parametrize("verb", ["approve", "promote", "abort"])
@pytest.mark.parametrize("subject", ["v2", STABLE, "v9"])
def test_what_means_another_version_is_refused(verb: str, subject: str) -> None:
    assert refused(f"{verb} {subject}", ROLLING) == f"the candidate is {CANDIDATE}, not {subject}"


# --- undo ---


@pytest.mark.parametrize(
    ("value", "to"), [("undo", KEPT), ("undo v1", KEPT), (f"undo {OLDER}", OLDER), ("undo v0 #1", OLDER)]
)
def test_undo_goes_to_a_kept_version(value: str, to: str) -> None:
    found = asked(value, AT_REST, desired=STABLE)
    assert found.pinned == Pinned(to=to, over=STABLE)
    assert told(found) == (True, f"back to {to}; the spec still asks for {STABLE}")


def test_undo_without_a_version_during_a_rollout_is_an_abort() -> None:
    assert asked("undo", ROLLING).rejected == asked("abort", ROLLING).rejected


def test_undo_with_a_version_during_a_rollout_goes_to_it() -> None:
    found = asked("undo v1", ROLLING)
    assert found.pinned == Pinned(to=KEPT, over=CANDIDATE)
    assert found.rejected is None


def test_undo_to_what_the_spec_asks_for_ends_an_undo() -> None:
    undone = ModelDeploymentStatus(stable=KEPT, kept=[STABLE], pinned=Pinned(to=KEPT, over=STABLE))
    found = asked("undo", undone, desired=STABLE)
    assert found.pinned is None
    assert told(found) == (True, f"back to {STABLE}, as the spec asks")


def test_undo_without_anything_kept_says_why() -> None:
    bare = AT_REST.model_copy(update={"kept": []})
    assert "keepVersions" in refused("undo", bare, desired=STABLE)
    lost = AT_REST.model_copy(update={"kept": ["v7-77777777"]})
    assert "keepVersions" in refused("undo", lost, desired=STABLE), "a kept version without a record cannot be served"


def test_undo_to_a_version_that_is_not_kept_says_which_are() -> None:
    message = refused("undo v9", AT_REST, desired=STABLE)
    assert message == f"v9 is not kept; there are: v1 ({KEPT}), v0 ({OLDER})"


# --- retry ---


def test_retry_forgets_a_rejection_or_an_undo() -> None:
    for status, desired in ((REJECTED, CANDIDATE), (UNDONE, STABLE)):
        found = asked("retry", status, desired)
        assert told(found) == (True, f"{desired} is tried again")
        assert (found.rejected, found.pinned) == (None, None)


def test_retry_of_nothing_is_refused() -> None:
    assert refused("retry", ROLLING).startswith("nothing to retry")


# --- whatever is written ---


@given(st.text(max_size=600), st.sampled_from([AT_REST, ROLLING, REJECTED, UNDONE]))
def test_any_value_is_answered_within_the_bounds_of_the_crd(value: str, status: ModelDeploymentStatus) -> None:
    found = asked(value, status)
    if value.strip():
        assert found.request is not None
        assert len(found.request.value) <= 512
        assert 0 < len(found.request.message) <= 1024
        assert asked(value, found) is found
    else:
        assert found is status
