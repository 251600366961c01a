"""KIngresses as they are now, at the cost of their names and versions while nothing changes.

Lists, not a watch: what matters is that nothing had changed by a given moment, and a watch tells only later that
something had. A list without a resourceVersion is as new as the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from tidegate.adapters.api import METADATA, Api
from tidegate.core.rollout.counts import Ask
from tidegate.core.rollout.ingress import KIngress, Routes, parse, routes

K = TypeVar("K")

GROUP = "/apis/networking.internal.knative.dev/v1alpha1"
MANY = 10
"""Namespaces above which one list of the whole cluster is cheaper than one of each."""


class Ingresses:
    """The KIngresses of the namespaces that are asked for."""

    def __init__(self, api: Api, clusterwide: bool = True) -> None:
        """`clusterwide` says whether those of all namespaces may be listed at once."""
        self._api, self._clusterwide = api, clusterwide
        self._known: dict[str, dict[str, KIngress]] = {}

    async def look(self, namespaces: Collection[str]) -> Mapping[str, Collection[KIngress]]:
        """The KIngresses by namespace, as they are at some moment between the call and its end.

        Raises:
            ApiError, aiohttp.ClientError, TimeoutError: they cannot be listed.
        """
        for gone in self._known.keys() - set(namespaces):
            del self._known[gone]
        if self._clusterwide and len(namespaces) > MANY:
            found = _by_namespace(await self._api.call("GET", f"{GROUP}/ingresses", accept=METADATA))
            changed = [n for n in namespaces if not self._same(n, found.get(n, []))]
            if len(changed) > MANY:
                found = _by_namespace(await self._api.call("GET", f"{GROUP}/ingresses"))
                self._known = {n: _parsed(found.get(n, [])) for n in namespaces}
            else:
                await asyncio.gather(*map(self._fetch, changed))
        else:
            await asyncio.gather(*map(self._look, namespaces))
        return {namespace: self._known[namespace].values() for namespace in namespaces}

    async def routes(self, asks: Mapping[K, Ask]) -> dict[K, Routes]:
        """What they say of the Revisions of each ask. Raises what `look` does."""
        found = await self.look({ask.namespace for ask in asks.values()})
        return {key: routes(found[ask.namespace], frozenset(ask.versions.values())) for key, ask in asks.items()}

    async def _look(self, namespace: str) -> None:
        if namespace in self._known:
            listing = await self._api.call("GET", f"{GROUP}/namespaces/{namespace}/ingresses", accept=METADATA)
            if self._same(namespace, listing["items"] or []):
                return
        await self._fetch(namespace)

    async def _fetch(self, namespace: str) -> None:
        listing = await self._api.call("GET", f"{GROUP}/namespaces/{namespace}/ingresses")
        self._known[namespace] = _parsed(listing["items"] or [])

    def _same(self, namespace: str, items: Collection[Mapping[str, Any]]) -> bool:
        known = self._known.get(namespace)
        return known is not None and {uid: i.version for uid, i in known.items()} == {
            item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in items
        }


def _by_namespace(listing: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for item in listing["items"] or []:
        found.setdefault(item["metadata"]["namespace"], []).append(item)
    return found


def _parsed(items: Collection[Mapping[str, Any]]) -> dict[str, KIngress]:
    return {item["metadata"]["uid"]: parse(item) for item in items}
