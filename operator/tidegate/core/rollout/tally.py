"""What the statistics of all of a gateway's pods say of each rollout's versions, as readings that can be relied on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tidegate.core.rollout import envoy
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.core.rollout.envoy import Scrape
from tidegate.core.rollout.ingress import CHANGING, Routes, Settling

K = TypeVar("K")


@dataclass(frozen=True)
class Look:
    """What the gateway's pods told at one time."""

    t: float
    """When, in seconds since the epoch. It grows whenever any pod has told something new."""
    scrapes: Mapping[str, Scrape]
    """By process: a pod, or a container that was started again, has counters of its own."""


@dataclass
class _Process:
    """What is remembered of one Envoy from one look to the next."""

    uptime: int = 0
    clusters: dict[str, Requests] = field(default_factory=dict)
    restarts: int = 0
    """How often it began anew, though it seemed the same."""
    falls: Counter[str] = field(default_factory=Counter)
    """How often a cluster's counters did."""


class Tally(Generic[K]):
    """Readings of many rollouts, from one look to the next.

    What it remembers only makes it notice more; one that starts anew goes on with the same marks, so that a restart
    loses no count.
    """

    def __init__(self) -> None:
        self._settling: Settling[K] = Settling()
        self._processes: dict[str, _Process] = {}

    def keep(self, keys: Collection[K]) -> None:
        """Forgets all rollouts but those."""
        self._settling.keep(keys)
        if not keys:
            self._processes.clear()

    def readings(
        self,
        asks: Mapping[K, Ask],
        looks: Mapping[K, Look],
        before: Mapping[K, Routes],
        after: Mapping[K, Routes],
        now: float,
    ) -> dict[K, Reading[Requests]]:
        """The reading of each ask. All looks have the same processes; `before` and `after` enclose them.

        Raises:
            Garbage: the pods' statistics do not go together.
        """
        distinct = {id(look): look for look in looks.values()}
        self._remember(distinct.values())
        edges = {of: envoy.edges_of(s.clusters for s in look.scrapes.values()) for of, look in distinct.items()}
        return {
            key: self._reading(key, ask, looks[key], edges[id(looks[key])], before[key], after[key], now)
            for key, ask in asks.items()
        }

    def _remember(self, looks: Collection[Look]) -> None:
        """Notices counters that began anew where the sum over all pods would hide it.

        A container that was started again has another id, but the API server may not know yet.
        """
        scrapes = [look.scrapes for look in looks]
        processes = scrapes[0].keys() if scrapes else ()
        self._processes = {process: self._processes.get(process, _Process()) for process in processes}
        for process, known in self._processes.items():
            now: dict[str, Requests] = {}
            for told in scrapes:
                now |= told[process].clusters
            uptime = min(told[process].uptime for told in scrapes)
            known.restarts += uptime < known.uptime
            for name, counts in now.items():
                known.falls[name] += counts.requests < known.clusters.get(name, counts).requests
            known.uptime, known.clusters = uptime, now

    def _reading(
        self, key: K, ask: Ask, look: Look, edges: Sequence[float], before: Routes, after: Routes, now: float
    ) -> Reading[Requests]:
        if trouble := before.trouble or after.trouble:
            return Reading(look.t, trouble=trouble, passing=True)
        if before.token != after.token:
            return Reading(look.t, trouble=CHANGING, passing=True)
        clusters = [scrape.clusters for scrape in look.scrapes.values()]
        names = {version: envoy.cluster(ask.namespace, revision) for version, revision in ask.versions.items()}
        for version, name in names.items():
            unknown = sum(name not in told for told in clusters)
            if unknown and ask.versions[version] in after.routed:
                told = f"{unknown} of {len(clusters)} pods of the gateway do not know {name} yet"
                return Reading(look.t, trouble=told, passing=True)
        uptimes = {process: scrape.uptime for process, scrape in look.scrapes.items()}
        timed = self._settling.settled(key, after, uptimes, now)
        versions = {
            version: envoy.total((told[name] for told in clusters if name in told), edges if timed else ())
            for version, name in names.items()
        }
        anew = [
            (process, known.restarts, [known.falls[name] for name in names.values()])
            for process, known in sorted(self._processes.items())
        ]
        words: Any = (anew, after.token, sorted(ask.versions.items()))
        return Reading(look.t, versions, hashlib.sha256(repr(words).encode()).hexdigest()[:12])
