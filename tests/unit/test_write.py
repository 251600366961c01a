"""Writing a decision down: the order, what is left alone, and what happens when a write fails."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest

from tidegate.api.modeldeployment import ModelDeploymentStatus
from tidegate.api.modelversion import ModelVersionStatus
from tidegate.core.decide import Decision
from tidegate.core.events import Event
from tidegate.core.observed import Object, Observed
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.reconcile import BLOCKED_RETRY, Reconciler
from tidegate.runtime.write import Conflict, Refused, Writer
from virtual import play
from world import Silent, World, container, files


class Recorder:
    """A cluster that writes down what it is asked to do, and answers as an API server would."""

    def __init__(self, *, fail_at: int | None = None, error: type[Exception] = Conflict) -> None:
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[Mapping[str, Any]] = []
        self._fail_at, self._error = fail_at, error
        self.skip = False
        """Whether only that one write fails, and later ones are its successors."""

    async def apply(self, obj: Mapping[str, Any], subresource: str | None = None) -> Object:
        self._note("status" if subresource else "apply", obj)
        return kept(obj)

    async def delete(self, obj: Object) -> None:
        self._note("delete", obj)

    async def announce(self, about: Object, event: Event) -> None:
        self._note("announce", about)

    def _note(self, verb: str, obj: Mapping[str, Any]) -> None:
        if len(self.calls) == self._fail_at:
            if self.skip:
                self._fail_at = None
            raise self._error("refused")
        self.calls.append((verb, f"{obj['kind']}/{obj['metadata']['name']}"))
        self.bodies.append(copy.deepcopy(dict(obj)))


def kept(obj: Mapping[str, Any], manager: str = "tidegate", fields: str = "mine", uid: str = "u") -> dict[str, Any]:
    """The object as the API server keeps it."""
    entries = [
        {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": fields}},
        {"manager": "controller", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": "any"}},
    ]
    metadata = {"uid": uid, "resourceVersion": "9"} | dict(obj["metadata"])
    return {**obj, "metadata": metadata | {"managedFields": entries}, "status": {"any": "thing"}}


def child(kind: str, name: str, value: int = 1, version: str = "v1") -> dict[str, Any]:
    labels = {"tidegate.dev/deployment": "churn", "tidegate.dev/version": version}
    metadata = {"name": name, "namespace": "shop", "labels": labels}
    return {"apiVersion": "x/v1", "kind": kind, "metadata": metadata, "spec": {"value": value}}


DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "tidegate.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "churn", "namespace": "shop", "uid": "u0", "resourceVersion": "5", "generation": 1},
    "spec": {},
}
OWN_RECORD = child("ModelVersion", "churn-v1")
RECORD = kept(OWN_RECORD)
OLD = kept(child("Configuration", "churn-v0"))
WORKLOAD, ROUTE = child("Configuration", "churn-v1"), child("Route", "churn")
FULL = Decision(
    status=ModelDeploymentStatus(stable="v1"),
    apply=(child("ModelVersion", "churn-v2"), WORKLOAD, ROUTE),
    delete=(OLD,),
    version_status={"churn-v1": ModelVersionStatus(role="Stable")},
    events=(Event("Normal", "Promoted", "v1"),),
)
SEEN = Observed(deployment=DEPLOYMENT, records=(RECORD,), workloads=(OLD,))
ORDER = [
    ("status", "ModelDeployment/churn"),
    ("apply", "ModelVersion/churn-v2"),
    ("apply", "Configuration/churn-v1"),
    ("apply", "Route/churn"),
    ("status", "ModelVersion/churn-v1"),
    ("delete", "Configuration/churn-v0"),
    ("announce", "ModelDeployment/churn"),
]


def written(*passes: tuple[Observed, Decision], cluster: Recorder | None = None) -> Recorder:
    """What one writer does in these passes."""
    cluster = cluster or Recorder()
    writer = Writer(cluster)

    async def go() -> None:
        for observed, decision in passes:
            await writer.write(observed, decision)

    asyncio.run(go())
    return cluster


def test_what_was_decided_is_on_record_before_it_is_acted_upon() -> None:
    assert written((SEEN, FULL)).calls == ORDER


@pytest.mark.parametrize("at", range(len(ORDER)))
def test_a_failed_write_stops_the_pass_there(at: int) -> None:
    cluster = Recorder(fail_at=at)
    with pytest.raises(Conflict):
        written((SEEN, FULL), cluster=cluster)
    assert cluster.calls == ORDER[:at]


def test_nothing_decided_nothing_written() -> None:
    assert written((SEEN, Decision(status=ModelDeploymentStatus()))).calls == []


# --- the status ---


def test_status_is_written_for_the_object_that_was_read_and_no_other() -> None:
    cluster = written((SEEN, Decision(status=ModelDeploymentStatus(stable="v1", observed_generation=1))))
    (body,) = cluster.bodies
    assert body["metadata"] == {"name": "churn", "namespace": "shop", "uid": "u0", "resourceVersion": "5"}
    assert body["status"]["stable"] == "v1"
    assert "candidate" not in body["status"], "what is none is left out, so that server-side apply removes it"
    assert body["status"]["kept"] == []


def test_status_that_says_the_same_is_not_written() -> None:
    status = ModelDeploymentStatus(stable="v1", observed_generation=1)
    stored = DEPLOYMENT | {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
    assert written((Observed(deployment=stored), Decision(status=status))).calls == []
    unknown = DEPLOYMENT | {"status": {"fromTheFuture": 1}}
    assert written((Observed(deployment=unknown), Decision(status=ModelDeploymentStatus()))).calls == []


def test_a_records_status_does_not_depend_on_when_it_was_read() -> None:
    decision = Decision(ModelDeploymentStatus(), version_status={"churn-v1": ModelVersionStatus(role="Kept")})
    (body,) = written((SEEN, decision)).bodies
    assert body["metadata"] == {"name": "churn-v1", "namespace": "shop", "uid": "u"}
    assert body["status"] == {"role": "Kept", "conditions": []}


def test_a_status_of_a_record_that_is_not_there_is_left_out() -> None:
    decision = Decision(ModelDeploymentStatus(), version_status={"churn-v9": ModelVersionStatus(role="Kept")})
    assert written((SEEN, decision)).calls == []


# --- what is refused ---


def refusal(at: int) -> tuple[Recorder, Writer]:
    cluster = Recorder(fail_at=at, error=Refused)
    return cluster, Writer(cluster)


def test_a_refused_workload_stops_nothing_else_and_is_remembered_with_the_reason() -> None:
    cluster, writer = refusal(ORDER.index(("apply", "Configuration/churn-v1")))
    cluster.skip = True
    asyncio.run(writer.write(SEEN, FULL))
    assert cluster.calls == [call for call in ORDER if call != ("apply", "Configuration/churn-v1")]
    assert writer.refused(Key("shop", "churn")) == {"churn-v1": "refused"}
    asyncio.run(writer.write(SEEN, FULL))
    assert writer.refused(Key("shop", "churn")) == {}, "until it is taken"


def test_a_refusal_is_forgotten_with_its_deployment() -> None:
    cluster, writer = refusal(2)
    cluster.skip = True
    asyncio.run(writer.write(SEEN, FULL))
    writer.forget("shop", "churn")
    assert writer.refused(Key("shop", "churn")) == {}


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_what_is_refused_and_no_workload_fails_the_pass(at: int) -> None:
    cluster, writer = refusal(at)
    with pytest.raises(Refused):
        asyncio.run(writer.write(SEEN, FULL))
    assert cluster.calls == ORDER[:at]


def test_a_pass_after_a_refusal_comes_at_once_and_then_now_and_then() -> None:
    world = World(refusing={"v1"})
    world.submit(container("v1"))
    operator = reconciler(world, Telling())
    key = Key("default", "churn")
    assert asyncio.run(operator.reconcile(key)) == world.now, "for the status to say so"
    assert asyncio.run(operator.reconcile(key)) == world.now + BLOCKED_RETRY


# --- what is left alone ---


def second_pass(seen: Object | None, wanted: Mapping[str, Any] = WORKLOAD) -> list[tuple[str, str]]:
    """What is written in a second pass that asks for `wanted` and sees this of what the first one applied."""
    first = (Observed(deployment=DEPLOYMENT), Decision(ModelDeploymentStatus(), apply=(WORKLOAD,)))
    observed = Observed(deployment=DEPLOYMENT, workloads=() if seen is None else (seen,))
    return written(first, (observed, Decision(ModelDeploymentStatus(), apply=(dict(wanted),)))).calls[1:]


APPLIED = [("apply", "Configuration/churn-v1")]


def test_an_object_that_is_as_it_was_applied_is_left_alone() -> None:
    assert second_pass(kept(WORKLOAD)) == []


def test_changes_of_its_status_and_by_others_in_their_own_fields_do_not_matter() -> None:
    seen = kept(WORKLOAD)
    seen["status"] = {"another": "thing"}
    seen["metadata"]["resourceVersion"] = "99"
    seen["metadata"]["managedFields"].append({"manager": "mesh", "operation": "Update", "fieldsV1": {"f:a": {}}})
    assert second_pass(seen) == []


def test_an_object_that_is_asked_to_be_something_else_is_applied() -> None:
    assert second_pass(kept(WORKLOAD), child("Configuration", "churn-v1", value=2)) == APPLIED


def test_an_object_one_of_whose_fields_somebody_took_over_is_applied() -> None:
    assert second_pass(kept(WORKLOAD, fields="fewer")) == APPLIED
    assert second_pass(kept(WORKLOAD, manager="kubectl-edit")) == APPLIED


def test_an_object_that_has_gone_or_was_replaced_is_applied() -> None:
    assert second_pass(None) == APPLIED
    assert second_pass(kept(WORKLOAD, uid="another")) == APPLIED


def test_a_route_and_a_record_are_remembered_too() -> None:
    record = child("ModelVersion", "churn-v1")
    decision = Decision(ModelDeploymentStatus(), apply=(record, ROUTE))
    seen = Observed(deployment=DEPLOYMENT, records=(kept(record),), route=kept(ROUTE))
    assert len(written((seen, decision), (seen, decision)).calls) == 2


def test_a_revision_is_patched_whenever_it_is_asked_for() -> None:
    """Only annotations that differ are asked for, so there is nothing to remember."""
    patch = child("Revision", "churn-v1-00001")
    seen = Observed(deployment=DEPLOYMENT, revisions=(kept(patch),))
    decision = Decision(ModelDeploymentStatus(), apply=(patch,))
    assert len(written((seen, decision), (seen, decision)).calls) == 2


def test_what_was_not_written_is_not_remembered() -> None:
    cluster = Recorder(fail_at=1)
    writer = Writer(cluster)
    seen = Observed(deployment=DEPLOYMENT, records=(RECORD,), route=kept(ROUTE))
    decision = Decision(ModelDeploymentStatus(), apply=(OWN_RECORD, ROUTE))

    async def go() -> None:
        with pytest.raises(Conflict):
            await writer.write(seen, decision)
        cluster._fail_at = None
        await writer.write(seen, decision)

    asyncio.run(go())
    assert cluster.calls == [("apply", "ModelVersion/churn-v1"), ("apply", "Route/churn")]


def test_a_deleted_object_is_forgotten_so_that_it_can_come_back() -> None:
    seen = Observed(deployment=DEPLOYMENT, records=(RECORD,))
    there = Decision(ModelDeploymentStatus(), apply=(OWN_RECORD,))
    gone = Decision(ModelDeploymentStatus(), delete=(RECORD,))
    verbs = [verb for verb, _ in written((seen, there), (seen, gone), (seen, there)).calls]
    assert verbs == ["apply", "delete", "apply"]


def test_a_deployment_that_is_gone_is_forgotten_and_its_namesakes_are_not() -> None:
    cluster = Recorder()
    writer = Writer(cluster)
    seen = Observed(deployment=DEPLOYMENT, records=(RECORD,))
    decision = Decision(ModelDeploymentStatus(), apply=(OWN_RECORD,))

    async def go() -> None:
        await writer.write(seen, decision)
        writer.forget("shop", "chur")
        writer.forget("sho", "churn")
        await writer.write(seen, decision)
        assert len(cluster.calls) == 1
        writer.forget("shop", "churn")
        await writer.write(seen, decision)
        assert len(cluster.calls) == 2

    asyncio.run(go())


def test_writes_are_counted() -> None:
    writer = Writer(Recorder())
    asyncio.run(writer.write(SEEN, FULL))
    assert writer.writes == len(ORDER) - 1, "an Event is no change of anything"


# --- passes ---


class Telling(Silent):
    """Telemetry that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def passed(self, key: Key, observed: Observed, decision: Decision, seconds: float, writes: int) -> None:
        self.told.append(f"passed with {writes} writes")

    def failed(self, key: Key, error: Exception) -> None:
        self.told.append(f"failed: {error}")

    def gone(self, key: Key) -> None:
        self.told.append("gone")


