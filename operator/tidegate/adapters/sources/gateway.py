"""Counts from the gateway: every pod of Kourier's Envoy is asked for its statistics.

All judged rollouts share one look: a list of the gateway's pods and one of the KIngresses before and after, and one
request to each pod. What might let a probe of Knative's in, or a pod's counters out, is a trouble of the reading or
changes its mark; see core/rollout/ingress.py and core/rollout/envoy.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from yarl import URL

from tidegate.adapters.api import Api, ApiError, words_of
from tidegate.adapters.sources.ingresses import Ingresses
from tidegate.adapters.sources.reading import Unreadable, within_budget
from tidegate.core.observed import Object, condition
from tidegate.core.rollout import envoy
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.core.rollout.tally import Look, Tally
from tidegate.runtime.queue import Key

PATIENCE = 3.0
"""Seconds that a pod may take to answer."""


@dataclass(frozen=True)
class Where:
    """Which pods are the gateway."""

    namespace: str = "kourier-system"
    selector: str = "app=3scale-kourier-gateway"
    port: int = 9000
    """Port of Envoy's statistics."""


class Gateway:
    """Reads the counters of Revisions. `direct`: pods can be reached by their address, as from another pod."""

    def __init__(
        self, api: Api, session: aiohttp.ClientSession, where: Where, *, direct: bool, clusterwide: bool = True
    ) -> None:
        """`clusterwide`: KIngresses of all namespaces may be listed at once."""
        self._api, self._session, self._where, self._direct = api, session, where, direct
        self._ingresses = Ingresses(api, clusterwide)
        self._tally: Tally[Key] = Tally()

    async def read(self, asks: Mapping[Key, Ask]) -> dict[Key, Reading[Requests]]:
        """A reading for each ask. What goes wrong is told in the reading, never as an error."""
        self._tally.keep(asks.keys())
        return await within_budget(asks, self._read)

    async def _read(self, asks: Mapping[Key, Ask]) -> dict[Key, Reading[Requests]]:
        pods, before = await asyncio.gather(self._pods(), self._ingresses.routes(asks))
        wanted = {
            key: {envoy.cluster(ask.namespace, revision) for revision in ask.versions.values()}
            for key, ask in asks.items()
        }
        looks: dict[Key, Look] = {}
        for part in envoy.portions(wanted):
            selection = envoy.selection(name for key in part for name in wanted[key])
            t = time.time()
            scrapes = await asyncio.gather(*(self._scrape(pod, selection) for pod in pods.values()))
            looks |= dict.fromkeys(part, Look(t, dict(zip(pods, scrapes, strict=True))))
        after, still = await asyncio.gather(self._ingresses.routes(asks), self._pods())
        if pods.keys() != still.keys():
            told = "the gateway's pods are changing"
            return {key: Reading(look.t, trouble=told, passing=True) for key, look in looks.items()}
        return self._tally.readings(asks, looks, before, after, time.time())

    async def _pods(self) -> dict[str, Object]:
        """The gateway's pods that get requests, by the processes that have their counters."""
        path = f"/api/v1/namespaces/{self._where.namespace}/pods"
        listing = await self._api.call("GET", path, {"labelSelector": self._where.selector})
        # one that is not Ready gets no requests, and need not answer
        ready = {_process(pod): pod for pod in listing["items"] or () if condition(pod)["status"] == "True"}
        if not ready:
            raise Unreadable(
                f"no pod with the labels {self._where.selector} is ready in namespace {self._where.namespace}; say "
                "where the gateway is (gateway.namespace and gateway.selector of the chart), or see why none is: "
                f"kubectl -n {self._where.namespace} get pods"
            )
        return dict(sorted(ready.items()))

    async def _scrape(self, pod: Object, selection: str) -> envoy.Scrape:
        name = pod["metadata"]["name"]
        try:
            async with asyncio.timeout(PATIENCE):
                return envoy.read(await (self._ask if self._direct else self._ask_by_proxy)(pod, selection))
        except (ApiError, envoy.Garbage, aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreadable(
                f"pod {name}, port {self._where.port}: {words_of(error)}. Is Envoy's listener for "
                "statistics there (gateway.port of the chart), and may the operator reach it (NetworkPolicy)?"
            ) from error

    async def _ask(self, pod: Object, selection: str) -> str:
        address = pod["status"]["podIP"]
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._where.port}/stats/prometheus?usedonly&filter={quote(selection, safe='')}"
        async with self._session.get(URL(url, encoded=True)) as response:
            if response.status != 200:
                raise Unreadable(f"it answers {response.status}")
            return await response.text()

    async def _ask_by_proxy(self, pod: Object, selection: str) -> str:
        """By way of the API server, for an operator that runs outside of the cluster."""
        name = f"{pod['metadata']['name']}:{self._where.port}"
        path = f"/api/v1/namespaces/{self._where.namespace}/pods/{name}/proxy/stats/prometheus"
        return str(await self._api.call("GET", path, {"usedonly": "", "filter": selection}, accept="*/*"))


def _process(pod: Object) -> str:
    """Which process has the counters: a container that was started again has others."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return " ".join([pod["metadata"]["uid"], *sorted(status.get("containerID", "") for status in statuses)])
