"""Looks at the sources every few seconds, for all rollouts that are being judged, and keeps what it saw last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from tidegate.adapters.sources.prometheus import NoValue
from tidegate.adapters.sources.reading import BUDGET
from tidegate.core.rollout.counts import Ask, Reading, Requests, Rewards, Sample
from tidegate.runtime.queue import Key

INTERVAL = 5.0
"""Seconds between two looks: a block of evidence takes no less."""
TOGETHER = 16
"""Readings of rewards that are under way at one time."""


class RequestCounts(Protocol):
    """A source of requests."""

    def read(self, asks: Mapping[Key, Ask]) -> Awaitable[dict[Key, Reading[Requests]]]:
        """A reading for each ask; what goes wrong is told in the reading."""


class RewardCounts(Protocol):
    """A source of rewards."""

    def read(self, ask: Ask) -> Awaitable[Reading[Rewards]]:
        """A reading; what goes wrong is told in it."""


class Values(Protocol):
    """A source of single numbers."""

    def value(self, promql: str) -> Awaitable[float]:
        """What a query gives; `NoValue` if that is not one number."""


class Sampler:
    """The newest sample of each ModelDeployment that is judged."""

    def __init__(
        self,
        requests: RequestCounts,
        rewards: RewardCounts,
        values: Values,
        asks: Callable[[], Mapping[Key, Ask]],
        changed: Callable[[Key], None],
        took: Callable[[float, bool], None],
    ) -> None:
        """`asks` says what to count, `changed` is told of each new sample, `took` of the seconds of a look and whether
        all of it could be read."""
        self._requests, self._rewards, self._values = requests, rewards, values
        self._asks, self._changed, self._took = asks, changed, took
        self._turns = asyncio.Semaphore(TOGETHER)
        self._latest: dict[Key, Sample] = {}

    def latest(self, key: Key) -> Sample | None:
        """What was seen last; None before the first look."""
        return self._latest.get(key)

    async def run(self) -> None:
        """Looks for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self.look()
            due = max(due + INTERVAL, loop.time())  # after a slow look the grid begins anew
            await asyncio.sleep(due - loop.time())

    async def look(self) -> None:
        """One look at everything that is asked for."""
        asks = dict(self._asks())
        for gone in self._latest.keys() - asks.keys():
            del self._latest[gone]
        if not asks:
            return
        started = time.monotonic()
        readings, extras = await asyncio.gather(
            self._requests.read(asks), asyncio.gather(*(self._extra(ask) for ask in asks.values()))
        )
        for (key, reading), (rewards, values, troubles) in zip(readings.items(), extras, strict=True):
            # its own time: what Prometheus had may be older than a trouble that was told before
            self._latest[key] = Sample(time.time(), reading, rewards, values, troubles, asks[key])
            self._changed(key)
        self._took(time.monotonic() - started, not any(reading.trouble for reading in readings.values()))

    async def _extra(self, ask: Ask) -> tuple[Reading[Rewards] | None, dict[str, float], dict[str, str]]:
        """Rewards and the values of queries, where they are asked for."""
        values: dict[str, float] = {}
        troubles: dict[str, str] = {}

        async def value(name: str, promql: str) -> None:
            try:
                async with asyncio.timeout(BUDGET):
                    values[name] = await self._values.value(promql)
            except NoValue as error:
                troubles[name] = str(error)
            except TimeoutError:
                troubles[name] = "Prometheus has not answered in time; there may be too many queries for it"

        async def rewards() -> Reading[Rewards] | None:
            if not ask.rewards:
                return None
            async with self._turns:
                return await self._rewards.read(ask)

        read, *_ = await asyncio.gather(rewards(), *(value(*query) for query in ask.queries.items()))
        return read, values, troubles
