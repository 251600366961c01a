"""One pass over one ModelDeployment, and the workers that make passes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from tidegate.core.decide import Decision, decide
from tidegate.core.observed import Object, Observed
from tidegate.core.rollout.ledger import Entry
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.write import Cluster, Conflict, Writer

log = logging.getLogger(__name__)

BLOCKED_RETRY = timedelta(seconds=30)
"""How soon to look again at what only a person can mend, and nothing that is watched may tell of."""


class Source(Protocol):
    """What a pass looks at."""

    async def gather(self, key: Key) -> Observed | None:
        """Everything that a decision about the key depends on; None if the ModelDeployment is gone."""


class Telemetry(Protocol):
    """What a pass tells about itself."""

    def passed(self, key: Key, observed: Observed, decision: Decision, seconds: float, writes: int) -> None:
        """A pass went well."""

    def failed(self, key: Key, error: Exception) -> None:
        """A pass failed and is tried again."""

    def gone(self, key: Key) -> None:
        """The ModelDeployment is gone."""


class Ledger(Protocol):
    """Where decisions are kept."""

    async def write(self, about: Object, entries: Sequence[Entry]) -> None:
        """Adds lines about a ModelDeployment. One that cannot be kept is lost: that is no error."""


class Reconciler:
    """Makes passes: gather, decide, write."""

    def __init__(
        self,
        source: Source,
        cluster: Cluster,
        telemetry: Telemetry,
        now: Callable[[], datetime],
        queue: KeyQueue,
        ledger: Ledger | None = None,
    ) -> None:
        self._source, self._telemetry, self._now, self._queue, self._ledger = source, telemetry, now, queue, ledger
        self._writer = Writer(cluster)

    async def reconcile(self, key: Key) -> datetime | None:
        """One pass. Returns when to make the next if nothing happens before."""
        started = time.perf_counter()
        observed = await self._source.gather(key)
        if observed is None or observed.deployment["metadata"].get("deletionTimestamp"):
            self._writer.forget(*key)
            self._queue.forget(key)
            self._telemetry.gone(key)
            return None
        observed = replace(observed, refused=self._writer.refused(key))
        before = self._writer.writes
        decision = decide(observed, self._now())
        if self._ledger and decision.ledger:  # before the status, so that nothing that was decided is missing in it
            await self._ledger.write(observed.deployment, decision.ledger)
        await self._writer.write(observed, decision)
        took = time.perf_counter() - started
        self._telemetry.passed(key, observed, decision, took, self._writer.writes - before)
        refused = self._writer.refused(key)
        if refused.keys() != observed.refused.keys():
            return self._now()  # for the status to say so
        if decision.wake_at is None and (decision.blocked or refused):
            return self._now() + BLOCKED_RETRY
        return decision.wake_at

    async def work(self) -> None:
        """Takes keys from the queue for ever. A failed pass is logged, counted and tried again."""
        while True:
            key = await self._queue.get()
            try:
                wake_at = await self.reconcile(key)
            except Conflict:
                self._queue.failed(key)
            except Exception as error:
                delay = self._queue.failed(key)
                self._telemetry.failed(key, error)
                log.exception("%s/%s: pass failed, next try in %.1f s", *key, delay)
            else:
                self._queue.done(key)
                if wake_at is not None:
                    self._queue.add(key, max(0.05, (wake_at - self._now()).total_seconds()))
