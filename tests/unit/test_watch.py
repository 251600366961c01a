"""From watched objects to keys and indexes, and from indexes to what a pass sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

import kopf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.adapters import watch
from tidegate.adapters.api import Api, ApiError
from tidegate.adapters.pods import Pods, trimmed
from tidegate.adapters.watch import PLATFORM_TTL, Watch, parents, stem
from tidegate.core import names
from tidegate.core.observed import Object, Observed, Platform
from tidegate.runtime.queue import Key, KeyQueue
from virtual import play

PLURALS = {
    "ModelDeployment": "modeldeployments",
    "ModelVersion": "modelversions",
    "Route": "routes",
    "Configuration": "configurations",
    "Revision": "revisions",
    "InferenceService": "inferenceservices",
    "ServingRuntime": "servingruntimes",
    "ClusterServingRuntime": "clusterservingruntimes",
}
INDEXED_BY = {
    "modeldeployments": watch._by_name,
    "modelversions": watch._by_stem,
    "configurations": watch._by_stem,
    "revisions": watch._by_label,
    "inferenceservices": watch._by_stem,
    "servingruntimes": watch._by_namespace,
    "clusterservingruntimes": watch._by_namespace,
}


def thing(kind: str, name: str, namespace: str | None = "shop", **metadata: Any) -> dict[str, Any]:
    where = {} if namespace is None else {"namespace": namespace}
    return {"kind": kind, "metadata": {"name": name, **where, **metadata}}


def labelled(kind: str, name: str, deployment: str, namespace: str = "shop") -> dict[str, Any]:
    return thing(kind, name, namespace, labels={names.DEPLOYMENT_LABEL: deployment})


def owner(name: str, kind: str = "ModelDeployment") -> dict[str, Any]:
    return {"kind": kind, "name": name, "uid": f"uid-{name}"}


def body_of(obj: Mapping[str, Any]) -> kopf.Body:
    """The object as kopf hands it to a handler."""
    return kopf.Body(cast(Any, obj))


# --- stem ---


@pytest.mark.parametrize("name", ["a", "churn", "a-b", "churn-v1", "a-name-of-thirty-six-characters-long"])
def test_stem_is_what_all_children_of_one_deployment_share(name: str) -> None:
    stems = {stem(names.child(name, names.version_id(version, "0" * 64))) for version in ("v1", "b-c", "2026-11-24")}
    assert len(stems) == 1
    assert stems == {stem(names.child(name, "x-0"))}, "as gather() asks for it"


def test_stem_tells_deployments_apart() -> None:
    found = {stem(names.child(name, names.version_id("b-c", "0" * 64))) for name in ("a", "a-b", "a-b-c", "ab")}
    assert len(found) == 4


@given(st.text(alphabet="abc-", max_size=20))
def test_stem_of_any_name_is_no_error(name: str) -> None:
    assert name.startswith(stem(name))


# --- parents ---


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        (labelled("Revision", "r", "churn"), ["churn"]),
        (thing("Configuration", "c", ownerReferences=[owner("churn")]), ["churn"]),
        (thing("Route", "churn"), ["churn"]),  # a foreign Route of that name is in the way, and then no more
        (thing("Configuration", "churn"), []),
        (thing("Revision", "r", ownerReferences=[owner("churn-v1", "Configuration")]), []),
        (thing("Revision", "r", labels={"other": "label"}), []),
        (
            labelled("Configuration", "c", "churn")
            | {"metadata": labelled("Configuration", "c", "churn")["metadata"] | {"ownerReferences": [owner("other")]}},
            ["churn", "other"],
        ),
        (thing("ModelVersion", "m", ownerReferences=None), []),
    ],
)
def test_parents(child: Object, expected: list[str]) -> None:
    assert list(parents(child)) == [Key("shop", name) for name in expected]


# --- the index functions ---


def indexed(function: Any, obj: Mapping[str, Any]) -> Any:
    return asyncio.run(function(body=body_of(obj), logger=None))


def test_index_by_name_by_stem_by_label_and_by_namespace() -> None:
    child = labelled("Configuration", "churn-v1-00000000", "churn")
    assert indexed(watch._by_name, child) == {("shop", "churn-v1-00000000"): child}
    assert indexed(watch._by_stem, child) == {("shop", "churn"): child}
    assert indexed(watch._by_label, child) == {("shop", "churn"): child}
    assert indexed(watch._by_namespace, thing("ServingRuntime", "rt")) == {"shop": thing("ServingRuntime", "rt")}
    assert indexed(watch._by_namespace, thing("ClusterServingRuntime", "rt", None)) == {
        "": thing("ClusterServingRuntime", "rt", None)
    }


def test_a_revision_of_nobody_is_not_indexed() -> None:
    assert indexed(watch._by_label, thing("Revision", "r")) is None
    assert indexed(watch._by_label, labelled("Revision", "r", "")) is None


# --- from events to the queue, and from indexes to what a pass sees ---


class FakeApi:
    """As much of the API as a Watch asks for."""

    def __init__(
        self, *deployments: Object, groups: Iterable[str] = ("serving.knative.dev", "serving.kserve.io")
    ) -> None:
        self.deployments = {(d["metadata"]["namespace"], d["metadata"]["name"]): d for d in deployments}
        self.routes: dict[tuple[str, str], Object] = {}
        self.groups = list(groups)
        self.features: Any = {"data": {"flag": "enabled"}}
        self.asked = 0
        self.listings: list[list[Object]] = []
        self.streams: list[list[Object] | BaseException] = []

    async def call(self, method: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        if path.endswith("/pods"):
            assert query == {"labelSelector": names.DEPLOYMENT_LABEL}
            return {"items": self.listings.pop(0), "metadata": {"resourceVersion": "7"}}
        assert (method, path) == ("GET", "/apis")
        self.asked += 1
        return {"groups": [{"name": group} for group in self.groups]}

    async def stream(self, path: str, query: Mapping[str, str], seconds: float) -> AsyncIterator[Object]:
        events = self.streams.pop(0)
        if isinstance(events, BaseException):
            raise events
        for event in events:
            yield event

    async def get(self, path: str) -> Object | None:
        if path.endswith("/config-features"):
            if isinstance(self.features, Exception):
                raise self.features
            return cast("Object | None", self.features)
        *_, namespace, plural, name = path.split("/")
        if plural == "routes":
            assert path.startswith("/apis/serving.knative.dev/v1/")
            return self.routes.get((namespace, name))
        assert plural == "modeldeployments"
        return self.deployments.get((namespace, name))


def watching(api: FakeApi, *objects: Mapping[str, Any]) -> tuple[Watch, KeyQueue]:
    """A Watch that has been told of these objects, and its queue."""
    queue = KeyQueue(clock=lambda: 0.0)
    found = Watch(cast(Api, api), queue, Pods(cast(Api, api), queue.add))
    indexes: dict[str, dict[Any, list[Any]]] = {plural: {} for plural in INDEXED_BY}
    for obj in objects:
        plural = PLURALS[obj["kind"]]
        if plural == "routes":
            api.routes[obj["metadata"]["namespace"], obj["metadata"]["name"]] = obj
            continue
        for key, value in (indexed(INDEXED_BY[plural], obj) or {}).items():
            indexes[plural].setdefault(key, []).append(value)
    asyncio.run(found._child_changed(body=body_of(thing("Revision", "r")), **indexes))
    return found, queue


CHURN = thing("ModelDeployment", "churn")


def test_a_leaders_events_enqueue_and_a_standbys_do_not() -> None:
    found, queue = watching(FakeApi())
    child = body_of(labelled("Revision", "r", "churn"))

    async def both() -> None:
        await found._parent_changed(body=body_of(CHURN))
        await found._child_changed(body=child)

    asyncio.run(both())
    assert len(queue) == 0
    found.enqueues = True
    asyncio.run(both())
    assert len(queue) == 1, "parent and child are one key"
    assert asyncio.run(queue.get()) == Key("shop", "churn")


def test_handlers_and_indexes_are_registered_for_everything_that_a_decision_depends_on() -> None:
    registry = kopf.OperatorRegistry()
    found = Watch(cast(Api, FakeApi()), KeyQueue(), Pods(cast(Api, FakeApi()), lambda key: None))
    found.register(registry)
    assert {str(handler.id) for handler in registry._indexing.get_all_handlers()} == set(INDEXED_BY)
    watched = {str(handler.selector.any_name) for handler in registry._watching.get_all_handlers() if handler.selector}
    told = {"routes", "customresourcedefinitions"}
    assert watched == (set(INDEXED_BY) | told) - {"servingruntimes", "clusterservingruntimes"}
    assert not found.listening.is_set()


def test_a_pass_sees_its_own_children_and_those_that_stand_under_their_names() -> None:
    mine = [
        labelled("ModelVersion", "churn-v1-00000000", "churn"),
        labelled("Configuration", "churn-v1-00000000", "churn"),
        labelled("InferenceService", "churn-v2-11111111", "churn"),
        labelled("Revision", "churn-v1-00000000-00001", "churn"),
        thing("Route", "churn"),
        thing("ServingRuntime", "rt"),
        thing("ClusterServingRuntime", "crt", None),
    ]
    foreign = thing("Configuration", "churn-v3-22222222")
    others = [
        labelled("ModelVersion", "churn-b-v1-00000000", "churn-b"),
        labelled("Configuration", "churn-b-v1-00000000", "churn-b"),
        labelled("Revision", "churn-b-v1-00000000-00001", "churn-b"),
        thing("Route", "churn-b"),
        thing("Route", "churn", "elsewhere"),
        labelled("Revision", "churn-v1-00000000-00001", "churn", "elsewhere"),
        thing("ServingRuntime", "rt", "elsewhere"),
    ]
    found, _ = watching(FakeApi(CHURN), CHURN, foreign, *mine, *others)
    assert found.listening.is_set()
    assert found.keys() == [Key("shop", "churn")]
    record, configuration, service, revision, route, runtime, cluster_runtime = mine
    assert asyncio.run(found.gather(Key("shop", "churn"))) == Observed(
        deployment=CHURN,
        records=(record,),
        workloads=(service, foreign, configuration),
        revisions=(revision,),
        route=route,
        runtimes=(runtime, cluster_runtime),
        platform=Platform(True, True, {"flag": "enabled"}),
    )


def pod(uid: str, restarts: int = 0, version: str = "1") -> Object:
    made = labelled("Pod", f"pod-{uid}", "churn")
    status = {"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": restarts, "image": "i"}]}
    return {
        **made,
        "metadata": {**made["metadata"], "uid": uid, "resourceVersion": version},
        "spec": {},
        "status": status,
    }


def test_pods_are_listed_followed_and_listed_anew_when_the_watch_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes, changes and goes is seen, a change enqueues its key once, and a broken watch loses nothing."""
    monkeypatch.setattr("tidegate.adapters.pods.RETRY_SECONDS", 0)
    changed: list[Key] = []
    api = FakeApi()
    api.listings = [[pod("a"), pod("b")], [pod("c")], [pod("c")]]
    api.streams = [
        [
            {"type": "MODIFIED", "object": pod("a", restarts=1, version="8")},
            {"type": "MODIFIED", "object": pod("a", restarts=1, version="9")},
            {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "10"}}},
            {"type": "DELETED", "object": pod("b", version="11")},
        ],
        [{"type": "ERROR", "object": {"code": 410}}],
        ApiError(500, "broken"),
        asyncio.CancelledError(),  # ends the test's run
    ]
    pods = Pods(cast(Api, api), changed.append)

    async def follow() -> None:
        task = asyncio.create_task(pods.run())
        await pods.listed.wait()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(follow())
    assert pods.of(Key("shop", "churn")) == (trimmed(pod("c")),), "a was gone when they were listed anew"
    assert changed == [Key("shop", "churn")] * 6, "a and b come, a crashes (told twice), b goes, a goes, c comes"
    assert pods.of(Key("shop", "other")) == ()


