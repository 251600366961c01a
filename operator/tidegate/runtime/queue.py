"""A work queue of keys: one in flight per key, repeats merged, failures backed off, wake-ups by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple


class Key(NamedTuple):
    """A ModelDeployment by namespace and name."""

    namespace: str
    name: str


class KeyQueue:
    """Keys that want a pass.

    A key added while it is being worked on is worked on again afterwards, never at the same time. Times are those of
    `clock`, the event loop's unless given. All methods must be called from the event loop.
    """

    def __init__(self, clock: Callable[[], float] | None = None, backoff: tuple[float, float] = (0.25, 60.0)) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._first, self._most = backoff
        self._due: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due now."""
        now = self._clock()
        return sum(at <= now for at in self._due.values())

    def lag(self) -> float:
        """Seconds that the longest waiting key has been due."""
        now = self._clock()
        return max((now - at for key, at in self._due.items() if key not in self._busy), default=0.0)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Asks for a pass in `delay` seconds; of two requests the earlier stands."""
        at = self._clock() + delay
        if at < self._due.get(key, float("inf")):
            self._due[key] = at
            self._changed.set()

    def forget(self, key: Key) -> None:
        """Drops a key that no longer exists."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key that is due and not in flight; waits for one. Ends with `done` or `failed`."""
        while True:
            now = self._clock()
            ready = [(at, key) for key, at in self._due.items() if key not in self._busy]
            if ready:
                at, key = min(ready)
                if at <= now:
                    del self._due[key]
                    self._busy.add(key)
                    return key
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min(ready)[0] - now if ready else None)
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """The pass went well."""
        self._busy.discard(key)
        self._failures.pop(key, None)
        self._changed.set()

    def failed(self, key: Key) -> float:
        """The pass failed: tries again, later each time. Returns the delay in seconds."""
        self._busy.discard(key)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(self._first * 2.0 ** min(failures - 1, 64), self._most)  # 2.0 ** 1024 is an error
        self.add(key, delay)
        self._changed.set()
        return delay