def reconciler(world: World, telemetry: Telling) -> Reconciler:
    return Reconciler(world, world, telemetry, lambda: world.now, KeyQueue(clock=lambda: 0.0))


def test_a_pass_tells_when_to_look_again() -> None:
    world, telemetry = World(), Telling()
    world.submit(container("v1"))
    operator = world.run(30)
    assert asyncio.run(operator.reconcile(Key("default", "churn"))) is None, "at rest: not before something happens"
    world.submit(container("v2", rollout={"guardrails": [], "steps": [{"weight": 50, "pause": {"for": "1h"}}]}))
    operator = reconciler(world, telemetry)
    while world.weights().get("v2") != 50:
        world.step(operator)
    world.step(operator)
    rollout = world.status.rollout
    assert rollout is not None
    assert rollout.since is not None
    wake_at = asyncio.run(operator.reconcile(Key("default", "churn")))
    assert wake_at is not None
    assert (wake_at - rollout.since).total_seconds() == 3600
    assert telemetry.told[-1] == "passed with 0 writes"


def test_what_only_a_person_can_mend_is_looked_at_again_soon() -> None:
    world = World(runtimes=())
    world.submit(files("v1"))
    operator = reconciler(world, Telling())
    assert asyncio.run(operator.reconcile(Key("default", "churn"))) == world.now + BLOCKED_RETRY


