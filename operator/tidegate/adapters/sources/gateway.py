"""Counts from the gateway: every pod of Kourier's Envoy is asked for its statistics.

All judged rollouts share one look: a list of the gateway's pods, a list of the KIngresses of each namespace before and
after, and one request to each pod. What might let a probe of Knative's in, or a pod's counters out, is a trouble of the
reading or changes its mark; see core/rollout/ingress.py and core/rollout/envoy.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp

from tidegate.adapters.api import Api, ApiError
from tidegate.core.observed import Object
from tidegate.core.rollout import envoy, ingress
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.core.rollout.ingress import KIngress, Routes

K = TypeVar("K")
KINGRESSES = "/apis/networking.internal.knative.dev/v1alpha1"
PATIENCE = 3.0
"""Seconds that a pod may take to answer: less than until the next look."""


@dataclass(frozen=True)
class Where:
    """Which pods are the gateway."""

    namespace: str = "kourier-system"
    selector: str = "app=3scale-kourier-gateway"
    port: int = 9000
    """Port of Envoy's statistics."""


class Gateway:
    """Reads the counters of Revisions. `direct`: pods can be reached by their address, as from another pod."""

    def __init__(self, api: Api, session: aiohttp.ClientSession, where: Where, *, direct: bool) -> None:
        self._api, self._session, self._where, self._direct = api, session, where, direct

    async def read(self, asks: Mapping[K, Ask]) -> dict[K, Reading[Requests]]:
        """A reading for each ask. What goes wrong is told in the reading, never as an error."""
        if not asks:
            return {}
        try:
            pods = await self._pods()
            before = await self._routes(asks)
            wanted = {
                key: {envoy.cluster(ask.namespace, revision) for revision in ask.versions.values()}
                for key, ask in asks.items()
            }
            t = time.time()
            told: dict[K, Sequence[Mapping[str, Requests]]] = {}
            for part in envoy.portions(wanted):
                selection = envoy.selection(name for key in part for name in wanted[key])
                scrapes = await asyncio.gather(*(self._scrape(pod, selection) for pod in pods))
                clusters = [scrape.clusters for scrape in scrapes]
                told |= dict.fromkeys(part, clusters)
            after = await self._routes(asks)
            still = _mark_of(await self._pods())
        except (_Trouble, ApiError, envoy.Garbage, aiohttp.ClientError, TimeoutError, OSError) as error:
            why = f"the gateway's counts cannot be read: {str(error) or 'no answer in time'}"
            return {key: Reading(time.time(), trouble=why) for key in asks}
        mark = _mark_of(pods)
        if mark != still:
            return {key: Reading(t, trouble="the gateway's pods are changing") for key in asks}
        return {key: _reading(ask, t, mark, told[key], before[key], after[key]) for key, ask in asks.items()}

    async def _pods(self) -> list[Object]:
        path = f"/api/v1/namespaces/{self._where.namespace}/pods"
        listing = await self._api.call("GET", path, {"labelSelector": self._where.selector})
        # one that is leaving still answers users until it has gone
        running = [pod for pod in listing["items"] if pod.get("status", {}).get("phase") == "Running"]
        if not running:
            raise _Trouble(
                f"no pod with the labels {self._where.selector} runs in namespace {self._where.namespace}; say where "
                "the gateway is (gateway.namespace and gateway.selector of the chart)"
            )
        return running

    async def _routes(self, asks: Mapping[K, Ask]) -> dict[K, Routes]:
        found: dict[str, list[KIngress]] = {}
        for namespace in sorted({ask.namespace for ask in asks.values()}):
            listing = await self._api.call("GET", f"{KINGRESSES}/namespaces/{namespace}/ingresses")
            found[namespace] = [ingress.parse(obj) for obj in listing["items"]]
        return {key: ingress.routes(found[ask.namespace], ask.versions.values()) for key, ask in asks.items()}

    async def _scrape(self, pod: Object, selection: str) -> envoy.Scrape:
        name = pod["metadata"]["name"]
        if self._direct:
            address = pod["status"]["podIP"]
            host = f"[{address}]" if ":" in address else address
            url = f"http://{host}:{self._where.port}/stats/prometheus?usedonly&filter={quote(selection, safe='')}"
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as response:
                text = await response.text()
                if response.status != 200:
                    raise _Trouble(f"pod {name} answers {response.status}")
        else:
            path = f"/api/v1/namespaces/{self._where.namespace}/pods/{name}:{self._where.port}/proxy/stats/prometheus"
            async with asyncio.timeout(PATIENCE):
                text = str(await self._api.call("GET", path, {"usedonly": "", "filter": selection}, accept="*/*"))
        try:
            return envoy.read(text)
        except envoy.Garbage as error:
            raise _Trouble(f"pod {name}: {error}") from error


class _Trouble(Exception):
    """Why nothing can be read; the message says it."""


def _mark_of(pods: Iterable[Object]) -> str:
    """Which counters there are: those of a container that was started again are others."""
    return " ".join(
        sorted(
            f"{pod['metadata']['uid']}/{status.get('containerID', '')}"
            for pod in pods
            for status in pod.get("status", {}).get("containerStatuses") or ()
        )
    )


def _reading(
    ask: Ask, t: float, pods: str, told: Sequence[Mapping[str, Requests]], before: Routes, after: Routes
) -> Reading[Requests]:
    """What the gateway says of the versions of one ask."""
    if trouble := before.trouble or after.trouble:
        return Reading(t, trouble=trouble)
    if before.token != after.token:
        return Reading(t, trouble="a change of the Route is coming into force")
    versions: dict[str, Requests] = {}
    for version, revision in ask.versions.items():
        name = envoy.cluster(ask.namespace, revision)
        parts = [clusters[name] for clusters in told if name in clusters]
        if revision in after.routed and len(parts) < len(told):
            return Reading(t, trouble=f"a pod of the gateway does not know of {name} yet")
        versions[version] = envoy.total(parts)
    words: Any = (pods, after.token, sorted(ask.versions.items()))
    return Reading(t, versions, hashlib.sha256(repr(words).encode()).hexdigest()[:12])
