"""What every process of Tidegate that serves has in common: it ends when it is told to, and logs to stderr."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable


def heed_signals(stop: asyncio.Event) -> None:
    """Lets SIGTERM and SIGINT set `stop`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def until_told(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs until a signal sets the event that `run` is given."""
    stop = asyncio.Event()
    heed_signals(stop)
    await run(stop)


def log_to_stderr(level: str) -> None:
    """Logs what is of that level (debug, info, warning) or above, a line each."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
