"""Rewards from the feedback service."""

from __future__ import annotations

import time
from math import isfinite
from typing import Any

import aiohttp

from tidegate.adapters.api import words_of
from tidegate.core.rollout.counts import Ask, Reading, Rewards

PATIENCE = aiohttp.ClientTimeout(total=3.0)


class Feedback:
    """Reads the service's totals."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        """`url` is the service's, empty if there is none."""
        self._session, self._url = session, url.rstrip("/")

    async def read(self, ask: Ask) -> Reading[Rewards]:
        """Rewards of the versions of one ask. What goes wrong is told in the reading, never as an error."""
        t = time.time()
        if not self._url:
            told = "a guardrail asks for rewards, and the operator knows of no feedback service (feedback.enabled)"
            return Reading(t, trouble=told)
        query = {"namespace": ask.namespace, "deployment": ask.deployment}
        try:
            async with self._session.get(f"{self._url}/v1/totals", params=query, timeout=PATIENCE) as response:
                if response.status != 200:
                    return Reading(t, trouble=f"the feedback service answers {response.status}")
                raw = await response.json()
            return _reading(raw, ask, t)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Reading(t, trouble=f"the feedback service cannot be read: {words_of(error)}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Reading(t, trouble=f"the feedback service answers with something that is not its totals: {error!r}")


def _reading(raw: Any, ask: Ask, t: float) -> Reading[Rewards]:
    versions = {}
    for version in ask.versions:
        told = raw["versions"].get(version, {"count": 0, "sum": 0.0, "sumsq": 0.0})
        found = Rewards(int(told["count"]), float(told["sum"]), float(told["sumsq"]))
        if found.count < 0 or not (isfinite(found.total) and isfinite(found.squares)):
            raise ValueError(f"totals of {version} are no counts")
        versions[version] = found
    return Reading(t, versions, str(raw["mark"]))
