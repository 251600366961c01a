"""What the cluster holds, kept up to date by kopf: indexes of parents and children, and events that enqueue keys.

Kopf fills the indexes before it calls any handler, so no pass ever sees half a picture. Handlers only enqueue; they
decide nothing, and a lost or merged event loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import kopf

from tidegate.adapters.api import Api, ApiError
from tidegate.adapters.pods import Pods
from tidegate.api import API_VERSION, GROUP, VERSION
from tidegate.core import names
from tidegate.core.observed import Object, Observed, Platform
from tidegate.core.rollout.ask import ask
from tidegate.core.rollout.counts import Ask, Sample
from tidegate.runtime.queue import Key, KeyQueue

PLATFORM_TTL = 30.0
"""Seconds for which it is believed what is installed."""

KNATIVE = ("serving.knative.dev", "v1")
KSERVE = ("serving.kserve.io", "v1beta1")
KSERVE_RUNTIMES = ("serving.kserve.io", "v1alpha1")

_CHILDREN = (
    (GROUP, VERSION, "modelversions"),
    (*KNATIVE, "routes"),
    (*KNATIVE, "configurations"),
    (*KNATIVE, "revisions"),
    (*KSERVE, "inferenceservices"),
)
INDEXED_CHILDREN = tuple(kind for kind in _CHILDREN if kind[2] != "routes")
"""Group, version and plural of the children that a pass takes from an index. It reads the one Route itself."""
_RUNTIMES = ((*KSERVE_RUNTIMES, "servingruntimes"), (*KSERVE_RUNTIMES, "clusterservingruntimes"))


class Child(NamedTuple):
    """One child, not another of its name before or after it."""

    plural: str
    namespace: str
    name: str
    uid: str


def child_of(plural: str, obj: Object) -> Child:
    """Which one it is."""
    metadata = obj["metadata"]
    return Child(plural, metadata["namespace"], metadata["name"], metadata.get("uid", ""))


def stem(child: str) -> str:
    """The part of a child's name that all children of one deployment share (see `names.child`)."""
    return child.rsplit("-", 2)[0]


