"""Numbers from Prometheus: for guardrails with queries of their own, and all counts where it is asked for them."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import aiohttp

from tidegate.adapters.api import Api, words_of
from tidegate.adapters.sources.ingresses import Ingresses
from tidegate.adapters.sources.reading import Unreadable, within_budget
from tidegate.core.rollout import envoy, series
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.core.rollout.envoy import Garbage
from tidegate.core.rollout.ingress import CHANGING, LONG, Routes
from tidegate.core.rollout.series import Counters, Found, Series
from tidegate.core.rollout.tally import Look, Tally
from tidegate.runtime.queue import Key

TOGETHER = 8
"""Queries that are under way at one time."""
STALE = 3
"""Scrapes that may be missed before counts are too old."""


@dataclass(frozen=True)
class Server:
    """How to reach Prometheus, or what speaks its API."""

    url: str = ""
    """Empty if there is none."""
    token_file: Path | None = None
    """File with a bearer token. Read again each time: tokens are renewed under way."""
    ca_file: Path | None = None
    """File with the certificates to trust, instead of the system's. Read again when it changes."""
    timeout: float = 3.0
    """Seconds that a query may take."""
    scrape_interval: float = 15.0
    """Seconds between two scrapes of the gateway."""
    matchers: str = 'namespace="kourier-system"'
    """Label matchers that choose the gateway's pods, each once, among all Envoys that are scraped."""
    counters: Counters | None = None
    """Where the counts are, for a gateway other than Kourier's Envoy."""


class NoValue(Unreadable):
    """The query has no value now; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What a query gives."""

    kind: str
    """scalar, vector, matrix or string."""
    result: Any


class Prometheus:
    """Asks queries."""

    def __init__(self, session: aiohttp.ClientSession, server: Server) -> None:
        self._session, self._server = session, server
        self._turns = asyncio.Semaphore(TOGETHER)
        self._tls: tuple[float, ssl.SSLContext] | None = None

    async def value(self, promql: str) -> float:
        """The one number that a query has as its result. `NoValue` if it has none, or more than one."""
        return one(await self.ask(promql))

    async def ask(self, promql: str) -> Answer:
        """The result of a query, now. `NoValue` if there is none, or if Prometheus warns that it is not whole."""
        server = self._server
        if not server.url:
            raise NoValue("the operator knows of no Prometheus (prometheus.url of the chart)")
        try:
            headers = {}
            if server.token_file:
                headers["Authorization"] = f"Bearer {server.token_file.read_text(encoding='utf-8').strip()}"
            async with (
                self._turns,
                self._session.post(
                    server.url.rstrip("/") + "/api/v1/query",
                    data={"query": promql, "timeout": f"{server.timeout:g}s"},
                    headers=headers,
                    ssl=self._trusted(),
                    timeout=aiohttp.ClientTimeout(total=server.timeout),
                    allow_redirects=False,  # to a login page mostly, and the token is not for others
                ) as response,
            ):
                status = response.status
                raw = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoValue(f"Prometheus cannot be asked: {words_of(error)}") from error
        except ValueError as error:
            told = f"Prometheus answers {status} with something that is not JSON; is prometheus.url right?"
            raise NoValue(told) from error
        return read(status, raw)

    def _trusted(self) -> ssl.SSLContext | bool:
        if not self._server.ca_file:
            return True
        changed = self._server.ca_file.stat().st_mtime
        if self._tls is None or self._tls[0] != changed:
            self._tls = changed, ssl.create_default_context(cafile=str(self._server.ca_file))
        return self._tls[1]


def read(status: int, raw: Any) -> Answer:
    """An answer of the API. `NoValue` if it is a refusal, not whole or no answer at all."""
    if not isinstance(raw, dict) or raw.get("status") != "success" or status != 200:
        told = raw.get("error") if isinstance(raw, dict) else None
        raise NoValue(f"Prometheus refuses the query: {told or f'status {status}'}"[:512])
    if raw.get("warnings"):
        raise NoValue(
            f"Prometheus warns that the result may not be whole: {'; '.join(map(str, raw['warnings']))}"[:512]
        )
    data = raw.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("result"), list):
        raise NoValue("Prometheus answers with something that is no result of a query")
    return Answer(str(data.get("resultType")), data["result"])


def one(answer: Answer) -> float:
    """The number in an answer. `NoValue` if there is none, or more than one, or one that is not finite."""
    if answer.kind not in ("scalar", "vector"):
        raise NoValue(f"the query gives a {answer.kind}; it has to give one number")
    if answer.kind == "vector" and len(answer.result) != 1:
        raise NoValue(f"the query gives {len(answer.result)} series; it has to give one number")
    try:
        value = answer.result[1] if answer.kind == "scalar" else answer.result[0]["value"][1]
        number = float(value)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NoValue("Prometheus answers with something that is no number") from error
    if not isfinite(number):
        raise NoValue(f"the query gives {value}")
    return number


