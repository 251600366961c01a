"""Pods of the versions: whether they start, and whether they crash.

Knative notices a crash at start only at its progress deadline, and one under traffic only once no pod is left. A
watch of our own, since kopf's cannot ask the API server for pods with a label only: in a large cluster all pods
would stream through the operator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp

from tidegate.adapters.api import Api, ApiError
from tidegate.core.names import DEPLOYMENT_LABEL
from tidegate.core.observed import Object
from tidegate.runtime.queue import Key
from tidegate.runtime.write import Conflict

log = logging.getLogger(__name__)

WATCH_SECONDS = 290
RETRY_SECONDS = 2.0


class Pods:
    """Pods with Tidegate's label, by ModelDeployment, as far as decisions need them."""

    def __init__(self, api: Api, changed: Callable[[Key], None], namespaces: tuple[str, ...] = ()) -> None:
        self._api, self._changed = api, changed
        self._scopes = namespaces or ("",)
        self._seen: dict[Key, dict[str, Object]] = {}
        self._pending = set(self._scopes)
        self.listed = asyncio.Event()
        """Set once every namespace has been listed: before that, absence means nothing."""

    def of(self, key: Key) -> tuple[Object, ...]:
        """The pods of a ModelDeployment."""
        return tuple(self._seen.get(key, {}).values())

    async def run(self) -> None:
        """Watches for ever."""
        async with asyncio.TaskGroup() as group:
            for scope in self._scopes:
                group.create_task(self._follow(scope))

    async def _follow(self, scope: str) -> None:
        path = f"/api/v1/namespaces/{scope}/pods" if scope else "/api/v1/pods"
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._list(scope, path)
                version = await self._watch(path, version)
            except (ApiError, Conflict, aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.warning("the watch on pods broke, listing them anew: %s", error)
                version = None
                await asyncio.sleep(RETRY_SECONDS)

    async def _list(self, scope: str, path: str) -> str:
        listing = await self._api.call("GET", path, {"labelSelector": DEPLOYMENT_LABEL})
        there = {pod["metadata"]["uid"] for pod in listing["items"]}
        for key, pods in list(self._seen.items()):
            for uid in [u for u in pods if u not in there and scope in ("", key.namespace)]:
                self._take("DELETED", pods[uid])
        for pod in listing["items"]:
            self._take("ADDED", pod)
        self._pending.discard(scope)
        if not self._pending:
            self.listed.set()
        return str(listing["metadata"]["resourceVersion"])

    async def _watch(self, path: str, version: str) -> str | None:
        """Follows changes until the server ends the watch. Returns where to go on; None to list anew."""
        query = {
            "labelSelector": DEPLOYMENT_LABEL,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async for event in self._api.stream(path, query, WATCH_SECONDS + 30):
            if event["type"] == "ERROR":
                return None
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                self._take(event["type"], event["object"])
        return version

    def _take(self, change: str, pod: Object) -> None:
        metadata = pod["metadata"]
        key = Key(metadata["namespace"], metadata["labels"][DEPLOYMENT_LABEL])
        known = self._seen.setdefault(key, {})
        before = known.get(metadata["uid"])
        after = None if change == "DELETED" else trimmed(pod)
        if after is None:
            known.pop(metadata["uid"], None)
            if not known:
                del self._seen[key]
        else:
            known[metadata["uid"]] = after
        if before != after:
            self._changed(key)


_KEPT_METADATA = ("name", "namespace", "uid", "labels", "deletionTimestamp")
_KEPT_CONTAINER = ("name", "image", "ready", "restartCount", "state", "lastState")


def trimmed(pod: Object) -> Object:
    """What decisions need of a pod; the rest would only fill memory."""
    metadata, status = pod["metadata"], pod.get("status", {})

    def containers(part: str) -> list[dict[str, Any]]:
        return [{k: c[k] for k in _KEPT_CONTAINER if k in c} for c in status.get(part) or ()]

    return {
        "metadata": {k: metadata[k] for k in _KEPT_METADATA if k in metadata},
        "status": {
            "phase": status.get("phase"),
            "conditions": [c for c in status.get("conditions") or () if c["type"] in ("Ready", "PodScheduled")],
            "initContainerStatuses": containers("initContainerStatuses"),
            "containerStatuses": containers("containerStatuses"),
        },
    }
