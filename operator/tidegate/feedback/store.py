"""Counters that are on disk before anybody is told of them.

Items that arrive while the disk is busy go to it together, with one sync for all (group commit): a busy service syncs
no more often than the disk allows, and an idle one makes nobody wait for others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tidegate.feedback.items import Item
from tidegate.feedback.journal import Full, Journal
from tidegate.feedback.totals import Commit, Outcome, Totals

log = logging.getLogger(__name__)

Waiting = tuple[Sequence[Item], asyncio.Future[list[Outcome]]]


class Closed(Exception):
    """The store takes nothing any more: the service is about to end."""


class Store:
    """The counters, for one event loop.

    Attributes:
        totals: what is durable. Nobody else may change it.
        observe: called with the seconds that each commit took.
    """

    def __init__(self, journal: Journal, compact_at: int, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            journal: where it is kept.
            compact_at: bytes of log at which a snapshot takes their place.
            clock: seconds since the epoch.
        """
        self.totals: Totals = journal.totals
        self.observe: Callable[[float], None] = lambda _: None
        self._journal, self._compact_at, self._clock = journal, compact_at, clock
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._waiting: list[Waiting] = []
        self._arrived = asyncio.Event()
        self._closed = False

    @property
    def log_bytes(self) -> int:
        """Size of the present log."""
        return self._journal.size

    async def add(self, items: Sequence[Item]) -> list[Outcome]:
        """What became of each item, once that is durable.

        Raises:
            Full: there is no room on the disk; none of the items was taken.
            Closed: the service ends; whether the items were taken is not known.
        """
        if self._closed:
            raise Closed("the service is about to end")
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Brings to the disk what arrives, until cancelled; then whoever waits is told that it is over.

        Raises:
            OSError: the disk failed. Only a new process, which reads what is there, can go on.
        """
        batch: list[Waiting] = []
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
                if self._journal.size >= self._compact_at:
                    await self._compact()
        finally:
            self._closed = True
            for _, future in (*batch, *self._waiting):
                if not future.done():
                    future.set_exception(Closed("the service is about to end"))
            self._disk.shutdown()

    async def _commit(self, batch: Iterable[Waiting]) -> None:
        commit, outcomes = self.totals.judge((item for items, _ in batch for item in items), int(self._clock()))
        if commit.items:
            begun = time.perf_counter()
            try:
                await self._on_disk(self._journal.append, commit)
            except Full as full:
                log.error("%s", full)
                for _, future in batch:
                    if not future.done():
                        future.set_exception(Full(str(full)))
                return
            self.totals.apply(commit)
            self.observe(time.perf_counter() - begun)
        told = iter(outcomes)
        for items, future in batch:
            mine = [next(told) for _ in items]
            if not future.done():  # a client that has gone away waits no more
                future.set_result(mine)

    async def _compact(self) -> None:
        try:
            await self._on_disk(self._journal.compact, self.totals)
        except Full as full:
            log.error("%s; the log grows until there is room", full)

    async def _on_disk(self, act: Callable[..., None], argument: Commit | Totals) -> None:
        """Lets the disk's thread act, to its end even if this task is cancelled: half done is not an outcome."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._disk, act, argument))