class Watch:
    """The cluster as kopf sees it. Register it with a kopf registry, then `gather`.

    Attributes:
        enqueues: whether changes are put into the queue. A replica that stands by only keeps its indexes filled.
    """

    def __init__(
        self, api: Api, queue: KeyQueue, pods: Pods, sample: Callable[[Key], Sample | None] = lambda key: None
    ) -> None:
        self._pods, self._sample = pods, sample
        self.enqueues = False
        self._api, self._queue = api, queue
        self.listening = asyncio.Event()
        """Set once the indexes have been filled: before that, absence means nothing."""
        self._indices: Mapping[str, Mapping[Any, Iterable[Object]]] = {}
        self._platform: tuple[float, Platform] | None = None
        self._platform_lock = asyncio.Lock()

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Adds the indexes and the handlers that enqueue."""
        kopf.index(GROUP, VERSION, "modeldeployments", id="modeldeployments", registry=registry)(_by_name)
        kopf.on.event(GROUP, VERSION, "modeldeployments", id="parent", registry=registry)(self._parent_changed)
        for group, version, plural in _CHILDREN:
            if plural != "routes":  # a pass reads the one Route itself
                by = _by_label if plural == "revisions" else _by_stem
                kopf.index(group, version, plural, id=plural, registry=registry)(by)
            kopf.on.event(group, version, plural, id=f"{plural}-child", registry=registry)(self._child_changed)
        for group, version, plural in _RUNTIMES:
            kopf.index(group, version, plural, id=plural, registry=registry)(_by_namespace)
        # kopf tells only by an event that the indexes are filled, and of all objects only CRDs are surely there
        crds = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        kopf.on.event(*crds, id="filled", registry=registry)(self._filled)

    def keys(self) -> list[Key]:
        """Every ModelDeployment that is known."""
        return [Key(*key) for key in self._indices.get("modeldeployments", {})]

    def asks(self) -> dict[Key, Ask]:
        """What is to be counted, for every ModelDeployment that is being judged."""
        every = self._indices.get("modeldeployments", {}).items()
        return {Key(*key): wanted for key, objects in every for obj in objects if (wanted := ask(obj))}

    def children(self) -> set[Child]:
        """Every child in the indexes."""
        return {
            child_of(plural, obj)
            for _, _, plural in INDEXED_CHILDREN
            for entries in self._indices.get(plural, {}).values()
            for obj in entries
        }

    async def gather(self, key: Key) -> Observed | None:
        """Everything that a decision about the key depends on.

        The ModelDeployment itself is read afresh: its status is our own memory, which an index may lag behind. So is
        the Route: kopf misses what is deleted while a watch is broken, and a Route that only seems to be there is never
        made again.
        """
        path = f"/apis/{API_VERSION}/namespaces/{key.namespace}/modeldeployments/{key.name}"
        deployment = await self._api.get(path)
        if deployment is None:
            return None
        short = (key.namespace, stem(names.child(key.name, "x-0")))
        route = f"/apis/{'/'.join(KNATIVE)}/namespaces/{key.namespace}/routes/{key.name}"
        return Observed(
            deployment=deployment,
            records=self._find("modelversions", short),
            workloads=(*self._find("inferenceservices", short), *self._find("configurations", short)),
            revisions=self._find("revisions", tuple(key)),
            pods=self._pods.of(key),
            route=await self._api.get(route),
            runtimes=(*self._find("servingruntimes", key.namespace), *self._find("clusterservingruntimes", "")),
            platform=await self._look_at_platform(),
            sample=self._sample(key),
        )

    def _find(self, index: str, key: Any) -> tuple[Object, ...]:
        return tuple(self._indices.get(index, {}).get(key, ()))

    async def _look_at_platform(self) -> Platform:
        """What is installed: asked at most every 30 s, by one pass for all."""
        async with self._platform_lock:
            now = asyncio.get_running_loop().time()
            if self._platform is None or now >= self._platform[0]:
                self._platform = (now + PLATFORM_TTL, await self._ask_platform())
            return self._platform[1]

    async def _ask_platform(self) -> Platform:
        groups = {group["name"] for group in (await self._api.call("GET", "/apis"))["groups"]}
        features = None
        try:
            features = await self._api.get("/api/v1/namespaces/knative-serving/configmaps/config-features")
        except ApiError as error:
            if error.status != 403:  # without leave to read it, take the flags as they are by default: off
                raise
        return Platform(
            knative=KNATIVE[0] in groups, kserve=KSERVE[0] in groups, features=(features or {}).get("data") or {}
        )

    async def _filled(self, **context: Any) -> None:
        self._remember(context)

    async def _parent_changed(self, *, body: kopf.Body, **context: Any) -> None:
        self._remember(context)
        if self.enqueues:
            self._queue.add(Key(body["metadata"]["namespace"], body["metadata"]["name"]))

    async def _child_changed(self, *, body: kopf.Body, **context: Any) -> None:
        self._remember(context)
        if self.enqueues:
            for key in parents(body):
                self._queue.add(key)

    def _remember(self, context: Mapping[str, Any]) -> None:
        if not self._indices:
            wanted = ("modeldeployments", *(plural for *_, plural in (*_CHILDREN, *_RUNTIMES)))
            self._indices = {plural: context[plural] for plural in wanted if plural != "routes"}
            self.listening.set()


def parents(child: Object) -> Iterable[Key]:
    """ModelDeployments that a child says something about: the one it is labelled with, the one that controls it, and,
    for a Route, the one of its name."""
    metadata = child["metadata"]
    found = {metadata.get("labels", {}).get(names.DEPLOYMENT_LABEL)}
    found |= {o["name"] for o in metadata.get("ownerReferences") or () if o.get("kind") == "ModelDeployment"}
    if child.get("kind") == "Route":
        found.add(metadata["name"])
    return [Key(metadata["namespace"], name) for name in sorted(filter(None, found))]


async def _by_name(*, body: kopf.Body, **_: Any) -> Any:
    return {(body["metadata"]["namespace"], body["metadata"]["name"]): dict(body)}


async def _by_stem(*, body: kopf.Body, **_: Any) -> Any:
    return {(body["metadata"]["namespace"], stem(body["metadata"]["name"])): dict(body)}


async def _by_label(*, body: kopf.Body, **_: Any) -> Any:
    parent = body["metadata"].get("labels", {}).get(names.DEPLOYMENT_LABEL)
    return {(body["metadata"]["namespace"], parent): dict(body)} if parent else None


async def _by_namespace(*, body: kopf.Body, **_: Any) -> Any:
    return {body["metadata"].get("namespace", ""): dict(body)}