class PrometheusCounts:
    """Counts of the gateway as Prometheus has scraped them, for who lets nothing else reach the gateway's pods, or has
    a gateway other than Kourier."""

    def __init__(self, api: Api, prometheus: Prometheus, server: Server, *, clusterwide: bool = True) -> None:
        """`clusterwide`: KIngresses of all namespaces may be listed at once."""
        self._prometheus, self._server = prometheus, server
        self._ingresses = Ingresses(api, clusterwide)
        self._tally: Tally[Key] = Tally()
        self._since: dict[Key, tuple[str, float]] = {}

    async def read(self, asks: Mapping[Key, Ask]) -> dict[Key, Reading[Requests]]:
        """A reading for each ask. What goes wrong is told in the reading, never as an error."""
        self._tally.keep(asks.keys())
        self._since = {key: since for key, since in self._since.items() if key in asks}
        return await within_budget(asks, self._read)

    async def _read(self, asks: Mapping[Key, Ask]) -> dict[Key, Reading[Requests]]:
        before = await self._ingresses.routes(asks)
        seen = time.time()
        now, up = await self._up()
        times, scrapes = await (self._others(asks) if self._server.counters else self._envoys(asks))
        after = await self._ingresses.routes(asks)
        # the samples of a pod that has gone linger for a while
        times = {target: t for target, t in times.items() if target in {each.target for each in up}}
        if not times:
            raise Garbage(
                f"Prometheus has no counters of the gateway from the last {self._range}; does it scrape the gateway's "
                "pods, every prometheus.scrapeInterval of the chart?"
            )
        if lost := series.lost(up, times):
            raise Garbage(f"Prometheus cannot scrape {len(lost)} of the gateway's pods ({', '.join(lost[:3])})")
        # The mean, so that it moves on whenever any pod has been scraped again, and only then.
        look = Look(sum(times.values()) / len(times), {name: scrapes[name] for name in map("/".join, times)})
        # by our clock, at the earliest: Prometheus' own `now` was when it answered, which is after `seen`
        oldest = min(times.values()) - (now - seen)
        doubtful = {key for key in asks if not self._lasted(key, before[key], seen, oldest)}
        sound = {key: ask for key, ask in asks.items() if key not in doubtful}
        found = self._tally.readings(sound, dict.fromkeys(asks, look), before, after, seen)
        return {
            key: Reading(seen, trouble=before[key].trouble or after[key].trouble or CHANGING, passing=True)
            if key in doubtful
            else found[key]
            for key in asks
        }

    def _lasted(self, key: Key, routes: Routes, seen: float, oldest: float) -> bool:
        """Whether the KIngresses were as they are now when the oldest of the counts was scraped.

        What is asked now was scraped a while ago. Had a change, and the probes that come with it, lain between the
        scrape and its first sight, then both ends of the window would be seen unchanged with probes inside.
        """
        token, since = self._since.get(key, ("", 0.0))
        if key not in self._since or token != routes.token:
            long_ago = seen - routes.since > LONG + STALE * self._server.scrape_interval
            since = 0.0 if long_ago else seen
            self._since[key] = (routes.token, since)
        return oldest >= since

    @property
    def _range(self) -> str:
        """How far back a sample is looked for; older ones are too old to go by."""
        return f"{int(STALE * self._server.scrape_interval * 1000)}ms"

    async def _up(self) -> tuple[float, list[Series]]:
        """Prometheus' time, and whether it can scrape what has been the gateway of late."""
        more = f"{{{self._server.matchers}}}" if self._server.matchers else ""
        targets = self._server.counters.targets if self._server.counters else f"envoy_server_live{more}"
        answer = await self._prometheus.ask(f"up and on (job, instance) max_over_time({targets}[10m])")
        try:
            up = [Series(each["metric"], [(float(each["value"][0]), each["value"][1])]) for each in answer.result]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise NoValue("Prometheus answers with something that is no vector") from error
        if not up:
            raise NoValue(f"Prometheus has not scraped the gateway in 10 minutes: there is no {targets} with an `up`")
        return up[0].samples[0][0], up

    async def _envoys(self, asks: Mapping[Key, Ask]) -> tuple[dict[series.Target, float], dict[str, envoy.Scrape]]:
        clusters = {envoy.cluster(*version) for version in series.versions_of(asks.values())}
        # one query, so that whatever it gives of a scrape, it gives all of it
        return series.envoys(await self._samples(series.selector(clusters, self._server.matchers)))

    async def _others(self, asks: Mapping[Key, Ask]) -> tuple[dict[series.Target, float], dict[str, envoy.Scrape]]:
        counters = self._server.counters
        assert counters is not None  # noqa: S101  # or nobody calls this
        times = series.scraped(
            await self._samples(counters.targets)
        )  # first: the rest has these scrapes, or later ones

        async def version(namespace: str, revision: str) -> Found:
            templates = (counters.requests, counters.errors, counters.latency)
            return Found(
                *await asyncio.gather(
                    *(self._samples(series.filled(template, namespace, revision)) for template in templates)
                )
            )

        versions = sorted(series.versions_of(asks.values()))
        found = await asyncio.gather(*(version(*each) for each in versions))
        return times, series.others(times, dict(zip(versions, found, strict=True)))

    async def _samples(self, selector: str) -> list[Series]:
        if not selector:
            return []
        answer = await self._prometheus.ask(f"{selector}[{self._range}]")
        return series.parse(answer.result)
