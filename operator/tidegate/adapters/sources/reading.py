"""How every source of requests is read: within a time, and what goes wrong is told in the readings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import aiohttp

from tidegate.adapters.api import ApiError, words_of
from tidegate.core.rollout.counts import Ask, Reading, Requests
from tidegate.core.rollout.envoy import Garbage

K = TypeVar("K")
BUDGET = 4.5
"""Seconds that everything may take: less than until the next look."""


class Unreadable(Exception):
    """Why nothing can be read; the message says it."""


async def within_budget(
    asks: Mapping[K, Ask], read: Callable[[Mapping[K, Ask]], Awaitable[dict[K, Reading[Requests]]]]
) -> dict[K, Reading[Requests]]:
    """A reading for each ask. What goes wrong is told in the reading, never as an error."""
    if not asks:
        return {}
    try:
        async with asyncio.timeout(BUDGET):
            return await read(asks)
    except (Unreadable, ApiError, Garbage, aiohttp.ClientError, TimeoutError, OSError) as error:
        why = f"the gateway's counts cannot be read: {words_of(error)}"
        return {key: Reading(time.time(), trouble=why) for key in asks}