def test_a_deployment_that_goes_is_left_to_go() -> None:
    world, telemetry = World(), Telling()
    world.submit(container("v1"))
    world.run(30)
    operator = reconciler(world, telemetry)
    writes = world.writes
    world.deployment["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert asyncio.run(operator.reconcile(Key("default", "churn"))) is None
    del world.objects["ModelDeployment", "churn"]
    assert asyncio.run(operator.reconcile(Key("default", "churn"))) is None
    assert telemetry.told == ["gone", "gone"]
    assert world.writes == writes


class Stumbling:
    """A source whose first looks fail."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    async def gather(self, key: Key) -> Observed | None:
        if self._errors:
            raise self._errors.pop(0)
        return None


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([RuntimeError("it broke"), RuntimeError("again")], ["failed: it broke", "failed: again", "gone"]),
        ([Conflict("stale")], ["gone"]),  # somebody else was faster: no failure, only another look
    ],
)
def test_a_worker_tries_again_and_lives_on(
    errors: list[Exception], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telling()

    async def story() -> None:
        queue = KeyQueue()
        worker = asyncio.create_task(
            Reconciler(Stumbling(*errors), Recorder(), telemetry, lambda: World().now, queue).work()
        )
        queue.add(Key("shop", "churn"))
        await asyncio.sleep(10)
        assert not worker.done()
        worker.cancel()
        await asyncio.wait([worker])

    play(story())
    assert telemetry.told == told
    assert ("shop/churn: pass failed" in caplog.text) is ("failed: it broke" in told)