def test_a_pod_is_kept_without_what_no_decision_needs() -> None:
    kept = trimmed(pod("a", restarts=3))
    assert kept["status"]["containerStatuses"] == [{"name": "c", "image": "i", "restartCount": 3}]
    assert "spec" not in kept
    assert "resourceVersion" not in kept["metadata"]


def test_a_deployment_is_read_afresh_whatever_the_index_says() -> None:
    newer = CHURN | {"status": {"stable": "v1"}}
    found, _ = watching(FakeApi(newer), CHURN)
    seen = asyncio.run(found.gather(Key("shop", "churn")))
    assert seen is not None
    assert seen.deployment == newer
    assert asyncio.run(watching(FakeApi(), CHURN)[0].gather(Key("shop", "churn"))) is None


@pytest.mark.parametrize(
    ("groups", "platform"),
    [
        (["serving.knative.dev", "serving.kserve.io"], Platform(True, True)),
        (["serving.knative.dev"], Platform(True, False)),
        (["serving.kserve.io"], Platform(False, True)),
        ([], Platform(False, False)),
    ],
)
@pytest.mark.parametrize("features", [None, {}, {"data": None}, ApiError(403, "forbidden")])
def test_what_is_installed(groups: list[str], platform: Platform, features: Any) -> None:
    api = FakeApi(CHURN, groups=groups)
    api.features = features
    seen = asyncio.run(watching(api)[0].gather(Key("shop", "churn")))
    assert seen is not None
    assert seen.platform == platform


def test_an_api_server_in_trouble_is_not_taken_for_a_cluster_without_flags() -> None:
    api = FakeApi(CHURN)
    api.features = ApiError(500, "in trouble")
    with pytest.raises(ApiError):
        asyncio.run(watching(api)[0].gather(Key("shop", "churn")))


def test_what_is_installed_is_asked_by_one_pass_for_all_now_and_then() -> None:
    api = FakeApi(CHURN)
    found, _ = watching(api)

    async def story() -> None:
        await asyncio.gather(*(found.gather(Key("shop", "churn")) for _ in range(8)))
        assert api.asked == 1
        await asyncio.sleep(PLATFORM_TTL - 1)
        await found.gather(Key("shop", "churn"))
        assert api.asked == 1
        await asyncio.sleep(2)
        api.groups = []
        seen = await found.gather(Key("shop", "churn"))
        assert api.asked == 2
        assert seen is not None
        assert not seen.platform.knative

    play(story())
